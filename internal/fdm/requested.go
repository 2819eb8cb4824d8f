package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// What the cluster file requests of a VM. A change to started or stopped is
// brought about once; what administrators and users do afterwards counts again.
// disabled holds as long as it stands in the file: the VM is stopped whenever it
// runs, and nothing starts it. ignored is left alone. How far a change has been
// brought about is in the protected list (Settled), so that it is neither lost
// nor done twice when the primary changes.

// stopPause is the pause between orders to stop a VM that the cluster file wants
// stopped.
const stopPause = 30 * time.Second

// enforce brings about what the cluster file requests of a VM, where that
// changed.
func (m *Machine) enforce(v *vm) {
	want := m.setOf(v).Requested
	if want == "" || m.vms[v.p.ID] != v || v.st.list.phase != listOwned {
		return
	}
	switch {
	case m.mustStop(v):
		m.bringDown(v, want)
	case want == v.p.Settled:
	case v.p.Settled == "": // managed only since: it is as it is
		v.p.Settled = want
		m.save(v)
	case want == model.RequestedStarted:
		m.bringUp(v)
	default:
		m.broughtAbout(v, want, "HA leaves it alone")
	}
}

// mustStop tells whether the cluster file wants v stopped, and that has still to be
// seen to.
func (m *Machine) mustStop(v *vm) bool {
	switch want := m.setOf(v).Requested; want {
	case model.RequestedDisabled:
		return v.running || v.p.Settled != want
	case model.RequestedStopped:
		return v.p.Settled != "" && v.p.Settled != want
	}
	return false
}

// broughtAbout notes how far the cluster file's request is fulfilled.
func (m *Machine) broughtAbout(v *vm, want model.Requested, text string) {
	if v.p.Settled == want {
		return
	}
	v.p.Settled = want
	m.save(v)
	m.viewDue, m.orderDue = true, true
	m.emit(event.Event{Kind: event.Admin, VM: v.p.Name, Host: v.p.Host, Datastore: v.st.name,
		Text: fmt.Sprintf("%s is %s in the cluster file: %s", v.p.Name, want, text)})
	m.showProtection(v)
}

// bringUp starts a VM as the cluster file requests now.
func (m *Machine) bringUp(v *vm) {
	v.p.Requested, v.stuck, v.stopAgain = model.RequestedStarted, false, 0
	m.broughtAbout(v, model.RequestedStarted, "it is to run")
	if v.running || v.order != nil {
		return // it runs, or is about to; a stop under way is followed by a start
	}
	m.startAnew(v, "the cluster file requests it started")
	m.evaluate(v)
}

// startAnew prepares a start that somebody asked for: no earlier failure counts.
func (m *Machine) startAnew(v *vm, cause string) {
	v.p.Requested = model.RequestedStarted
	if v.p.Down == nil {
		v.p.Down = &model.DownState{Cause: cause, Asked: true}
	}
	d := v.p.Down
	d.Attempts, d.Hosts, d.Here, d.Moves, d.Failed = 0, nil, 0, 0, false
	v.standing, v.nextTry, v.lockKnown = false, 0, false
	delete(m.waiting, v.p.ID)
	// The lock record of its last stop must not count as a new stop.
	v.forgetOff = true
	m.save(v)
}

// bringDown stops a VM as the cluster file requests. That it is to stay down is
// recorded before the command leaves.
func (m *Machine) bringDown(v *vm, want model.Requested) {
	if v.p.Requested != model.RequestedStopped || v.p.Down != nil {
		v.p.Requested, v.p.Down = model.RequestedStopped, nil
		m.leaveFailover(v)
		m.answerStart(v, AdminReply{Text: fmt.Sprintf("%s is %s in the cluster file now", v.p.Name, want)})
		m.save(v)
		m.showProtection(v)
	}
	switch {
	case v.order != nil: // its end leads here again
	case !v.running:
		m.evaluate(v)
	case v.host.suspect || m.now < v.stopAgain || m.frozenThere(v): // a report leads here again
	default:
		kind := CommandShutdown
		if v.stuck {
			kind = CommandKill
		}
		v.stopAgain = m.now + stopPause
		m.emit(event.Event{Kind: event.Admin, VM: v.p.Name, Host: v.p.Host, Text: fmt.Sprintf("%s of %s", kind, v.p.Name),
			Cause: fmt.Sprintf("its requested state in the cluster file is %s", want)})
		o := m.newOrder(v, v.host, kind, v.local.Epoch)
		m.saveThen(v, func() { m.send(o) })
	}
}

// settleDown notes that a VM that the cluster file wants stopped is stopped: its
// lock says so, not the silence of its host.
func (m *Machine) settleDown(v *vm) {
	if !m.mustStop(v) || v.p.Requested != model.RequestedStopped {
		return
	}
	if !v.lockKnown {
		m.readLock(v)
		return
	}
	if holder := v.lock.Holder(); holder != "" && !m.disowned(v.st, v.lock) {
		v.reason = fmt.Sprintf("it is to be stopped, and %s holds its lock", holder)
		m.recheck(v, fencePause)
		return
	}
	v.p.LastEpoch = max(v.p.LastEpoch, v.lock.Epoch)
	v.stuck, v.stopAgain = false, 0
	m.broughtAbout(v, m.conf.VMs[v.p.Name].Requested, "it is stopped")
}

// stopFailed looks again at a VM that was not stopped as the file requests.
func (m *Machine) stopFailed(v *vm, code string) {
	if !m.mustStop(v) {
		return
	}
	if code == codeStuck {
		v.stuck, v.stopAgain = true, m.now
	}
	m.after(v.stopAgain-m.now, m.reigning(func() { m.enforce(v) }))
}
