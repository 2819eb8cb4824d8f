package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// listPhase is where a primary stands with the protected list of a datastore.
type listPhase int

const (
	listNone     listPhase = iota
	listReading            // its lock and content are being read
	listHeld               // another host holds it: wait until it releases or is stale
	listClaiming           // the guard claims the lock
	listCopying            // the predecessor's list is copied into the new term
	listOwned              // written under this term: act for its VMs
)

// list is a datastore's protected list on a primary.
type list struct {
	phase     listPhase
	gen       uint64 // grows with each attempt; answers to an older one are void
	lock      model.LockRecord
	term      model.Term
	problem   string
	readAt    time.Duration
	retryAt   time.Duration
	confirmed bool // the guard's status has shown this term
	yielded   bool // asked the own guard to yield a claim of a former life

	version   uint64 // of the last write begun
	written   uint64 // of the last write that succeeded
	kept      uint64 // of the last after which the guard still held the list
	asking    bool   // the guard is asked whether it does
	writing   bool
	dirty     bool
	critical  bool
	lastWrite time.Duration
	wake      time.Duration // a timer is set for then
	waiters   []waiter

	vms    map[model.VMID]*vm
	sorted []*vm
}

// waiter runs once the list is durable at a version, and for people only when it
// was this host's then.
type waiter struct {
	version uint64
	people  bool
	f       func()
}

const (
	// listPause is how long changes that can wait are gathered before the list
	// is written again.
	listPause = 200 * time.Millisecond
	// listRetry is the pause after a failed read, claim or write of a list.
	listRetry = 500 * time.Millisecond
)

func (m *Machine) openLists() {
	for _, st := range m.storeBy {
		if st.list.phase == listNone {
			m.readList(st)
		}
	}
}

// checkLists looks after every list once an interval.
func (m *Machine) checkLists() {
	for _, st := range m.storeBy {
		l := &st.list
		switch l.phase {
		case listNone:
			if m.now >= l.retryAt {
				m.readList(st)
			}
		case listHeld:
			if m.now-l.readAt >= m.interval() {
				m.readList(st)
			}
		}
	}
}

// accessible tells whether this host's guard heartbeats on st.
func (m *Machine) accessible(st *store) (bool, string) {
	switch {
	case m.isolated():
		return false, fmt.Sprintf("the primary %s is isolated", m.cfg.Self)
	case m.givesWay():
		return false, fmt.Sprintf("the primary %s is cut off from all other hosts", m.cfg.Self)
	case !st.here:
		return false, fmt.Sprintf("the primary %s is not meant to reach it", m.cfg.Self)
	case !m.guardUp || !m.statusOK:
		return false, fmt.Sprintf("the guard of the primary %s does not answer", m.cfg.Self)
	}
	for _, d := range m.status.Datastores {
		if d.Name == st.name {
			if d.OK {
				return true, ""
			}
			return false, fmt.Sprintf("the primary %s has lost it: %s", m.cfg.Self, d.Problem)
		}
	}
	return false, fmt.Sprintf("the guard of the primary %s does not know it", m.cfg.Self)
}

func (l *list) fail(m *Machine, problem string) {
	if l.problem != problem {
		m.viewDue = true
	}
	l.problem = problem
}

func (m *Machine) readList(st *store) {
	l := &st.list
	if m.role != rolePrimary {
		return
	}
	if ok, why := m.accessible(st); !ok {
		l.phase = listNone
		l.fail(m, why)
		l.retryAt = m.now + m.interval()
		return
	}
	l.gen++
	gen := l.gen
	if l.phase == listNone {
		l.phase = listReading
	}
	l.readAt = m.now
	m.do(ReadList{Datastore: st.name, Op: m.op(func(r ListRead) {
		if st.list.gen != gen || m.role != rolePrimary {
			return
		}
		m.onListRead(st, r)
	})})
}

func (m *Machine) retryList(st *store, d time.Duration, problem string) {
	st.list.phase = listNone
	st.list.retryAt = m.now + d
	st.list.fail(m, problem)
	m.after(d, m.reigning(func() {
		if st.list.phase == listNone && m.now >= st.list.retryAt && m.stores[st.name] == st {
			m.readList(st)
		}
	}))
}

func (m *Machine) onListRead(st *store, r ListRead) {
	l := &st.list
	if r.Err != "" || r.Kind != "" {
		m.retryList(st, listRetry, fmt.Sprintf("its protected list cannot be read (%s): %s", r.Kind, r.Err))
		return
	}
	st.lastKnown, st.listKnown = r.List.VMs, true
	l.lock = r.Lock
	holder := r.Lock.Holder()
	if holder == "" || holder == m.cfg.Self {
		m.claimList(st, nil)
		return
	}
	l.phase = listHeld
	l.fail(m, fmt.Sprintf("its protected list is held by %s (term %d)", holder, r.Lock.Epoch))
	m.listStep(st)
	m.planEarly(st)
}

