package fdm

import (
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// View is the cluster as this host can show it: a primary's own account; on a
// secondary the primary's last, with its age; without a primary what this host
// knows by itself.
func (m *Machine) View(now time.Duration) ClusterView {
	now = max(now, m.now)
	if m.role == rolePrimary {
		return m.ownView(now)
	}
	if m.viewKnown && m.role != roleNone {
		return m.agedView(now)
	}
	return m.loneView(now)
}

// VM shows one VM of a list that this primary owns, without when and in which
// order it is restarted; false if there is none.
func (m *Machine) VM(id model.VMID) (VMView, bool) {
	v := m.vms[id]
	if m.role != rolePrimary || v == nil {
		return VMView{}, false
	}
	return m.vmBrief(v), true
}

// Role is what this host is now.
func (m *Machine) Role() model.Role {
	switch m.role {
	case rolePrimary:
		return model.RolePrimary
	case roleSecondary:
		return model.RoleSecondary
	}
	return model.RoleNone
}

// ListsOwned is how many datastores this primary acts for; 0 elsewhere.
func (m *Machine) ListsOwned() int {
	n := 0
	for _, st := range m.storeBy {
		if m.role == rolePrimary && st.list.phase == listOwned {
			n++
		}
	}
	return n
}

// flushView sends the view to the secondaries: on change at most once a second
// (a status that is a second old still helps), and every ReportInterval.
func (m *Machine) flushView() {
	due := m.viewDue || m.now-m.viewSent >= m.cfg.ReportInterval
	if !due {
		return
	}
	if wait := m.viewSent + time.Second - m.now; m.viewSent > 0 && wait > 0 {
		if m.viewWake <= m.now {
			m.viewWake = m.now + wait
			m.after(wait, func() {})
		}
		return
	}
	m.viewDue, m.viewSent = false, m.now
	v := m.ownView(m.now)
	for _, h := range m.order {
		if !h.self && !h.suspect && h.heard > 0 {
			m.do(SendMessage{To: h.name, Message: Message{View: &v}})
		}
	}
	m.clearLeftovers(&v)
}

func (m *Machine) onView(h *member, v *ClusterView) {
	if m.role != roleSecondary || m.primary != h.name || v.Primary != h.name {
		return
	}
	m.view, m.viewAt, m.viewKnown = *v, m.now, true
	m.clearLeftovers(v)
}

// clearLeftovers removes definitions that a failover left behind: inactive
// here, running elsewhere. The configuration lives on the datastore; a stale
// copy would only tempt someone to start it.
func (m *Machine) clearLeftovers(v *ClusterView) {
	if !m.hvUp || !m.listed {
		return
	}
	idle := false
	for _, d := range m.domains {
		idle = idle || !d.Active && !d.leaving
	}
	if !idle {
		return // a large view is not looked through for nothing
	}
	for i := range v.VMs {
		x := &v.VMs[i]
		if x.State != model.VMStarted || x.Host == "" || x.Host == m.cfg.Self {
			continue
		}
		d := m.domains[x.ID]
		if d == nil || d.Active || d.leaving || m.busyVM[x.ID] != nil {
			continue
		}
		if _, held := m.guarded[x.ID]; held {
			continue
		}
		d.leaving = true
		id := x.ID
		m.hypervise(CallUndefine, id, "", func(r HypervisorDone) {
			d := m.domains[id]
			switch {
			case d == nil:
			case r.Fault == "" && !d.Active:
				delete(m.domains, id)
				m.reportDue = true
			default:
				m.after(time.Minute, func() {
					if d := m.domains[id]; d != nil {
						d.leaving = false
					}
				})
			}
		})
	}
}

func (m *Machine) header() ClusterView {
	return ClusterView{Primary: m.primary, HA: m.loaded && m.conf.Enabled, Monitoring: m.conf.HostMonitoring, Version: m.conf.Version, Disabled: m.conf.Conflicts, Admission: m.admission.report}
}

func (m *Machine) ownView(now time.Duration) ClusterView {
	v := m.header()
	v.Hosts = make([]HostView, 0, len(m.order))
	v.VMs = make([]VMView, 0, max(len(m.vms), len(m.conf.VMs)))
	for _, h := range m.order {
		v.Hosts = append(v.Hosts, m.hostView(h, now))
	}
	m.placeInOrder()
	for _, id := range m.ids() {
		v.VMs = append(v.VMs, m.vmView(m.vms[id], now))
	}
	for _, st := range m.storeBy {
		if st.list.phase != listOwned {
			v.VMs = m.pendingViews(v.VMs, st)
		}
		v.Datastores = append(v.Datastores, m.storeView(st))
	}
	return v
}

// pendingViews shows the VMs of a list that is known but not owned.
func (m *Machine) pendingViews(out []VMView, st *store) []VMView {
	why := fmt.Sprintf("not protected at the moment: the protected list of %s is not at hand: %s", st.name, st.list.problem)
	for i := range st.lastKnown {
		p := &st.lastKnown[i]
		x := VMView{ID: p.ID, Name: p.Name, Home: st.name, Host: p.Host, Epoch: p.LastEpoch, Priority: p.Priority, State: model.VMQueued}
		frozen := ""
		for _, h := range m.order {
			lv, ok := h.active[p.ID]
			if !ok {
				continue
			}
			x.Host, x.State, x.Epoch, x.Alive = h.name, model.VMStarted, lv.Epoch, lv.Alive
			if lv.frozen() {
				x.State = model.VMFrozen
				frozen = lv.Reason
			}
		}
		if p.Requested == model.RequestedStopped && x.State == model.VMQueued {
			x.State = model.VMStopped
		}
		x.Reason = why
		if frozen != "" {
			x.Reason = frozen + "; " + why
		}
		out = append(out, x)
	}
	return out
}

func (m *Machine) hostView(h *member, now time.Duration) HostView {
	x := HostView{Name: h.name, Role: model.RoleSecondary, State: h.state, Reason: h.why(), ConfigVersion: h.beat.ConfigVersion, Memory: h.conf.Memory, MemoryUsed: h.used}
	if h.self {
		x.Role, x.State, x.ConfigVersion = model.RolePrimary, model.HostPrimary, m.conf.Version
		if m.isolated() {
			x.State, x.Reason = m.selfState()
		}
		if h.conf.Maintenance {
			x.State = model.HostMaintenance
		}
	} else if h.suspect || h.heard == 0 {
		x.Role = model.RoleNone
	}
	if !h.self {
		x.Silence = now - h.lastHeard()
		x.SlotAges = map[model.DatastoreName]time.Duration{}
		for _, st := range m.storeBy {
			if s := st.slots[h.name]; s != nil && m.readable(st) {
				x.SlotAges[st.name] = s.age()
			}
		}
	}
	if r := h.report; r != nil {
		x.fill(r)
		x.Networks = r.Networks
		if r.Leaving && !h.suspect {
			x.Reason = leavingNow
		}
	}
	x.Heartbeats = h.heartbeats
	if h.warnBy != m.confRev || !slices.Equal(h.warnFor, h.heartbeats) {
		h.warnings, h.warnBy, h.warnFor = slices.Clip(m.heartbeatWarnings(h)), m.confRev, h.heartbeats
	}
	x.Warnings = append(h.warnings, m.networkWarnings(h)...)
	return x
}

func (x *HostView) fill(r *Report) {
	x.Armed, x.ArmedWhy, x.Hook, x.Guard, x.Hypervisor, x.Datastores = r.Armed, r.ArmedWhy, r.HookSeen, r.GuardUp, r.HypervisorUp, r.Datastores
	if r.Memory > 0 {
		x.Memory = r.Memory
	}
}

func (m *Machine) vmView(v *vm, now time.Duration) VMView {
	x := m.vmBrief(v)
	x.WaitsFor, x.Origin = m.setOf(v).DependsOn, v.p.Origin
	if m.recovering[v.p.ID] != nil {
		x.Order, x.Ready = v.turn, m.readyText(v)
	}
	if d := v.p.Down; d != nil {
		x.Attempts = d.Attempts
		x.RetryIn = max(0, v.nextTry-now)
	}
	return x
}

func (m *Machine) vmBrief(v *vm) VMView {
	x := VMView{ID: v.p.ID, Name: v.p.Name, Home: v.st.name, Host: v.p.Host, Epoch: v.p.LastEpoch, Priority: m.priority(v)}
	x.State, x.Reason = m.vmState(v)
	ok, lacks := m.protected(v)
	x.Protected = ok
	if !ok && x.Reason == "" && v.running {
		x.Reason = lacks.text(m, v)
	}
	if v.running {
		x.Epoch, x.Alive = v.local.Epoch, v.local.Alive
	} else if v.order != nil {
		x.Host = v.order.host.name
	}
	return x
}

// vmState is a VM's state and why it is not simply started or stopped.
func (m *Machine) vmState(v *vm) (model.VMState, string) {
	switch {
	case v.order != nil && v.order.kind != CommandStart:
		return model.VMStopping, ""
	case m.frozenThere(v):
		return model.VMFrozen, v.local.Reason
	case m.requested(v) == model.RequestedIgnored && v.running:
		return model.VMIgnored, "HA leaves it alone; it runs on " + string(v.host.name)
	case v.running && v.host.suspect:
		return model.VMStarted, fmt.Sprintf("%s is %s; the VM is kept by its guard", v.host.name, v.host.state)
	case v.running && m.mustStop(v):
		return model.VMStopping, fmt.Sprintf("it is %s in the cluster file", m.conf.VMs[v.p.Name].Requested)
	case v.running:
		return model.VMStarted, ""
	case v.order != nil:
		return model.VMStarting, v.reason
	}
	if why, ok := m.elsewhere(v); ok && m.requested(v) != model.RequestedStarted {
		return model.VMStarted, why
	}
	switch m.requested(v) {
	case model.RequestedStopped:
		return model.VMStopped, ""
	case model.RequestedDisabled:
		return model.VMDisabled, v.reason
	case model.RequestedIgnored:
		return model.VMIgnored, v.reason
	}
	switch {
	case v.fence:
		return model.VMFence, v.reason
	case v.standing:
		return model.VMError, v.reason
	case v.host != nil && v.lock.Holder() == v.host.name && !v.host.failed && v.p.Down == nil:
		return model.VMStarted, v.reason // its host is silent or has not reported: its lock holds
	case m.waiting[v.p.ID] != nil, m.held[v.p.ID] != nil:
		return model.VMQueued, v.reason
	}
	return model.VMRecovery, v.reason
}

func (m *Machine) storeView(st *store) DatastoreView {
	x := DatastoreView{Name: st.name, Term: st.list.term, VMs: len(st.list.vms), Problem: st.list.problem}
	switch {
	case st.list.phase == listOwned:
		x.Owner = m.cfg.Self
	default:
		x.Owner, x.Term = st.list.lock.Holder(), model.Term(st.list.lock.Epoch)
	}
	if x.Problem == "" && !st.ok {
		x.Problem = st.problem
	}
	return x
}

// agedView is the primary's last view with its age and this host's own facts.
func (m *Machine) agedView(now time.Duration) ClusterView {
	v := m.view
	v.Age += now - m.viewAt
	v.HA, v.Monitoring, v.Version = m.loaded && m.conf.Enabled, m.conf.HostMonitoring, m.conf.Version
	v.Hosts = append([]HostView(nil), v.Hosts...)
	for i := range v.Hosts {
		x := &v.Hosts[i]
		if m.role != roleSecondary {
			x.Role = model.RoleNone
		}
		if x.Name == m.cfg.Self {
			m.fillSelf(x)
		} else if x.State == model.HostPrimary && m.role != roleSecondary {
			x.State, x.Reason = model.HostElection, "it was primary until now"
		}
	}
	if m.role != roleSecondary {
		v.Primary = ""
	}
	return v
}

func (m *Machine) fillSelf(x *HostView) {
	r := m.account()
	x.fill(r)
	x.ConfigVersion = m.conf.Version
	x.State, x.Reason = m.selfState()
	x.Role = model.RoleNone
	if m.role == roleSecondary {
		x.Role = model.RoleSecondary
	}
}

func (m *Machine) selfState() (model.HostState, string) {
	switch {
	case !m.loaded:
		return model.HostUninitialized, "no cluster file has been loaded"
	case m.self == nil:
		return model.HostInitError, fmt.Sprintf("the cluster file does not name %s", m.cfg.Self)
	case m.isolated():
		return model.HostIsolated, fmt.Sprintf("no agent is heard and no isolation address answers, for %s", seconds(m.now-m.iso.heardAt))
	case m.role == roleElection:
		return model.HostElection, "there is no primary at the moment"
	case m.self.conf.Maintenance:
		return model.HostMaintenance, ""
	case m.role == roleNone:
		return model.HostDisconnected, "HA is off"
	}
	return model.HostConnected, ""
}

// loneView is what a host without a primary knows by itself.
func (m *Machine) loneView(now time.Duration) ClusterView {
	v := m.header()
	for _, h := range m.order {
		x := HostView{Name: h.name, Role: model.RoleNone, State: model.HostDisconnected, ConfigVersion: h.beat.ConfigVersion, Memory: h.conf.Memory}
		switch {
		case h.self:
			m.fillSelf(&x)
		case h.heard == 0:
			x.Reason = "not heard of since this agent started"
		default:
			x.Silence = now - h.heard
			x.Reason = fmt.Sprintf("last heard %s ago", seconds(x.Silence))
		}
		if h.self || m.conf.Enabled {
			v.Hosts = append(v.Hosts, x)
			continue
		}
		if h.heard > 0 && x.Silence <= 3*offInterval {
			x.Reason = "HA is off; its agent answers"
		}
		v.Hosts = append(v.Hosts, x)
	}
	for _, lv := range m.account().VMs {
		if !lv.Managed {
			continue
		}
		s := model.VMStopped
		if runs(lv) {
			s = model.VMStarted
		}
		if m.isFrozen(lv.ID) {
			s = model.VMFrozen
		}
		v.VMs = append(v.VMs, VMView{ID: lv.ID, Name: lv.Name, State: s, Host: m.cfg.Self, Home: m.guarded[lv.ID].Home, Epoch: lv.Epoch, Alive: lv.Alive,
			Reason: "no primary: shown as this host alone sees it"})
	}
	local := map[model.VMID]bool{}
	for i := range v.VMs {
		local[v.VMs[i].ID] = true
	}
	for i := range m.view.VMs {
		if x := m.view.VMs[i]; m.viewKnown && !local[x.ID] && x.Host != m.cfg.Self {
			x.Protected = false
			x.Reason = fmt.Sprintf("no primary: as it was %s ago", seconds(now-m.viewAt))
			v.VMs = append(v.VMs, x)
		}
	}
	for _, st := range m.storeBy {
		v.Datastores = append(v.Datastores, DatastoreView{Name: st.name, Problem: st.problem})
	}
	return v
}
