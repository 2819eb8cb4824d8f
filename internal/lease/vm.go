package lease

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// lockState is where this host stands with a VM's lock.
type lockState uint8

const (
	lockNone    lockState = iota // not ours, or not yet
	lockHeld                     // ours, as long as the lease is valid
	lockSuspect                  // was ours; must be claimed again before the VM may run
	lockLost                     // another host owns it: kill
)

// grantKind is a permission to start a VM that has no process yet.
type grantKind uint8

const (
	grantNone  grantKind = iota
	grantAgent           // a paused start: nothing runs before Confirm
	grantHook            // libvirt starts it at once
)

// freezeState is what is known of a VM's freeze.
type freezeState uint8

const (
	unfrozen freezeState = iota
	freezing
	frozen
	frozenBusy // frozen, I/O outstanding
	freezeFailed
)

// retryPause is the pause before a failed freeze, kill or re-claim is repeated.
const retryPause = 200 * time.Millisecond

// killRetry is the pause before a kill is ordered again.
const killRetry = time.Second

type waiter struct {
	conn, id uint64
}

// vm is a VM whose lock this host holds, wants or lost, or whose processes it
// froze because they have no lock.
type vm struct {
	id   model.VMID
	spec ManagedVM

	lock  lockState
	epoch model.Epoch
	nonce string

	grant   grantKind
	grantAt time.Duration // when the hook last permitted a start

	running  bool // its processes were seen last
	sighted  bool // ... in the list that is being taken in
	freeze   freezeState
	freezeOp uint64
	killing  bool
	// killBefore is when the order to kill it ends unless it was carried out by
	// then; 0: it was, or never ends.
	killBefore time.Duration
	foreign    bool // runs without a lock
	inquired   bool // the lock of a foreign VM was looked at
	dropped    bool // taken off the protected list since: no host wants its lock
	// entire: its lock was held by a valid lease until its datastore changed under
	// this host: nobody can have run it since.
	entire  bool
	retryAt time.Duration
	reason  string

	kills []waiter

	sum      uint64 // of its id and sumEpoch, for the digest in the slot
	sumEpoch model.Epoch
}

func (v *vm) absent() bool { return !v.running }

func (m *Machine) addVM(spec ManagedVM) *vm {
	if v := m.vms[spec.ID]; v != nil {
		if v.lock == lockNone {
			v.spec = spec
		}
		return v
	}
	v := &vm{id: spec.ID, spec: spec}
	m.vms[spec.ID] = v
	at, _ := slices.BinarySearchFunc(m.order, v.id, func(a *vm, id model.VMID) int {
		switch {
		case a.id < id:
			return -1
		case a.id > id:
			return 1
		}
		return 0
	})
	m.order = slices.Insert(m.order, at, v)
	return v
}

func (m *Machine) dropVM(v *vm) {
	delete(m.vms, v.id)
	if i := slices.Index(m.order, v); i >= 0 {
		m.order = slices.Delete(m.order, i, i+1)
	}
	m.answerKills(v, CodeOK, "")
	m.saveDirty, m.statusDirty = true, true
}

// suspect makes a VM prove its lock again before it may run on.
func (m *Machine) suspect(v *vm, why string) {
	if v.lock != lockHeld {
		return
	}
	v.lock = lockSuspect
	v.retryAt = 0
	if v.grant == grantAgent {
		v.grant = grantNone // a grant ends with the lease
	}
	v.reason = why
	m.saveDirty, m.statusDirty = true, true
	m.freezeVM(v)
}

// freezeVM orders a freeze unless one is in force. It is ordered for VMs
// without a process too: then it is the watcher that freezes what appears
// late.
func (m *Machine) freezeVM(v *vm) {
	if v.freeze == unfrozen || v.freeze == freezeFailed {
		m.orderFreeze(v)
	}
}

func (m *Machine) orderFreeze(v *vm) {
	v.freeze = freezing
	v.freezeOp = m.newOp()
	m.statusDirty = true
	m.emit(Effect{Kind: EffFreeze, Op: v.freezeOp, VM: v.id})
}

func (m *Machine) thaw(v *vm) {
	if v.freeze == unfrozen {
		return
	}
	v.freeze, v.freezeOp, v.entire = unfrozen, 0, false
	v.reason = ""
	m.statusDirty = true
	s := m.store(v.spec.Home)
	m.emit(Effect{Kind: EffThaw, VM: v.id, Before: s.limits.Freeze})
	if v.running {
		m.notify(Notice{What: NoticeThawed, VM: v.id, Datastore: v.spec.Home, Epoch: v.epoch,
			Text: v.name() + " runs again: its lock was claimed again"})
	}
}

func (m *Machine) kill(v *vm, why string) {
	v.killing = true
	v.reason = why
	v.retryAt = m.now + killRetry
	m.statusDirty = true
	m.emit(Effect{Kind: EffKill, VM: v.id, Before: v.killBefore})
}

func (v *vm) name() string {
	if v.spec.Name != "" {
		return v.spec.Name
	}
	return string(v.id)
}