// listStep claims a list whose holder is proven dead.
func (m *Machine) listStep(st *store) {
	l := &st.list
	if l.phase != listHeld {
		return
	}
	owner := l.lock.Holder()
	slot := st.slots[owner]
	if slot == nil {
		return
	}
	var evidence string
	switch {
	case m.disowned(st, l.lock):
		evidence = fmt.Sprintf("%s has rebooted since it took the list", owner)
	case m.stale(st, owner) && m.gaveUp(owner, st.name):
		evidence = fmt.Sprintf("%s has lost %s and reports that it holds the list no longer", owner, st.name)
	case m.stale(st, owner) && !m.speaks(owner):
		evidence = fmt.Sprintf("heartbeat of %s on %s unchanged for %s", owner, st.name, seconds(slot.age()))
	default:
		return
	}
	m.claimList(st, &lease.Takeover{Owner: owner, Slot: slot.id, Evidence: evidence})
}

// gaveUp tells whether a host that answers says that its guard has given the
// list up, which it could not write down because it lost the datastore.
func (m *Machine) gaveUp(host model.HostID, name model.DatastoreName) bool {
	h := m.members[host]
	if h == nil || h.report == nil || h.suspect {
		return false
	}
	for _, d := range h.report.Datastores {
		if d.Name == name {
			return !d.OK && d.ListTerm == 0
		}
	}
	return false
}

// speaks tells whether a host's agent was heard lately.
func (m *Machine) speaks(host model.HostID) bool {
	h := m.members[host]
	return h != nil && h.heard > 0 && m.now-h.heard <= m.silence()
}

func (m *Machine) claimList(st *store, t *lease.Takeover) {
	l := &st.list
	l.phase = listClaiming
	l.gen++
	gen := l.gen
	m.ask(lease.Request{ClaimList: &lease.ClaimListReq{Datastore: st.name, Epoch: l.lock.Epoch, Takeover: t}}, func(r lease.Reply) {
		if st.list.gen != gen || m.role != rolePrimary {
			if r.Code == lease.CodeOK && !m.listWanted(st) {
				m.ask(lease.Request{YieldList: &lease.YieldListReq{Datastore: st.name}}, func(lease.Reply) {})
			}
			return
		}
		m.onListClaim(st, r)
	})
}

func (m *Machine) listWanted(st *store) bool {
	return m.role == rolePrimary && st.list.phase >= listClaiming
}

func (m *Machine) onListClaim(st *store, r lease.Reply) {
	l := &st.list
	switch {
	case r.Code == lease.CodeOK:
		l.term, l.phase, l.yielded, l.confirmed = model.Term(r.Epoch), listCopying, false, false
		if l.lock.Owner != m.cfg.Self && l.lock.Reason != model.ReasonCreated {
			st.takenFrom, st.takenAt = l.lock.Owner, m.now
		}
		m.noteTerm(st.name, l.term)
		m.copyList(st)
	case r.Code == lease.CodeHeldByOther && l.lock.Holder() == m.cfg.Self && !l.yielded:
		// A claim of a former life of this agent.
		l.yielded = true
		m.ask(lease.Request{YieldList: &lease.YieldListReq{Datastore: st.name}}, func(lease.Reply) {})
		m.retryList(st, listRetry/5, "this host's own former claim is being yielded")
	case r.Code == lease.CodeEpochMoved:
		m.retryList(st, listRetry/5, "the lock of its protected list moved meanwhile")
	default:
		m.retryList(st, listRetry, fmt.Sprintf("the lock of its protected list was not won (%s): %s", r.Code, r.Text))
	}
}

// copyList reads the list once more, now that its lock is won and a
// predecessor's writes no longer count, and writes it under the new term.
func (m *Machine) copyList(st *store) {
	l := &st.list
	l.gen++
	gen := l.gen
	m.do(ReadList{Datastore: st.name, Op: m.op(func(r ListRead) {
		if st.list.gen != gen || m.role != rolePrimary {
			return
		}
		switch {
		case r.Err != "" || r.Kind != "":
			m.retryList(st, listRetry, fmt.Sprintf("its protected list cannot be read (%s): %s", r.Kind, r.Err))
		case model.Term(r.Lock.Epoch) > l.term || r.List.Term > l.term:
			m.retryList(st, listRetry, "another host has taken its protected list")
		default:
			st.lastKnown, st.listKnown = r.List.VMs, true
			before := uint64(0)
			if r.List.Term == l.term {
				before = r.List.Version
			}
			m.writeCopy(st, r.List.VMs, before, gen)
		}
	})})
}

