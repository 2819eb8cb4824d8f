package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// evaluate looks at a VM anew: whatever changed, this is where it leads.
func (m *Machine) evaluate(v *vm) {
	if m.vms[v.p.ID] != v || v.order != nil || v.running {
		return
	}
	delete(m.ready, v.p.ID)
	delete(m.held, v.p.ID)
	if m.requested(v) != model.RequestedStarted {
		v.reason, v.fence, v.standing = "", false, false
		delete(m.waiting, v.p.ID)
		m.leaveFailover(v)
		m.showProtection(v)
		m.settleDown(v)
		return
	}
	if m.gaveUpOn(v) {
		return
	}
	if m.now < v.nextTry {
		m.wake(v, v.nextTry-m.now)
		return
	}
	if !v.lockKnown {
		m.readLock(v)
		return
	}
	m.decide(v)
}

// decide acts on the lock record of a VM that is wanted running and, by all
// reports, does not run.
func (m *Machine) decide(v *vm) {
	rec := v.lock
	holder := rec.Holder()
	v.fence = false
	if holder == "" {
		m.decideReleased(v, rec)
		return
	}
	h := m.members[holder]
	m.setHost(v, h)
	switch {
	case m.disowned(v.st, rec):
		failover := ""
		if h != nil {
			failover = m.failoverOf(h)
		}
		t := m.takeover(v, holder, fmt.Sprintf("%s has rebooted since it took the lock", holder))
		t.Gone = m.saysRebooted(v.st, h, rec)
		m.restart(v, fmt.Sprintf("%s, which ran it, has rebooted", holder), failover, intent{epoch: rec.Epoch, prefer: holder, takeover: t})
	case h != nil && h.self || h != nil && h.report != nil && !h.suspect:
		m.decideIdle(v, h, rec)
	case h == nil || h.failed:
		m.decideFailed(v, h, holder)
	default:
		// Silent without a verdict, or not yet reported: its lock holds.
		v.reason = fmt.Sprintf("%s holds its lock (epoch %d); %s", holder, rec.Epoch, m.silenceText(h))
		m.recheck(v, fencePause)
	}
}

func (m *Machine) silenceText(h *member) string {
	if h.suspect {
		return fmt.Sprintf("%s is %s: %s", h.name, h.state, h.why())
	}
	return fmt.Sprintf("%s has not reported yet", h.name)
}

// recheck reads the lock again after a while, without delaying what an event
// may cause before.
func (m *Machine) recheck(v *vm, d time.Duration) {
	m.viewDue = true
	at := m.now + d
	if v.wakeAt > m.now && v.wakeAt <= at {
		return
	}
	v.wakeAt = at
	m.after(d, func() {
		if v.wakeAt <= m.now && m.vms[v.p.ID] == v && !v.running && v.order == nil {
			v.lockKnown = false
			m.evaluate(v)
		}
	})
}

// decideReleased: nobody holds the lock.
func (m *Machine) decideReleased(v *vm, rec model.LockRecord) {
	m.setHost(v, nil)
	if v.forgetOff {
		v.forgetOff = false
		v.p.LastEpoch = max(v.p.LastEpoch, rec.Epoch)
		m.save(v)
	}
	if rec.Epoch > v.p.LastEpoch && (rec.Reason == model.ReasonUserOff || rec.Reason == model.ReasonGuestOff) {
		m.stoppedByUser(v, rec)
		return
	}
	in := intent{epoch: rec.Epoch}
	failover := ""
	cause := "it is wanted running and nobody runs it"
	switch rec.Reason {
	case model.ReasonCrashed:
		cause, in.prefer = fmt.Sprintf("it died on %s without being asked to", rec.Owner), rec.Owner
	case model.ReasonHAOff:
		cause = fmt.Sprintf("it was powered off by HA on %s", rec.Owner)
		if h := m.members[rec.Owner]; h != nil && h.state == model.HostIsolated {
			cause, failover = fmt.Sprintf("it was powered off by HA on %s, which is isolated", rec.Owner), m.failoverOf(h)
		}
	case model.ReasonHostOff:
		cause = fmt.Sprintf("%s was shut down", rec.Owner)
		if m.awaitsHost(rec) {
			v.reason = fmt.Sprintf("%s was shut down in order, and it waits for that host (ha.hostShutdown: stop)", rec.Owner)
			m.recheck(v, fencePause)
			return
		}
		if m.conf.HostShutdown == HostShutdownStop {
			in.prefer = rec.Owner
		}
	case model.ReasonForced:
		cause = fmt.Sprintf("its lock was released by an administrator on %s", rec.Owner)
	}
	m.restart(v, cause, failover, in)
}

