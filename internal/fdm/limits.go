package fdm

import (
	"fmt"

	"hanok.dev/hanok/internal/model"
)

// Limits of attempts that are a VM's own: so many more on the same host after a
// failure, then on another host, so many times; then it stays down until somebody
// asks for its start. Without them all attempts are counted together
// (das.maxvmrestartcount), each goes where fewest have failed, and what is down
// for good is tried again whenever anything changes.

// attemptsOf is how many failed attempts count for v.
func (m *Machine) attemptsOf(v *vm) int {
	if l := m.conf.VMs[v.p.Name].Limits; l != nil {
		return (l.Restarts + 1) * (l.Relocations + 1)
	}
	return m.maxRestarts()
}

// staysOn is the host that v is tried on once more before any other.
func (m *Machine) staysOn(v *vm) model.HostID {
	l, d := m.conf.VMs[v.p.Name].Limits, v.p.Down
	if l == nil || d == nil || d.Here == 0 || d.Here > l.Restarts || len(d.Hosts) == 0 {
		return ""
	}
	return d.Hosts[len(d.Hosts)-1]
}

// countMove counts the start of v on another host than the last, or once more
// where no other was found, as a relocation.
func (m *Machine) countMove(v *vm, to model.HostID) {
	d := v.p.Down
	l := m.conf.VMs[v.p.Name].Limits
	if d.Here == 0 || len(d.Hosts) == 0 {
		return
	}
	if d.Hosts[len(d.Hosts)-1] != to || l != nil && d.Here > l.Restarts {
		d.Here = 0
		d.Moves++
	}
}

// spent tells whether the limits of v are used up.
func (m *Machine) spent(v *vm) bool {
	l, d := m.conf.VMs[v.p.Name].Limits, v.p.Down
	return l != nil && d != nil && d.Here > l.Restarts && d.Moves >= l.Relocations
}

// giveUp leaves v down in state error.
func (m *Machine) giveUp(v *vm, why string) {
	d, l := v.p.Down, m.conf.VMs[v.p.Name].Limits
	d.Failed = true
	m.standingReason(v, fmt.Sprintf("%d attempts failed, the last with %s. Its limits (maxRestart %d, maxRelocate %d) are used up: mend the cause, then `hanok vm start %s`, or set its `requested` to disabled and then to started",
		d.Attempts, why, l.Restarts, l.Relocations, v.p.Name), false)
	if f := m.failovers[v.inFailover]; f != nil {
		f.stuck++
	}
	m.gaveUpOn(v)
	m.save(v)
	m.poke(changeStart)
}

// gaveUpOn keeps a VM down that is in state error by its own limits, unless the
// limits were raised.
func (m *Machine) gaveUpOn(v *vm) bool {
	d := v.p.Down
	if d == nil || !d.Failed {
		return false
	}
	if !m.spent(v) {
		d.Failed = false
		m.save(v)
		return false
	}
	v.reason, v.standing = d.Reason, true
	delete(m.waiting, v.p.ID)
	m.leaveFailover(v)
	m.viewDue = true
	return true
}
