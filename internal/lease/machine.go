package lease

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Durations that are part of the protocol but not of its profiles.
const (
	// AgentSilence is how long the guard holds lists for an agent that says
	// nothing (guard rule 5).
	AgentSilence = 2 * time.Second
	// ScanPeriod is the pause between two lists of processes while nothing is
	// expected (guard rule 7), ScanSoon while a granted VM has no process yet.
	ScanPeriod = time.Second
	ScanSoon   = 250 * time.Millisecond
	// HookGrant is how long a start that the hook permitted counts as a
	// running VM although no process of it was seen. libvirt needs about half
	// a second; its own time-out for a QEMU that does not answer is 30 s, but
	// the process exists by then.
	HookGrant = 10 * time.Second
	// HookLimit is when the hook gets its answer at the latest; it must be
	// given to libvirt within 3 s.
	HookLimit = 2500 * time.Millisecond
	// ClaimLimit is how long a request about a lock waits for its storage.
	ClaimLimit = 10 * time.Second
	// orphanLimit is how long a claim whose outcome is unknown is looked for.
	orphanLimit = 2 * time.Minute
)

// Bounds of the machine's tables.
const (
	maxWaiters = 64 // requests that wait for one scan
	maxManaged = 20000
	maxKnown   = 64 // digests that a slot may have
	maxOrphans = 256
	maxForeign = 256
)

type lockKey struct {
	ds   model.DatastoreName
	lock model.LockID
}

// Machine is the guard of one host. See the package comment for its contract.
type Machine struct {
	cfg Config
	// next is a timing that waits for the watchdog, see retime.
	next *model.Timing
	now  time.Duration
	out  []Effect
	op   uint64
	incN uint64 // incarnation in force

	stores  []*store
	vms     map[model.VMID]*vm
	order   []*vm // vms in the order of their ids: effects are deterministic
	managed managedSet
	chains  map[lockKey]*chain
	ops     map[uint64]*chain
	orphans []orphan
	// hookWaits are starts that wait for another operation on their lock.
	hookWaits []hookWait
	// pendingFreeze are restored VMs that the first Step freezes.
	pendingFreeze []model.VMID
	// blind: no predecessor's memory; until blindUntil (0: not set yet) libvirt
	// may be starting VMs that a forgotten predecessor permitted.
	blind      bool
	blindUntil time.Duration

	scan      scanState
	agent     agentState
	watchdog  watchdogState
	hookSeen  bool
	firstStep time.Duration // when it was, if stepped; see soon
	stepped   bool
	stood     time.Duration // when it last went on after it stood still; 0: never

	subscribers  map[uint64]bool
	statusDirty  bool
	saveDirty    bool
	longestWrite time.Duration
	freezeTimes  [16]time.Duration // of the last freezes
	freezeCount  int
}

type scanState struct {
	done        bool // one scan has succeeded
	op          uint64
	started     time.Duration
	due         time.Duration // of the next, if nothing is expected before
	last        time.Duration // start of the last successful one
	again       bool          // somebody needs one that starts after now
	waiters     []func(ok bool)
	nextWaiters []func(ok bool)
}

type agentState struct {
	heard    bool
	restored bool // a predecessor knew it; its time begins with the first Step
	last     time.Duration
	beat     BeatRequest
	sequence uint64
}

type watchdogState struct {
	on      bool // it does what it was told
	open    bool // it ticks
	why     string
	timeout time.Duration // that it keeps while on, or kept when last on
	nextPet time.Duration
	holding bool // not petting, said so
}

// orphan is a claim whose outcome is unknown: its record may still appear.
type orphan struct {
	key   lockKey
	rec   model.LockRecord
	until time.Duration
	next  time.Duration
	pause time.Duration
}

// New makes a Machine. saved is what a predecessor left, or nil; it counts only
// if it is of the same boot.
func New(cfg Config, saved *Saved) *Machine {
	m := &Machine{
		cfg:    cfg,
		incN:   cfg.Incarnation,
		vms:    map[model.VMID]*vm{},
		chains: map[lockKey]*chain{}, ops: map[uint64]*chain{}, subscribers: map[uint64]bool{},
		watchdog: watchdogState{why: "the watchdog device is not open yet"},
	}
	m.setManaged(cfg.Managed)
	m.cfg.Managed = nil
	m.setStores(cfg.Datastores)
	if saved != nil && saved.Boot == cfg.Boot && saved.Host == cfg.Host {
		m.restore(saved)
	} else {
		m.blind = cfg.Predecessor
	}
	return m
}

// Step takes in one event and returns what is to be done. now must not be
// before that of the last call. The result is valid until the next call.
func (m *Machine) Step(now time.Duration, ev Event) []Effect {
	clear(m.out)
	m.out = m.out[:0]
	if m.stepped && now-m.now > longestSleep+m.cfg.Timing.Interval/2 {
		m.stood = now
	}
	m.now = max(m.now, now)
	if !m.stepped {
		m.stepped, m.firstStep = true, m.now
	}
	m.begun()
	if ev.Kind != EvSlotWritten {
		// A lease that ended must be seen before anything is decided by it;
		// but the result of a write that began inside the lease continues it.
		m.lapse()
	}
	m.handle(&ev)
	m.lapse()
	m.advance()
	if m.saveDirty {
		// The shell saves before it carries out what follows.
		m.saveDirty = false
		m.out = slices.Insert(m.out, 0, Effect{Kind: EffSaveState})
	}
	m.sendStatus()
	return m.out
}