// stoppedByUser: it was shut down in the guest or ended by its user, and stays
// down.
func (m *Machine) stoppedByUser(v *vm, rec model.LockRecord) {
	how := "was powered off by its user"
	if rec.Reason == model.ReasonGuestOff {
		how = "was shut down in the guest"
	}
	v.p.Requested, v.p.Down = model.RequestedStopped, nil
	v.p.LastEpoch = rec.Epoch
	v.reason, v.standing, v.shown = "", false, false
	m.leaveFailover(v)
	delete(m.waiting, v.p.ID)
	m.save(v)
	m.viewDue = true
	m.answerWaiters(v, AdminReply{OK: true, Text: fmt.Sprintf("%s %s", v.p.Name, how)})
	m.emit(event.Event{Kind: event.Unprotected, VM: v.p.Name, Host: rec.Owner, Datastore: v.st.name,
		Text: fmt.Sprintf("%s %s and stays down", v.p.Name, how), Evidence: map[string]string{"lock": rec.String()}})
}

// decideIdle: the holder is here and says that it does not run the VM.
func (m *Machine) decideIdle(v *vm, h *member, rec model.LockRecord) {
	r := h.report
	if r == nil || !r.GuardUp && !r.HypervisorUp {
		v.reason = fmt.Sprintf("%s holds its lock, and neither its guard nor its libvirt answers", h.name)
		m.recheck(v, fencePause)
		return
	}
	if goneFrom(v, r, rec) {
		if reason := m.meant(v, r); reason != "" && v.offSeen != rec.Epoch && !v.forgetOff {
			v.offSeen, rec.Reason = rec.Epoch, reason
			m.stoppedByUser(v, rec)
			return
		}
		m.takeGone(v, h, rec)
		return
	}
	for i := range r.VMs {
		if lv := &r.VMs[i]; lv.ID == v.p.ID && (lv.Phase != "" || lv.Active) {
			v.reason = fmt.Sprintf("%s holds its lock (epoch %d) and is about to start or release it: %s", h.name, rec.Epoch, lv.Phase)
			m.recheck(v, time.Second)
			return
		}
	}
	m.restart(v, fmt.Sprintf("%s holds its lock but does not run it", h.name), "", intent{epoch: rec.Epoch, only: h.name})
}

// decideFailed: the holder has failed, or is no member any more.
func (m *Machine) decideFailed(v *vm, h *member, holder model.HostID) {
	slot := v.st.slots[holder]
	if !m.stale(v.st, holder) {
		v.reason = fmt.Sprintf("%s holds its lock, and its heartbeat on %s is not proven stale", holder, v.st.name)
		if slot == nil {
			v.reason = fmt.Sprintf("%s holds its lock and has no heartbeat slot on %s: `hanok lock release --force` after proof that it is off", holder, v.st.name)
		}
		m.recheck(v, time.Second)
		return
	}
	failover := ""
	if h != nil {
		failover = m.failoverOf(h)
	}
	if m.leftDown(v, fmt.Sprintf("%s failed", holder)) {
		return
	}
	m.down(v, fmt.Sprintf("%s failed", holder), failover)
	quiet, need := m.quiet(v.st, holder), m.silenceFor(holder)
	if quiet < need {
		v.reason = fmt.Sprintf("%s holds its lock, and may have been heard by the former owner of the protected list of %s until %s ago: taken after %s", holder, v.st.name, seconds(quiet), seconds(need))
		m.recheck(v, need-quiet)
		return
	}
	if why := m.mayTake(v.st, slot, holder); why != "" {
		m.waitFence(v, why)
		return
	}
	var ev string
	if h != nil {
		ev = evidenceText(m.evidence(h))
		if at := v.st.takenAt; at > h.lastHeard() && v.st.takenFrom != holder {
			ev += fmt.Sprintf("; the protected list was taken over from %s %s ago", v.st.takenFrom, seconds(m.now-at))
		}
	} else {
		ev = fmt.Sprintf("%s left the cluster file, silent for %s; slot unchanged for %s", holder, seconds(quiet), seconds(slot.age()))
	}
	m.restart(v, fmt.Sprintf("%s failed", holder), failover, intent{epoch: v.lock.Epoch, takeover: m.takeover(v, holder, ev)})
}

// mayTake applies the fence class: "" if a silent owner's lock may be taken.
func (m *Machine) mayTake(st *store, slot *slotSeen, holder model.HostID) string {
	if st.conf.Unfenced {
		return ""
	}
	remedy := fmt.Sprintf("power %s off and on again, or, once it is certainly off, `hanok lock release --force`, or set `unfenced: accept` for %s", holder, st.name)
	switch {
	case st.conf.Fence == model.FenceNone:
		return fmt.Sprintf("%s is silent, but nothing stops its I/O on %s (fence class none): waiting for proof that it is dead; %s", holder, st.name, remedy)
	case st.conf.Fence == model.FenceStorage:
		return "" // the target's guard revokes the owner before it claims
	case !slot.valid || !slot.slot.Flags.Has(model.SlotArmed):
		return fmt.Sprintf("%s is silent and its watchdog was not armed: waiting for proof that it is dead; %s", holder, remedy)
	}
	return ""
}

