package lease

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// Fault is a failed storage or process operation, as far as the machine cares.
type Fault struct {
	// Kind is the text of a datastore.Kind, or one of the Fault constants.
	Kind string
	// Text is for people.
	Text string
}

// The kinds of faults that the machine decides on; they equal the texts of the
// datastore.Kind of the same name. All others only mean "it failed".
const (
	FaultExists  = "exists"  // the epoch is taken
	FaultMissing = "missing" // no such lock or slot: unknown, never free
	FaultChanged = "changed" // the world changed under the host
	FaultForeign = "foreign" // another datastore is mounted there
)

// EventKind says what an Event reports.
type EventKind uint8

// The kinds of events, with the fields that they use.
const (
	// EvTick: time has passed.
	EvTick EventKind = iota
	// EvSlotWritten answers EffWriteSlot. Op, Fault.
	EvSlotWritten
	// EvSlotRead answers EffReadSlot. Op, Reading, Fault.
	EvSlotRead
	// EvLockListed answers EffListLock. Op, Record, Fault.
	EvLockListed
	// EvLockLinked answers EffLinkLock. Op, Fault.
	EvLockLinked
	// EvLockCreated answers EffCreateLock. Op, Fault.
	EvLockCreated
	// EvScanned answers EffScan. Op, Procs, Fault.
	EvScanned
	// EvFroze answers EffFreeze, and follows again with the same Op whenever
	// the state changes. Op, VM, Frozen, Took.
	EvFroze
	// EvGone: the VM's cgroup is empty. VM.
	EvGone
	// EvRequest: somebody asks. Conn, Request.
	EvRequest
	// EvConnLost: a connection ended; nobody waits for its replies. Conn.
	EvConnLost
	// EvWatchdog: the watchdog device was opened, failed or changed. On: it
	// keeps the time-out of the last pet, Timeout; Open: it is open and ticks;
	// Text: why not.
	EvWatchdog
	// EvHookLost: the libvirt daemon that proved the hook has ended.
	EvHookLost
	// EvConfig: the configuration changed. Config; its Host, Boot,
	// Incarnation, Nonce and Identify are ignored.
	EvConfig
)

// Frozen is the result of a freeze.
type Frozen uint8

// The results.
const (
	// FrozenNone: the VM has no process; what appears later in its cgroup
	// freezes at once.
	FrozenNone Frozen = iota
	// FrozenYes: confirmed, no thread of the VM can run.
	FrozenYes
	// FrozenOutstanding: the freeze was ordered and threads in D state keep it
	// from completing: no vCPU runs, but I/O may still land.
	FrozenOutstanding
	// FrozenFailed: the freeze could not be ordered; the VM may run.
	FrozenFailed
)

// Event is something that happened. Which fields count depends on Kind.
type Event struct {
	Kind    EventKind
	Op      uint64
	Conn    uint64
	VM      model.VMID
	Fault   *Fault
	Record  model.LockRecord
	Reading model.SlotReading
	Procs   []Proc
	Frozen  Frozen
	Took    time.Duration
	On      bool
	Open    bool
	Timeout time.Duration
	Text    string
	Request *Request
	Config  *Config
}

// Proc is a virtual machine's processes as one scan found them.
type Proc struct {
	// VM is the UUID the process was started with; for a process without one,
	// a made-up name that only this scan and its freeze share.
	VM model.VMID
	// Name is the guest's name, if known.
	Name string
	// Frozen: its cgroup is ordered to be frozen.
	Frozen bool
	// Holds are the managed VMs other than VM whose disks it holds open.
	Holds []model.VMID
}

// EffectKind says what an Effect orders.
type EffectKind uint8

// The kinds of effects, with the fields that they use.
const (
	// EffSaveState: save Machine.Saved before going on.
	EffSaveState EffectKind = iota
	// EffSaveManaged: save Machine.ManagedVMs before going on.
	EffSaveManaged
	// EffWriteSlot: write Slot if the slot's digest is in Known (empty: any).
	// Op, Datastore. At most one is outstanding for each datastore.
	EffWriteSlot
	// EffReadSlot: read the slot of Host. Op, Datastore.
	EffReadSlot
	// EffListLock: find the highest record of Lock. Op, Datastore.
	EffListLock
	// EffLinkLock: publish Record. Op, Datastore.
	EffLinkLock
	// EffCreateLock: create Lock with Record. Op, Datastore.
	EffCreateLock
	// EffPrune: remove old records of Lock; no answer. Datastore.
	EffPrune
	// EffScan: find the processes of VMs, place those of managed VMs in their
	// cgroups. Op. At most one is outstanding.
	EffScan
	// EffFreeze: place and freeze VM. Op.
	EffFreeze
	// EffThaw: thaw VM, not later than Before; no answer.
	EffThaw
	// EffKill: kill all processes of VM, not later than Before unless that is 0;
	// EvGone follows when they are gone, also if there were none.
	EffKill
	// EffPet: feed the watchdog; not later than Before. If it is not open or has
	// another time-out than Timeout, that is set, which feeds it too.
	EffPet
	// EffReply: answer on connection Conn with Reply.
	EffReply
	// EffSubscribe: send notices on Conn from now on.
	EffSubscribe
	// EffNotify: send Notice to all subscribers, or only to Conn if that is
	// not 0.
	EffNotify
	// EffReload: read the cluster file again; EvConfig follows if it changed.
	EffReload
)

// Effect is an order to the shell. Which fields count depends on Kind.
type Effect struct {
	Kind      EffectKind
	Op        uint64
	Conn      uint64
	Datastore model.DatastoreName
	Lock      model.LockID
	VM        model.VMID
	Host      model.HostID
	Before    time.Duration
	Timeout   time.Duration
	Slot      model.Slot
	Known     []string
	Record    model.LockRecord
	Reply     *Reply
	Notice    *Notice
}

// Config is what a Machine must know. All but Host, Boot, Incarnation, Nonce
// and Identify may change later by EvConfig.
type Config struct {
	Host model.HostID
	Boot model.BootID
	// Incarnation is used when no predecessor of this boot left one.
	Incarnation uint64
	// Predecessor: another guard ran in this boot before. If nothing that it
	// saved is left it may have permitted starts that are still under way.
	Predecessor bool
	// Timing must be valid by model.Timing.Validate.
	Timing     model.Timing
	Datastores []DatastoreConfig
	// Managed are the VMs that must not run without a lock.
	Managed []ManagedVM
	// ManagedUnknown: the list of managed VMs could not be read. Until the agent
	// sends it, no domain is known not to be managed.
	ManagedUnknown bool
	// Warnings are facts about the guard's process that people must know; they
	// are shown in the status.
	Warnings []string
	// Nonce returns a text that nobody ever returned before.
	Nonce func() string
	// Identify returns the digest that a slot of that content has on the
	// datastore.
	Identify func(model.DatastoreName, model.Slot) string
}

// DatastoreConfig is one datastore of this host.
type DatastoreConfig struct {
	Name  model.DatastoreName
	Fence model.FenceClass
	// Unfenced: the administrator accepts take-overs of owners that nothing
	// stops.
	Unfenced bool
}
