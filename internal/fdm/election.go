package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

type role int

const (
	roleNone role = iota // HA is off, or this host is no member
	roleElection
	roleSecondary
	rolePrimary
)

// rank orders candidates: accessible datastores, then the host id as text.
type rank struct {
	datastores int
	host       model.HostID
}

func rankOf(n int, h model.HostID) rank { return rank{n, h} }

func (r rank) less(o rank) bool {
	if r.datastores != o.datastores {
		return r.datastores < o.datastores
	}
	return r.host < o.host
}

// candidacy is this host's part in an election.
type candidacy struct {
	why      string
	announce bool          // the listening is over
	end      time.Duration // of the quiet window
	betterAt time.Duration // when a better candidate was last heard
	better   model.HostID
}

// datastores is how many datastores count for this host's rank: none while the
// guard is away or the host is in maintenance, so that it leads only if nobody
// else can.
func (m *Machine) datastores() int {
	if !m.guardUp || m.self == nil || m.self.conf.Maintenance {
		return 0
	}
	n := 0
	for _, d := range m.status.Datastores {
		if d.OK {
			n++
		}
	}
	return n
}

func (m *Machine) rank() rank { return rank{m.datastores(), m.cfg.Self} }

// setRole leaves the present role for r.
func (m *Machine) setRole(r role) {
	if r == m.role {
		return
	}
	was := m.role
	if was == rolePrimary {
		m.resign()
	}
	m.role, m.since = r, m.now
	m.reign++
	if r != roleSecondary {
		m.watch = false
	}
	if r == roleNone {
		m.primary = ""
		if was != roleNone {
			m.emit(event.Event{Kind: event.Election, Text: "HA is off: no election, no verdicts; running VMs stay as they are"})
		}
	}
}

// elect begins an election after listening for a primary for a while.
func (m *Machine) elect(why string, listen time.Duration) {
	if m.role == roleElection && m.candidate.announce {
		return
	}
	if m.role == roleElection {
		m.reign++ // void the timers of the listening
	}
	if m.role == roleSecondary {
		m.predecess = m.primary
	}
	m.setRole(roleElection)
	m.primary = ""
	m.round++
	m.candidate = candidacy{why: why}
	if listen <= 0 {
		m.stand()
		return
	}
	m.after(listen, m.reigning(m.stand))
}

// stand announces the candidacy, and wins when the quiet window ends without a
// better candidate.
func (m *Machine) stand() {
	c := &m.candidate
	if m.now < m.barred {
		m.after(m.barred-m.now, m.reigning(m.stand))
		return
	}
	window := windowIntervals * m.interval()
	if !c.announce {
		c.announce = true
		wait := window
		if m.datastores() == 0 {
			wait = 3 * window
		}
		c.end = m.now + wait
	}
	heardBetter := c.better != "" && m.now-c.betterAt < 2*window
	if m.now >= c.end && !heardBetter {
		m.lead()
		return
	}
	m.broadcast(BeatElection)
	next := m.interval() / 2
	if m.now < c.end {
		next = min(next, c.end-m.now)
	}
	m.after(next, m.reigning(m.stand))
}

// lead makes this host the primary.
func (m *Machine) lead() {
	why := m.candidate.why
	m.setRole(rolePrimary)
	m.primary = m.cfg.Self
	m.lossSince = 0
	m.gatherDone = m.followed
	m.gatherEnd = m.now + m.cfg.Gather
	m.emit(event.Event{Kind: event.Election, Host: m.cfg.Self, Text: fmt.Sprintf("%s is primary", m.cfg.Self), Cause: why,
		Evidence: map[string]string{"datastores": fmt.Sprint(m.datastores()), "round": fmt.Sprint(m.round)}})
	for _, h := range m.order {
		h.base = m.now
		if h.name == m.predecess && !h.self {
			// Its silence is what brought about the election: it counts on.
			h.base = 0
		}
		h.suspect, h.failed, h.failover, h.report = false, false, "", nil
		h.active, h.used = map[model.VMID]LocalVM{}, 0
		m.watchSilence(h)
	}
	if m.self != nil {
		m.setState(m.self, model.HostPrimary, "")
	}
	for _, st := range m.storeBy {
		st.listKnown, st.lastKnown = false, nil
	}
	m.managedSum, m.poked, m.pokedAt = 0, "", 0
	m.predecess = ""
	m.welcomeDue, m.viewDue, m.reportDue = true, true, true
	if !m.gatherDone {
		m.after(m.cfg.Gather, m.reigning(func() { m.gathered("the time to gather is over") }))
	}
	m.broadcast(BeatPrimary)
	m.readAllSlots()
	m.openLists()
}