// waitFence keeps a VM waiting for proof of death.
func (m *Machine) waitFence(v *vm, why string) {
	m.standingReason(v, why, false)
	v.fence, m.orderDue = true, true
	m.waiting[v.p.ID] = v
	m.recheck(v, fencePause)
}

func (m *Machine) takeover(v *vm, owner model.HostID, evidence string) *lease.Takeover {
	t := &lease.Takeover{Owner: owner, Evidence: evidence}
	if s := v.st.slots[owner]; s != nil {
		t.Slot = s.id
	}
	return t
}

// leftDown: a VM whose restart priority is disabled stays down, unless somebody
// asked for its start.
func (m *Machine) leftDown(v *vm, cause string) bool {
	if m.priority(v) != model.PriorityDisabled || v.p.Down != nil || len(v.askers) > 0 {
		return false
	}
	v.reason = cause + "; it is not restarted: its restart priority is disabled"
	m.leaveFailover(v)
	m.viewDue = true
	return true
}

// restart puts a VM among those to be placed.
func (m *Machine) restart(v *vm, cause, failover string, in intent) {
	if m.leftDown(v, cause) {
		return
	}
	m.down(v, cause, m.newFailover(v, failover))
	v.want = in
	m.ready[v.p.ID] = v
}

// standingReason keeps why a VM does not run, in the list and before people;
// told: people know, only a detail differs.
func (m *Machine) standingReason(v *vm, why string, told bool) {
	v.reason = why
	m.viewDue = true
	if d := v.p.Down; d != nil && d.Reason != why {
		d.Reason = why
		m.save(v)
	}
	m.answerStart(v, AdminReply{Text: fmt.Sprintf("%s is not running yet: %s; it is tried again when anything changes", v.p.Name, why)})
	if told || v.said == why || v.said != "" && m.now-v.saidAt < 30*time.Second {
		return
	}
	v.said, v.saidAt = why, m.now
	failover := ""
	if v.p.Down != nil {
		failover = v.p.Down.Failover
	}
	m.emit(event.Event{Kind: event.RestartPending, Severity: event.Warning, VM: v.p.Name, Datastore: v.st.name, Failover: failover,
		Text: fmt.Sprintf("%s cannot be restarted yet", v.p.Name), Cause: why})
}

// change is what happened that may let waiting VMs start.
type change uint8

// Kinds of change. What waits for a place is tried again after any of them; what
// failed there is not, if only another start ended, and after memory was freed
// only if memory was what it lacked.
const (
	changeStart  change = 1 << iota // a start or stop ended
	changeMemory                    // memory was freed
	changeRoom                      // a host, a datastore or the cluster file
)

// poke tries waiting VMs again because something changed.
func (m *Machine) poke(c change) { m.poked |= c }

// retryWaiting evaluates the VMs that wait for a change, at most once an
// interval.
func (m *Machine) retryWaiting() {
	if m.poked == 0 || len(m.waiting) == 0 {
		m.poked = 0
		return
	}
	if wait := m.pokedAt + m.interval() - m.now; m.pokedAt > 0 && wait > 0 {
		if m.pokeWake <= m.now {
			m.pokeWake = m.now + wait
			m.after(wait, func() {})
		}
		return
	}
	changed := m.poked
	m.poked, m.pokedAt = 0, m.now
	for _, v := range m.sortVMs(m.waiting) {
		if m.failedLast(v) && (!concerns(changed, v) || m.now-v.triedAt < leastPause) {
			continue
		}
		delete(m.waiting, v.p.ID)
		v.nextTry, v.lockKnown = 0, false
		m.evaluate(v)
	}
}

// leastPause is between two attempts to start a VM, whatever changes.
const leastPause = 2 * time.Second

// failedLast tells whether v waits because its last start failed.
func (m *Machine) failedLast(v *vm) bool { return v.standing || m.now < v.nextTry }

// concerns tells whether a change may let a start succeed that failed.
func concerns(c change, v *vm) bool {
	return c&changeRoom != 0 || c&changeMemory != 0 && v.fault == string(FaultNoMemory)
}

// gathered ends the wait for the members after all hosts were down.
func (m *Machine) gathered(why string) {
	if m.gatherDone {
		return
	}
	m.gatherDone, m.settled = true, true
	m.emit(event.Event{Kind: event.Election, Text: "members have gathered: VMs are restarted where needed", Cause: why})
	m.poke(changeRoom)
}

func (m *Machine) checkGathered() {
	if m.gatherDone {
		return
	}
	for _, h := range m.order {
		if !h.self && h.report == nil {
			return
		}
	}
	m.gathered("all members have reported")
}
