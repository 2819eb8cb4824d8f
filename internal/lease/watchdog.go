package lease

import (
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// armed reports whether this host's death is certain within its lease once
// its guard falls silent, and why not.
func (m *Machine) armed() (bool, string) {
	if !m.watchdog.on {
		return false, m.watchdog.why
	}
	t := m.cfg.Timing
	if m.watchdog.timeout > t.Watchdog {
		return false, fmt.Sprintf("the watchdog still has a time-out of %v instead of %v", m.watchdog.timeout, t.Watchdog)
	}
	slowest := slices.Max(m.freezeTimes[:])
	least := t.WatchdogMax - t.Watchdog + max(slowest, model.FreezeAllowance) + model.PetPeriod
	if t.Margin < least {
		return false, fmt.Sprintf("freezing a VM took %v, so the margin %v is too small: it must be at least %v", slowest, t.Margin, least)
	}
	return true, ""
}

// safe reports whether v cannot write to its disks, or somebody is told that
// it might: then its lapsed lease is no reason to let the host be reset.
func (m *Machine) safe(v *vm) bool {
	switch {
	case v.absent():
		// An agent's start is paused until Confirm; a start that the hook
		// permitted may be about to run.
		return v.grant != grantHook
	case v.freeze == frozen:
		return true
	case v.freeze == frozenBusy:
		s := m.store(v.spec.Home)
		return s != nil && (s.fence() != model.FenceReset || m.contact(s))
	}
	return false
}

// byContact reports whether v counts as safe only as long as a contact does,
// and until when.
func (m *Machine) byContact(v *vm) (time.Duration, bool) {
	if v.absent() || v.freeze != frozenBusy {
		return 0, false
	}
	s := m.store(v.spec.Home)
	if s == nil || s.fence() != model.FenceReset || !m.contact(s) {
		return 0, false
	}
	return m.contactEnd(s), true
}

// maybeOurs reports whether a VM that runs here without a known lock may run
// under one that a guard of this boot took and forgot: then other hosts count
// on its end.
func (m *Machine) maybeOurs(v *vm) bool {
	return v.foreign && v.spec.Home != "" && !v.inquired
}

// petLimit is until when the watchdog may be fed: now − s + Wmax ≤ L must hold
// for each datastore with VMs that may write (guard rule 2). The second result
// is a VM that sets the limit.
func (m *Machine) petLimit() (time.Duration, *vm) {
	limit, by := m.now+time.Hour, (*vm)(nil)
	for _, v := range m.order {
		adopted := m.adoptionMayCount(v)
		if end, ok := m.byContact(v); ok && end < limit {
			limit, by = end, v
		}
		if m.safe(v) || v.lock == lockNone && !m.maybeOurs(v) && !adopted {
			continue
		}
		end := time.Duration(-1)
		if s := m.store(v.spec.Home); s != nil && s.hasS && (v.lock != lockNone || adopted) {
			end = s.limits.Pet
		}
		if end < limit {
			limit, by = end, v
		}
	}
	if m.blind {
		// What a forgotten predecessor permitted may appear and run.
		for _, s := range m.stores {
			if s.hasS {
				limit = min(limit, s.limits.Pet)
			}
		}
	}
	return limit, by
}

func (m *Machine) pet() {
	// Ordered while the device is not open, too: to open it feeds it.
	if m.now < m.watchdog.nextPet && !m.watchdog.holding {
		return
	}
	if !m.scan.done {
		// Which VMs run here is not known yet.
		m.watchdog.nextPet = m.soon(model.PetPeriod)
		return
	}
	limit, by := m.petLimit()
	if m.now > limit {
		m.watchdog.nextPet = m.soon(model.PetPeriod)
		if !m.watchdog.holding {
			m.watchdog.holding = true
			if !m.watchdog.open {
				return
			}
			n := Notice{What: NoticeNotPetting, Text: "the watchdog is not fed: a VM that an earlier guard permitted may start, and a lease cannot be renewed"}
			if by != nil {
				n.VM, n.Datastore = by.id, by.spec.Home
				n.Text = "the watchdog is not fed: " + by.name() + " may write and its lease cannot be renewed"
			}
			m.notify(n)
		}
		return
	}
	m.watchdog.holding = false
	m.watchdog.nextPet = m.soon(model.PetPeriod)
	m.emit(Effect{Kind: EffPet, Before: limit, Timeout: m.watchdogTimeout()})
}