func (m *Machine) writeCopy(st *store, vms []model.ProtectedVM, before, gen uint64) {
	l := &st.list
	// The guard may have kept the term of a former life of this agent: versions
	// go on then.
	copyOf := model.ProtectedList{Term: l.term, Version: before + 1, VMs: vms}
	m.do(WriteList{Datastore: st.name, List: copyOf, Op: m.op(func(r ListWritten) {
		if st.list.gen != gen || m.role != rolePrimary {
			return
		}
		if r.Err != "" || r.Kind != "" {
			m.retryList(st, listRetry, fmt.Sprintf("its protected list cannot be written (%s): %s", r.Kind, r.Err))
			return
		}
		l.version, l.written, l.phase, l.problem = copyOf.Version, copyOf.Version, listOwned, ""
		l.lastWrite = m.now
		m.viewDue, m.welcomeDue = true, true
		m.emit(event.Event{Kind: event.Election, Datastore: st.name, Host: m.cfg.Self,
			Text:     fmt.Sprintf("%s owns the protected list of %s under term %d: %d VMs", m.cfg.Self, st.name, l.term, len(vms)),
			Evidence: map[string]string{"before": l.lock.String()}})
		m.adopt(st, vms)
	})})
}

// adopt takes the VMs of a list into the registry and looks at each.
func (m *Machine) adopt(st *store, vms []model.ProtectedVM) {
	st.list.vms, st.list.sorted = map[model.VMID]*vm{}, nil
	at := map[model.VMID]*member{}
	for _, h := range m.order {
		for id := range h.active {
			if o := at[id]; o == nil || o.active[id].Epoch < h.active[id].Epoch {
				at[id] = h
			}
		}
	}
	added := map[model.VMID]*vm{}
	for _, p := range vms {
		if p.Home != st.name || m.vms[p.ID] != nil {
			continue
		}
		if p.Down != nil {
			d := *p.Down
			p.Down = &d
		}
		if p.Requested == "" {
			p.Requested = model.RequestedStarted
		}
		v := m.addVM(st, p)
		v.shown = m.wasProtected[p.ID]
		added[p.ID] = v
		if d := p.Down; d != nil && !d.Failed {
			v.nextTry = m.now + d.RetryIn
			m.joinFailover(v, d.Failover)
		}
		if p.Awaited {
			m.recover(v)
		}
	}
	for _, v := range m.sortVMs(added) {
		if h := at[v.p.ID]; h != nil {
			m.setRunning(v, h, h.active[v.p.ID])
		}
		m.enforce(v)
		m.evaluate(v)
	}
}

// closeList stops acting for a datastore.
func (m *Machine) closeList(st *store, why string, yield bool) {
	l := &st.list
	if yield && l.phase >= listClaiming {
		m.ask(lease.Request{YieldList: &lease.YieldListReq{Datastore: st.name}}, func(lease.Reply) {})
	}
	owned := l.phase == listOwned
	for _, v := range m.sortVMs(l.vms) {
		m.removeVM(v, why)
	}
	st.list = list{gen: l.gen + 1, problem: why}
	if owned {
		m.viewDue = true
		m.emit(event.Event{Kind: event.Election, Severity: event.Warning, Datastore: st.name, Host: m.cfg.Self,
			Text: fmt.Sprintf("%s no longer acts for the VMs of %s", m.cfg.Self, st.name), Cause: why})
	}
}

// lostList: the guard says that the list's lock is no longer this host's.
func (m *Machine) lostList(st *store, why string) {
	if m.role == rolePrimary && st.list.phase >= listCopying {
		m.closeList(st, why, false)
		m.retryList(st, listRetry, why)
	}
}

// yieldHeld gives up lists that the guard holds for a former life of this agent,
// or of a former reign, when another host leads now: the guard keeps them as
// long as any agent here lives.
func (m *Machine) yieldHeld() {
	if m.role != roleSecondary && m.role != roleNone || !m.guardUp || !m.statusOK {
		return
	}
	for _, d := range m.status.Datastores {
		if d.ListTerm != 0 {
			m.ask(lease.Request{YieldList: &lease.YieldListReq{Datastore: d.Name}}, func(lease.Reply) {})
		}
	}
}

// listsPending tells whether a list that this primary reaches is not yet owned.
func (m *Machine) listsPending() bool {
	for _, st := range m.storeBy {
		if ok, _ := m.accessible(st); ok && st.list.phase != listOwned {
			return true
		}
	}
	return false
}
