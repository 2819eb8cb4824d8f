package hypervisor

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// State is the state of a domain.
type State string

// The states of a domain.
const (
	StateRunning      State = "running"
	StatePaused       State = "paused"
	StateShuttingDown State = "shuttingDown"
	StateShutOff      State = "shutOff"
	// StateCrashed: the guest panicked and the domain is kept for inspection.
	// Its process still exists.
	StateCrashed   State = "crashed"
	StateSuspended State = "suspended"
	StateUnknown   State = "unknown"
)

// StopCause says why a domain stopped. It decides whether the VM is to be
// restarted: see Restart.
type StopCause string

// The causes.
const (
	// StopNone: the domain is active, or has never run.
	StopNone StopCause = ""
	// StopGuestShutdown: the guest powered itself off, by its own user or by
	// a shutdown request.
	StopGuestShutdown StopCause = "guestShutdown"
	// StopHostSignal: the VM's process was told to end by a signal, as a
	// host's shutdown does it. Only events can tell it; after missed events
	// it looks like StopGuestShutdown.
	StopHostSignal StopCause = "hostSignal"
	// StopDestroyed: somebody killed the domain through the hypervisor.
	StopDestroyed StopCause = "destroyed"
	// StopCrashed: the VM's process died, or the guest panicked.
	StopCrashed StopCause = "crashed"
	// StopFailed: the domain failed to start.
	StopFailed StopCause = "failed"
	// StopMigrated: the domain runs on another host now.
	StopMigrated StopCause = "migrated"
	// StopSaved: the domain was saved to a file and will be restored.
	StopSaved StopCause = "saved"
	// StopSnapshot: a snapshot in which it was off was restored.
	StopSnapshot StopCause = "snapshot"
	// StopDaemonLost: the hypervisor's daemon found it gone after its own
	// restart and cannot say why.
	StopDaemonLost StopCause = "daemonLost"
	// StopUnknown: no cause is known, as for a domain that was off when the
	// daemon started. Look at earlier knowledge.
	StopUnknown StopCause = "unknown"
)

// Restart reports whether a VM that stopped for this cause stopped against
// its owner's will, as far as the cause tells.
func (c StopCause) Restart() bool {
	switch c {
	case StopCrashed, StopFailed, StopDaemonLost, StopHostSignal:
		return true
	}
	return false
}

// Domain is what List says of one domain.
type Domain struct {
	VM   model.VMID
	Name string
	// ID is the hypervisor's number of this run of the domain; -1 when it is
	// not active. Another number means another run.
	ID     int32
	Active bool
	State  State
	// Reason is the driver's word for why State is what it is, such as
	// "booted", "user", "ioError". For people; code looks at Cause.
	Reason string
	// Cause says why an inactive domain stopped; StopNone if it is active.
	Cause      StopCause
	Persistent bool
	Autostart  bool
}

// EventKind names what an Event reports.
type EventKind string

// The kinds of events.
const (
	EventDefined   EventKind = "defined"
	EventUndefined EventKind = "undefined"
	// EventStarted: a process exists; it may be paused.
	EventStarted   EventKind = "started"
	EventSuspended EventKind = "suspended"
	EventResumed   EventKind = "resumed"
	// EventShuttingDown: the guest or a signal ended it, EventStopped follows.
	EventShuttingDown EventKind = "shuttingDown"
	EventStopped      EventKind = "stopped"
	// EventPanicked: the guest's panic device fired. EventStopped follows
	// unless the domain is configured to stay.
	EventPanicked          EventKind = "panicked"
	EventAgentConnected    EventKind = "agentConnected"
	EventAgentDisconnected EventKind = "agentDisconnected"
	// EventIOError: a disk reported an error. Detail is the reason ("enospc"
	// or empty) and the action taken, Disk the source.
	EventIOError EventKind = "ioError"
	// EventWatchdog: the guest's watchdog device fired.
	EventWatchdog EventKind = "watchdog"
	// EventDisconnected: the daemon is lost; Detail says how it was noticed.
	// It comes once for each loss, and if the first attempt to connect fails.
	EventDisconnected EventKind = "disconnected"
	// EventResync: the connection is new, or the daemon answers again, or the
	// reader was so slow that events were dropped, or domains changed without
	// an event. List again.
	EventResync EventKind = "resync"
)

// Event is something that happened to a domain or to the connection.
type Event struct {
	Kind EventKind
	// VM and Name are empty for EventDisconnected and EventResync.
	VM   model.VMID
	Name string
	// Cause is set for EventStopped.
	Cause StopCause
	// Detail is the driver's word for the circumstances.
	Detail string
	// Disk is the failing disk of an EventIOError.
	Disk string
}

// Stats are counters of a running domain since its start.
type Stats struct {
	VM model.VMID
	// CPUTime is the processor time used.
	CPUTime time.Duration
	// Memory is what the guest has at present, MaxMemory what it may have.
	Memory, MaxMemory model.MiB
	VCPUs             int
	// Disks has the disk counters, nil if they could not be read: then
	// NoDisks says why (the VM is frozen, or the driver waits for others
	// that are).
	Disks   []DiskStats
	NoDisks string
}

// DiskStats are counters of one disk.
type DiskStats struct {
	// Target is the disk's name in the domain ("vda").
	Target                 string
	Reads, Writes, Flushes uint64
	ReadBytes, WriteBytes  uint64
}

// Connection describes the connection to the hypervisor's daemon.
type Connection struct {
	// Up: the daemon answers.
	Up bool
	// Err says why not; nil if and only if Up.
	Err error
}
