package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// IsolationResponse is what an isolated host does with a VM.
type IsolationResponse string

// The responses. The empty one of a VM means its cluster's.
const (
	IsolationNone     IsolationResponse = "none"
	IsolationPowerOff IsolationResponse = "powerOff"
	IsolationShutdown IsolationResponse = "shutdown"
)

// Isolation is the cluster's policy for isolated hosts.
type Isolation struct {
	Response IsolationResponse
	// Delay is the pause between the declaration and the response.
	Delay time.Duration
	// ShutdownLimit is how long a guest may take to shut down before it is
	// powered off.
	ShutdownLimit time.Duration
}

// isolatedAfter is how many intervals without a sign of life from any agent or
// isolation address make a host isolated: 4 s by the fast profile, which
// leaves two seconds of the six in which people expect it.
const isolatedAfter = 8

// isolation is what a host knows of being alone.
type isolation struct {
	heardAt    time.Duration // the last agent traffic from any other host
	answeredAt time.Duration // an isolation address last answered then
	failedAt   time.Duration // the last ping of all of them that nobody answered began then
	addresses  int           // how many there are, by the last ping
	asking     bool
	since      time.Duration // isolated since; 0: not isolated
	gen        uint64        // of the declaration; answers to an older one are void
	vms        map[model.VMID]*isolatedVM
}

// isolatedVM is a VM that the response is about to stop, or stops.
type isolatedVM struct {
	epoch    model.Epoch
	stopping bool
}

// haStop is a stop that HA ordered: when the VM is gone its lock is released
// for a restart elsewhere.
type haStop struct {
	why   string
	until time.Duration // an end after that is somebody else's doing
	// reason of the release; empty: ReasonHAOff.
	reason string
}

func (m *Machine) isolated() bool { return m.iso.since > 0 }

// agentTraffic is a sign of life from another host.
func (m *Machine) agentTraffic(h *member) {
	m.iso.heardAt = m.now
	if m.iso.since > 0 { // a sentence for each heartbeat would cost more than the rest
		m.joinAgain(fmt.Sprintf("%s is heard", h.name))
	}
}

// checkIsolation finds out whether this host is alone; called every interval.
func (m *Machine) checkIsolation() {
	if m.role == roleNone || len(m.order) < 2 || !m.conf.HostMonitoring {
		m.iso.heardAt = m.now
		m.joinAgain("host monitoring is off")
		return
	}
	if m.now-m.iso.heardAt < m.silence() {
		return
	}
	if m.isolated() {
		if _, others := m.othersAlive(max(m.iso.heardAt, m.iso.answeredAt)); !others {
			m.joinAgain("no other heartbeat moves on the datastores any more: there is nobody left who could act")
		}
	}
	m.pingAddresses()
	m.declareIsolation()
}

// pingAddresses asks all isolation addresses, again and again.
func (m *Machine) pingAddresses() {
	if m.iso.asking {
		return
	}
	m.iso.asking = true
	asked := m.now
	m.do(PingAddresses{Op: m.op(func(r AddressesPinged) {
		m.iso.asking, m.iso.addresses = false, r.Asked
		switch {
		case r.Answered != "":
			m.iso.answeredAt = m.now
			m.joinAgain(fmt.Sprintf("isolation address %s answers", r.Answered))
		case r.Asked > 0 && asked > m.iso.heardAt:
			m.iso.failedAt = max(asked, 1)
			m.declareIsolation()
		}
	})})
}

// declareIsolation: nothing is heard, no isolation address answers, and the
// datastores do not show that there is nobody left to be isolated from.
func (m *Machine) declareIsolation() {
	alone := max(m.iso.heardAt, m.iso.answeredAt)
	if m.isolated() || m.role == roleNone || !m.conf.HostMonitoring || m.iso.failedAt <= alone || m.now-m.iso.heardAt < m.silence() {
		return
	}
	if left := alone + isolatedAfter*m.interval() - m.now; left > 0 {
		m.after(left, m.declareIsolation)
		return
	}
	seen, others := m.othersAlive(alone)
	if !others {
		return
	}
	m.iso.since, m.iso.vms = m.now, map[model.VMID]*isolatedVM{}
	m.iso.gen++
	m.viewDue, m.reportDue = true, true
	why := fmt.Sprintf("no agent was heard for %s and none of %d isolation addresses answers", seconds(m.now-m.iso.heardAt), m.iso.addresses)
	m.emit(event.Event{Kind: event.HostState, Severity: event.Error, Host: m.cfg.Self, Text: fmt.Sprintf("%s is isolated", m.cfg.Self), Cause: why,
		Evidence: map[string]string{"others": seen, "responseIn": seconds(m.conf.Isolation.Delay)}})
	m.beatGuard()
	if m.role == rolePrimary {
		for _, st := range m.storeBy {
			m.closeList(st, "this host is isolated", true)
		}
	}
	gen := m.iso.gen
	m.after(m.conf.Isolation.Delay, func() { m.respond(gen) })
}

