package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// VM component protection: what becomes of VMs whose host lost a datastore that
// others still reach. The host finds out what was lost and for how long; the
// primary, which knows whether another host can take a VM, orders the stop; the
// VM starts elsewhere only when its host reports that nothing of it is left.

// LossKind is how a datastore is lost to a host.
type LossKind string

// The kinds. docs/operations.md has the table of what Linux reports.
const (
	// LossAPD: all paths are down; the storage hangs and may come back.
	LossAPD LossKind = "apd"
	// LossPDL: the device or server said that it is gone.
	LossPDL LossKind = "pdl"
)

// Kinds of a guard's datastore status that are a loss; all other kinds (rolled
// back, full, read-only, unmounted …) need an administrator, and VMs stay
// frozen.
const (
	kindHung        = "hung"        // a heartbeat does not return
	kindUnreachable = "unreachable" // the path gave up: time-outs, unreachable hosts
	kindLost        = "lost"        // EIO, ENXIO, ENODEV, ESTALE: the device is gone
)

// StorageResponse is what is done for VMs on a lost datastore.
type StorageResponse string

// The responses. Restart is that to PDL.
const (
	StorageOff          StorageResponse = "off"
	StorageEvents       StorageResponse = "events"
	StorageConservative StorageResponse = "restartConservative"
	StorageAggressive   StorageResponse = "restartAggressive"
	StorageRestart      StorageResponse = "restart"
)

// StoragePolicy is the cluster's reaction to lost datastores.
type StoragePolicy struct {
	APD StorageResponse
	// APDTimeout is when a hanging datastore counts as lost, APDDelay the pause
	// from then until VMs are moved.
	APDTimeout, APDDelay time.Duration
	// APDReset: VMs are reset if the storage comes back between the two.
	APDReset bool
	PDL      StorageResponse
}

// StorageLoss is a lost datastore in a report.
type StorageLoss struct {
	Datastore model.DatastoreName `json:"datastore"`
	Kind      LossKind            `json:"kind"`
	For       time.Duration       `json:"for"`
	// Due: VMs with disks there are to be moved.
	Due bool `json:"due,omitempty"`
}

// loss is a datastore that this host has lost.
type loss struct {
	kind     LossKind
	since    time.Duration
	declared bool // the time-out of an APD is over, or it is a PDL
	due      bool
}

// lossOf is the loss that a datastore's status shows, "" if none.
func lossOf(d lease.DatastoreStatus) LossKind {
	switch d.Kind {
	case kindHung, kindUnreachable:
		return LossAPD
	case kindLost:
		return LossPDL
	}
	return ""
}

// checkStorage looks after this host's own datastores, once an interval and with
// each status of its guard.
func (m *Machine) checkStorage() {
	if !m.statusOK || !m.guardUp || !m.loaded {
		return
	}
	for _, d := range m.status.Datastores {
		kind, l := lossOf(d), m.losses[d.Name]
		switch {
		case d.OK && d.Kind == "" && l != nil:
			m.regained(d.Name, l)
		case kind != "" && (l == nil || l.kind != kind):
			since := m.now
			if l != nil {
				since = l.since
			}
			m.lost(d, &loss{kind: kind, since: since})
		case l != nil:
			m.ripen(d, l)
		}
	}
}

// lost begins the timers of a datastore.
func (m *Machine) lost(d lease.DatastoreStatus, l *loss) {
	m.losses[d.Name] = l
	m.reportDue = true
	what := "hangs on %s (all paths down)"
	if l.kind == LossPDL {
		what = "is lost to %s (permanent device loss)"
	}
	m.emit(event.Event{Kind: event.Storage, Severity: event.Warning, Host: m.cfg.Self, Datastore: d.Name,
		Text: fmt.Sprintf("datastore %s "+what, d.Name, m.cfg.Self), Cause: d.Problem,
		Evidence: map[string]string{"kind": d.Kind, "response": string(m.lossResponse(l.kind)), "lease": fmt.Sprintf("valid %v", d.OK)}})
	m.ripen(d, l)
}

func (m *Machine) lossResponse(k LossKind) StorageResponse {
	if k == LossPDL {
		return m.conf.Storage.PDL
	}
	return m.conf.Storage.APD
}

