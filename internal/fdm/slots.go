package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/model"
)

// store is a datastore as this machine knows it: the slots it read there and,
// on a primary, the protected list.
type store struct {
	name model.DatastoreName
	conf ClusterDatastore
	here bool // this host is meant to reach it

	reading   bool
	read      func(SlotsRead) // the same for every read
	again     bool            // read once more when the read under way returns
	ok        bool            // the last read succeeded
	problem   string
	readAt    time.Duration // Started of the last good read
	slots     map[model.HostID]*slotSeen
	inOrder   []*slotSeen   // as the last read had them: mostly the next has them so too
	early     time.Duration // an extra read is due then
	list      list
	takenFrom model.HostID // the last other host that held the list, and when it was taken over
	takenAt   time.Duration

	// confirmedAt is the result of confirmed, worked out at confirmedFor.
	confirmedAt, confirmedFor time.Duration
	lastKnown                 []model.ProtectedVM // of the last list read, owned or not
	listKnown                 bool
}

// slotSeen is what is known of one host's slot.
type slotSeen struct {
	host    model.HostID
	id      model.SlotIdentity
	slot    model.Slot // the last valid content
	valid   bool       // slot was ever valid
	first   time.Duration
	latest  time.Duration
	changed bool // seen to change since the first read

	// lives is the content with which the present boot was first seen, before
	// the boot seen before it, and proven tells that a later heartbeat of the
	// same life followed: one content alone may be a late write of an older boot.
	lives  model.Slot
	before model.BootID
	proven bool
}

// noteBoot takes in a valid content; true when it proves that the host runs
// under its boot id.
func (s *slotSeen) noteBoot(next model.Slot) bool {
	switch {
	case !s.valid || s.lives.Boot != next.Boot:
		if s.valid {
			s.before = s.lives.Boot
		}
		s.lives, s.proven = next, false
	case s.lives.Incarnation != next.Incarnation:
		if !s.proven {
			s.lives = next
		}
	case !s.proven && next.Sequence > s.lives.Sequence:
		s.proven = true
		return true
	}
	return false
}

// age is the time that the writer's heartbeat has provably not moved.
func (s *slotSeen) age() time.Duration { return s.latest - s.first }

// staleAfter is the age at which the slot proves that its writer's lease has
// lapsed, by the writer's own timing where it is known.
func (m *Machine) staleAfter(s *slotSeen) time.Duration {
	t := m.conf.Timing
	if s.valid && s.slot.Lease > 0 {
		t.Lease = s.slot.Lease
	}
	return t.StaleAfter()
}

// readable tells whether ages on the datastore are known now.
func (m *Machine) readable(st *store) bool {
	return st.ok && m.now-st.readAt <= m.silence()+2*time.Second
}

func (m *Machine) readAllSlots() {
	for _, st := range m.storeBy {
		if st.here {
			m.readSlots(st)
		}
	}
}

func (m *Machine) readSlots(st *store) {
	if st.reading {
		st.again = true
		return
	}
	st.reading, st.again = true, false
	if st.read == nil {
		st.read = func(r SlotsRead) { m.onSlots(st, r) }
	}
	m.do(ReadSlots{Datastore: st.name, Op: m.op(st.read)})
}

func (m *Machine) onSlots(st *store, r SlotsRead) {
	st.reading = false
	if m.stores[st.name] != st {
		return
	}
	if r.Err != "" || r.Kind != "" {
		if st.ok {
			m.viewDue = true
		}
		st.ok, st.problem = false, fmt.Sprintf("%s: %s", r.Kind, r.Err)
	} else {
		if !st.ok {
			m.viewDue = true
			m.poke(changeRoom)
		}
		st.ok, st.problem, st.readAt = true, "", r.Started
		for i := range r.Slots {
			m.noteSlot(st, i, &r.Slots[i], r.Started, r.Completed)
		}
	}
	if m.role == rolePrimary {
		for _, h := range m.order {
			if h.suspect {
				m.judge(h)
			}
		}
		m.listStep(st)
	}
	m.planEarly(st)
}

