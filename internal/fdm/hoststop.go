package fdm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// HostShutdown is what becomes of the VMs of a host that is shut down in order.
type HostShutdown string

// The policies (ha.hostShutdown).
const (
	// HostShutdownRestart: they start elsewhere as soon as they have stopped.
	HostShutdownRestart HostShutdown = "restartElsewhere"
	// HostShutdownStop: they stay down until their host is back.
	HostShutdownStop HostShutdown = "stop"
)

// LeaveRequest announces that the host that is asked goes down on purpose. Its
// VMs are shut down, those of low priority first and a VM before those that it
// depends on; it takes no others. Asked again it tells what is left.
type LeaveRequest struct {
	// GuestLimit is how long a guest may take before it is powered off.
	GuestLimit time.Duration `json:"guestLimit"`
	// Cancel: the host stays after all.
	Cancel bool `json:"cancel,omitempty"`
}

// leaving is a host that goes down on purpose.
type leaving struct {
	limit time.Duration
	asked map[model.VMID]model.Epoch // VMs that were told to stop
	// goneAt is when a VM was first seen gone with its lock still held, emptyAt
	// when nothing of any was left.
	goneAt  map[model.VMID]time.Duration
	emptyAt time.Duration
}

// forcedLeave is how long a host that leaves by force waits for the word of
// admission control, so that the event of it can be told before it is gone.
const forcedLeave = 2 * time.Second

const (
	// releaseWait is how long a host that leaves waits for the release of the lock
	// of a VM that is gone; a release that fails is tried anew in between. Then it
	// is left to the failover.
	releaseWait = 15 * time.Second
	// tellWait is how long it stays after the last release: its report must leave.
	tellWait = time.Second
)

// Reasons that people read.
const (
	leavingWhy = "it is being shut down"
	leftWhy    = "it was shut down in order and ran no VM any more"
	leavingNow = "it is being shut down in order and takes no VM"
	tellingNow = "the primary, which is told that no VM is left"
)

// leave carries out a LeaveRequest on this host. The first asks admission control;
// by force it only tells what that says, and begins whatever it is.
func (m *Machine) leave(r LeaveRequest, w waive, reply func(AdminReply)) {
	switch {
	case r.Cancel && m.leaving == nil:
		reply(AdminReply{OK: true, Text: fmt.Sprintf("%s is not being shut down", m.cfg.Self)})
		return
	case r.Cancel:
		m.leaving = nil
		m.leavingChanged()
		m.emit(event.Event{Kind: event.HostState, Host: m.cfg.Self, Text: fmt.Sprintf("%s stays: its shutdown was called off", m.cfg.Self)})
		reply(AdminReply{OK: true, Text: fmt.Sprintf("%s takes VMs again; those that were told to stop do so", m.cfg.Self)})
		return
	case r.GuestLimit <= 0:
		reply(AdminReply{Text: "guestLimit: give the time that a guest may take to shut down"})
		return
	case !m.loaded || !m.conf.Enabled:
		reply(AdminReply{OK: true}) // nobody restarts anything: libvirt's own shutdown is left to it
		return
	}
	if m.leaving != nil {
		m.goOnLeaving(r, reply)
		return
	}
	ask := AdminRequest{Consider: &Consideration{Leave: m.cfg.Self}, Force: w.force, By: w.by}
	if w.force {
		begin := m.once(func(AdminReply) { m.goOnLeaving(r, reply) })
		m.relay(ask, begin)
		m.after(forcedLeave, func() { begin(AdminReply{}) })
		return
	}
	m.relay(ask, func(a AdminReply) {
		if !a.OK {
			if !a.Refused {
				a.Text, a.Refused = "admission control could not be asked, which counts as no: "+a.Text, true
			}
			reply(a)
			return
		}
		m.goOnLeaving(r, withWarnings(admission.Decision{Report: admission.Report{Warnings: a.Warnings}}, reply))
	})
}

// goOnLeaving begins to leave, or goes on, and tells what is left.
func (m *Machine) goOnLeaving(r LeaveRequest, reply func(AdminReply)) {
	if m.leaving == nil {
		m.leaving = &leaving{asked: map[model.VMID]model.Epoch{}, goneAt: map[model.VMID]time.Duration{}}
		m.leavingChanged()
		m.emit(event.Event{Kind: event.HostState, Host: m.cfg.Self, Text: fmt.Sprintf("%s is being shut down in order", m.cfg.Self),
			Evidence: map[string]string{"vms": strings.Join(m.leftHere(), ", ")}})
	}
	m.leaving.limit = r.GuestLimit
	m.stopWave()
	reply(AdminReply{OK: true, Text: m.awaited()})
}

// awaited is what the host waits for before it may go down; "" when nothing is
// left.
func (m *Machine) awaited() string {
	l := m.leaving
	left := m.leftHere()
	switch {
	case len(left) > 0:
		l.emptyAt = 0
		return strings.Join(left, ", ")
	case l.emptyAt == 0:
		l.emptyAt = m.now
		m.reportDue = true
	}
	if len(l.asked) > 0 && m.now-l.emptyAt < tellWait {
		return tellingNow
	}
	return ""
}

func (m *Machine) leavingChanged() {
	m.beatGuard() // the slots say so
	m.reportDue, m.viewDue = true, true
}