// ripen makes a loss due. Nothing is due while the lease is valid: its VMs still
// run, and a heartbeat may yet succeed.
func (m *Machine) ripen(d lease.DatastoreStatus, l *loss) {
	response := m.lossResponse(l.kind)
	if response == StorageOff || response == "" || d.OK {
		return
	}
	if !l.declared && (l.kind == LossPDL || m.now >= l.since+m.conf.Storage.APDTimeout) {
		l.declared, m.reportDue = true, true
		if l.kind == LossAPD {
			m.emit(event.Event{Kind: event.Storage, Severity: event.Error, Host: m.cfg.Self, Datastore: d.Name,
				Text: fmt.Sprintf("datastore %s counts as lost to %s: it hangs for %s", d.Name, m.cfg.Self, seconds(m.now-l.since)), Cause: d.Problem,
				Evidence: map[string]string{"response": string(response), "in": seconds(m.conf.Storage.APDDelay)}})
		}
	}
	if l.declared && !l.due && response != StorageEvents && (l.kind == LossPDL || m.now >= l.since+m.conf.Storage.APDTimeout+m.conf.Storage.APDDelay) {
		l.due, m.reportDue = true, true
	}
}

// regained ends a loss. VMs that hung for long may be reset.
func (m *Machine) regained(name model.DatastoreName, l *loss) {
	delete(m.losses, name)
	m.reportDue = true
	m.emit(event.Event{Kind: event.Storage, Host: m.cfg.Self, Datastore: name,
		Text: fmt.Sprintf("datastore %s is back on %s after %s", name, m.cfg.Self, seconds(m.now-l.since))})
	if l.kind != LossAPD || !l.declared || !m.conf.Storage.APDReset {
		return
	}
	for _, id := range sortedKeys(m.guarded) {
		g := m.guarded[id]
		if _, stopping := m.haOff[id]; stopping || !hasName(m.datastoresOf(g), name) || g.Phase == lease.PhaseGone {
			continue
		}
		m.emit(event.Event{Kind: event.Storage, Severity: event.Warning, Host: m.cfg.Self, VM: g.Name, Datastore: name,
			Text: fmt.Sprintf("%s is reset on %s", g.Name, m.cfg.Self), Cause: fmt.Sprintf("datastore %s came back after %s, past the time-out", name, seconds(m.now-l.since))})
		m.resetWhenThawed(id, name, 20)
	}
}

// resetWhenThawed resets a VM as soon as its guard has claimed its lock again: a
// frozen one's monitor does not answer.
func (m *Machine) resetWhenThawed(id model.VMID, name model.DatastoreName, tries int) {
	g, held := m.guarded[id]
	switch {
	case !held || m.losses[name] != nil || tries == 0:
	case g.Phase == lease.PhaseRunning && m.hvUp:
		m.hypervise(CallReset, id, "", func(HypervisorDone) {})
	default:
		m.after(m.interval(), func() { m.resetWhenThawed(id, name, tries-1) })
	}
}

// datastoresOf are all datastores that hold disks of a VM here.
func (m *Machine) datastoresOf(g lease.VMStatus) []model.DatastoreName {
	for i := range m.managed {
		if m.managed[i].ID == g.VM && len(m.managed[i].Datastores) > 0 {
			return m.managed[i].Datastores
		}
	}
	return []model.DatastoreName{g.Home}
}

// hangs tells whether a VM here has disks on storage that is lost: libvirt's
// calls that ask its monitor may then hang with it.
func (m *Machine) hangs(id model.VMID) bool {
	if len(m.losses) == 0 {
		return false
	}
	g, held := m.guarded[id]
	if !held {
		return false
	}
	for _, d := range m.datastoresOf(g) {
		if m.losses[d] != nil {
			return true
		}
	}
	return false
}

// lossReport is this host's losses for its report.
func (m *Machine) lossReport() []StorageLoss {
	var out []StorageLoss
	for _, name := range sortedKeys(m.losses) {
		l := m.losses[name]
		out = append(out, StorageLoss{Datastore: name, Kind: l.kind, For: m.now - l.since, Due: l.due})
	}
	return out
}

// protectComponents, on a primary, moves VMs away from hosts that lost their
// datastores.
func (m *Machine) protectComponents() {
	for _, h := range m.order {
		if h.report == nil || h.suspect || h.failed {
			continue
		}
		for i := range h.report.Losses {
			if l := &h.report.Losses[i]; l.Due {
				m.moveFrom(h, l)
			}
		}
	}
}

