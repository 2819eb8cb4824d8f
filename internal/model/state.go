package model

// Role is what a host's agent is in its cluster.
type Role string

// The roles of an agent.
const (
	RolePrimary   Role = "primary"
	RoleSecondary Role = "secondary"
	RoleNone      Role = "none"
)

// HostState is the state of a host as its cluster sees it.
type HostState string

// The states of a host (shared vocabulary of every output).
const (
	HostUninitialized    HostState = "uninitialized"
	HostElection         HostState = "election"
	HostPrimary          HostState = "primary"
	HostConnected        HostState = "connected"
	HostPartitioned      HostState = "partitioned"
	HostIsolated         HostState = "isolated"
	HostAgentUnreachable HostState = "agentUnreachable"
	HostFailed           HostState = "failed"
	HostMaintenance      HostState = "maintenance"
	HostQuarantine       HostState = "quarantine"
	HostStandby          HostState = "standby"
	HostDisconnected     HostState = "disconnected"
	HostInitError        HostState = "initError"
)

// VMState is the state of a virtual machine as its cluster sees it.
type VMState string

// The states of a virtual machine.
const (
	VMStarted   VMState = "started"
	VMStopped   VMState = "stopped"
	VMStarting  VMState = "starting"
	VMStopping  VMState = "stopping"
	VMQueued    VMState = "queued"
	VMMigrating VMState = "migrating"
	VMRecovery  VMState = "recovery"
	VMFence     VMState = "fence"
	VMError     VMState = "error"
	VMDisabled  VMState = "disabled"
	VMIgnored   VMState = "ignored"
	VMFrozen    VMState = "frozen"
)

// FenceClass says what stops I/O already in flight on a datastore when its
// owner falls silent; it decides when a lock may be taken over
// (docs/protocol.md, "Fence class").
type FenceClass string

// The fence classes.
const (
	// FenceStorage: a driver can revoke a client.
	FenceStorage FenceClass = "storage"
	// FenceReset: the owner's armed watchdog resets it inside the lease.
	FenceReset FenceClass = "reset"
	// FenceNone: nothing can be promised; proof of death only.
	FenceNone FenceClass = "none"
)

// Priority is a VM's restart priority.
type Priority string

// The restart priorities, from never restarted to first.
const (
	PriorityDisabled Priority = "disabled"
	PriorityLowest   Priority = "lowest"
	PriorityLow      Priority = "low"
	PriorityMedium   Priority = "medium"
	PriorityHigh     Priority = "high"
	PriorityHighest  Priority = "highest"
)

// Rank orders priorities: higher restarts earlier; disabled is 0 and an empty
// or unknown priority counts as medium.
func (p Priority) Rank() int {
	switch p {
	case PriorityDisabled:
		return 0
	case PriorityLowest:
		return 1
	case PriorityLow:
		return 2
	case PriorityHigh:
		return 4
	case PriorityHighest:
		return 5
	default:
		return 3
	}
}

// ReadyWhen is what makes a restarted VM ready, so that those after it start.
type ReadyWhen string

// The ready conditions.
const (
	// ReadyResources: a host is chosen and its room set aside; the default.
	ReadyResources ReadyWhen = "resourcesAllocated"
	// ReadyPoweredOn: its processors run.
	ReadyPoweredOn ReadyWhen = "poweredOn"
	// ReadyGuest: its guest agent answers.
	ReadyGuest ReadyWhen = "guestHeartbeat"
	// ReadyApplication: its application says that it is well.
	ReadyApplication ReadyWhen = "applicationHeartbeat"
)

// Requested is the state that a VM's administrator wants it in.
type Requested string

// The requested states.
const (
	RequestedStarted  Requested = "started"
	RequestedStopped  Requested = "stopped"
	RequestedDisabled Requested = "disabled"
	RequestedIgnored  Requested = "ignored"
)