// here are the managed VMs that run on this host, or may begin to, by id.
func (m *Machine) here() []lease.VMStatus {
	var out []lease.VMStatus
	for _, id := range sortedKeys(m.guarded) {
		if g := m.guarded[id]; g.Phase != lease.PhaseGone {
			out = append(out, g)
		}
	}
	return out
}

// leftHere are the names of the VMs that keep this host from going down: a VM is
// done with when its lock is released, too, for a lock that nobody releases reads
// as a failure.
func (m *Machine) leftHere() []string {
	var out []string
	for _, id := range sortedKeys(m.guarded) {
		g := m.guarded[id]
		if g.Phase != lease.PhaseGone {
			delete(m.leaving.goneAt, id)
			out = append(out, g.Name)
			continue
		}
		at, seen := m.leaving.goneAt[id]
		if !seen {
			at = m.now
			m.leaving.goneAt[id] = at
		}
		if m.now-at < releaseWait {
			out = append(out, g.Name)
		}
	}
	return out
}

// stopWave tells the next VMs to stop, and looks again every interval.
func (m *Machine) stopWave() {
	l := m.leaving
	if l == nil {
		return
	}
	m.awaited() // so that it is known since when nothing is left
	for _, g := range m.nextWave(m.here()) {
		if l.asked[g.VM] != g.Epoch {
			l.asked[g.VM] = g.Epoch
			m.stopForLeaving(g, l)
		}
	}
	m.after(m.interval(), func() {
		if m.leaving == l {
			m.stopWave()
		}
	})
}

// nextWave are the VMs of the lowest priority on which no other of them depends.
func (m *Machine) nextWave(left []lease.VMStatus) []lease.VMStatus {
	var wave []lease.VMStatus
	needed := map[string]bool{}
	for _, g := range left {
		for _, n := range m.conf.VMs[g.Name].DependsOn {
			needed[n] = true
		}
	}
	for _, strict := range []bool{true, false} { // a cycle of dependencies must not keep a host up
		for _, g := range left {
			if strict && needed[g.Name] {
				continue
			}
			switch rank := m.rankHere(g); {
			case len(wave) == 0 || rank < m.rankHere(wave[0]):
				wave = []lease.VMStatus{g}
			case rank == m.rankHere(wave[0]):
				wave = append(wave, g)
			}
		}
		if len(wave) > 0 {
			break
		}
	}
	return wave
}

// rankHere orders by restart priority, lowest first.
func (m *Machine) rankHere(g lease.VMStatus) int {
	order := []model.Priority{model.PriorityDisabled, model.PriorityLowest, model.PriorityLow, model.PriorityMedium, model.PriorityHigh, model.PriorityHighest}
	p := m.conf.VMs[g.Name].Priority
	if i := slices.Index(order, p); i >= 0 {
		return i
	}
	return slices.Index(order, model.PriorityMedium)
}

// stopForLeaving asks the guest and powers it off when it takes too long, or
// cannot hear.
func (m *Machine) stopForLeaving(g lease.VMStatus, l *leaving) {
	why := fmt.Sprintf("%s is being shut down", m.cfg.Self)
	m.haOff[g.VM] = haStop{why: why, until: m.now + l.limit + time.Minute, reason: model.ReasonHostOff}
	kill := func(cause string) {
		m.haOff[g.VM] = haStop{why: why, until: m.now + time.Hour, reason: model.ReasonHostOff}
		m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
			Text: fmt.Sprintf("%s is powered off on %s, which is being shut down", g.Name, m.cfg.Self), Cause: cause})
		m.killForHA(g, func() bool { return true }) // what was told to stop does, also if the host stays after all
	}
	if m.isFrozen(g.VM) || m.hangs(g.VM) || !m.hvUp {
		kill("its guest cannot be asked: it is frozen, its storage hangs, or libvirt does not answer")
		return
	}
	m.hypervise(CallShutdown, g.VM, "", func(HypervisorDone) {})
	m.after(l.limit, func() {
		if now, held := m.guarded[g.VM]; held && now.Epoch == g.Epoch && now.Phase != lease.PhaseGone && m.leaving == l {
			kill(fmt.Sprintf("its guest did not shut down in %s", seconds(l.limit)))
		}
	})
}

// left tells whether a host that fell silent had announced it and ran no VM any
// more: to the primary, or, before this one was primary, in its heartbeat slots.
func (m *Machine) left(h *member) bool {
	return len(h.vms) == 0 && m.announcedLeave(h)
}

func (m *Machine) announcedLeave(h *member) bool {
	if h.report != nil && h.report.Leaving {
		return true
	}
	for _, st := range m.storeBy {
		if s := st.slots[h.name]; s != nil && s.valid && s.slot.Flags.Has(model.SlotShuttingDown) {
			return true
		}
	}
	return false
}

// leavesWith tells whether the end of a VM is part of this host's shutdown: of
// its guest, or saved by libvirt's own service.
func (m *Machine) leavesWith(cause StopCause, reason string) bool {
	return m.leaving != nil && (reason == model.ReasonGuestOff || cause == StopSaved)
}

// awaitsHost tells whether a VM that was released when its host was shut down
// waits for that host, by the policy "stop".
func (m *Machine) awaitsHost(rec model.LockRecord) bool {
	h := m.members[rec.Owner]
	if m.conf.HostShutdown != HostShutdownStop || h == nil || h.conf.Maintenance {
		return false
	}
	return m.unfit(h) != ""
}
