package fdm

import (
	"fmt"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// startBeats begins the regular work anew, in the rhythm that the
// configuration asks for.
func (m *Machine) startBeats() {
	m.beatGen++
	gen := m.beatGen
	var again func()
	again = func() { m.pulse(gen, again) }
	again()
}

// pulse is the regular work of every interval; again does it once more.
func (m *Machine) pulse(gen uint64, again func()) {
	if gen != m.beatGen {
		return
	}
	m.beatGuard()
	m.sendBeats()
	if m.reads() {
		m.readAllSlots()
	}
	m.checkIsolation()
	m.checkStorage()
	if m.role == rolePrimary {
		m.checkContact()
		m.checkOwnFitness()
	}
	if m.role == rolePrimary { // it may just have stepped down
		m.checkLists()
		m.pingSilent()
		m.chooseHeartbeats()
		m.protectComponents()
	}
	m.after(m.interval(), again)
}

// reads tells whether this host reads all slots all the time.
func (m *Machine) reads() bool {
	return m.role == rolePrimary || m.role == roleElection || m.role == roleSecondary && m.watch
}

// checkContact finds out whether this primary is the one that is cut off: it
// hears nobody and nobody answers its pings, while the others' heartbeats on
// the datastores move, or hears only those who follow another. It gives the lists
// up then, for those who can act.
func (m *Machine) checkContact() {
	alive, heard, others := false, false, false
	for _, h := range m.order {
		if h.self {
			continue
		}
		if m.followsOther(h) {
			alive, others = true, true // and its primary can act
			continue
		}
		heard = heard || !h.suspect || h.answered
		// One that says it is isolated itself cannot act for anybody, nor can one
		// whose heartbeats have come to rest since.
		alive = alive || h.state == model.HostPartitioned && m.look(h).alive
	}
	cut := alive && !heard
	if cut == m.cutOff {
		return
	}
	m.cutOff, m.cutAt, m.viewDue = cut, m.now, true
	if !cut {
		return
	}
	why := "this host hears no other, while their heartbeats on the datastores move: it is cut off"
	if others {
		why = "all that this host hears follow another primary: it is cut off from that"
	}
	m.emit(event.Event{Kind: event.Network, Severity: event.Error, Host: m.cfg.Self, Text: fmt.Sprintf("%s is cut off from all other hosts and gives the protected lists up", m.cfg.Self), Cause: why})
	for _, st := range m.storeBy {
		m.closeList(st, why, true)
	}
}

// cutOffPatience is for how many times the silence of a primary one that is cut
// off leaves the lists to others: they notice its silence, elect, and claim.
const cutOffPatience = 4

// givesWay tells whether this primary leaves free lists to others because it is
// cut off. If nobody has taken them after a while nobody will, perhaps because
// not this host is cut off but the others cannot be heard: then it claims them
// again, as the lock permits.
func (m *Machine) givesWay() bool {
	return m.cutOff && m.now-m.cutAt < cutOffPatience*m.silence()
}

// checkOwnFitness makes a primary yield that lost the storage which others
// still reach.
func (m *Machine) checkOwnFitness() {
	mine, want := m.datastores(), 0
	if m.self != nil {
		want = len(m.self.conf.Datastores)
	}
	better := false
	for _, h := range m.order {
		if !h.self && m.now-h.heard <= m.silence() && h.beat.Datastores > mine && !m.followsOther(h) {
			better = true
		}
	}
	if mine >= want || !better {
		m.lossSince = 0
		return
	}
	if m.lossSince == 0 {
		m.lossSince = m.now
	}
	if m.now-m.lossSince >= clearLoss {
		m.yield(fmt.Sprintf("it reaches %d of its %d datastores, others reach more", mine, want))
	}
}

func (m *Machine) sendBeats() {
	switch m.role {
	case rolePrimary:
		m.pulsePrimary()
	case roleSecondary:
		h := m.members[m.primary]
		if h == nil || len(m.conf.HeartbeatNetworks) == 0 {
			return
		}
		m.chooseNetwork(h)
		m.watchNetworks()
		if m.now-m.switchAt >= m.silence() && m.now-h.heard <= m.silence() && !h.beat.Hears {
			// The primary misses this host: every way at once, until it hears.
			m.beatTo(h, BeatSecondary)
			m.reportDue = true
			return
		}
		m.sendBeat(SendHeartbeat{To: h.name, Network: m.conf.HeartbeatNetworks[m.network], Beat: m.beat(h, BeatSecondary)})
	case roleNone:
		// With HA off hosts still tell each other that they live and which
		// cluster file they keep, rarely: every host to every other.
		if !m.loaded || m.offAt != 0 && m.now-m.offAt < offInterval {
			return
		}
		m.offAt = m.now
		m.broadcast(BeatSecondary)
	}
}

func (m *Machine) beat(h *member, k BeatKind) Heartbeat {
	return Heartbeat{Kind: k, Stamp: m.now, Echo: h.beat.Stamp, EchoStart: h.beat.Start, Datastores: m.datastores(), Primary: m.primary, Round: m.round,
		ConfigVersion: m.conf.Version, ConfigSum: m.sum, Start: m.cfg.Start, Settled: m.settled,
		Answer: k == BeatSecondary && m.role == roleSecondary && m.outstanding()}
}

// broadcast sends a heartbeat to every member over every heartbeat network.
func (m *Machine) broadcast(k BeatKind) {
	if k == BeatPrimary {
		m.chooseWatchers()
	}
	for _, h := range m.order {
		if !h.self {
			m.beatTo(h, k)
		}
	}
}

func (m *Machine) beatTo(h *member, k BeatKind) {
	b := m.beat(h, k)
	if k == BeatPrimary {
		b.VouchAge, b.Vouches = m.vouches(h)
		b.Answer = m.asking
		b.Hears = h.heard > 0 && m.now-h.heard <= m.missedAfter()
		b.Watch = h.watcher
	}
	for _, n := range m.conf.HeartbeatNetworks {
		m.sendBeat(SendHeartbeat{To: h.name, Network: n, Beat: b})
	}
}

// sendBeat orders a heartbeat. There are more of them than of all else, so that
// they lie side by side, in a slice that the next Step uses again.
func (m *Machine) sendBeat(e SendHeartbeat) {
	m.beats = append(m.beats, e)
	m.do(&m.beats[len(m.beats)-1])
}

// chooseWatchers picks the next two ranks, which read all slots all the time.
func (m *Machine) chooseWatchers() {
	var first, second *member
	for _, h := range m.order {
		h.watcher = false
		if h.self || h.heard == 0 || m.now-h.heard > m.silence() {
			continue
		}
		r := rankOf(h.beat.Datastores, h.name)
		switch {
		case first == nil || rankOf(first.beat.Datastores, first.name).less(r):
			first, second = h, first
		case second == nil || rankOf(second.beat.Datastores, second.name).less(r):
			second = h
		}
	}
	for _, h := range []*member{first, second} {
		if h != nil {
			h.watcher = true
		}
	}
}