// resign drops everything a primary knows, and yields its lists.
func (m *Machine) resign() {
	for _, st := range m.storeBy {
		m.closeList(st, "this host is no longer primary", true)
	}
	for _, id := range sortedKeys(m.orders) {
		m.dropOrder(m.orders[id], "the primary stepped down")
	}
	m.managed, m.managedOK = m.managedSet()
	for _, h := range m.order {
		h.suspect, h.failed, h.failover = false, false, ""
		h.vms = map[model.VMID]*vm{}
		h.gen++
	}
	for _, name := range sortedKeys(m.byName) {
		m.answerWaiters(m.byName[name], AdminReply{Text: "the primary changed meanwhile: look at hanok status and ask again"})
	}
	m.vms, m.byName = map[model.VMID]*vm{}, map[string]*vm{}
	m.ready, m.waiting = map[model.VMID]*vm{}, map[model.VMID]*vm{}
	m.lockQueue, m.lockBusy = nil, 0
	m.failovers = map[string]*failover{}
	m.viewKnown = false
}

// follow makes this host a secondary of h.
func (m *Machine) follow(h *member, network int) {
	if m.role == roleSecondary && m.primary == h.name {
		return
	}
	if m.role == roleSecondary {
		m.reign++ // another primary: void the timers about the last
	}
	m.setRole(roleSecondary)
	m.primary, m.followed = h.name, true
	m.switchAt = m.now
	if network >= 0 {
		m.network = network
	}
	m.setState(h, model.HostPrimary, "")
	if m.self != nil {
		m.self.state, m.self.reason = model.HostConnected, ""
	}
	m.emit(event.Event{Kind: event.Election, Host: h.name, Text: fmt.Sprintf("%s follows primary %s", m.cfg.Self, h.name)})
	m.reportDue = true
	m.sendBeats()
	m.watchPrimary()
	m.after(m.cfg.ReportInterval, m.reigning(m.reportAgain))
}

// yield makes this primary step down without a successor at hand.
func (m *Machine) yield(why string) {
	m.emit(event.Event{Kind: event.Election, Severity: event.Warning, Host: m.cfg.Self,
		Text: fmt.Sprintf("%s steps down", m.cfg.Self), Cause: why})
	m.broadcast(BeatYield)
	m.barred = m.now + 3*m.silence()
	m.followed = true
	m.elect(why, m.silence())
}

// watchPrimary starts an election when the primary falls silent.
func (m *Machine) watchPrimary() {
	h := m.members[m.primary]
	if h == nil {
		return
	}
	due := h.heard + m.silence()
	if m.now >= due {
		m.elect(fmt.Sprintf("primary %s is silent for %s", h.name, seconds(m.now-h.heard)), 0)
		m.readAllSlots()
		return
	}
	m.after(due-m.now, m.reigning(m.watchPrimary))
}

func (m *Machine) onHeartbeat(e HeartbeatReceived) {
	h := m.members[e.From]
	if h == nil || h.self || !m.loaded {
		return
	}
	network := -1
	for i, n := range m.conf.HeartbeatNetworks {
		if n == e.Network {
			network = i
			h.nets[i] = m.now
		}
	}
	h.beat = e.Beat
	m.round = max(m.round, e.Beat.Round)
	m.signOfLife(h)
	if e.Beat.ConfigVersion < m.conf.Version {
		m.offerConfig(h)
	}
	if m.role == roleNone {
		return
	}
	theirs := rankOf(e.Beat.Datastores, h.name)
	switch e.Beat.Kind {
	case BeatPrimary:
		m.onPrimary(h, network, theirs)
	case BeatElection:
		m.onCandidate(h, theirs)
	case BeatYield:
		if m.role == roleSecondary && m.primary == h.name {
			m.elect(fmt.Sprintf("%s stepped down", h.name), 0)
		}
	}
}

// onPrimary: a member says it is primary. A working primary is followed
// whatever its rank; of two primaries the lower rank yields.
func (m *Machine) onPrimary(h *member, network int, theirs rank) {
	m.followed = true
	switch m.role {
	case rolePrimary:
		if m.rank().less(theirs) {
			m.emit(event.Event{Kind: event.Election, Severity: event.Warning, Host: h.name,
				Text: fmt.Sprintf("%s yields to primary %s, which has the better rank", m.cfg.Self, h.name)})
			m.follow(h, network)
			return
		}
		m.beatTo(h, BeatPrimary)
	case roleElection:
		m.follow(h, network)
	case roleSecondary:
		if m.primary == h.name {
			m.watch = h.beat.Watch
			return
		}
		if p := m.members[m.primary]; p == nil || m.now-p.heard > m.silence() {
			m.follow(h, network)
		}
	}
}

