package lease

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// Request is what an agent, the libvirt hook or an administrator asks of the
// guard. Exactly one of the pointers is set. Every request is answered by one
// Reply with the same ID.
type Request struct {
	ID        uint64           `json:"id"`
	Beat      *BeatRequest     `json:"beat,omitempty"`
	Reload    *ReloadRequest   `json:"reload,omitempty"`
	Managed   *ManagedRequest  `json:"managed,omitempty"`
	Create    *CreateRequest   `json:"create,omitempty"`
	Claim     *ClaimRequest    `json:"claim,omitempty"`
	Confirm   *ConfirmRequest  `json:"confirm,omitempty"`
	Release   *ReleaseRequest  `json:"release,omitempty"`
	Kill      *KillRequest     `json:"kill,omitempty"`
	ClaimList *ClaimListReq    `json:"claimList,omitempty"`
	YieldList *YieldListReq    `json:"yieldList,omitempty"`
	Status    *StatusRequest   `json:"status,omitempty"`
	Hook      *HookRequest     `json:"hook,omitempty"`
	Force     *ForceRequest    `json:"force,omitempty"`
	Subscribe *SubscribeNotice `json:"subscribe,omitempty"`
}

// BeatRequest is the agent's sign of life; without one for AgentSilence the
// guard releases the lists it holds for the agent.
type BeatRequest struct {
	// Isolated and ShuttingDown go into the slots' flags.
	Isolated     bool `json:"isolated,omitempty"`
	ShuttingDown bool `json:"shuttingDown,omitempty"`
	// Contact: the primary that owns the lists of this host's VMs confirmed,
	// ContactAge ago, that it hears this host. Then nobody takes its VMs before
	// it reports them gone, so that a lapsed lease and outstanding I/O need not
	// reset the host (fence class reset). Contact with anybody else does not
	// count: that primary would call this host dead (docs/protocol.md).
	Contact    bool          `json:"contact"`
	ContactAge time.Duration `json:"contactAge,omitempty"`
}

// ReloadRequest makes the guard read the cluster file again.
type ReloadRequest struct{}

// ManagedRequest replaces the set of VMs that Hanok manages, on any host of
// the cluster. The guard keeps it on disk for itself and the hook, and keeps VMs
// as it is: nobody changes it afterwards.
type ManagedRequest struct {
	VMs []ManagedVM `json:"vms"`
}

// ManagedVM is a VM that must not run without its lock.
type ManagedVM struct {
	ID    model.VMID          `json:"id"`
	Name  string              `json:"name"`
	Home  model.DatastoreName `json:"home"`
	Disks []string            `json:"disks"`
	// Datastores are all datastores its disks live on, Home included.
	Datastores []model.DatastoreName `json:"datastores"`
}

// CreateRequest makes the lock of a VM that becomes managed.
type CreateRequest struct {
	VM ManagedVM `json:"vm"`
}

// ClaimRequest asks for a VM's lock and a grant to start it, or, with Running,
// for the lock of a VM that runs here already (adoption).
type ClaimRequest struct {
	VM ManagedVM `json:"vm"`
	// Epoch is the highest record the requester knows of; the guard refuses
	// with CodeEpochMoved if it is no longer the highest. The claim links
	// Epoch+1.
	Epoch model.Epoch `json:"epoch"`
	// Takeover is set when record Epoch is held by another host that is
	// believed dead.
	Takeover *Takeover `json:"takeover,omitempty"`
	Running  bool      `json:"running,omitempty"`
	// Command says who ordered it, for the log; Term and Command are zero for
	// an administrator's own start.
	Term    model.Term `json:"term,omitempty"`
	Command string     `json:"command,omitempty"`
}

// Takeover is the evidence that a primary gives for taking a silent owner's
// lock: the owner's slot must still read exactly so.
type Takeover struct {
	Owner model.HostID       `json:"owner"`
	Slot  model.SlotIdentity `json:"slot"`
	// Gone: the owner's guard reported that the VM has no process left under the
	// epoch to be taken, or that it runs under another boot than the one that took
	// the lock, and that it has no lease there. Nothing of it can write any more,
	// whatever the fence class.
	Gone bool `json:"gone,omitempty"`
	// Evidence for people: how old the slot was, which observers were asked.
	Evidence string `json:"evidence,omitempty"`
}

