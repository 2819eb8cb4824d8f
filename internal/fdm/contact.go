package fdm

import (
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// What a host tells its guard of its contact, and what a primary promises the
// hosts that it hears. docs/protocol.md, "Contact", has the argument.
//
// Every heartbeat carries its sender's time and returns the time of the last
// heartbeat that came from the receiver. A host so knows by its own clock that
// whatever it sent up to then was heard, however long either of the two was
// under way or waited for an agent that did not run.

// contact is the time of this host's clock up to which the owner of the lists
// has provably heard it.
func (m *Machine) contact() (time.Duration, bool) {
	if m.loaded && len(m.order) <= 1 {
		return m.now, true
	}
	return m.vouched, m.vouched > 0 && m.now-m.vouched < m.conf.Timing.Lease
}

func (m *Machine) beatGuard() {
	if !m.guardUp || m.beatsOut >= 3 {
		return
	}
	if m.role == rolePrimary {
		m.vouched = max(m.vouched, m.followed())
	}
	b := &lease.BeatRequest{Isolated: m.isolated(), ShuttingDown: m.leaving != nil}
	if at, ok := m.contact(); ok {
		b.Contact, b.ContactAge = true, m.now-at
	}
	m.beatsOut++
	m.do(AskGuard{Op: m.op(m.beatTaken), Request: lease.Request{Beat: b}})
}

// noteEcho takes what a heartbeat says of heartbeats that this host sent.
func (m *Machine) noteEcho(h *member, b Heartbeat) {
	if b.Echo <= 0 || b.Echo > m.now || b.EchoStart != m.cfg.Start {
		return // nothing, or about another life of this agent
	}
	switch {
	case b.Kind == BeatPrimary && b.Vouches:
		// Its promise was VouchAge old when it was sent, which was after the
		// heartbeat that it returns. The rates of two clocks differ.
		m.noteContact(b.Echo - b.VouchAge - b.VouchAge/25)
	case b.Kind == BeatSecondary && b.Primary == m.cfg.Self:
		h.confirms = max(h.confirms, b.Echo)
		if m.role == rolePrimary {
			m.confirmations()
		}
	}
}

// answerBeat sends a heartbeat of kind k back at once if h asks for one: a
// primary for confirmations, a secondary with I/O outstanding for its contact.
func (m *Machine) answerBeat(h *member, k BeatKind) {
	if h.beat.Answer && (h.beat.Stamp != h.answeredTo || h.beat.Start != h.answeredLife) {
		h.answeredTo, h.answeredLife = h.beat.Stamp, h.beat.Start
		m.beatTo(h, k)
	}
}

// pulsePrimary sends a primary's regular heartbeats. Without a list, or with
// I/O of its own outstanding, they ask for an answer at once, so that a round of
// confirmations is fresh.
func (m *Machine) pulsePrimary() {
	m.asked = 0
	if m.outstanding() {
		m.asked = m.now
	}
	for _, st := range m.storeBy {
		if !m.ownsList(st) {
			m.asked = m.now
		}
	}
	m.asking = m.asked > 0
	m.broadcast(BeatPrimary)
	m.asking = false
}

// confirmations: when all have answered, all are told that all have.
func (m *Machine) confirmations() {
	if m.asked == 0 {
		return
	}
	for _, st := range m.storeBy {
		if (st.here || !m.ownsList(st)) && m.confirmed(st) < m.asked {
			return
		}
	}
	m.asked = 0
	m.broadcast(BeatPrimary)
	m.noteContact(m.followed())
}

// noteContact moves the contact on. A guard with I/O outstanding is told at
// once, for it counts on a contact for only L − Wmax.
func (m *Machine) noteContact(at time.Duration) {
	if at <= m.vouched {
		return
	}
	m.vouched = at
	if m.outstanding() {
		m.beatGuard()
	}
}

// outstanding tells whether the guard has a frozen VM with I/O under way.
func (m *Machine) outstanding() bool {
	for i := range m.status.VMs {
		if m.status.VMs[i].Outstanding {
			return true
		}
	}
	return false
}

// followed is a primary's own contact: up to when every other host that could
// take its VMs has confirmed that it follows it and hears it. A valid lease on a
// list counts for nothing here: it ends together with the one that its VMs ran
// under.
func (m *Machine) followed() time.Duration {
	at := m.now
	for _, st := range m.storeBy {
		if st.here {
			at = min(at, m.confirmed(st))
		}
	}
	return at
}

// confirmed is up to when every other host of a datastore has confirmed that it
// follows this primary and hears it; 0 if one never did.
func (m *Machine) confirmed(st *store) time.Duration {
	at := m.now
	for _, h := range m.order {
		if !h.self && hasName(h.conf.Datastores, st.name) {
			at = min(at, h.confirms)
		}
	}
	return at
}

// vouches tells whether this primary's hearing h means that nobody takes h's
// VMs, and since when that may have changed.
func (m *Machine) vouches(h *member) (age time.Duration, ok bool) {
	at := m.now
	for _, d := range h.conf.Datastores {
		st := m.stores[d]
		if st == nil {
			return 0, false
		}
		at = min(at, m.vouchFor(st))
	}
	return m.now - at, at > 0 && m.now-at < m.conf.Timing.Lease
}

// ownsList tells whether this primary holds a list by a valid lease.
func (m *Machine) ownsList(st *store) bool {
	ok, _ := m.accessible(st)
	return ok && st.list.phase == listOwned
}

// vouchFor is up to when nobody else can have acted for the VMs of a
// datastore: now, while this host holds its list by a valid lease; else until
// when all that could take the list have confirmed to follow this host.
func (m *Machine) vouchFor(st *store) time.Duration {
	if m.ownsList(st) {
		return m.now
	}
	if st.confirmedFor != m.now {
		st.confirmedFor, st.confirmedAt = m.now, m.confirmed(st)
	}
	return st.confirmedAt
}

// quiet is for how long a primary knows that host was not heard by anybody who
// might have promised it that its VMs on st are not taken: neither by this
// primary nor by the holder of the list before it.
func (m *Machine) quiet(st *store, host model.HostID) time.Duration {
	since := m.confAt // a host that left the cluster file got no heartbeat since
	if h := m.members[host]; h != nil {
		since = h.lastHeard()
	}
	if st.takenFrom != host {
		since = max(since, st.takenAt)
	}
	return m.now - since
}

// silenceFor is the silence that, together with stale slots, proves that a
// host cannot have a write under way: the longest that its own slots ask for.
func (m *Machine) silenceFor(host model.HostID) time.Duration {
	need := time.Duration(0)
	for _, st := range m.storeBy {
		if s := st.slots[host]; s != nil {
			need = max(need, m.staleAfter(s))
		}
	}
	if need == 0 {
		need = m.conf.Timing.StaleAfter()
	}
	return need
}