// othersAlive tells whether another host lives, as far as the datastores show:
// one whose heartbeat moved since, or if no datastore can be read, possibly.
func (m *Machine) othersAlive(since time.Duration) (evidence string, alive bool) {
	known := false
	for _, st := range m.storeBy {
		if !st.here || !m.readable(st) {
			continue
		}
		known = true
		for _, h := range m.order {
			if s := st.slots[h.name]; !h.self && s != nil && s.changed && s.first > since+2*m.interval() && s.age() < m.staleAfter(s) {
				return fmt.Sprintf("the heartbeat of %s on %s moves", h.name, st.name), true
			}
		}
	}
	if !known {
		return "no datastore can be read", true
	}
	return "no other heartbeat moves on the datastores", false
}

// joinAgain ends an isolation at any sign of life.
func (m *Machine) joinAgain(why string) {
	if !m.isolated() {
		return
	}
	m.emit(event.Event{Kind: event.HostState, Host: m.cfg.Self, Text: fmt.Sprintf("%s is no longer isolated", m.cfg.Self), Cause: why,
		Evidence: map[string]string{"isolatedFor": seconds(m.now - m.iso.since)}})
	m.iso.since, m.iso.vms = 0, nil
	m.iso.gen++
	m.viewDue, m.reportDue = true, true
	m.beatGuard()
	if m.role == rolePrimary {
		m.openLists()
	}
}

// responseTo is the response for a VM.
func (m *Machine) responseTo(name string) IsolationResponse {
	s := m.conf.VMs[name]
	switch {
	case s.Requested == model.RequestedIgnored:
		return IsolationNone
	case s.Isolation != "":
		return s.Isolation
	}
	return m.conf.Isolation.Response
}

// respond carries out the isolation response, and looks again every interval:
// a datastore without an owner may get one.
func (m *Machine) respond(gen uint64) {
	if m.iso.gen != gen || !m.isolated() {
		return
	}
	for _, st := range m.storeBy {
		if len(m.toStop(st)) > 0 {
			m.respondOn(st, gen)
		}
	}
	m.after(m.interval(), func() { m.respond(gen) })
}

// toStop are the VMs at home on st that the response is for and has not begun
// to stop.
func (m *Machine) toStop(st *store) []lease.VMStatus {
	var out []lease.VMStatus
	for _, id := range sortedKeys(m.guarded) {
		g := m.guarded[id]
		if g.Home != st.name || m.busyVM[id] != nil || m.responseTo(g.Name) == IsolationNone || m.responseTo(g.Name) == "" {
			continue
		}
		if x := m.iso.vms[id]; x != nil && x.epoch == g.Epoch {
			continue
		}
		switch g.Phase {
		case lease.PhaseRunning, lease.PhaseFrozen, lease.PhaseFreezing:
			out = append(out, g)
		}
	}
	return out
}

// respondOn acts for the VMs of a datastore: only if another host's primary owns
// its list, so that somebody restarts them, or if this cannot be told because
// the datastore is lost too. Reachable and without an owner: they run on.
func (m *Machine) respondOn(st *store, gen uint64) {
	m.do(ReadList{Datastore: st.name, Op: m.op(func(r ListRead) {
		if m.iso.gen != gen || !m.isolated() || m.stores[st.name] != st {
			return
		}
		lost := r.Kind != "" || r.Err != ""
		why := ""
		switch {
		case lost && !m.leased(st.name):
			why = fmt.Sprintf("datastore %s is lost too: %s", st.name, r.Kind)
		case lost:
			return // the next look tells
		default:
			owner, ok := m.livingOwner(st, r.Lock)
			if !ok {
				return
			}
			why = fmt.Sprintf("%s owns the protected list of %s (term %d)", owner, st.name, r.Lock.Epoch)
		}
		m.whenAwake(func() {
			if m.iso.gen != gen || !m.isolated() || m.stores[st.name] != st {
				return
			}
			for _, g := range m.toStop(st) {
				m.stopIsolated(st, g, why, lost, gen)
			}
		})
	})})
}

// leased tells whether the guard's lease on a datastore is valid.
func (m *Machine) leased(name model.DatastoreName) bool {
	for _, d := range m.status.Datastores {
		if d.Name == name {
			return m.guardUp && d.OK
		}
	}
	return false
}

// livingOwner is the other host that owns a list, if its heartbeat there moves
// and does not say that it is isolated itself.
func (m *Machine) livingOwner(st *store, rec model.LockRecord) (model.HostID, bool) {
	owner := rec.Holder()
	s := st.slots[owner]
	if owner == "" || owner == m.cfg.Self || s == nil || !m.readable(st) || !s.changed || !s.valid {
		return owner, false
	}
	return owner, m.now-s.first <= 2*m.silence() && !s.slot.Flags.Has(model.SlotIsolated)
}