// ConfirmRequest follows a paused start: the guard finds the process, places
// it in its cgroup, checks grant and lease, and answers that the VM may
// continue.
type ConfirmRequest struct {
	VM    model.VMID  `json:"vm"`
	Epoch model.Epoch `json:"epoch"`
}

// ReleaseRequest gives up a VM's lock. It is refused with CodeNotGone while a
// process of the VM exists.
type ReleaseRequest struct {
	VM     model.VMID  `json:"vm"`
	Epoch  model.Epoch `json:"epoch"`
	Reason string      `json:"reason"`
}

// KillRequest ends the VM's processes at once and answers when they are gone.
// The lock stays held until a ReleaseRequest.
type KillRequest struct {
	VM    model.VMID  `json:"vm"`
	Epoch model.Epoch `json:"epoch"`
	// Before is the time since boot after which nothing may be killed any more:
	// the reason for it may be over by then. It is refused with CodeExpired, as it is
	// for an interval after the guard stood still. 0: at any time.
	Before time.Duration `json:"before,omitempty"`
}

// ClaimListReq asks for the lock on a datastore's protected list.
type ClaimListReq struct {
	Datastore model.DatastoreName `json:"datastore"`
	Epoch     model.Epoch         `json:"epoch"`
	Takeover  *Takeover           `json:"takeover,omitempty"`
}

// YieldListReq gives the list's lock up.
type YieldListReq struct {
	Datastore model.DatastoreName `json:"datastore"`
}

// StatusRequest asks for a Status.
type StatusRequest struct{}

// ForceRequest releases a lock that another host holds, by an administrator's
// typed order (break-glass).
type ForceRequest struct {
	Datastore model.DatastoreName `json:"datastore"`
	Lock      model.LockID        `json:"lock"`
	Epoch     model.Epoch         `json:"epoch"`
	// Operator and Why go into the log.
	Operator string `json:"operator"`
	Why      string `json:"why"`
}

// SubscribeNotice makes the guard send Notices on this connection.
type SubscribeNotice struct{}

// HookRequest is libvirt's question before a domain starts, restores, attaches
// a disk or is migrated.
type HookRequest struct {
	VM   model.VMID `json:"vm"`
	Name string     `json:"name"`
	// Operation and SubOperation are libvirt's words: prepare/begin, ...
	Operation    string   `json:"operation"`
	SubOperation string   `json:"subOperation"`
	Disks        []string `json:"disks"`
	// Migration is set for an incoming migration.
	Migration bool `json:"migration,omitempty"`
	// Daemon is the process id of the libvirt daemon that runs the hook; the
	// canary's proof ends with it.
	Daemon int `json:"daemon,omitempty"`
}

// Code classifies a Reply for callers.
type Code string

// The codes of replies.
const (
	CodeOK           Code = "ok"
	CodeHeldByOther  Code = "held-by-other" // the lock has another holder; see Record
	CodeEpochMoved   Code = "epoch-moved"   // the expected epoch is not the highest; see Record
	CodeOwnerAlive   Code = "owner-alive"   // take-over refused: the owner's slot changed
	CodeNotArmed     Code = "not-armed"     // take-over refused: the owner's death is not proven
	CodeNoLease      Code = "no-lease"      // this host's own lease does not permit it now
	CodeStorage      Code = "storage"       // the datastore failed or is unknown; Text says how
	CodeBusy         Code = "busy"          // too many operations outstanding; retry
	CodeUnknownVM    Code = "unknown-vm"
	CodeNotGone      Code = "not-gone" // the VM still has processes
	CodeNoProcess    Code = "no-process"
	CodeInvalid      Code = "invalid" // malformed or impossible; Text says why
	CodeRefused      Code = "refused" // the hook's answer; Text is the sentence for the user
	CodeTimeout      Code = "timeout"
	CodeExpired      Code = "expired" // what was asked for might be harmful by now
	CodeShuttingDown Code = "shutting-down"
)

// Reply answers a Request.
type Reply struct {
	ID   uint64 `json:"id"`
	Code Code   `json:"code"`
	// Text explains a refusal in one sentence that says what to do.
	Text string `json:"text,omitempty"`
	// Epoch is the lock epoch (or list term) that a successful claim won.
	Epoch model.Epoch `json:"epoch,omitempty"`
	// Record is the highest record seen, where the request was about a lock.
	Record *model.LockRecord `json:"record,omitempty"`
	Status *Status           `json:"status,omitempty"`
}