// noteSlot takes in slot i of a read.
func (m *Machine) noteSlot(st *store, i int, r *model.SlotReading, started, completed time.Duration) {
	s := st.slotAt(i, r.Host)
	if s == nil {
		s = &slotSeen{host: r.Host, id: r.Identity, first: completed, latest: started}
		st.slots[r.Host] = s
	} else if s.id.Digest != r.Identity.Digest {
		s.id, s.first, s.changed = r.Identity, completed, true
	}
	s.latest = max(started, s.first)
	if r.Valid {
		proven := s.noteBoot(r.Slot)
		moved := s.valid && (s.slot.Running != r.Slot.Running || s.slot.Flags != r.Slot.Flags)
		s.slot, s.valid = r.Slot, true
		if moved && m.role == rolePrimary {
			if h := m.members[r.Host]; h != nil && m.apart(h) {
				m.relook(st, h) // it took or gave up locks
			}
		}
		if proven && m.role == rolePrimary {
			m.bootProven(r.Host, s)
		}
	}
}

// slotAt is what is known of a host's slot, which a read has at place i; nil:
// nothing yet.
func (st *store) slotAt(i int, host model.HostID) *slotSeen {
	if i < len(st.inOrder) && st.inOrder[i].host == host {
		return st.inOrder[i]
	}
	s := st.slots[host]
	switch {
	case s == nil:
	case i < len(st.inOrder):
		st.inOrder[i] = s
	case i == len(st.inOrder):
		st.inOrder = append(st.inOrder, s)
	}
	return s
}

// planEarly reads once more at the very moment at which a silent host's slot
// becomes stale, rather than at the next interval.
func (m *Machine) planEarly(st *store) {
	if m.role != rolePrimary {
		return
	}
	due := time.Duration(0)
	want := func(host model.HostID) {
		s := st.slots[host]
		if s == nil || s.age() >= m.staleAfter(s) {
			return
		}
		if at := s.first + m.staleAfter(s); at > m.now && (due == 0 || at < due) {
			due = at
		}
	}
	for _, h := range m.order {
		if h.suspect && !h.failed {
			want(h.name)
		}
	}
	if st.list.phase == listHeld && st.list.lock.Holder() != m.cfg.Self {
		want(st.list.lock.Holder())
	}
	if due == 0 || due-m.now > m.interval() || st.early > m.now && st.early <= due {
		return
	}
	st.early = due
	m.after(due-m.now, m.reigning(func() { m.readSlots(st) }))
}

// bootOf is the boot under which a host provably writes its slot on st, if it
// is known.
func (m *Machine) bootOf(st *store, host model.HostID) model.BootID {
	if s := st.slots[host]; s != nil && s.valid && s.proven && m.readable(st) {
		return s.slot.Boot
	}
	return ""
}

// stale tells whether host's slot on st proves that its lease there lapsed.
func (m *Machine) stale(st *store, host model.HostID) bool {
	s := st.slots[host]
	return s != nil && m.readable(st) && s.age() >= m.staleAfter(s)
}

// saysRebooted tells whether the owner of a record, which cannot write its new
// boot id to the datastore because it does not reach it, is known by its own
// report to run under another boot than the record's: then nothing is left of
// what took the lock, whether it was armed or not. The report must be so much
// younger than the last change of its slot that it can be no word of a boot
// before the record's: the record's boot claimed within a lease of its last
// heartbeat there, and a message is not under way for longer than the silence
// that breaks a connection.
func (m *Machine) saysRebooted(st *store, h *member, rec model.LockRecord) bool {
	if h == nil || h.self || h.report == nil || h.suspect || h.report.Boot == "" || h.report.Boot == rec.Boot || hasStore(h.report, st.name) {
		return false
	}
	slot := st.slots[h.name]
	return m.stale(st, h.name) && h.reportAt-slot.first >= m.staleAfter(slot)+m.silence()
}

// disowned tells whether the owner of a record is a former boot of its host:
// what that boot ran is gone.
func (m *Machine) disowned(st *store, rec model.LockRecord) bool {
	if rec.Boot == "" {
		return false
	}
	if boot := m.bootOf(st, rec.Owner); rec.Owner != m.cfg.Self && boot != "" && boot != rec.Boot {
		return true
	}
	if rec.Owner == m.cfg.Self {
		return rec.Boot != m.ownBoot()
	}
	h := m.members[rec.Owner]
	if h == nil || h.report == nil || h.report.Boot == "" {
		return false
	}
	return h.report.Boot != rec.Boot && h.reportAt >= h.base && m.now-h.heard <= m.silence()
}