// onCandidate: a member wants to be primary.
func (m *Machine) onCandidate(h *member, theirs rank) {
	switch m.role {
	case rolePrimary:
		m.beatTo(h, BeatPrimary)
	case roleSecondary:
		p := m.members[m.primary]
		if p == nil || p == h || m.now-p.heard >= (silentAfter-1)*m.interval() {
			m.elect(fmt.Sprintf("%s calls an election", h.name), 0)
			m.heardCandidate(h, theirs)
		}
	case roleElection:
		if !m.candidate.announce && m.now >= m.barred {
			m.reign++
			m.heardCandidate(h, theirs)
			m.stand()
			return
		}
		m.heardCandidate(h, theirs)
	}
}

func (m *Machine) heardCandidate(h *member, theirs rank) {
	if m.rank().less(theirs) {
		m.candidate.better, m.candidate.betterAt = h.name, m.now
	}
}

// signOfLife notes that h was heard.
func (m *Machine) signOfLife(h *member) {
	h.heard = m.now
	if m.role == rolePrimary {
		m.recovered(h)
	}
}

// startBeats begins the regular work anew, in the rhythm that the
// configuration asks for.
func (m *Machine) startBeats() {
	m.beatGen++
	m.pulse(m.beatGen)
}

// pulse is the regular work of every interval.
func (m *Machine) pulse(gen uint64) {
	if gen != m.beatGen {
		return
	}
	m.beatGuard()
	m.sendBeats()
	if m.reads() {
		m.readAllSlots()
	}
	if m.role == rolePrimary {
		m.checkOwnFitness()
		m.checkLists()
		m.pingSilent()
	}
	m.after(m.interval(), func() { m.pulse(gen) })
}

// reads tells whether this host reads all slots all the time.
func (m *Machine) reads() bool {
	return m.role == rolePrimary || m.role == roleElection || m.role == roleSecondary && m.watch
}

func (m *Machine) beatGuard() {
	if !m.guardUp || m.beatsOut >= 3 {
		return
	}
	contact := len(m.order) <= 1
	for _, h := range m.order {
		if !h.self && h.heard > 0 && m.now-h.heard <= m.silence() {
			contact = true
		}
	}
	m.beatsOut++
	m.ask(lease.Request{Beat: &lease.BeatRequest{Contact: contact}}, func(lease.Reply) {
		m.beatsOut = max(0, m.beatsOut-1)
	})
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
		if !h.self && m.now-h.heard <= m.silence() && h.beat.Datastores > mine {
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
		m.broadcast(BeatPrimary)
	case roleSecondary:
		h := m.members[m.primary]
		if h == nil || len(m.conf.HeartbeatNetworks) == 0 {
			return
		}
		m.chooseNetwork(h)
		m.do(SendHeartbeat{To: h.name, Network: m.conf.HeartbeatNetworks[m.network], Beat: m.beat(BeatSecondary)})
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

// chooseNetwork switches when the network in use carries nothing in one of the
// two directions.
func (m *Machine) chooseNetwork(p *member) {
	n := len(m.conf.HeartbeatNetworks)
	if n < 2 || m.now-m.switchAt < m.silence() {
		return
	}
	next := m.network
	if m.now-p.nets[m.network] >= m.silence()-m.interval() {
		for i := range p.nets {
			if p.nets[i] > p.nets[next] {
				next = i
			}
		}
	} else if !p.beat.Hears {
		next = (m.network + 1) % n
	}
	if next != m.network {
		m.emit(event.Event{Kind: event.Network, Severity: event.Warning, Host: m.cfg.Self,
			Text: fmt.Sprintf("heartbeats to primary %s switch from network %s to %s", p.name,
				m.conf.HeartbeatNetworks[m.network], m.conf.HeartbeatNetworks[next])})
		m.network, m.switchAt = next, m.now
	}
}

func (m *Machine) beat(k BeatKind) Heartbeat {
	return Heartbeat{Kind: k, Datastores: m.datastores(), Primary: m.primary, Round: m.round,
		ConfigVersion: m.conf.Version, Start: m.cfg.Start}
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
	b := m.beat(k)
	if k == BeatPrimary {
		b.Hears = h.heard > 0 && m.now-h.heard <= 2*m.interval()
		b.Watch = h.watcher
	}
	for _, n := range m.conf.HeartbeatNetworks {
		m.do(SendHeartbeat{To: h.name, Network: n, Beat: b})
	}
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