func (m *Machine) moveFrom(h *member, l *StorageLoss) {
	for _, v := range m.sortVMs(h.vms) {
		stores := v.p.Datastores
		if len(stores) == 0 {
			stores = []model.DatastoreName{v.st.name}
		}
		if !v.running || v.order != nil || v.st.list.phase != listOwned || !hasName(stores, l.Datastore) || m.now < v.movedAt+evacuatePause && v.movedAt > 0 ||
			m.requested(v) != model.RequestedStarted || m.priority(v) == model.PriorityDisabled {
			continue
		}
		m.moveVM(v, h, l)
	}
}

// evacuatePause is the pause between two attempts to stop a VM whose storage is
// lost: its processes may wait for the storage in the kernel.
const evacuatePause = 30 * time.Second

// moveVM orders the stop of one VM, if another host can take it.
func (m *Machine) moveVM(v *vm, h *member, l *StorageLoss) {
	cause := fmt.Sprintf("datastore %s is lost to %s (%s)", l.Datastore, h.name, l.Kind)
	where, why := m.another(v, h)
	if where == "" && !(l.Kind == LossAPD && m.conf.Storage.APD == StorageAggressive && m.mayBeElsewhere(l.Datastore)) {
		v.local.Reason = fmt.Sprintf("%s; it waits on %s: %s", cause, h.name, why)
		if v.said != cause {
			v.said, v.saidAt, m.viewDue = cause, m.now, true
			m.emit(event.Event{Kind: event.RestartPending, Severity: event.Warning, VM: v.p.Name, Host: h.name, Datastore: l.Datastore,
				Text: fmt.Sprintf("%s stays on %s", v.p.Name, h.name), Cause: cause + "; no other host can take it: " + why})
		}
		return
	}
	if where == "" {
		where = "whatever host can take it later"
	}
	v.movedAt = m.now
	o := m.newOrder(v, h, CommandEvacuate, v.local.Epoch)
	o.cmd.Failover, o.cmd.Reason = m.lossFailover(h, l), cause
	m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: v.p.Name, Host: h.name, Datastore: l.Datastore, Failover: o.cmd.Failover,
		Text: fmt.Sprintf("%s is to be powered off on %s and started elsewhere", v.p.Name, h.name), Cause: cause,
		Evidence: map[string]string{"lostFor": seconds(l.For), "canRunOn": where, "response": string(m.lossResponse(l.Kind))}})
	m.saveThen(v, func() { m.send(o) })
}

// another is a host that could take v if it left h, or why there is none.
func (m *Machine) another(v *vm, h *member) (where, why string) {
	c := m.room([]*vm{v}).Place(m.wantOf(v))
	if c.Host != "" && c.Host != h.name {
		return string(c.Host), ""
	}
	for _, r := range c.Refusals {
		if r.Host == h.name {
			continue
		}
		if why != "" {
			why += "; "
		}
		why += fmt.Sprintf("%s: %s", r.Host, r.Reason)
	}
	if why == "" {
		why = "no other host is known"
	}
	return "", why
}

// mayBeElsewhere tells whether any other host has, or may have, a datastore: if
// all have lost it, nothing is killed for nothing.
func (m *Machine) mayBeElsewhere(name model.DatastoreName) bool {
	for _, h := range m.order {
		switch {
		case !hasName(h.conf.Datastores, name):
		case h.failed:
		case h.report == nil || h.suspect:
			return true // nobody knows
		case hasStore(h.report, name):
			return true
		}
	}
	return false
}

// hasStore tells whether a host reports a valid lease on a datastore.
func hasStore(r *Report, name model.DatastoreName) bool {
	for _, d := range r.Datastores {
		if d.Name == name {
			return d.OK
		}
	}
	return false
}

// loses tells whether a host reports a datastore as lost, be its lease valid yet
// or not: what starts there now would only be moved again.
func (r *Report) loses(name model.DatastoreName) bool {
	for i := range r.Losses {
		if r.Losses[i].Datastore == name {
			return true
		}
	}
	return false
}

