package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/model"
)

// readyTimeout is how long others wait for a VM to get ready unless its
// settings say otherwise.
const readyTimeout = 600 * time.Second

// settings are those of the cluster file, with defaults.
func (m *Machine) settings(v *vm) VMSettings {
	s := *m.setOf(v)
	if s.Ready == "" {
		s.Ready = model.ReadyResources
	}
	switch {
	case s.Timeout == 0:
		s.Timeout = readyTimeout
	case s.Timeout < 0:
		s.Timeout = 0
	}
	return s
}

// wanted tells whether a VM is to run, and HA sees to it.
func (m *Machine) wanted(v *vm) bool {
	return m.requested(v) == model.RequestedStarted && (m.priority(v) != model.PriorityDisabled || v.p.Down != nil)
}

// met tells whether a VM's ready condition holds, its delay aside.
// Applications are not monitored: the guest's heartbeat stands in.
func (m *Machine) met(v *vm, s VMSettings) bool {
	switch s.Ready {
	case model.ReadyResources:
		return v.running || v.order != nil && v.order.kind == CommandStart
	case model.ReadyPoweredOn:
		return v.running
	default:
		return v.running && v.local.Alive
	}
}

// isReady keeps the time since which the condition holds, and tells whether the
// delay is over. A timer looks again when it will be.
func (m *Machine) isReady(v *vm, s VMSettings) bool {
	if !m.met(v, s) {
		v.metAt = 0
		return false
	}
	if v.metAt == 0 {
		v.metAt = m.now
		if s.Delay > 0 {
			m.after(s.Delay, m.reigning(func() { m.orderDue = true }))
		}
	}
	return m.now-v.metAt >= s.Delay
}

// readyText is how far a VM is towards its ready condition, for people.
func (m *Machine) readyText(v *vm) string {
	s := m.settings(v)
	text := map[model.ReadyWhen]string{model.ReadyResources: "a host for it", model.ReadyPoweredOn: "its power-on",
		model.ReadyGuest: "its guest agent's answer", model.ReadyApplication: "its guest agent's answer (applications are not monitored yet)"}[s.Ready]
	switch {
	case m.met(v, s) && (v.metAt == 0 && s.Delay > 0 || m.now < v.metAt+s.Delay):
		return fmt.Sprintf("waits %s more after %s", seconds(v.metAt+s.Delay-m.now), text)
	case m.met(v, s):
		return "ready"
	case v.gateOver:
		return fmt.Sprintf("not ready within %s: nobody waits for it any more", s.Timeout)
	}
	return "waits for " + text
}
