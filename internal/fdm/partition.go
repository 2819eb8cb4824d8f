package fdm

import (
	"fmt"

	"hanok.dev/hanok/internal/model"
)

// What a primary makes of hosts that live but cannot be spoken to: isolated,
// partitioned, or with an agent that is dead. Their VMs are theirs, as their
// locks say; what they give up, and what their users start and stop meanwhile,
// shows in the locks.

// relookEvery is after how many intervals the locks of a living host that
// cannot be spoken to are read again although its heartbeats show no change.
const relookEvery = 10

// reportsMissed is how many reports in a row a host may miss before it counts
// as one that cannot be spoken to.
const reportsMissed = 2

// apart tells whether a host lives without contact to this primary. A host
// that is heard but hears nothing (a one-way cut) is too: it cannot report.
func (m *Machine) apart(h *member) bool {
	if h.failed || h.self {
		return false
	}
	if !h.suspect {
		return h.report != nil && m.now-h.reportAt > reportsMissed*m.cfg.ReportInterval+m.silence() || m.saysIsolated(h)
	}
	switch h.state {
	case model.HostIsolated, model.HostPartitioned, model.HostAgentUnreachable:
		return true
	}
	return false
}

// saysIsolated tells whether a host's heartbeat on a datastore says that it is
// isolated.
func (m *Machine) saysIsolated(h *member) bool {
	for _, st := range m.storeBy {
		s := st.slots[h.name]
		if s != nil && s.valid && s.slot.Flags.Has(model.SlotIsolated) && m.readable(st) && s.age() < m.staleAfter(s) {
			return true
		}
	}
	return false
}

// relook reads the locks again that h may have taken or given up on st: those
// of the VMs that are not known to run on another host.
func (m *Machine) relook(st *store, h *member) {
	if st.list.phase != listOwned {
		return
	}
	for _, v := range st.list.byID() {
		if v.order == nil && (v.host == h || !v.running) {
			v.lockKnown = false
			m.readLock(v)
		}
	}
}

// relookApart reads the locks of hosts apart now and then: one change may have
// been missed.
func (m *Machine) relookApart() {
	for _, h := range m.order {
		if !m.apart(h) {
			h.lookedAt = m.now
			continue
		}
		if m.now-h.lookedAt >= relookEvery*m.interval() {
			h.lookedAt = m.now
			for _, st := range m.storeBy {
				m.relook(st, h)
			}
		}
	}
}

// lockOfRunning takes the lock of a VM that was reported running: if its host
// cannot be spoken to any more, the lock tells what became of the VM.
func (m *Machine) lockOfRunning(v *vm) {
	if !v.running || v.host == nil || !v.host.suspect && !m.apart(v.host) {
		return
	}
	if v.lock.Holder() == v.host.name {
		v.local.Epoch = max(v.local.Epoch, v.lock.Epoch)
		return
	}
	m.setRunning(v, nil, LocalVM{})
	v.lockKnown = true
	m.viewDue = true
}

// elsewhere says of a VM that is not wanted running that a host which cannot be
// spoken to runs it all the same: its user started it there.
func (m *Machine) elsewhere(v *vm) (string, bool) {
	h := m.members[v.lock.Holder()]
	if h == nil || !m.apart(h) || v.running {
		return "", false
	}
	return fmt.Sprintf("%s, which is %s, holds its lock: its user started it there", h.name, h.state), true
}
