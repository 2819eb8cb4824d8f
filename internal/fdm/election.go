package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
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
// guard is away, the host is isolated, cut off or in maintenance, so that it leads only if nobody
// else can.
func (m *Machine) datastores() int {
	if !m.guardUp || m.self == nil || m.self.conf.Maintenance || m.cutOff || m.isolated() {
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
	m.role, m.since, m.cutOff = r, m.now, false
	m.reign++
	if r != roleSecondary {
		m.watch = false
	}
	if r == roleNone {
		m.primary = ""
		m.yieldHeld()
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
	m.gatherDone = m.settled
	m.cold, m.coldID = !m.settled, ""
	m.gatherEnd = m.now + m.cfg.Gather
	m.emit(event.Event{Kind: event.Election, Host: m.cfg.Self, Text: fmt.Sprintf("%s is primary", m.cfg.Self), Cause: why,
		Evidence: map[string]string{"datastores": fmt.Sprint(m.datastores()), "round": fmt.Sprint(m.round)}})
	m.tellRules(nil)
	knownFailed := map[model.HostID]bool{}
	m.wasProtected = map[model.VMID]bool{}
	if m.viewKnown {
		for i := range m.view.Hosts {
			knownFailed[m.view.Hosts[i].Name] = m.view.Hosts[i].State == model.HostFailed
		}
		for i := range m.view.VMs {
			m.wasProtected[m.view.VMs[i].ID] = m.view.VMs[i].Protected
		}
	}
	for _, h := range m.order {
		h.base, h.knownFailed = m.now, knownFailed[h.name]
		if h.name == m.predecess && !h.self {
			// Its silence is what brought about the election: it counts on.
			h.base = 0
		}
		h.suspect, h.failed, h.failover, h.report, h.bootSaid, h.quietAt = false, false, "", nil, "", 0
		h.used = 0
		clear(h.active)
		m.watchSilence(h)
	}
	if m.self != nil {
		m.setState(m.self, model.HostPrimary, "")
	}
	for _, st := range m.storeBy {
		st.listKnown, st.lastKnown = false, nil
		st.list = list{gen: st.list.gen + 1} // answers to a former reign are void
	}
	m.managedSum, m.poked, m.pokedAt = 0, 0, 0
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
	m.dropQuestions()
	m.brake = brake{slept: m.brake.slept}
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
	m.held, m.recovering = map[model.VMID]*vm{}, map[model.VMID]*vm{}
	m.gateClass, m.blockers = 0, nil
	m.lockQueue, m.lockBusy = nil, 0
	m.failovers = map[string]*failover{}
	m.viewKnown = false
}

// follow makes this host a secondary of h.
func (m *Machine) follow(h *member, network int) {
	if m.role == roleSecondary && m.primary == h.name {
		return
	}
	h.base = 0
	if m.role == roleSecondary {
		m.reign++ // another primary: void the timers about the last
	}
	m.setRole(roleSecondary)
	m.primary = h.name
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
	m.yieldHeld()
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
	m.elect(why, m.silence())
}

// watchPrimary starts an election when the primary falls silent.
func (m *Machine) watchPrimary() {
	h := m.members[m.primary]
	if h == nil {
		return
	}
	due := h.lastHeard() + m.silence()
	if m.now >= due {
		m.elect(fmt.Sprintf("primary %s is silent for %s", h.name, seconds(m.now-h.lastHeard())), 0)
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
	if e.Beat.Settled && !m.settled {
		// The cluster has been working all along: nothing to gather for.
		m.settled, m.cold = true, false
		if m.role == rolePrimary {
			m.gathered(fmt.Sprintf("%s has been working before", h.name))
		}
	}
	m.signOfLife(h)
	m.noteEcho(h, e.Beat)
	if e.Beat.ConfigVersion < m.conf.Version || m.otherFile(h) {
		m.offerConfig(h)
	}
	if m.role == roleNone {
		return
	}
	theirs := rankOf(e.Beat.Datastores, h.name)
	switch e.Beat.Kind {
	case BeatPrimary:
		h.ledLife, h.ledAt = e.Beat.Start, e.Beat.Stamp
		m.onPrimary(h, network, theirs)
	case BeatSecondary:
		switch {
		case m.role == rolePrimary && e.Beat.Primary == m.cfg.Self:
			m.answerBeat(h, BeatPrimary)
		case m.role == roleSecondary && m.primary == h.name && h.resigned(e.Beat):
			m.elect(fmt.Sprintf("%s does not lead any more", h.name), 0)
		}
	case BeatElection:
		m.onCandidate(h, theirs)
	case BeatYield:
		if m.role == roleSecondary && m.primary == h.name {
			m.elect(fmt.Sprintf("%s stepped down", h.name), 0)
		}
	}
}

// resigned tells whether a member that said it was primary says later that it
// is not. Two hosts could else follow each other for ever, and each hear from
// the other: one yields to a heartbeat that the other, a primary whose agent
// stood still, had sent before it stepped back.
func (h *member) resigned(b Heartbeat) bool {
	return b.Start > h.ledLife || b.Start == h.ledLife && b.Stamp > h.ledAt
}

// onPrimary: a member says it is primary. A working primary is followed
// whatever its rank; of two primaries the lower rank yields.
func (m *Machine) onPrimary(h *member, network int, theirs rank) {
	switch m.role {
	case rolePrimary:
		if m.rank().less(theirs) {
			m.emit(event.Event{Kind: event.Election, Severity: event.Warning, Host: h.name,
				Text: fmt.Sprintf("%s yields to primary %s, which has the better rank", m.cfg.Self, h.name)})
			m.follow(h, network)
			return
		}
		m.atOnce(h, BeatPrimary)
	case roleElection:
		m.follow(h, network)
	case roleSecondary:
		if m.primary == h.name {
			m.watch = h.beat.Watch
			m.chooseNetwork(h)
			m.answerBeat(h, BeatSecondary)
			return
		}
		if p := m.members[m.primary]; p == nil || m.now-p.lastHeard() > m.silence() {
			m.follow(h, network)
			return
		}
		// It is not alone, although nobody follows it: no isolation response.
		m.atOnce(h, BeatSecondary)
	}
}

// atOnce tells a member at once what this host is, but never so often that two
// could drive each other.
func (m *Machine) atOnce(h *member, k BeatKind) {
	if h.assertAt == 0 || m.now-h.assertAt >= m.interval()/5 {
		h.assertAt = m.now
		m.beatTo(h, k)
	}
}

// followsOther tells whether h says that it follows another primary than this
// host.
func (m *Machine) followsOther(h *member) bool {
	return h.beat.Kind == BeatSecondary && h.beat.Primary != "" && h.beat.Primary != m.cfg.Self && m.now-h.heard <= m.silence()
}

// onCandidate: a member wants to be primary.
func (m *Machine) onCandidate(h *member, theirs rank) {
	switch m.role {
	case rolePrimary:
		m.atOnce(h, BeatPrimary)
	case roleSecondary:
		p := m.members[m.primary]
		if p == nil || p == h || m.now-p.lastHeard() >= (silentAfter-1)*m.interval() {
			m.elect(fmt.Sprintf("%s calls an election", h.name), 0)
			m.heardCandidate(h, theirs)
			return
		}
		m.atOnce(h, BeatSecondary)
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
	m.agentTraffic(h)
	if m.role == rolePrimary {
		m.recovered(h)
	}
}
