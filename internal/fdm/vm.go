package fdm

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// vm is a managed VM in the registry of a primary. p is what the list keeps;
// the rest is known anew by each primary.
type vm struct {
	p  model.ProtectedVM
	st *store

	set     VMSettings // of the cluster file, see setOf
	setBy   uint64
	setName string

	host    *member // where it runs by report, or who holds its lock
	running bool    // by report
	local   LocalVM // as reported, if running

	lock        model.LockRecord
	lockKnown   bool
	lockReading bool
	lockQueued  bool

	order   *order
	want    intent
	nextTry time.Duration
	wakeAt  time.Duration

	reason   string // why it does not run, now
	fence    bool   // it waits for proof of death
	standing bool   // its attempts are used up
	fault    string // code of the last failure
	said     string // the reason last told
	saidAt   time.Duration
	triedAt  time.Duration
	movedAt  time.Duration // its stop was last ordered because its storage is lost

	stopAgain time.Duration // not ordered to stop for the cluster file before
	stuck     bool          // its guest did not shut down for the cluster file

	metAt     time.Duration // its ready condition holds since then; 0: it does not
	gateSince time.Duration // others count the time-out of their wait for it from then
	gateOver  bool          // and it is over
	unplaced  bool          // no host could take it, last time
	planned   model.HostID  // its place in the plan of all
	admitted  model.HostID  // where admission control found that its start keeps the policy
	breaks    []string      // rules that its place breaks
	behind    *vm           // which it depends on and which was not ready, last time
	turn      int           // its place among the restarts, for people
	heldSaid  bool          // people know that it waits its turn

	dirtyAt    uint64 // list version that will hold the last change
	seen       bool   // to run in this reign, or managed only since
	shown      bool   // told to people as protected
	inFailover string
	forgetOff  bool        // the record of its last stop is not to count again
	offSeen    model.Epoch // its holder said of this epoch that it was stopped on purpose
	askers     []asker
}

// asker waits for the end of what an administrator asked for.
type asker struct {
	kind CommandKind
	f    func(AdminReply)
}

// intent is a start that waits for a place.
type intent struct {
	epoch    model.Epoch
	takeover *lease.Takeover
	only     model.HostID // no other host can start it
	prefer   model.HostID
}

func (m *Machine) addVM(st *store, p model.ProtectedVM) *vm {
	v := &vm{p: p, st: st}
	m.vms[p.ID], m.byName[p.Name], m.vmIDs = v, v, nil
	if st.list.vms == nil {
		st.list.vms = map[model.VMID]*vm{}
	}
	st.list.vms[p.ID], st.list.sorted = v, nil
	m.welcomeDue, m.viewDue = true, true
	return v
}

func (m *Machine) removeVM(v *vm, why string) {
	if v.order != nil {
		m.dropOrder(v.order, why)
	}
	m.leaveFailover(v)
	m.answerWaiters(v, AdminReply{Text: why})
	m.setHost(v, nil)
	delete(m.vms, v.p.ID)
	m.vmIDs = nil
	if m.byName[v.p.Name] == v {
		delete(m.byName, v.p.Name)
	}
	delete(m.ready, v.p.ID)
	delete(m.waiting, v.p.ID)
	delete(m.held, v.p.ID)
	delete(m.recovering, v.p.ID)
	m.orderDue = true
	delete(v.st.list.vms, v.p.ID)
	v.st.list.sorted = nil
	m.welcomeDue, m.viewDue = true, true
}

// ids are those of all VMs, sorted. They stay as they are when VMs come or go.
func (m *Machine) ids() []model.VMID {
	if m.vmIDs == nil {
		m.vmIDs = sortedKeys(m.vms)
	}
	return m.vmIDs
}

// sortVMs orders VMs for restart: class, then name.
func (m *Machine) sortVMs(in map[model.VMID]*vm) []*vm {
	list := make([]*vm, 0, len(in))
	for _, v := range in {
		list = append(list, v)
	}
	if len(list) < 2 {
		return list
	}
	slices.SortFunc(list, func(a, b *vm) int {
		return cmp.Or(cmp.Compare(m.class(b), m.class(a)), cmp.Compare(a.p.Name, b.p.Name), cmp.Compare(a.p.ID, b.p.ID))
	})
	return list
}