func (m *Machine) froze(ev *Event) {
	v := m.vms[ev.VM]
	if v == nil || v.freezeOp != ev.Op || ev.Op == 0 {
		return
	}
	before := v.freeze
	switch ev.Frozen {
	case FrozenYes:
		v.freeze, v.running = frozen, true
		if before == freezing {
			m.freezeTimes[m.freezeCount%len(m.freezeTimes)] = ev.Took
			m.freezeCount++
		}
	case FrozenOutstanding:
		v.freeze, v.running = frozenBusy, true
	case FrozenNone:
		v.freeze = frozen
		m.gone(v.id)
	case FrozenFailed:
		v.freeze = freezeFailed
		v.retryAt = m.now + retryPause
	}
	if v.freeze == before {
		return
	}
	m.statusDirty = true
	if v.running {
		text := v.name() + " is frozen: " + v.reason
		switch v.freeze {
		case frozenBusy:
			text = v.name() + " is frozen with I/O outstanding: " + v.reason
		case freezeFailed:
			text = v.name() + " cannot be frozen: " + ev.Text
		}
		m.notify(Notice{What: NoticeFrozen, VM: v.id, Datastore: v.spec.Home, Epoch: v.epoch, Text: text})
	}
}

// gone notes that a VM has no process.
func (m *Machine) gone(id model.VMID) {
	v := m.vms[id]
	if v == nil {
		return
	}
	was := v.running || v.killing
	v.running, v.killing = false, false
	m.answerKills(v, CodeOK, "")
	if was {
		m.saveDirty, m.statusDirty = true, true
		if v.grant == grantAgent {
			v.grant = grantNone
		}
		m.notify(Notice{What: NoticeGone, VM: v.id, Datastore: v.spec.Home, Epoch: v.epoch, Text: v.name() + " has no process any more"})
	}
	if v.lock == lockLost {
		v.lock = lockNone
	}
}

func (m *Machine) answerKills(v *vm, code Code, text string) {
	for _, w := range v.kills {
		m.reply(w.conn, Reply{ID: w.id, Code: code, Text: text, Epoch: v.epoch})
	}
	v.kills = nil
}

// vmDuties does for each VM what its state asks for.
func (m *Machine) vmDuties() {
	for i := 0; i < len(m.order); i++ {
		v := m.order[i]
		if v.grant == grantHook && m.now >= v.grantAt+HookGrant {
			v.grant = grantNone
			m.statusDirty = true
		}
		if v.killing || v.freeze == freezeFailed {
			if sent := v.retryAt - killRetry; v.killing && m.now > sent && m.now <= v.killBefore {
				v.killBefore = 0 // the shell has carried out what was ordered before this Step
			}
			if m.now >= v.retryAt {
				m.retry(v)
			}
			continue
		}
		switch v.lock {
		case lockLost:
			v.killBefore = 0
			m.notify(Notice{What: NoticeKilled, VM: v.id, Datastore: v.spec.Home, Epoch: v.epoch, Text: v.name() + " is killed: " + v.reason})
			m.kill(v, v.reason)
		case lockSuspect:
			m.reclaim(v)
		case lockNone:
			m.lockless(v)
			if m.vms[v.id] == nil {
				i--
			}
		}
	}
}

func (m *Machine) retry(v *vm) {
	switch {
	case v.killing && v.killBefore != 0 && m.now > v.killBefore:
		// This guard stood still: the shell did not carry it out any more.
		v.killing = false
		m.statusDirty = true
		m.answerKills(v, CodeExpired, "the guard stood still before it could kill "+v.name()+": the reason may be over")
		return
	case v.killing:
		m.kill(v, v.reason)
		return
	}
	m.orderFreeze(v)
}

// lockless handles an entry without a lock: a claim under way, processes that
// were frozen because they have none, or what is left of either.
func (m *Machine) lockless(v *vm) {
	_, busy := m.chains[lockKey{v.spec.Home, model.VMLock(v.id)}]
	switch {
	case busy:
	case (v.absent() || !v.foreign) && v.grant == grantNone:
		m.dropVM(v)
	case v.foreign && !v.inquired && v.spec.Home != "" && m.leaseOK(v.spec.Home) && m.now >= v.retryAt:
		m.startChain(&chain{kind: chainInquire, key: lockKey{v.spec.Home, model.VMLock(v.id)}, vm: v.id})
	}
}

// reclaim starts to claim the next epoch of a suspect lock when the lease is
// valid again (guard rule 1: heartbeat first, then the claim).
func (m *Machine) reclaim(v *vm) {
	s := m.store(v.spec.Home)
	key := lockKey{v.spec.Home, model.VMLock(v.id)}
	if s == nil || !s.leased || m.now < v.retryAt || m.now < s.repairUntil || m.chains[key] != nil {
		return
	}
	m.startChain(&chain{kind: chainReclaim, key: key, vm: v.id})
}

