package fdm

import (
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Effect is an output of the machine.
type Effect interface{ isEffect() }

// SendHeartbeat sends a datagram to a member over one network. It may be lost. The
// machine gives it as a pointer that is valid until the next Step.
type SendHeartbeat struct {
	To      model.HostID
	Network string
	Beat    Heartbeat
}

// SendMessage sends a message over the reliable transport. It is lost when the
// link breaks; LinkChanged tells.
type SendMessage struct {
	To      model.HostID
	Message Message
}

// ReadSlots reads all heartbeat slots of a datastore.
type ReadSlots struct {
	Op        OpID
	Datastore model.DatastoreName
}

// ReadList reads the protected list and the highest record of its lock.
type ReadList struct {
	Op        OpID
	Datastore model.DatastoreName
}

// WriteList writes the protected list under List.Term.
type WriteList struct {
	Op        OpID
	Datastore model.DatastoreName
	List      model.ProtectedList
}

// ReadLock reads the highest record of a VM's lock.
type ReadLock struct {
	Op        OpID
	Datastore model.DatastoreName
	VM        model.VMID
}

// AskGuard sends a request to this host's guard. Request.ID is set by the
// caller.
type AskGuard struct {
	Op      OpID
	Request lease.Request
}

// Hypervise calls libvirt on this host.
type Hypervise struct {
	Op   OpID
	Call HypervisorCall
	VM   model.VMID
	// Config is the path of the domain XML for CallDefine.
	Config string
}

// HypervisorCall names a call.
type HypervisorCall string

// The calls.
const (
	CallDefine      HypervisorCall = "define"      // from Config, on the datastore
	CallStartPaused HypervisorCall = "startPaused" // create with stopped vCPUs
	CallResume      HypervisorCall = "resume"
	CallShutdown    HypervisorCall = "shutdown" // ask the guest
	CallKill        HypervisorCall = "kill"
	CallReset       HypervisorCall = "reset" // as by the reset button
	CallList        HypervisorCall = "list"  // answered by DomainsListed as well
	CallUndefine    HypervisorCall = "undefine"
	CallNoAutostart HypervisorCall = "noAutostart"
)

// PingGuest asks the guest agent whether the guest is alive.
type PingGuest struct {
	Op      OpID
	VM      model.VMID
	Timeout time.Duration
}

// PingHost sends ICMP echoes to a member over all its heartbeat networks.
type PingHost struct {
	Op   OpID
	Host model.HostID
}

// PingAddresses sends ICMP echoes to all isolation addresses of this host.
type PingAddresses struct{ Op OpID }

// WriteNote writes on a datastore that HA is about to power a VM off.
type WriteNote struct {
	Op        OpID
	Datastore model.DatastoreName
	Note      model.PoweredOffNote
}

// ReadNote reads what WriteNote last wrote about a VM.
type ReadNote struct {
	Op        OpID
	Datastore model.DatastoreName
	VM        model.VMID
}

// Emit reports an event to people. The shell fills ID, Wall and By, keeps it
// on disk and, on a primary, shares it with the secondaries.
type Emit struct{ Event event.Event }

// SaveConfig stores a cluster file that is newer than the one kept; the shell
// validates it and answers with ConfigLoaded, or drops it with an event. If Op is not
// 0, ConfigSaved follows in either case. Over: one of the same version with another
// content is replaced too.
type SaveConfig struct {
	Op      OpID
	Version uint64
	File    []byte
	Over    bool
}

// Consider asks admission control (admission.Ask.Answer), which may take a second
// of a processor: beside the machine, not in its way. The Ask is given away.
type Consider struct {
	Op  OpID
	Ask *admission.Ask
}

// ReadConfig reads a cluster file that was offered, without storing it.
type ReadConfig struct {
	Op      OpID
	Version uint64
	File    []byte
}

// Answer answers an AdminAsked.
type Answer struct {
	ID    uint64
	Reply AdminReply
}

func (SendHeartbeat) isEffect() {}
func (SendMessage) isEffect()   {}
func (ReadSlots) isEffect()     {}
func (ReadList) isEffect()      {}
func (WriteList) isEffect()     {}
func (ReadLock) isEffect()      {}
func (AskGuard) isEffect()      {}
func (Hypervise) isEffect()     {}
func (PingGuest) isEffect()     {}
func (PingHost) isEffect()      {}
func (PingAddresses) isEffect() {}
func (WriteNote) isEffect()     {}
func (ReadNote) isEffect()      {}
func (Emit) isEffect()          {}
func (SaveConfig) isEffect()    {}
func (Consider) isEffect()      {}
func (ReadConfig) isEffect()    {}
func (Answer) isEffect()        {}