// setOf is what the cluster file says of v. It is looked for by name once for
// each file.
func (m *Machine) setOf(v *vm) *VMSettings {
	if v.setBy != m.confRev || v.setName != v.p.Name {
		v.set, v.setBy, v.setName = m.conf.VMs[v.p.Name], m.confRev, v.p.Name
	}
	return &v.set
}

// priority is the cluster file's, or else the one recorded.
func (m *Machine) priority(v *vm) model.Priority {
	if s := m.setOf(v); s.Priority != "" {
		return s.Priority
	}
	return v.p.Priority
}

// requested is the state wanted: disabled and ignored come from the cluster
// file, started and stopped from what administrators and users did last.
func (m *Machine) requested(v *vm) model.Requested {
	switch s := m.setOf(v); s.Requested {
	case model.RequestedDisabled, model.RequestedIgnored:
		return s.Requested
	}
	return v.p.Requested
}

func (m *Machine) setHost(v *vm, h *member) {
	if v.host == h {
		return
	}
	if v.host != nil {
		delete(v.host.vms, v.p.ID)
	}
	v.host = h
	if h != nil {
		h.vms[v.p.ID] = v
	}
	m.viewDue = true
}

// runs tells whether a reported VM runs, frozen or not: a paused start is not
// running yet.
func runs(lv LocalVM) bool {
	if !lv.Active {
		return false
	}
	switch lv.Phase {
	case lease.PhaseClaiming, lease.PhaseGranted, lease.PhaseGone, lease.PhaseKilling:
		return false
	}
	return true
}

// frozenThere tells whether a VM is frozen by report.
func (m *Machine) frozenThere(v *vm) bool {
	return v.running && v.local.frozen()
}

// frozen tells whether the guard of its host has frozen it, or is about to.
func (lv LocalVM) frozen() bool {
	return lv.Phase == lease.PhaseFrozen || lv.Phase == lease.PhaseFreezing
}

// setRunning takes over what a host reports of a VM; h nil: it runs nowhere.
func (m *Machine) setRunning(v *vm, h *member, lv LocalVM) {
	if v.order != nil && v.order.kind == CommandStart {
		return // the order's own progress tells
	}
	if h == nil {
		if v.running {
			m.viewDue = true
		}
		v.running, v.local = false, LocalVM{}
		v.lockKnown = false
		return
	}
	if v.running && v.host != h && lv.Epoch < v.local.Epoch {
		return // a frozen copy of before
	}
	if !v.running || v.local != lv {
		m.viewDue = true
	}
	if lv.Alive != v.local.Alive || !v.running {
		m.orderDue = true
	}
	started := !v.running || v.host != h
	v.running, v.local = true, lv
	m.setHost(v, h)
	m.nowRuns(v, h, lv.Epoch, started)
}

// nowRuns records that a VM runs on h under an epoch. started tells that it did
// not run there before: a new epoch alone may be its guard's renewed claim.
func (m *Machine) nowRuns(v *vm, h *member, epoch model.Epoch, started bool) {
	p := &v.p
	newer := epoch > p.LastEpoch
	dirty := newer || p.Host != h.name || p.Down != nil
	if p.Requested == model.RequestedStopped && newer && started && v.order == nil && !m.mustStop(v) {
		p.Requested = model.RequestedStarted
		m.emit(event.Event{Kind: event.VMUp, VM: p.Name, Host: h.name, Text: fmt.Sprintf("%s was started on %s by its user: it is wanted running again", p.Name, h.name)})
	}
	if p.Down != nil && p.Down.Failover != "" && !m.isReady(v, m.settings(v)) {
		p.Awaited = true
	}
	m.remember(v, h)
	p.Host = h.name
	if newer {
		p.LastEpoch = epoch
	}
	if p.Down != nil {
		m.emit(event.Event{Kind: event.VMUp, VM: p.Name, Host: h.name, Failover: p.Down.Failover,
			Text: fmt.Sprintf("%s runs on %s", p.Name, h.name), Cause: p.Down.Cause,
			Evidence: map[string]string{"attempts": fmt.Sprint(p.Down.Attempts), "epoch": fmt.Sprint(epoch)}})
		p.Down = nil
	}
	m.leaveFailover(v)
	v.seen, v.heldSaid, v.unplaced, v.admitted = true, false, false, ""
	v.reason, v.fence, v.standing, v.fault, v.said = "", false, false, "", ""
	v.nextTry, v.lockKnown = 0, false
	delete(m.waiting, p.ID)
	delete(m.ready, p.ID)
	delete(m.held, p.ID)
	if dirty {
		m.save(v)
	}
	if len(v.askers) > 0 {
		m.answerStart(v, AdminReply{OK: true, Text: fmt.Sprintf("%s runs on %s", p.Name, h.name)})
	}
	m.showProtection(v)
	m.enforce(v)
}