// stopIsolated stops one VM: first the note on its datastore, then the stop.
func (m *Machine) stopIsolated(st *store, g lease.VMStatus, why string, lost bool, gen uint64) {
	x := &isolatedVM{epoch: g.Epoch}
	m.iso.vms[g.VM] = x
	how := m.responseTo(g.Name)
	begin := func() {
		x.stopping = true
		if how == IsolationShutdown && !m.isFrozen(g.VM) && !m.hangs(g.VM) && !lost {
			m.shutDownIsolated(g, why, gen)
			return
		}
		m.powerOff(g, fmt.Sprintf("%s is isolated", m.cfg.Self), why, gen)
	}
	if lost {
		begin()
		return
	}
	note := model.PoweredOffNote{VM: g.VM, LockEpoch: g.Epoch, Host: m.cfg.Self}
	m.do(WriteNote{Datastore: st.name, Note: note, Op: m.op(func(r NoteWritten) {
		switch {
		case m.iso.gen != gen || !m.isolated():
			m.withdrawNote(st, g) // the stop that it tells of does not come
		case r.Kind != "" || r.Err != "":
			delete(m.iso.vms, g.VM) // tried again with the next look
		case m.guarded[g.VM].Epoch != g.Epoch:
			delete(m.iso.vms, g.VM)
		default:
			m.whenAwake(func() {
				switch {
				case m.iso.gen != gen || !m.isolated():
					m.withdrawNote(st, g)
				case m.guarded[g.VM].Epoch != g.Epoch:
					delete(m.iso.vms, g.VM)
				default:
					begin()
				}
			})
		}
	})})
}

// powerOff ends a VM by its cgroup, while the host is isolated; its lock is
// released when it is gone.
func (m *Machine) powerOff(g lease.VMStatus, cause, why string, gen uint64) {
	m.haOff[g.VM] = haStop{why: cause, until: m.now + time.Hour}
	m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
		Text: fmt.Sprintf("%s is powered off on %s by HA", g.Name, m.cfg.Self), Cause: cause,
		Evidence: map[string]string{"epoch": fmt.Sprint(g.Epoch), "because": why}})
	m.killForHA(g, func() bool { return m.iso.gen == gen && m.isolated() })
}

// killLimit is how many intervals after the decision to stop a VM for HA its
// guard may still kill it: the reason for it may be over by then.
const killLimit = 1

// killForHA kills a VM, again and again until it is gone or the reason for it is
// over.
func (m *Machine) killForHA(g lease.VMStatus, still func() bool) {
	m.ask(lease.Request{Kill: &lease.KillRequest{VM: g.VM, Epoch: g.Epoch, Before: m.now + killLimit*m.interval()}}, func(r lease.Reply) {
		_, held := m.guarded[g.VM]
		_, wanted := m.haOff[g.VM]
		switch {
		case !held || !wanted:
		case r.Code == lease.CodeOK || r.Code == lease.CodeNoProcess:
			m.tend(g.VM)
		default:
			// Its guard renewed the claim meanwhile, stood still, or does not answer.
			m.after(time.Second, func() { m.whenAwake(func() { m.killAgain(g.VM, still) }) })
		}
	})
}

// killAgain goes on with a kill that was not carried out, if its reason lasts.
func (m *Machine) killAgain(id model.VMID, still func() bool) {
	g, held := m.guarded[id]
	_, wanted := m.haOff[id]
	switch {
	case !held || !wanted:
	case still():
		m.killForHA(g, still)
	case g.Phase != lease.PhaseGone:
		delete(m.haOff, id) // it runs on
		if st := m.stores[g.Home]; st != nil {
			m.withdrawNote(st, g)
		}
	}
}

// shutDownIsolated asks the guest, and powers it off when it takes too long
// while the host is still isolated.
func (m *Machine) shutDownIsolated(g lease.VMStatus, why string, gen uint64) {
	limit := m.conf.Isolation.ShutdownLimit
	m.haOff[g.VM] = haStop{why: fmt.Sprintf("%s is isolated", m.cfg.Self), until: m.now + limit + time.Minute}
	m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
		Text: fmt.Sprintf("%s is shut down on %s by HA", g.Name, m.cfg.Self), Cause: fmt.Sprintf("%s is isolated", m.cfg.Self),
		Evidence: map[string]string{"epoch": fmt.Sprint(g.Epoch), "because": why, "limit": seconds(limit)}})
	m.hypervise(CallShutdown, g.VM, "", func(HypervisorDone) {})
	m.after(limit, func() {
		m.whenAwake(func() {
			now, held := m.guarded[g.VM]
			switch {
			case !held || now.Phase == lease.PhaseGone || now.Epoch != g.Epoch:
			case m.iso.gen == gen && m.isolated():
				m.powerOff(now, fmt.Sprintf("%s is isolated, and the guest did not shut down in %s", m.cfg.Self, seconds(limit)), why, gen)
			default:
				delete(m.haOff, g.VM) // the host is back, and the guest runs on
				if st := m.stores[g.Home]; st != nil {
					m.withdrawNote(st, g)
				}
			}
		})
	})
}

// haStopped tells whether the end of a VM is one that HA ordered, unless its
// user ended it at the same moment.
func (m *Machine) haStopped(id model.VMID, reason string) (haStop, bool) {
	s, ok := m.haOff[id]
	if !ok || m.now > s.until || reason == model.ReasonUserOff {
		return haStop{}, false
	}
	return s, true
}