// begun does what a restored machine must do first, once it knows the time.
func (m *Machine) begun() {
	for _, id := range m.pendingFreeze {
		m.freezeVM(m.vms[id])
	}
	m.pendingFreeze = nil
	switch {
	case m.blind && m.blindUntil == 0:
		m.blindUntil = m.now + HookGrant
	case m.blind && m.now >= m.blindUntil:
		m.blind = false
	}
	if m.agent.restored {
		m.agent.restored, m.agent.heard, m.agent.last = false, true, m.now
		for i := range m.orphans {
			m.orphans[i].next, m.orphans[i].until = m.now, m.now+orphanLimit
		}
	}
}

func (m *Machine) handle(ev *Event) {
	switch ev.Kind {
	case EvTick:
	case EvSlotWritten:
		m.slotWritten(ev)
	case EvSlotRead, EvLockListed, EvLockLinked, EvLockCreated:
		if c := m.ops[ev.Op]; c != nil {
			delete(m.ops, ev.Op)
			m.chainStep(c, ev)
		}
	case EvScanned:
		m.scanned(ev)
	case EvFroze:
		m.froze(ev)
	case EvGone:
		m.gone(ev.VM)
	case EvRequest:
		m.request(ev.Conn, ev.Request)
	case EvConnLost:
		m.connLost(ev.Conn)
	case EvWatchdog:
		m.watchdogReport(ev)
		if m.watchdog.on != ev.On || m.watchdog.why != ev.Text {
			m.watchdog.on, m.watchdog.why = ev.On, ev.Text
			m.watchdog.nextPet = m.now
			m.statusDirty = true
			for _, s := range m.stores {
				s.nextWrite = m.now // others decide by the flag in the slot
			}
			text := "the watchdog is armed"
			if !ev.On {
				text = "the watchdog is not armed: " + ev.Text
			}
			m.notify(Notice{What: NoticeDisarmed, Text: text})
		}
	case EvHookLost:
		if m.hookSeen {
			m.hookSeen = false
			m.statusDirty = true
		}
	case EvConfig:
		m.reconfigure(ev.Config)
	}
}

// advance does what time and the changed state ask for.
func (m *Machine) advance() {
	m.agentSilence()
	m.vmDuties()
	m.hookDuties()
	m.listDuties()
	m.chainTimers()
	m.orphanDuties()
	m.heartbeats()
	m.scanDuty()
	m.pet()
}

// longestSleep is the most that Next puts the next Step off.
const longestSleep = time.Second

// Next is the time by which Step must be called with a Tick if nothing else
// happens.
func (m *Machine) Next() time.Duration {
	next := m.now + longestSleep
	at := func(t time.Duration) { next = min(next, max(t, m.now)) }
	for _, s := range m.stores {
		if m.scan.done && s.op == 0 {
			at(s.nextWrite)
		}
		if s.leased {
			at(s.limits.Freeze)
		}
		if s.list.cleanup && s.leased && m.chains[lockKey{s.cfg.Name, model.ListLock}] == nil {
			at(s.list.retryAt)
		}
		if s.op != 0 && !s.hung {
			at(s.started + m.hungAfter())
		}
		if s.list.held && m.agent.heard {
			at(m.agent.last + AgentSilence)
		}
	}
	if len(m.chains) > 0 {
		for _, c := range m.chains {
			if c.live {
				at(c.deadline)
			}
			if c.wakeAt != 0 {
				at(c.wakeAt)
			}
		}
	}
	for i := range m.orphans {
		at(m.orphans[i].next)
	}
	for _, v := range m.order {
		if v.retryAt > m.now {
			at(v.retryAt)
		}
	}
	for i := range m.hookWaits {
		at(m.hookWaits[i].deadline)
	}
	if m.scan.op == 0 {
		at(m.nextScan())
	}
	at(m.watchdog.nextPet)
	return next
}

func (m *Machine) emit(e Effect) { m.out = append(m.out, e) }

// soon is the time at which something is due at the latest after a period: a
// moment that it shares with the other duties, as far as that is not later. Each
// wake-up costs more than what is done in it.
func (m *Machine) soon(period time.Duration) time.Duration {
	due := m.now + period
	if shared := due - (due-m.firstStep)%model.PetPeriod; shared > m.now {
		return shared
	}
	return due
}

func (m *Machine) newOp() uint64 { m.op++; return m.op }

// notify tells all subscribers, and the shell's log although there may be none.
func (m *Machine) notify(n Notice) { m.emit(Effect{Kind: EffNotify, Notice: &n}) }

func (m *Machine) reply(conn uint64, r Reply) {
	if conn != 0 {
		m.emit(Effect{Kind: EffReply, Conn: conn, Reply: &r})
	}
}

func (m *Machine) refuse(conn, id uint64, code Code, text string) {
	m.reply(conn, Reply{ID: id, Code: code, Text: text})
}

func (m *Machine) reconfigure(c *Config) {
	m.retime(c.Timing)
	m.setStores(c.Datastores)
	m.statusDirty = true
}

// StopProblem says why the guard may not end without a successor and disarm the
// watchdog; "" when it may: no claim or grant is under way, and no VM runs here
// that another host could want. A VM that was taken off the protected list
// while this guard watched is not wanted by any: it may run on without a guard.
func (m *Machine) StopProblem() string {
	for _, c := range m.chains {
		if c.kind == chainClaim {
			return "a lock is being claimed"
		}
	}
	for _, v := range m.order {
		switch {
		case v.grant != grantNone:
			return v.name() + " is about to start here"
		case v.absent():
		case v.freeze != unfrozen:
			return v.name() + " is frozen: without a guard nobody thaws it"
		case !v.dropped:
			return v.name() + " runs here and other hosts may take it over: move it, or take it off with `hanok vm unprotect`"
		}
	}
	if !m.scan.done {
		return "which VMs run here is not known yet"
	}
	return ""
}