// gap is what a VM lacks to be protected.
type gap uint8

const (
	gapNone     gap = iota
	gapState        // it is not wanted running
	gapPriority     // it is not to be restarted
	gapReach        // the primary does not reach its host
	gapSilent       // its host is silent: what was shown before stands
	gapDown         // it does not run
	gapGuard        // the guard of its host is silent
	gapLock         // and has not confirmed its lock
	gapHook         // the hook is not loaded there
	gapRecord       // it is not on the datastore yet
)

// gap says what a VM lacks: it is protected if it is wanted running, runs under
// its lock, and is recorded.
func (m *Machine) gap(v *vm) gap {
	switch {
	case m.requested(v) != model.RequestedStarted:
		return gapState
	case m.priority(v) == model.PriorityDisabled:
		return gapPriority
	case v.host != nil && (v.host.state == model.HostPartitioned || v.host.state == model.HostIsolated):
		return gapReach
	case !v.running && v.host != nil && v.host.suspect && !v.host.failed:
		return gapSilent
	case !v.running:
		return gapDown
	case v.host.report != nil && !v.host.report.GuardUp:
		return gapGuard
	case v.local.Epoch == 0:
		return gapLock
	case v.host.report != nil && !v.host.report.HookSeen:
		return gapHook
	case v.dirtyAt > v.st.list.written:
		return gapRecord
	}
	return gapNone
}

// text says for people what v lacks.
func (g gap) text(m *Machine, v *vm) string {
	switch g {
	case gapState:
		return fmt.Sprintf("requested state is %s", m.requested(v))
	case gapPriority:
		return "its restart priority is disabled"
	case gapReach:
		return fmt.Sprintf("the primary that owns its list does not reach %s, which is %s", v.host.name, v.host.state)
	case gapSilent:
		return v.host.why()
	case gapDown:
		return v.reason
	case gapGuard:
		return fmt.Sprintf("the guard of %s does not answer", v.p.Host)
	case gapLock:
		return fmt.Sprintf("the guard of %s does not confirm its lock", v.p.Host)
	case gapHook:
		return fmt.Sprintf("libvirt on %s has not loaded Hanok's hook", v.p.Host)
	case gapRecord:
		return "not yet recorded on the datastore"
	}
	return ""
}

// protected tells whether a VM is protected, and else what it lacks: in a form
// that costs nothing while nobody asks for its text.
func (m *Machine) protected(v *vm) (bool, gap) {
	g := m.gap(v)
	return g == gapNone || g == gapSilent && v.shown, g
}

func (m *Machine) showProtection(v *vm) {
	ok, lacks := m.protected(v)
	if ok == v.shown {
		return
	}
	if !ok && m.requested(v) == model.RequestedStarted && v.p.Down == nil &&
		(!v.running || v.local.Epoch != 0 && v.dirtyAt > v.st.list.written) {
		return // not reported yet, or only being recorded anew
	}
	v.shown, m.viewDue = ok, true
	if ok {
		m.emit(event.Event{Kind: event.Protected, VM: v.p.Name, Host: v.p.Host, Datastore: v.st.name, Text: fmt.Sprintf("%s is protected", v.p.Name)})
		return
	}
	if v.p.Down == nil {
		m.emit(event.Event{Kind: event.Unprotected, VM: v.p.Name, Host: v.p.Host, Datastore: v.st.name, Text: fmt.Sprintf("%s is not protected", v.p.Name), Cause: lacks.text(m, v)})
	}
}