// scanned takes in a list of processes.
func (m *Machine) scanned(ev *Event) {
	if ev.Op != m.scan.op || ev.Op == 0 {
		return
	}
	m.scan.op = 0
	ok := ev.Fault == nil
	if ok {
		first := !m.scan.done
		m.scan.done = true
		m.scan.last = m.scan.started
		m.sight(ev.Procs, first)
	}
	waiters := m.scan.waiters
	m.scan.waiters, m.scan.nextWaiters = m.scan.nextWaiters, nil
	m.scan.again = len(m.scan.waiters) > 0
	for _, w := range waiters {
		w(ok)
	}
}

func (m *Machine) sight(procs []Proc, first bool) {
	for i := range procs {
		p := &procs[i]
		var v *vm
		if i < len(m.order) && m.order[i].id == p.VM { // lists mostly have the same order
			v = m.order[i]
		} else {
			v = m.vms[p.VM]
		}
		if v == nil {
			spec, managed := m.managed.find(p.VM)
			switch {
			case managed:
			case len(p.Holds) > 0 && len(m.vms) < maxManaged+maxForeign:
				spec = ManagedVM{ID: p.VM, Name: p.Name}
			default:
				continue // not ours
			}
			v = m.addVM(spec)
		}
		v.sighted = true
		m.appeared(v, p, first)
	}
	for i := 0; i < len(m.order); i++ {
		v := m.order[i]
		if v.running && !v.sighted {
			m.gone(v.id)
		}
		v.sighted = false
	}
}

func (m *Machine) appeared(v *vm, p *Proc, first bool) {
	if !v.running {
		v.running = true
		m.saveDirty, m.statusDirty = true, true
		if v.freeze != unfrozen {
			m.orderFreeze(v) // what was confirmed was its absence
		}
	}
	switch {
	case v.killing:
	case v.lock == lockHeld && m.leaseOK(v.spec.Home):
		if v.grant == grantHook {
			v.grant = grantNone
		}
		if p.Frozen && first {
			m.suspect(v, "it was frozen when the guard started")
		} else if p.Frozen && v.freeze == unfrozen {
			// A thaw came too late to be carried out.
			m.emit(Effect{Kind: EffThaw, VM: v.id, Before: m.store(v.spec.Home).limits.Freeze})
		}
	case v.lock == lockNone && (m.adopting(v) || !m.mustBeLocked(v, p)):
	case v.lock == lockNone && !v.foreign:
		v.foreign, v.inquired = true, false
		v.reason = "it runs without a lock"
		if len(p.Holds) > 0 {
			v.reason = "it holds a disk of a managed VM without a lock"
		}
		m.freezeVM(v)
		m.notify(Notice{What: NoticeForeign, VM: v.id, Datastore: v.spec.Home, Text: v.name() + " is frozen: " + v.reason})
	default:
		m.freezeVM(v)
	}
}

// mustBeLocked reports whether a process may run only under a lock.
func (m *Machine) mustBeLocked(v *vm, p *Proc) bool {
	_, managed := m.managed.find(v.id)
	return managed || len(p.Holds) > 0 || v.foreign
}

// adopting reports whether a claim for the running VM is under way.
func (m *Machine) adopting(v *vm) bool {
	if len(m.chains) == 0 {
		return false
	}
	c := m.chains[lockKey{v.spec.Home, model.VMLock(v.id)}]
	return c != nil && c.kind == chainClaim && c.runningVM
}

// adoptionMayCount reports whether a claim for the running VM may have landed:
// other hosts may count on the end of this host's lease already.
func (m *Machine) adoptionMayCount(v *vm) bool {
	c := m.chains[lockKey{v.spec.Home, model.VMLock(v.id)}]
	return m.adopting(v) && (c.stage == stageLink || c.stage == stageAgain)
}

// scanDuty starts a scan that is due or asked for.
func (m *Machine) scanDuty() {
	if m.scan.op != 0 || m.now < m.nextScan() {
		return
	}
	m.scan.op = m.newOp()
	m.scan.started = m.now
	m.scan.due = m.soon(ScanPeriod)
	m.scan.again = false
	m.emit(Effect{Kind: EffScan, Op: m.scan.op})
}

func (m *Machine) nextScan() time.Duration {
	switch {
	case m.scan.again || m.scan.started == 0 && !m.scan.done:
		return m.now
	case !m.scan.done:
		return m.scan.started + ScanSoon
	}
	for _, v := range m.order {
		if v.absent() && (v.grant != grantNone || v.freeze != unfrozen) {
			return min(m.scan.due, m.scan.started+ScanSoon)
		}
	}
	return m.scan.due
}

// afterScan calls f when a scan that starts from now on has ended.
func (m *Machine) afterScan(f func(ok bool)) bool {
	if len(m.scan.nextWaiters) >= maxWaiters {
		return false
	}
	if m.scan.op == 0 {
		m.scan.waiters = append(m.scan.waiters, f)
		m.scan.again = true
		return true
	}
	m.scan.nextWaiters = append(m.scan.nextWaiters, f)
	return true
}
