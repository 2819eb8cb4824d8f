package fdm

import (
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// domain is a domain of this host.
type domain struct {
	Domain
	alive   bool
	leaving bool // its definition is being removed
}

func (m *Machine) isFrozen(id model.VMID) bool {
	switch m.guarded[id].Phase {
	case lease.PhaseFrozen, lease.PhaseFreezing:
		return true
	}
	return false
}

func (m *Machine) onGuard(e GuardChanged) {
	if m.guardUp == e.Up {
		return
	}
	m.guardUp = e.Up
	m.reportDue, m.viewDue = true, true
	if !e.Up {
		m.statusOK = false
		m.emit(event.Event{Kind: event.Guard, Severity: event.Error, Host: m.cfg.Self,
			Text: fmt.Sprintf("the guard of %s does not answer", m.cfg.Self), Cause: e.Reason})
		return
	}
	m.beatsOut = 0
	m.beatGuard()
	m.sendManaged()
	m.emit(event.Event{Kind: event.Guard, Host: m.cfg.Self, Text: fmt.Sprintf("the guard of %s answers", m.cfg.Self)})
}

func (m *Machine) onHypervisor(e HypervisorChanged) {
	if m.hvUp == e.Up {
		return
	}
	m.hvUp, m.listed = e.Up, false
	m.reportDue = true
	ev := event.Event{Kind: event.Hypervisor, Host: m.cfg.Self, Text: fmt.Sprintf("libvirt of %s answers", m.cfg.Self), Cause: e.Reason}
	if !e.Up {
		ev.Severity, ev.Text = event.Error, fmt.Sprintf("libvirt of %s does not answer; running VMs run on", m.cfg.Self)
	}
	m.emit(ev)
}

// onNotice takes over the guard's view, and tells people what it did.
func (m *Machine) onNotice(n lease.Notice) {
	if n.Status != nil {
		m.onStatus(*n.Status)
	}
	name := string(n.VM)
	if g, ok := m.guarded[n.VM]; ok && g.Name != "" {
		name = g.Name
	} else if d := m.domains[n.VM]; d != nil {
		name = d.Name
	}
	ev := event.Event{Host: m.cfg.Self, VM: name, Datastore: n.Datastore, Text: n.Text, Severity: event.Warning}
	if n.VM == "" {
		ev.VM = ""
	}
	switch n.What {
	case lease.NoticeFrozen:
		ev.Kind = event.VMFrozen
	case lease.NoticeThawed:
		ev.Kind, ev.Severity = event.VMThawed, event.Info
	case lease.NoticeKilled:
		ev.Kind = event.VMKilled
	case lease.NoticeForeign:
		ev.Kind, ev.Severity = event.VMFrozen, event.Error
	case lease.NoticeDatastore:
		ev.Kind = event.Storage
	case lease.NoticeDisarmed, lease.NoticeNotPetting, lease.NoticeStalled:
		ev.Kind = event.Guard
	case lease.NoticeListLost:
		if st := m.stores[n.Datastore]; st != nil {
			m.lostList(st, "the guard lost the lock of its protected list: "+n.Text)
		}
		return
	case lease.NoticeGone:
		m.tend(n.VM)
		return
	default:
		return
	}
	if ev.Text == "" {
		ev.Text = string(n.What)
	}
	m.emit(ev)
}

func (m *Machine) onStatus(s lease.Status) {
	was := m.datastores()
	m.status, m.statusOK = s, true
	now := m.guardedBefore
	clear(now)
	for _, v := range s.VMs {
		now[v.VM] = v
	}
	for id := range m.ended {
		if _, ok := now[id]; !ok {
			delete(m.ended, id)
		}
	}
	m.guarded, m.guardedBefore = now, m.guarded
	m.inherit()
	m.reportDue, m.viewDue = true, true
	m.checkStorage()
	for _, d := range s.Datastores {
		st := m.stores[d.Name]
		if st == nil || m.role != rolePrimary || st.list.phase < listCopying {
			continue
		}
		switch {
		case d.ListTerm == st.list.term:
			st.list.confirmed = true
		case d.ListTerm > st.list.term || st.list.confirmed:
			m.lostList(st, fmt.Sprintf("the guard no longer holds the lock of its protected list under term %d", st.list.term))
		}
	}
	m.yieldHeld()
	for _, v := range s.VMs {
		m.tend(v.VM)
	}
	if m.role == rolePrimary && m.datastores() > was {
		m.openLists()
	}
}

func (m *Machine) onDomains(e DomainsListed) {
	seen := make(map[model.VMID]bool, len(e.Domains))
	m.hvUp, m.listed = true, true
	for _, d := range e.Domains {
		seen[d.VM] = true
		if old := m.domains[d.VM]; old != nil && !old.Active && !d.Active && d.Cause == StopUnknown {
			d.Cause = old.Cause
		}
		m.setDomain(d)
	}
	for _, id := range sortedKeys(m.domains) {
		if !seen[id] {
			delete(m.domains, id)
			m.tend(id)
		}
	}
	for _, id := range sortedKeys(m.guarded) {
		m.tend(id)
	}
	m.reportDue = true
}

func (m *Machine) onDomain(d Domain) {
	m.setDomain(d)
	m.reportDue = true
}

func (m *Machine) setDomain(d Domain) {
	old := m.domains[d.VM]
	switch {
	case d.Active && !d.Paused && m.busyVM[d.VM] == nil:
		delete(m.undone, d.VM)
	case !d.Active && m.undone[d.VM]:
		d.Cause = StopUndone // libvirt says how it ended, as if a user had
	}
	next := &domain{Domain: d}
	if old != nil {
		next.leaving = old.leaving && !d.Active
		next.alive = old.alive && old.Active && d.Active
		if d.Memory == 0 {
			next.Memory = old.Memory
		}
		if d.CPUs == 0 {
			next.CPUs = old.CPUs
		}
	}
	m.domains[d.VM] = next
	if d.Active {
		if old == nil || !old.Active {
			delete(m.ended, d.VM)
		}
		m.greet(d.VM)
	}
	m.tend(d.VM)
}

// greet asks a running guest now and then until it answers, so that people see
// whether it lives; a command that starts it asks by itself.
func (m *Machine) greet(id model.VMID) {
	if m.greeting[id] {
		return
	}
	m.greeting[id] = true
	m.after(10*time.Second, func() {
		delete(m.greeting, id)
		d := m.domains[id]
		if d == nil || !d.Active || d.alive {
			return
		}
		if _, held := m.guarded[id]; !held || m.isFrozen(id) || m.busyVM[id] != nil || !m.hvUp || m.hangs(id) {
			m.greet(id)
			return
		}
		m.greeting[id] = true
		m.do(PingGuest{VM: id, Timeout: 2 * time.Second, Op: m.op(func(r GuestPinged) {
			delete(m.greeting, id)
			if d := m.domains[id]; d != nil && d.Active && r.Alive {
				d.alive, m.reportDue = true, true
				return
			}
			m.greet(id)
		})})
	})
}

// assumeRunning counts a VM just started as active until libvirt's event says
// so.
func (m *Machine) assumeRunning(e *exec) {
	d := m.domains[e.cmd.VM.ID]
	if d == nil {
		d = &domain{Domain: Domain{VM: e.cmd.VM.ID, Name: e.cmd.VM.Name, Memory: e.cmd.VM.Memory, CPUs: e.cmd.VM.CPUs}}
		m.domains[e.cmd.VM.ID] = d
	}
	d.Active, d.Cause = true, StopUnknown
	if g, ok := m.guarded[e.cmd.VM.ID]; !ok || g.Epoch < e.epoch {
		m.guarded[e.cmd.VM.ID] = lease.VMStatus{VM: e.cmd.VM.ID, Name: e.cmd.VM.Name, Home: e.cmd.VM.Home, Epoch: e.epoch, Phase: lease.PhaseRunning}
	}
}

// ownBoot is this host's boot id.
func (m *Machine) ownBoot() model.BootID {
	if m.statusOK && m.status.Boot != "" {
		return m.status.Boot
	}
	return m.cfg.Boot
}

// account is this host's report of itself.
func (m *Machine) account() *Report {
	r := &Report{Host: m.cfg.Self, Boot: m.cfg.Boot, Incarnation: m.cfg.Incarnation, ConfigVersion: m.conf.Version,
		GuardUp: m.guardUp && m.statusOK, HypervisorUp: m.hvUp, Leaving: m.leaving != nil}
	if m.self != nil {
		r.Memory, r.MHz = m.self.conf.Memory, m.self.conf.CPU
	}
	if m.statusOK {
		r.Armed, r.ArmedWhy, r.HookSeen, r.Datastores = m.status.Armed, m.status.ArmedWhy, m.status.HookSeen, m.status.Datastores
		if m.status.Boot != "" {
			r.Boot, r.Incarnation = m.status.Boot, m.status.Incarnation
		}
	}
	r.Losses, r.Networks = m.lossReport(), m.networkReport()
	ids := m.localIDs[:0]
	for id := range m.domains {
		ids = append(ids, id)
	}
	for id := range m.guarded {
		if m.domains[id] == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	m.localIDs = ids
	r.VMs = make([]LocalVM, 0, len(ids))
	for _, id := range ids {
		r.VMs = append(r.VMs, m.localVM(id))
	}
	return r
}

func (m *Machine) localVM(id model.VMID) LocalVM {
	lv := LocalVM{ID: id}
	g, held := m.guarded[id]
	if d := m.domains[id]; d != nil {
		lv.Name, lv.Active, lv.Cause, lv.Memory, lv.CPUs, lv.Alive = d.Name, d.Active, d.Cause, d.Memory, d.CPUs, d.alive
	}
	if held {
		lv.Managed, lv.Name, lv.Epoch, lv.Phase, lv.Reason = true, g.Name, g.Epoch, g.Phase, g.Reason
		switch g.Phase {
		case lease.PhaseRunning, lease.PhaseFrozen, lease.PhaseFreezing:
			if !m.hvUp || !m.listed {
				lv.Active = true // libvirt is away; the guard sees its processes
			}
		case lease.PhaseGone:
			lv.Active = false
			if _, ordered := m.haStopped(id, ""); ordered {
				lv.Cause = StopUnknown // its guest or libvirt says how, not why
			}
		}
	}
	return lv
}

// flushReport sends this host's account to its primary when it changed.
func (m *Machine) flushReport() {
	if m.role != roleSecondary || !m.reportDue {
		return
	}
	if wait := m.reportAt + 100*time.Millisecond - m.now; m.reportAt > 0 && wait > 0 {
		if m.reportWake <= m.now {
			m.reportWake = m.now + wait
			m.after(wait, func() {})
		}
		return
	}
	m.reportDue, m.reportAt = false, m.now
	m.do(SendMessage{To: m.primary, Message: Message{Report: m.account()}})
}

// reportAgain repeats the report, changed or not.
func (m *Machine) reportAgain() {
	if m.now-m.reportAt >= m.cfg.ReportInterval {
		m.reportDue = true
	}
	m.after(m.cfg.ReportInterval, m.reigning(m.reportAgain))
}

// selfReport lets a primary take its own account like anyone's.
func (m *Machine) selfReport() {
	if !m.reportDue || m.self == nil {
		return
	}
	m.reportDue, m.reportAt = false, m.now
	m.takeReport(m.self, m.account())
}

// sendManaged tells the guard which VMs Hanok manages.
func (m *Machine) sendManaged() {
	if !m.managedOK || !m.guardUp {
		return
	}
	m.ask(lease.Request{Managed: &lease.ManagedRequest{VMs: m.managed}}, func(lease.Reply) {})
}