// down records that a VM wanted running does not run.
func (m *Machine) down(v *vm, cause, failover string) {
	if d := v.p.Down; d != nil {
		if failover != "" && d.Failover != failover {
			d.Failover = failover
			m.joinFailover(v, failover)
			m.save(v)
		}
		return
	}
	v.p.Down = &model.DownState{Cause: cause, Failover: failover}
	m.joinFailover(v, failover)
	v.shown = false
	m.save(v)
	m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: v.p.Name, Host: v.p.Host, Datastore: v.st.name, Failover: failover,
		Text: fmt.Sprintf("%s is down and will be restarted", v.p.Name), Cause: cause})
}

func (m *Machine) joinFailover(v *vm, id string) {
	if id == "" {
		return
	}
	f := m.failovers[id]
	if f == nil {
		f = &failover{id: id, host: v.p.Host, at: m.now, open: map[model.VMID]bool{}}
		m.failovers[id] = f
	}
	if !f.open[v.p.ID] {
		f.open[v.p.ID] = true
		f.total++
	}
	v.inFailover = id
	m.recover(v)
}

func (m *Machine) leaveFailover(v *vm) {
	if f := m.failovers[v.inFailover]; f != nil {
		delete(f.open, v.p.ID)
		m.finishFailover(f)
	}
	v.inFailover = ""
	m.orderDue = true
}

// hostLost: the host that a VM is believed on has failed.
func (m *Machine) hostLost(v *vm, h *member) {
	if v.order != nil && v.order.host != h {
		return
	}
	v.running, v.local = false, LocalVM{}
	m.viewDue = true
	if m.requested(v) == model.RequestedStarted && m.priority(v) != model.PriorityDisabled {
		m.joinFailover(v, m.failoverOf(h))
	}
	m.evaluate(v)
}

// readLock reads the highest record of a VM's lock, as soon as the number of
// reads under way permits.
func (m *Machine) readLock(v *vm) {
	if v.lockReading || v.lockQueued {
		return
	}
	v.lockQueued = true
	m.lockQueue = append(m.lockQueue, v)
}

func (m *Machine) pumpLocks() {
	for len(m.lockQueue) > 0 && m.lockBusy < lockReads {
		v := m.lockQueue[0]
		m.lockQueue = m.lockQueue[1:]
		v.lockQueued = false
		if m.vms[v.p.ID] != v {
			continue
		}
		v.lockReading = true
		m.lockBusy++
		reign := m.reign
		m.do(ReadLock{Datastore: v.st.name, VM: v.p.ID, Op: m.op(func(r LockRead) {
			v.lockReading = false
			if m.reign != reign {
				return
			}
			m.lockBusy--
			if m.vms[v.p.ID] == v {
				m.onLock(v, r)
			}
		})})
	}
}

func (m *Machine) onLock(v *vm, r LockRead) {
	if r.Err != "" || r.Kind != "" {
		v.lockKnown = false
		if !v.running {
			text := fmt.Sprintf("its lock on %s cannot be read (%s): %s", v.st.name, r.Kind, r.Err)
			if r.Kind == "missing" {
				text = fmt.Sprintf("its lock on %s is missing, which is unknown, never free: see docs/operations", v.st.name)
			}
			m.postpone(v, transientPause, text)
		}
		return
	}
	v.lock, v.lockKnown = r.Record, true
	m.lockOfRunning(v)
	m.evaluate(v)
}

// wake evaluates v again after d.
func (m *Machine) wake(v *vm, d time.Duration) {
	at := m.now + d
	if v.wakeAt > m.now && v.wakeAt <= at {
		return
	}
	v.wakeAt = at
	m.after(d, func() {
		if v.wakeAt <= m.now && m.vms[v.p.ID] == v {
			m.evaluate(v)
		}
	})
}

// postpone keeps v waiting for d with a reason, and then reads its lock anew.
func (m *Machine) postpone(v *vm, d time.Duration, reason string) {
	v.reason = reason
	v.lockKnown = false
	v.nextTry = m.now + d
	m.viewDue = true
	m.wake(v, d)
}
