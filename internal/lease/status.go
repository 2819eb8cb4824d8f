package lease

import (
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Status returns the machine's view as of now.
func (m *Machine) Status(now time.Duration) Status {
	out := Status{Host: m.cfg.Host, Boot: m.cfg.Boot, Incarnation: m.incN, HookSeen: m.hookSeen,
		Datastores: make([]DatastoreStatus, 0, len(m.stores)), VMs: make([]VMStatus, 0, len(m.order)),
		Warnings: m.cfg.Warnings, LongestWrite: m.longestWrite}
	out.Armed, out.ArmedWhy = m.armed()
	out.StopProblem = m.StopProblem()
	for _, s := range m.stores {
		d := DatastoreStatus{Name: s.cfg.Name, OK: s.leased}
		if s.hasS {
			d.LeaseLeft = s.limits.End - now
		}
		if s.list.held {
			d.ListTerm = s.list.term
		}
		switch {
		case s.fault != nil:
			d.Kind, d.Problem = s.fault.Kind, s.fault.Text
		case s.hung:
			d.Kind, d.Problem = "hung", "a heartbeat does not return"
		case !s.leased:
			d.Kind, d.Problem = "starting", "no heartbeat was written yet"
		}
		out.Datastores = append(out.Datastores, d)
	}
	for _, v := range m.order {
		if v.lock == lockNone && !v.foreign && m.chains[lockKey{v.spec.Home, model.VMLock(v.id)}] == nil {
			continue
		}
		out.VMs = append(out.VMs, VMStatus{VM: v.id, Name: v.spec.Name, Home: v.spec.Home, Epoch: v.epoch,
			Phase: m.phase(v), Outstanding: v.freeze == frozenBusy && v.running, Reason: v.reason})
	}
	for _, c := range m.chains {
		if c.kind == chainClaim && c.vm != "" && m.vms[c.vm] == nil {
			out.VMs = append(out.VMs, VMStatus{VM: c.vm, Name: c.spec.Name, Home: c.key.ds, Epoch: c.prev.Epoch, Phase: PhaseClaiming})
		}
	}
	slices.SortFunc(out.VMs, func(a, b VMStatus) int { return strings.Compare(string(a.VM), string(b.VM)) })
	return out
}

func (m *Machine) phase(v *vm) VMPhase {
	switch {
	case v.killing || v.lock == lockLost:
		return PhaseKilling
	case v.running && (v.freeze == frozen || v.freeze == frozenBusy):
		return PhaseFrozen
	case v.running && v.freeze != unfrozen:
		return PhaseFreezing
	case v.lock == lockNone:
		return PhaseClaiming
	case v.grant != grantNone:
		return PhaseGranted
	case v.running:
		return PhaseRunning
	default:
		return PhaseGone
	}
}

// sendStatus sends the status when something in it changed.
func (m *Machine) sendStatus() {
	if !m.statusDirty {
		return
	}
	m.statusDirty = false
	if len(m.subscribers) > 0 {
		s := m.Status(m.now)
		m.emit(Effect{Kind: EffNotify, Notice: &Notice{What: NoticeStatus, Status: &s}})
	}
}
