package hypervisor

import (
	"context"
	"time"

	"hanok.dev/hanok/internal/model"
)

// ShutdownMethod is how a guest was asked to shut down.
type ShutdownMethod string

// The methods.
const (
	ShutdownByAgent ShutdownMethod = "guestAgent"
	ShutdownByACPI  ShutdownMethod = "acpi"
)

// Driver runs domains on this host. All methods may be called concurrently;
// all errors are *Error. See the package comment for what holds for all.
type Driver interface {
	// Events returns the one channel of events. It is closed by Close. A
	// slow reader loses events and gets an EventResync instead.
	Events() <-chan Event
	// Connection reports the connection as it is now.
	Connection() Connection

	// List returns all domains of this host. Safe with frozen VMs.
	List(ctx context.Context) ([]Domain, error)
	// XML returns a domain's definition: of its next start if inactive is
	// set, else as it runs.
	XML(ctx context.Context, vm model.VMID, inactive bool) (string, error)
	// Stats returns counters of all active domains. Those for which frozen
	// says true get no disk counters; frozen may be nil. Safe with frozen
	// VMs, whatever frozen says, but costs time if it is wrong.
	Stats(ctx context.Context, frozen func(model.VMID) bool) ([]Stats, error)

	// Define makes a domain known, or replaces its definition; it takes
	// effect at the next start.
	Define(ctx context.Context, xml string) (model.VMID, error)
	// Undefine forgets a domain, and leaves its disks, NVRAM and TPM state.
	// A running domain runs on and vanishes when it stops. KindNoDomain if
	// there is none.
	Undefine(ctx context.Context, vm model.VMID) error
	// SetAutostart says whether the daemon starts the domain at its own
	// start.
	SetAutostart(ctx context.Context, vm model.VMID, on bool) error

	// StartPaused creates the domain's process with its processors stopped.
	// Resume continues it. KindRunning if it is active. It is always a cold
	// boot: memory saved on this host earlier is discarded.
	StartPaused(ctx context.Context, vm model.VMID) error
	// Resume lets a paused domain's processors run.
	Resume(ctx context.Context, vm model.VMID) error
	// Reset restarts the guest as by the reset button.
	Reset(ctx context.Context, vm model.VMID) error
	// Shutdown asks the guest to shut down: through its agent if that
	// answers, else by the power button. It does not wait for the guest.
	Shutdown(ctx context.Context, vm model.VMID) (ShutdownMethod, error)
	// Kill ends the domain at once. It returns nil if it is not running.
	Kill(ctx context.Context, vm model.VMID) error

	// AgentPing returns nil if the guest's agent answers within timeout,
	// which is rounded up to whole seconds.
	AgentPing(ctx context.Context, vm model.VMID, timeout time.Duration) error
	// Canary proves that the daemon asks the hook before it starts a domain:
	// it tries to start an empty domain of that name, and returns nil only
	// if a hook's refusal contains token. The domain never runs and nothing
	// of it is left.
	Canary(ctx context.Context, name, token string) error

	// Close ends all calls and connections and waits for them. The driver
	// is of no use afterwards.
	Close() error
}
