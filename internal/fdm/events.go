package fdm

import (
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// OpID pairs an effect with the event that answers it. Zero is never used.
type OpID uint64

// Event is an input of the machine.
type Event interface{ isEvent() }

// Tick lets time pass.
type Tick struct{}

// HeartbeatReceived is an authenticated datagram from a member.
type HeartbeatReceived struct {
	From    model.HostID
	Network string
	Beat    Heartbeat
}

// MessageReceived is a message from a member over the reliable transport.
type MessageReceived struct {
	From    model.HostID
	Message Message
}

// LinkChanged tells that the reliable transport to a host came up or broke.
type LinkChanged struct {
	Host   model.HostID
	Up     bool
	Reason string
}

// SlotsRead answers ReadSlots. Started is stamped before the read was
// submitted, Completed when it returned. Err is empty on success; Kind is the
// datastore's kind of error, or "hung" when the read did not return in time.
type SlotsRead struct {
	Op                 OpID
	Datastore          model.DatastoreName
	Started, Completed time.Duration
	Slots              []model.SlotReading
	Kind, Err          string
}

// ListRead answers ReadList with the list of the highest term and the highest
// record of the list's lock.
type ListRead struct {
	Op        OpID
	Datastore model.DatastoreName
	Lock      model.LockRecord
	List      model.ProtectedList
	Kind, Err string
}

// ListWritten answers WriteList.
type ListWritten struct {
	Op        OpID
	Datastore model.DatastoreName
	Term      model.Term
	Version   uint64
	Kind, Err string
}

// LockRead answers ReadLock with the highest record of a VM's lock.
type LockRead struct {
	Op        OpID
	Datastore model.DatastoreName
	VM        model.VMID
	Record    model.LockRecord
	Kind, Err string
}

// GuardReplied answers AskGuard.
type GuardReplied struct {
	Op    OpID
	Reply lease.Reply
}

// GuardNoticed carries a notice of the guard; the first after GuardChanged up
// holds a full status.
type GuardNoticed struct{ Notice lease.Notice }

// GuardChanged tells that the connection to the guard came up or broke.
type GuardChanged struct {
	Up     bool
	Reason string
}

// HypervisorChanged tells that the connection to libvirt came up or broke.
type HypervisorChanged struct {
	Up     bool
	Reason string
}

// DomainsListed is the full list of domains on this host, sent after the
// hypervisor connected and whenever events may have been missed.
type DomainsListed struct{ Domains []Domain }

// DomainChanged is a lifecycle event of one domain.
type DomainChanged struct{ Domain Domain }

// Domain is a domain as libvirt shows it.
type Domain struct {
	VM     model.VMID
	Name   string
	Active bool
	Paused bool
	// Cause says why an inactive domain stopped, as far as libvirt knows.
	Cause StopCause
	// Memory and CPUs by its definition; zero when unknown.
	Memory model.MiB
	CPUs   int
}

// StopCause is why a domain stopped.
type StopCause string

// The causes of a stop.
const (
	StopUnknown       StopCause = ""
	StopGuestShutdown StopCause = "guestShutdown" // the guest shut itself down
	StopDestroyed     StopCause = "destroyed"     // its user ended it
	StopCrashed       StopCause = "crashed"       // it panicked
	StopFailed        StopCause = "failed"        // its process died
	StopMigrated      StopCause = "migrated"
	StopSaved         StopCause = "saved"
	StopUndone        StopCause = "undone" // its start failed half-way and was undone by HA
)

// HypervisorDone answers Hypervise.
type HypervisorDone struct {
	Op OpID
	// Fault is empty on success.
	Fault HypervisorFault
	Text  string
}

// HypervisorFault classifies a failed call.
type HypervisorFault string

// The faults.
const (
	FaultHook        HypervisorFault = "refusedByHook"
	FaultImageLocked HypervisorFault = "imageLocked" // transient: QEMU's own lock of a dead client
	FaultMissingDisk HypervisorFault = "missingDisk"
	FaultNoMemory    HypervisorFault = "noMemory"
	FaultRunning     HypervisorFault = "alreadyRunning"
	FaultNoConfig    HypervisorFault = "noConfig"    // the domain XML on the datastore is missing or bad
	FaultUnavailable HypervisorFault = "unavailable" // libvirt does not answer
	FaultTimeout     HypervisorFault = "timeout"
	FaultOther       HypervisorFault = "other"
)

// GuestPinged answers PingGuest.
type GuestPinged struct {
	Op    OpID
	Alive bool
}

// HostPinged answers PingHost.
type HostPinged struct {
	Op       OpID
	Host     model.HostID
	Answered bool
}

// AddressesPinged answers PingAddresses: how many isolation addresses were asked,
// and the first that answered ("" if none did).
type AddressesPinged struct {
	Op       OpID
	Asked    int
	Answered string
}

// NoteWritten answers WriteNote.
type NoteWritten struct {
	Op        OpID
	Kind, Err string
}

// NoteRead answers ReadNote; the zero Note and no error when there is none.
type NoteRead struct {
	Op        OpID
	Note      model.PoweredOffNote
	Kind, Err string
}

// ConfigLoaded gives the machine the configuration that this host keeps: at
// start, and after an accepted SaveConfig.
type ConfigLoaded struct {
	Config Cluster
}

// ConfigSaved answers a SaveConfig with an Op, after ConfigLoaded. Err says why that
// very file is not kept here; "": it is.
type ConfigSaved struct {
	Op  OpID
	Err string
}

// Considered answers Consider.
type Considered struct {
	Op       OpID
	Decision admission.Decision
}

// ConfigRead answers ReadConfig; Err says why the file cannot come into force.
type ConfigRead struct {
	Op     OpID
	Config Cluster
	Err    string
}

// AdminAsked is an administrator's request on this host; answered by Answer.
type AdminAsked struct {
	ID      uint64
	Request AdminRequest
}

func (Tick) isEvent()              {}
func (HeartbeatReceived) isEvent() {}
func (MessageReceived) isEvent()   {}
func (LinkChanged) isEvent()       {}
func (SlotsRead) isEvent()         {}
func (ListRead) isEvent()          {}
func (ListWritten) isEvent()       {}
func (LockRead) isEvent()          {}
func (GuardReplied) isEvent()      {}
func (GuardNoticed) isEvent()      {}
func (GuardChanged) isEvent()      {}
func (HypervisorChanged) isEvent() {}
func (DomainsListed) isEvent()     {}
func (DomainChanged) isEvent()     {}
func (HypervisorDone) isEvent()    {}
func (GuestPinged) isEvent()       {}
func (HostPinged) isEvent()        {}
func (AddressesPinged) isEvent()   {}
func (NoteWritten) isEvent()       {}
func (NoteRead) isEvent()          {}
func (ConfigLoaded) isEvent()      {}
func (Considered) isEvent()        {}
func (ConfigRead) isEvent()        {}
func (ConfigSaved) isEvent()       {}
func (AdminAsked) isEvent()        {}