// lossFailover groups the events of one loss.
func (m *Machine) lossFailover(h *member, l *StorageLoss) string {
	if h.lossIDs == nil {
		h.lossIDs = map[model.DatastoreName]string{}
	}
	if id := h.lossIDs[l.Datastore]; m.failovers[id] != nil {
		return id
	}
	m.failSeq++
	id := fmt.Sprintf("sl-%s-%d-%d", m.cfg.Self, m.cfg.Start, m.failSeq)
	h.lossIDs[l.Datastore] = id
	m.failovers[id] = &failover{id: id, host: h.name, at: max(0, m.now-l.For), open: map[model.VMID]bool{}}
	m.emit(event.Event{Kind: event.Verdict, Severity: event.Error, Host: h.name, Datastore: l.Datastore, Failover: id,
		Text: fmt.Sprintf("%s has lost datastore %s", h.name, l.Datastore), Cause: fmt.Sprintf("%s for %s", l.Kind, seconds(l.For))})
	return id
}

// evacuated: the host says that nothing of the VM is left.
func (m *Machine) evacuated(o *order) {
	v := o.v
	m.endOrder(o)
	m.setRunning(v, nil, LocalVM{})
	v.movedAt, v.said = 0, ""
	m.down(v, o.cmd.Reason, o.cmd.Failover)
	m.evaluate(v)
}

// goneFrom tells whether the holder of a VM's lock, which cannot release it
// because it lost the datastore, reports that nothing of the VM is left: then
// its lock may be taken although the host answers.
func goneFrom(v *vm, r *Report, rec model.LockRecord) bool {
	if hasStore(r, v.st.name) || rec.Boot != r.Boot {
		return false
	}
	for i := range r.VMs {
		if lv := &r.VMs[i]; lv.ID == v.p.ID {
			return lv.Phase == lease.PhaseGone && lv.Epoch == rec.Epoch
		}
	}
	return false
}

// meant is the reason of a release that the holder of a VM's lock cannot write,
// because it lost the datastore, if the VM was stopped on purpose: "" if not.
// The shutdown of a guest that loses its storage may be no wish of anybody.
func (m *Machine) meant(v *vm, r *Report) string {
	for i := range r.VMs {
		if lv := &r.VMs[i]; lv.ID == v.p.ID {
			reason := releaseReason(lv.Cause)
			if reason == model.ReasonUserOff || reason == model.ReasonGuestOff && !m.conf.MaskCleanShutdown {
				return reason
			}
		}
	}
	return ""
}

// takeGone takes the lock of a VM that is gone from a host that cannot say so
// on the datastore.
func (m *Machine) takeGone(v *vm, h *member, rec model.LockRecord) {
	t := m.takeover(v, h.name, fmt.Sprintf("the guard of %s reports that no process of epoch %d is left, and has no lease on %s", h.name, rec.Epoch, v.st.name))
	t.Gone = true
	failover := ""
	if v.p.Down != nil {
		failover = v.p.Down.Failover
	}
	m.restart(v, fmt.Sprintf("%s lost datastore %s", h.name, v.st.name), failover, intent{epoch: rec.Epoch, takeover: t})
}

// evacuate, on the target, ends a VM by its cgroup. Its lock is released when
// the datastore permits; the primary need not wait for it.
func (m *Machine) evacuate(e *exec) { m.whenAwake(func() { m.evacuateNow(e) }) }

func (m *Machine) evacuateNow(e *exec) {
	if e.over || !m.hold(e) {
		return
	}
	if !m.statusOK || !m.hangs(e.cmd.VM.ID) {
		m.failExec(e, codeAnswers, "its storage is not known to be lost here any more: it runs on")
		return
	}
	m.haOff[e.cmd.VM.ID] = haStop{why: e.cmd.Reason, until: m.now + time.Hour}
	m.ask(lease.Request{Kill: &lease.KillRequest{VM: e.cmd.VM.ID, Epoch: e.epoch, Before: m.now + killLimit*m.interval()}}, func(r lease.Reply) {
		switch {
		case e.over:
		case r.Code == lease.CodeOK || r.Code == lease.CodeNoProcess:
			m.finish(e, Progress{Stage: StageGone})
		default:
			delete(m.haOff, e.cmd.VM.ID)
			m.failExec(e, string(r.Code), r.Text)
		}
	})
}
