package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// world is a cluster of Machines in virtual time over one datastore in memory,
// with everything that may go wrong. Its faults are drawn from rng alone.
type world struct {
	rng   *rand.Rand
	now   time.Duration // true time
	hosts []*simHost
	vms   []ManagedVM
	ds    model.DatastoreName
	// The datastore.
	slots map[model.HostID]model.SlotReading
	locks map[model.LockID][]model.LockRecord
	late  []func() // storage operations that land at any later time
	nonce int
	// What the one primary knows: first seen time of each slot's content by
	// its clock, and when it last heard each host.
	seen   map[model.HostID]sighting
	heard  map[model.HostID]time.Duration
	grants map[string]string // lock and epoch -> who won it
	fail   func(format string, args ...any)
	trace  []string
	stats  map[string]int
	// breakRule switches parts of the protocol off, to see the checks fail.
	breakRule string
}

type sighting struct {
	digest string
	first  time.Duration
}

type simProc struct {
	resumed  bool
	frozen   bool // ordered and in force: no vCPU runs
	busy     bool // a guest's write hangs in the kernel
	placed   bool
	freezeOp uint64
}

type simHost struct {
	w        *world
	id       model.HostID
	rate     float64
	boots    int
	up       bool
	upAt     time.Duration
	net      bool
	storage  string // "", hang, error
	watchdog bool   // has one

	m       *Machine
	gen     int // of the guard
	guards  int // of this boot
	stopped bool
	saved   *Saved
	pending []Effect // of the last steps, not carried out yet
	ops     []*simOp
	dogOn   bool
	setBy   int // the guard that opened the watchdog
	lastPet time.Duration
	biteIn  time.Duration
	timeout time.Duration // of the watchdog
	timing  model.Timing  // of the cluster file
	beatAt  time.Duration

	procs map[model.VMID]*simProc
	traps map[model.VMID]uint64 // cgroups frozen ahead, with the op to report
	plans []plan
	// starting are the domains that libvirt starts after the hook's consent.
	// permitted are those of them that the hook consented to; epochs are what
	// the agent claimed.
	starting, permitted map[model.VMID]bool
	epochs              map[model.VMID]model.Epoch
}

// plan is something that an agent or user does on a host later.
type plan struct {
	at time.Duration
	do func()
}

type simOp struct {
	e       Effect
	applied bool
	ev      Event
	gen     int
}

func newWorld(rng *rand.Rand, hosts, vms int, fail func(string, ...any)) *world {
	w := &world{rng: rng, ds: "ds1", slots: map[model.HostID]model.SlotReading{}, locks: map[model.LockID][]model.LockRecord{},
		seen: map[model.HostID]sighting{}, heard: map[model.HostID]time.Duration{}, grants: map[string]string{}, fail: fail, stats: map[string]int{}}
	for i := range vms {
		v := ManagedVM{ID: model.VMID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i+1)), Name: fmt.Sprintf("vm%d", i+1), Home: w.ds}
		w.vms = append(w.vms, v)
		w.locks[model.VMLock(v.ID)] = []model.LockRecord{{Lock: model.VMLock(v.ID), Epoch: 1, State: model.LockReleased, Nonce: "created"}}
	}
	w.locks[model.ListLock] = []model.LockRecord{{Lock: model.ListLock, Epoch: 1, State: model.LockReleased, Nonce: "created"}}
	for i := range hosts {
		h := &simHost{w: w, id: model.HostID(fmt.Sprintf("host%d", i+1)), rate: 1 + (rng.Float64()*2-1)*model.MaxDrift,
			net: true, watchdog: i != 2, timing: model.TimingFast, procs: map[model.VMID]*simProc{}}
		w.hosts = append(w.hosts, h)
		h.boot()
	}
	return w
}