// Notice tells a subscribed agent what changed. A Status is sent at once on
// subscription and whenever anything in it but the clock-driven figures
// changes; the rest of the fields say what happened, for events.
type Notice struct {
	Status *Status `json:"status,omitempty"`
	// What is a constant such as "vm-frozen", VM and Datastore what it is
	// about, Text the sentence for people.
	What      NoticeKind          `json:"what"`
	VM        model.VMID          `json:"vm,omitempty"`
	Datastore model.DatastoreName `json:"datastore,omitempty"`
	Epoch     model.Epoch         `json:"epoch,omitempty"`
	Text      string              `json:"text,omitempty"`
}

// NoticeKind says what a Notice is about.
type NoticeKind string

// The kinds of notices.
const (
	NoticeStatus     NoticeKind = "status"
	NoticeFrozen     NoticeKind = "vm-frozen"
	NoticeThawed     NoticeKind = "vm-thawed"
	NoticeKilled     NoticeKind = "vm-killed" // another host owns it now
	NoticeGone       NoticeKind = "vm-gone"   // its processes ended
	NoticeDatastore  NoticeKind = "datastore" // accessible, lost, changed ...
	NoticeListLost   NoticeKind = "list-lost"
	NoticeForeign    NoticeKind = "foreign-process" // frozen: holds a managed disk without a lock
	NoticeDisarmed   NoticeKind = "watchdog"        // armed or disarmed
	NoticeCanary     NoticeKind = "canary"          // libvirt asked for the canary
	NoticeNotPetting NoticeKind = "not-petting"     // the watchdog will reset this host
	NoticeStalled    NoticeKind = "stalled"         // the guard was held up; said by its shell
)

// Status is the guard's whole view.
type Status struct {
	Host        model.HostID      `json:"host"`
	Boot        model.BootID      `json:"boot"`
	Incarnation uint64            `json:"incarnation"`
	Armed       bool              `json:"armed"`
	ArmedWhy    string            `json:"armedWhy,omitempty"` // why not, for people
	HookSeen    bool              `json:"hookSeen"`           // the canary proved the hook in this libvirtd's life
	Datastores  []DatastoreStatus `json:"datastores"`
	VMs         []VMStatus        `json:"vms"`
	// StopProblem is why the guard must not be stopped for good now; see
	// Machine.StopProblem.
	StopProblem string `json:"stopProblem,omitempty"`
	// Warnings are facts about the guard's process that people must know, such
	// as a missing real-time priority.
	Warnings []string `json:"warnings,omitempty"`
	// LongestWrite is the longest heartbeat write since the guard started.
	LongestWrite time.Duration `json:"longestWrite"`
}

// DatastoreStatus is the guard's view of one datastore.
type DatastoreStatus struct {
	Name model.DatastoreName `json:"name"`
	// OK: heartbeats are written and the lease is valid.
	OK bool `json:"ok"`
	// Kind and Problem say what is wrong otherwise; Kind is datastore.Kind's
	// text or "hung".
	Kind    string `json:"kind,omitempty"`
	Problem string `json:"problem,omitempty"`
	// LeaseLeft is what is left of the lease; negative after it lapsed.
	LeaseLeft time.Duration `json:"leaseLeft"`
	// ListTerm is the term under which this host holds the protected list; 0
	// when it does not.
	ListTerm model.Term `json:"listTerm,omitempty"`
}

// VMPhase is where a VM stands with the guard.
type VMPhase string

// The phases of a VM.
const (
	PhaseClaiming VMPhase = "claiming"
	PhaseGranted  VMPhase = "granted" // lock won, start awaited
	PhaseRunning  VMPhase = "running" // confirmed, unfrozen
	PhaseFrozen   VMPhase = "frozen"  // confirmed frozen
	PhaseFreezing VMPhase = "freezing"
	PhaseKilling  VMPhase = "killing"
	PhaseGone     VMPhase = "gone" // no process; the lock is still held
)

// VMStatus is the guard's view of one VM that it holds or held the lock of.
type VMStatus struct {
	VM    model.VMID          `json:"vm"`
	Name  string              `json:"name"`
	Home  model.DatastoreName `json:"home"`
	Epoch model.Epoch         `json:"epoch"`
	Phase VMPhase             `json:"phase"`
	// Outstanding: frozen but with I/O still outstanding (D state).
	Outstanding bool   `json:"outstanding,omitempty"`
	Reason      string `json:"reason,omitempty"` // why frozen or killed
}
