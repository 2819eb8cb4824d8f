package lease

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// limits is what the heartbeats of a datastore tell others about this host's
// end. Each is the earliest of the last heartbeat that was written and of all
// later ones whose outcome is unknown: any of them may be what others read.
type limits struct {
	// Freeze is s + L − M, End s + L, and Pet s + L − Wmax.
	Freeze time.Duration `json:"freeze"`
	End    time.Duration `json:"end"`
	Pet    time.Duration `json:"pet"`
	// Contact is how long a contact counts, L − Wmax.
	Contact time.Duration `json:"contact"`
	// Watchdog is the longest time-out that the device may have.
	Watchdog time.Duration `json:"watchdog"`
}

func limitsOf(start time.Duration, t model.Timing) limits {
	lease := t.Lease.Truncate(time.Millisecond) // what the slot can say
	return limits{Freeze: start + lease - t.Margin, End: start + lease, Pet: start + lease - t.WatchdogMax,
		Contact: lease - t.WatchdogMax, Watchdog: t.Watchdog}
}

func (l limits) earliest(o limits) limits {
	return limits{Freeze: min(l.Freeze, o.Freeze), End: min(l.End, o.End), Pet: min(l.Pet, o.Pet),
		Contact: min(l.Contact, o.Contact), Watchdog: min(l.Watchdog, o.Watchdog)}
}

// retime takes over new durations. Slots must never promise more than the
// watchdog keeps: a shorter time-out is set first and promised then, a longer
// one promised first and set then.
func (m *Machine) retime(t model.Timing) {
	m.next = nil
	if m.watchdog.on && t.Watchdog < m.watchdog.timeout {
		m.next = &t
		m.watchdog.nextPet = m.now
		return
	}
	m.cfg.Timing = t
}

// watchdogTimeout is the time-out that the device is to have now.
func (m *Machine) watchdogTimeout() time.Duration {
	if m.next != nil {
		return m.next.Watchdog
	}
	d := m.cfg.Timing.Watchdog
	for _, s := range m.stores {
		if s.hasS {
			d = min(d, s.limits.Watchdog)
		}
	}
	return d
}

// watchdogReport notes what the device does. One that failed keeps nothing
// waiting: slots say that it is not armed.
func (m *Machine) watchdogReport(ev *Event) {
	m.watchdog.open = ev.Open
	if ev.On && m.watchdog.timeout != ev.Timeout {
		m.watchdog.timeout = ev.Timeout
		m.statusDirty = true
	}
	if m.next != nil && (!ev.On || ev.Timeout <= m.next.Watchdog) {
		m.cfg.Timing, m.next = *m.next, nil
		for _, s := range m.stores {
			s.nextWrite = m.now
		}
	}
}

// staleAfter is how long a slot must rest before its writer's lease is over, by
// what the slot says, and not less than by this host's timing.
func (m *Machine) staleAfter(slot model.SlotReading) time.Duration {
	lease := m.cfg.Timing.Lease
	if slot.Valid {
		lease = max(lease, slot.Slot.Lease)
	}
	return model.StaleAfter(lease)
}