func (w *world) logf(format string, args ...any) {
	if len(w.trace) > 400 {
		w.trace = w.trace[200:]
	}
	w.trace = append(w.trace, fmt.Sprintf("%8.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

func (h *simHost) bootID() model.BootID { return model.BootID(fmt.Sprintf("%s-boot%d", h.id, h.boots)) }

// clock is the host's own clock.
func (h *simHost) clock() time.Duration { return time.Duration(float64(h.w.now) * h.rate) }

func (h *simHost) boot() {
	h.boots++
	h.guards = 0
	h.up, h.saved, h.dogOn, h.storage = true, nil, false, ""
	h.procs, h.plans, h.traps, h.starting = map[model.VMID]*simProc{}, nil, map[model.VMID]uint64{}, map[model.VMID]bool{}
	h.permitted, h.epochs = map[model.VMID]bool{}, map[model.VMID]model.Epoch{}
	h.startGuard()
}

func (h *simHost) startGuard() {
	h.gen++
	h.guards++
	h.stopped = false
	h.pending = nil
	h.m = New(Config{Host: h.id, Boot: h.bootID(), Incarnation: uint64(h.gen), Timing: h.timing, Predecessor: h.guards > 1,
		Datastores: h.datastores(), Managed: h.w.vms,
		Nonce:    func() string { h.w.nonce++; return fmt.Sprintf("n%d", h.w.nonce) },
		Identify: func(_ model.DatastoreName, s model.Slot) string { return digest(s) }}, h.saved)
	h.w.logf("%s guard %d starts in %s", h.id, h.gen, h.bootID())
	if !h.watchdog {
		h.step(Event{Kind: EvWatchdog, Text: "none"})
	}
}

func (h *simHost) datastores() []DatastoreConfig {
	return []DatastoreConfig{{Name: h.w.ds, Fence: model.FenceReset}}
}

// reconfigure gives the host the other profile of timings.
func (h *simHost) reconfigure() {
	if h.timing = model.TimingSteady; h.w.chance(0.5) {
		h.timing = model.TimingFast
	}
	h.w.logf("%s gets a lease of %v", h.id, h.timing.Lease)
	h.w.stats["retimed"]++
	h.step(Event{Kind: EvConfig, Config: &Config{Timing: h.timing, Datastores: h.datastores()}})
}

func digest(s model.Slot) string {
	return fmt.Sprintf("%s/%s/%d/%d/%d", s.Host, s.Boot, s.Incarnation, s.Sequence, s.Flags)
}

// pet feeds the watchdog; one that is not open, is another guard's or has
// another time-out is set, unless that fails just now.
func (h *simHost) pet(timeout time.Duration) {
	set := !h.dogOn || h.setBy != h.gen || h.timeout != timeout
	if set && h.w.chance(0.1) {
		h.step(Event{Kind: EvWatchdog, Open: h.dogOn, Timeout: timeout, Text: "the device is busy"})
		return
	}
	h.lastPet = h.w.now
	if set {
		h.dogOn, h.setBy, h.timeout = true, h.gen, timeout
		h.after(h.w.upTo(50*time.Millisecond), func() {
			h.step(Event{Kind: EvWatchdog, On: true, Open: true, Timeout: timeout})
		})
	}
	t := model.TimingFast
	h.biteIn = time.Duration(float64(h.timeout)/h.rate) + h.w.upTo(t.WatchdogMax-t.Watchdog-50*time.Millisecond)
}

// powerOff ends the host; what its storage calls do is not known.
func (h *simHost) powerOff(why string) {
	h.w.logf("%s goes down: %s", h.id, why)
	h.w.stats["down"]++
	h.dropGuard()
	h.up, h.m, h.dogOn = false, nil, false
	h.procs = map[model.VMID]*simProc{}
	h.plans = nil
	h.upAt = h.w.now + h.w.upTo(20*time.Second)
}

// dropGuard forgets the guard; its storage calls may still land: those of a
// dead process of a running kernel at any time, those of a host that lost
// power not at all or at once.
func (h *simHost) dropGuard() {
	for _, op := range h.ops {
		if op.applied {
			continue
		}
		switch h.w.rng.IntN(3) {
		case 0:
			h.w.apply(op)
		case 1:
			if op.e.Kind == EffLinkLock || op.e.Kind == EffWriteSlot { // the path delivers it late
				h.w.late = append(h.w.late, func() { h.w.apply(op) })
			}
		}
	}
	h.ops = nil
}

func (h *simHost) killGuard() {
	h.w.logf("%s guard killed", h.id)
	h.w.stats["guardKilled"]++
	h.dropGuard()
	h.m = nil
	h.pending = nil
	h.plans = append(h.plans, plan{h.w.now + h.w.upTo(2*time.Second), func() {
		if h.m == nil && h.up {
			if h.w.chance(0.2) {
				h.saved = nil // its memory is lost
				h.w.stats["stateLost"]++
			}
			h.startGuard()
		}
	}})
}

func (h *simHost) step(ev Event) {
	if h.m == nil {
		return
	}
	for _, e := range h.m.Step(h.clock(), ev) {
		e.Known = slices.Clone(e.Known)
		h.pending = append(h.pending, e)
	}
	if !h.w.chance(0.02) {
		h.flush()
	}
}

// flush carries out what was ordered; a guard may be stopped before it.
func (h *simHost) flush() {
	for len(h.pending) > 0 && !h.stopped && h.m != nil {
		e := h.pending[0]
		h.pending = h.pending[1:]
		h.carryOut(e)
	}
}

func (h *simHost) carryOut(e Effect) {
	if e.Before != 0 && h.clock() > e.Before && h.w.breakRule != "before" {
		return
	}
	switch e.Kind {
	case EffSaveState:
		s := h.m.Saved()
		h.saved = &s
	case EffWriteSlot, EffReadSlot, EffListLock, EffLinkLock, EffCreateLock:
		h.ops = append(h.ops, &simOp{e: e, gen: h.gen})
	case EffScan:
		h.after(h.w.upTo(5*time.Millisecond), func() { h.scan(e.Op) })
	case EffFreeze:
		h.freeze(e)
	case EffThaw:
		h.thaw(e)
	case EffKill:
		if p := h.procs[e.VM]; p == nil || !p.busy {
			delete(h.procs, e.VM)
			h.after(0, func() { h.step(Event{Kind: EvGone, VM: e.VM}) })
		}
	case EffPet:
		h.checkPet()
		if h.watchdog {
			h.pet(e.Timeout)
		}
	case EffReply:
		h.replied(e.Conn, e.Reply)
	}
}

// after does something with the guard of now, unless it is another by then.
func (h *simHost) after(d time.Duration, f func()) {
	gen := h.gen
	h.plans = append(h.plans, plan{h.w.now + d, func() {
		if h.gen == gen && h.m != nil && !h.stopped {
			f()
		} else if h.gen == gen && h.m != nil {
			h.after(10*time.Millisecond, f)
		}
	}})
}

func (h *simHost) scan(op uint64) {
	ev := Event{Kind: EvScanned, Op: op}
	for _, v := range h.w.vms {
		if p := h.procs[v.ID]; p != nil {
			p.placed = true
			if f, trapped := h.traps[v.ID]; trapped && !p.frozen {
				p.frozen, p.freezeOp = true, f
				h.after(0, func() { h.frozeEvent(v.ID, f) })
			}
			ev.Procs = append(ev.Procs, Proc{VM: v.ID, Frozen: p.frozen})
		}
	}
	h.step(ev)
}

func (h *simHost) freeze(e Effect) {
	h.traps[e.VM] = e.Op
	h.after(h.w.upTo(80*time.Millisecond), func() {
		if h.traps[e.VM] != e.Op {
			return
		}
		if p := h.procs[e.VM]; p != nil {
			p.frozen, p.placed, p.freezeOp = h.w.breakRule != "freeze", true, e.Op
		}
		h.frozeEvent(e.VM, e.Op)
	})
}

func (h *simHost) frozeEvent(vm model.VMID, op uint64) {
	r := FrozenYes
	if p := h.procs[vm]; p == nil {
		r = FrozenNone
	} else if p.busy {
		r = FrozenOutstanding
	}
	h.step(Event{Kind: EvFroze, Op: op, VM: vm, Frozen: r, Took: 10 * time.Millisecond})
}

func (h *simHost) thaw(e Effect) {
	delete(h.traps, e.VM)
	p := h.procs[e.VM]
	if p == nil || !p.frozen {
		return
	}
	p.frozen = false
	h.w.stats["thawed"]++
	h.w.logf("%s thaws %s", h.id, e.VM[34:])
	if r := h.w.highest(model.VMLock(e.VM)); r.Holder() != h.id || r.Boot != h.bootID() {
		h.w.fail("%s thaws %s, whose lock is at %s", h.id, e.VM, r)
	}
}

// storageWorks lets storage calls land and return.
func (h *simHost) storageWorks() {
	ops := h.ops
	h.ops = nil
	for i, op := range ops {
		if h.m == nil || op.gen != h.gen {
			continue
		}
		if !op.applied {
			switch {
			case h.storage == "hang", h.storage == "slow" && op.e.Kind == EffLinkLock && !h.w.chance(0.01):
				h.ops = append(h.ops, op)
				continue
			case h.storage == "error" || h.w.chance(0.01):
				op.applied = true
				op.ev = Event{Kind: answerOf(op.e.Kind), Op: op.e.Op, Fault: &Fault{Kind: "lost", Text: "EIO"}}
				if h.w.chance(0.3) {
					ev := op.ev
					h.w.apply(op) // it happened, but the answer says it did not
					op.ev = ev
				} else if op.e.Kind == EffLinkLock && h.w.chance(0.3) {
					h.w.late = append(h.w.late, func() { h.w.apply(op) })
				}
			case h.w.chance(0.8):
				h.w.apply(op)
			}
		}
		if !op.applied || h.stopped || h.storage == "hang" || h.w.chance(0.2) {
			h.ops = append(h.ops, op)
			continue
		}
		h.ops = append(h.ops, ops[i+1:]...)
		h.step(op.ev)
		return
	}
}

func answerOf(k EffectKind) EventKind {
	switch k {
	case EffWriteSlot:
		return EvSlotWritten
	case EffReadSlot:
		return EvSlotRead
	case EffListLock:
		return EvLockListed
	case EffLinkLock:
		return EvLockLinked
	default:
		return EvLockCreated
	}
}

func (w *world) highest(lock model.LockID) model.LockRecord {
	rs := w.locks[lock]
	if len(rs) == 0 {
		return model.LockRecord{}
	}
	return rs[len(rs)-1]
}

// apply is the moment at which a storage call takes effect.
func (w *world) apply(op *simOp) {
	e := &op.e
	op.applied = true
	op.ev = Event{Kind: answerOf(e.Kind), Op: e.Op}
	switch e.Kind {
	case EffWriteSlot:
		have := w.slots[e.Slot.Host].Identity.Digest
		if len(e.Known) > 0 && !slices.Contains(e.Known, have) {
			op.ev.Fault = &Fault{Kind: FaultChanged, Text: "slot holds " + have}
			return
		}
		w.slots[e.Slot.Host] = model.SlotReading{Host: e.Slot.Host, Valid: true, Slot: e.Slot,
			Identity: model.SlotIdentity{Boot: e.Slot.Boot, Incarnation: e.Slot.Incarnation, Sequence: e.Slot.Sequence, Digest: digest(e.Slot)}}
	case EffReadSlot:
		op.ev.Reading = w.slots[e.Host]
	case EffListLock:
		op.ev.Record = w.highest(e.Lock)
		if op.ev.Record.Epoch == 0 {
			op.ev.Fault = &Fault{Kind: FaultMissing, Text: "no lock"}
		}
	case EffLinkLock:
		if w.highest(e.Lock).Epoch+1 != e.Record.Epoch {
			op.ev.Fault = &Fault{Kind: FaultExists, Text: "taken"}
			return
		}
		w.locks[e.Lock] = append(w.locks[e.Lock], e.Record)
		w.logf("%s links %s %s %s", e.Record.Owner, e.Lock[max(0, len(e.Lock)-2):], e.Record, e.Record.Nonce)
	}
}
