package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Why a VM ended is what its guest or libvirt says, unless HA ordered it, this
// host is being shut down, or its storage was lost: then its lock is released for
// a restart, although to libvirt it looks like its user's wish.

// whyEnded is the reason with which the lock of a VM that ended is released;
// false while that is not known yet.
func (m *Machine) whyEnded(g lease.VMStatus, d *domain, reason string) (string, bool) {
	if s, ok := m.haStopped(g.VM, reason); ok {
		if s.reason != "" {
			return s.reason, true
		}
		return model.ReasonHAOff, true
	}
	cause := StopUnknown
	if d != nil {
		cause = d.Cause
	}
	switch {
	case m.leavesWith(cause, reason):
		return m.endedForHA(g, fmt.Sprintf("%s is being shut down", m.cfg.Self), model.ReasonHostOff), true
	case reason != model.ReasonGuestOff:
		return reason, true
	case m.conf.MaskCleanShutdown && m.hangs(g.VM):
		m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
			Text:  fmt.Sprintf("%s has shut down on %s, which has lost storage of it: it is restarted elsewhere", g.Name, m.cfg.Self),
			Cause: "das.maskCleanShutdownEnabled"})
		return m.endedForHA(g, fmt.Sprintf("its guest shut down while %s had lost storage of it", m.cfg.Self), model.ReasonHAOff), true
	case m.inherited[g.VM] == g.Epoch && g.Epoch > 0:
		return "", m.readNote(g)
	}
	return reason, true
}

// endedForHA notes that the end of a VM is to be followed by a restart, so that
// it stays so while its lock cannot be released.
func (m *Machine) endedForHA(g lease.VMStatus, why, reason string) string {
	m.haOff[g.VM] = haStop{why: why, until: m.now + 24*time.Hour, reason: reason}
	return reason
}

// inherit notes, with the first word of the guard, which VMs a former life of
// this agent looked after.
func (m *Machine) inherit() {
	if m.inherited != nil {
		return
	}
	m.inherited = map[model.VMID]model.Epoch{}
	for id, g := range m.guarded {
		if g.Phase != lease.PhaseGranted {
			m.inherited[id] = g.Epoch
		}
	}
	if len(m.inherited) > 0 {
		m.inheritedAt = m.now
		m.after(inheritedPause, m.checkInherited)
	}
}

// inheritedPause is the pause between looks at VMs that a former life of this agent
// may have been about to stop.
const inheritedPause = 5 * time.Second

// checkInherited takes the notes back that a former life of this agent left and
// whose stop did not come: when a guest could have shut down by its order, and runs
// on, its end is somebody else's wish.
func (m *Machine) checkInherited() {
	if m.loaded && !m.isolated() && m.now >= m.inheritedAt+m.conf.Isolation.ShutdownLimit {
		for _, id := range sortedKeys(m.inherited) {
			m.disinherit(id)
		}
	}
	if len(m.inherited) > 0 {
		m.after(inheritedPause, m.checkInherited)
	}
}

// disinherit ends what a former life of this agent may have meant for a VM, unless
// it is frozen and could not shut down yet, is being stopped by this life, or has
// ended: then the note tells why (readNote).
func (m *Machine) disinherit(id model.VMID) {
	g, held := m.guarded[id]
	_, stopping := m.haOff[id]
	switch {
	case !held || g.Epoch != m.inherited[id]:
		delete(m.inherited, id)
		return
	case stopping || g.Phase != lease.PhaseRunning || m.releasing[id] || m.stores[g.Home] == nil:
		return
	}
	st := m.stores[g.Home]
	m.do(ReadNote{Datastore: g.Home, VM: id, Op: m.op(func(r NoteRead) {
		now, held := m.guarded[id]
		_, stopping := m.haOff[id]
		if r.Kind != "" || r.Err != "" || !held || now.Epoch != g.Epoch || now.Phase != lease.PhaseRunning || stopping || m.isolated() {
			return // the next look tells
		}
		delete(m.inherited, id)
		if n := r.Note; n.LockEpoch == g.Epoch && n.Host == m.cfg.Self && !n.Withdrawn {
			m.withdrawNote(st, g)
		}
	})})
}

// readNote finds out whether a former life of this agent had ordered the
// shutdown of a guest that has ended; it is always false: the answer tends.
func (m *Machine) readNote(g lease.VMStatus) bool {
	if m.releasing[g.VM] {
		return false
	}
	m.releasing[g.VM] = true
	m.do(ReadNote{Datastore: g.Home, VM: g.VM, Op: m.op(func(r NoteRead) {
		delete(m.releasing, g.VM)
		if r.Kind != "" || r.Err != "" {
			m.after(time.Second, func() { m.tend(g.VM) })
			return
		}
		delete(m.inherited, g.VM)
		if n := r.Note; n.LockEpoch == g.Epoch && n.Host == m.cfg.Self && !n.Withdrawn {
			m.endedForHA(g, fmt.Sprintf("%s was isolated when its shutdown was ordered, by this agent before its restart", m.cfg.Self), model.ReasonHAOff)
		}
		m.tend(g.VM)
	})})
	return false
}

// withdrawNote takes the note about a VM back whose guest runs on: a later life
// of this agent must not take the end of it for HA's doing.
func (m *Machine) withdrawNote(st *store, g lease.VMStatus) {
	now, held := m.guarded[g.VM]
	x := m.iso.vms[g.VM]
	if !held || now.Epoch != g.Epoch || m.stores[st.name] != st || x != nil && x.epoch == g.Epoch {
		return // the note names an epoch that is over, or counts again
	}
	note := model.PoweredOffNote{VM: g.VM, LockEpoch: g.Epoch, Host: m.cfg.Self, Withdrawn: true}
	m.do(WriteNote{Datastore: st.name, Note: note, Op: m.op(func(r NoteWritten) {
		if r.Kind != "" || r.Err != "" {
			m.after(time.Second, func() { m.withdrawNote(st, g) })
		}
	})})
}
