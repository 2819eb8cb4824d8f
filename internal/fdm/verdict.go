package fdm

import (
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// failover is one failed host and the VMs that its failure freed.
type failover struct {
	id      string
	host    model.HostID
	at      time.Duration // of the last heartbeat
	open    map[model.VMID]bool
	total   int
	stuck   int  // gave up all counted attempts
	judging bool // VMs are being added
	later   bool // a timer looks again whether it is done
}

// watchSilence keeps a timer that fires when h falls silent.
func (m *Machine) watchSilence(h *member) {
	h.gen++
	if h.self || m.role != rolePrimary {
		return
	}
	m.silenceTimer(h, h.gen, m.reign)
}

func (m *Machine) silenceTimer(h *member, gen, reign uint64) {
	if h.gen != gen || m.reign != reign || h.suspect {
		return
	}
	due := h.lastHeard() + m.hostTimeout()
	if m.now >= due {
		m.suspectHost(h)
		return
	}
	m.after(due-m.now, func() { m.silenceTimer(h, gen, reign) })
}

// hostTimeout is how long a host may be silent before it is looked into.
func (m *Machine) hostTimeout() time.Duration { return max(m.silence(), m.conf.HostTimeout) }

// suspectHost begins to find out what became of a silent host.
func (m *Machine) suspectHost(h *member) {
	h.suspect, h.since = true, m.now
	h.pinged, h.answered, h.pingAt, h.aliveAt = false, false, 0, 0
	m.viewDue = true
	m.emit(event.Event{Kind: event.HostState, Severity: event.Warning, Host: h.name,
		Text:     fmt.Sprintf("%s is silent", h.name),
		Cause:    fmt.Sprintf("no network heartbeat for %s", seconds(m.now-h.lastHeard())),
		Evidence: m.evidence(h)})
	m.pingHost(h)
	m.braked(false)
	m.readAllSlots()
	// Read the locks of its VMs now, so that a verdict can act at once.
	for _, id := range sortedKeys(h.vms) {
		m.readLock(h.vms[id])
	}
	m.judge(h)
}

// doubt is why there is no verdict on a silent host yet. It is looked at with
// each read of its slots, and put into words when somebody asks.
type doubt struct {
	kind          doubtKind
	silence, need time.Duration
	said          string
}

type doubtKind uint8

const (
	doubtNone  doubtKind = iota
	doubtSoon            // all its slots are stale, but it was not silent for long enough
	doubtMany            // many hosts at once
	doubtYoung           // its slots are not old enough
)

// doubts says in place of a reason why there is no verdict on h.
func (h *member) doubts(d doubt) { h.doubt, h.reason = d, "" }

// because gives the reason for h's state.
func (h *member) because(reason string) { h.doubt, h.reason = doubt{}, reason }

// why is the reason for h's state, for people.
func (h *member) why() string {
	if h.doubt.kind == doubtNone {
		return h.reason
	}
	silent := "silent for " + seconds(h.doubt.silence)
	switch h.doubt.kind {
	case doubtSoon:
		return fmt.Sprintf("its heartbeat is stale on every datastore that can be read, but it is %s of the %s that a verdict needs", silent, seconds(h.doubt.need))
	case doubtMany:
		return silent + "; its heartbeat is stale, but so many hosts at once raise doubts: " + h.doubt.said
	}
	return silent + "; its heartbeat on the datastores is not old enough for a verdict"
}

func (m *Machine) pingHost(h *member) {
	pause := pingPause
	if h.failed {
		if pause = m.conf.DeadPing; pause <= 0 {
			pause = defaultDeadPing
		}
	}
	if h.pingAt != 0 && m.now-h.pingAt < pause {
		return
	}
	h.pingAt = m.now
	asked := m.now
	m.do(PingHost{Host: h.name, Op: m.op(func(r HostPinged) {
		if asked < h.aliveAt {
			return
		}
		h.pinged, h.answered = true, r.Answered
		if h.suspect && m.role == rolePrimary {
			m.judge(h)
		}
	})})
}

// pingSilent asks silent hosts again; called every interval.
func (m *Machine) pingSilent() {
	for _, h := range m.order {
		if h.suspect {
			m.pingHost(h)
			m.judge(h)
		}
	}
	m.relookApart()
}

// sight is what the datastores tell of a silent host.
type sight struct {
	known, stale int
	alive        bool // its slot moved after the network fell silent
	isolated     bool
}

func (m *Machine) look(h *member) sight {
	var s sight
	for _, st := range m.storeBy {
		slot := st.slots[h.name]
		if slot == nil || !m.readable(st) {
			continue
		}
		s.known++
		if slot.age() >= m.staleAfter(slot) {
			s.stale++
			continue
		}
		if slot.changed && slot.first > h.lastHeard()+2*m.interval() {
			s.alive = true
			s.isolated = s.isolated || slot.valid && slot.slot.Flags.Has(model.SlotIsolated)
		}
	}
	return s
}

// judge applies the table of verdicts to a silent host.
func (m *Machine) judge(h *member) {
	if !h.suspect || h.self {
		return
	}
	silent := func() string { return "silent for " + seconds(m.now-h.lastHeard()) }
	if !m.conf.HostMonitoring {
		if h.failed {
			return // a verdict made before stands
		}
		m.setState(h, model.HostDisconnected, "host monitoring is off: no verdict is made; "+silent())
		return
	}
	s := m.look(h)
	switch {
	case s.known > 0 && s.stale == s.known && m.now-h.lastHeard() < m.silenceFor(h.name):
		h.doubts(doubt{kind: doubtSoon, silence: m.now - h.lastHeard(), need: m.silenceFor(h.name)})
		m.judgeWhenQuiet(h)
	case s.known > 0 && s.stale == s.known && !h.failed && m.braked(true) != "":
		h.doubts(doubt{kind: doubtMany, silence: m.now - h.lastHeard(), said: m.brake.said})
	case s.known > 0 && s.stale == s.known:
		m.fail(h)
	case s.alive && h.aliveAt == 0:
		// A ping from before says nothing of a host that came to life since.
		h.aliveAt, h.pinged, h.pingAt = m.now, false, 0
		m.unfail(h)
		m.pingHost(h)
	case s.alive && !h.pinged:
		// Wait for the answer to the ping.
	case s.alive && h.answered:
		m.unfail(h)
		m.setState(h, model.HostAgentUnreachable, "its heartbeat on the datastores moves and it answers ping, but its agent does not speak: dead, stopped, or cut off on port 8182; its VMs run on under its guard")
	case s.alive && s.isolated:
		m.unfail(h)
		m.setState(h, model.HostIsolated, "its heartbeat on the datastores moves and says that it is isolated")
	case s.alive:
		m.unfail(h)
		m.setState(h, model.HostPartitioned, "its heartbeat on the datastores moves, but nothing is heard from it and it does not answer ping")
	case s.known == 0 && h.answered:
		m.setState(h, model.HostAgentUnreachable, "it answers ping, but its agent does not speak; its heartbeat on the datastores cannot be seen from here")
	case s.known == 0 && h.pinged:
		m.setState(h, model.HostDisconnected, "verdict unknown: "+silent()+", and no datastore that this host can read holds its heartbeat")
	default:
		h.doubts(doubt{kind: doubtYoung, silence: m.now - h.lastHeard()})
	}
}

// judgeWhenQuiet judges a host at the very moment at which it has been silent
// for as long as a verdict needs.
func (m *Machine) judgeWhenQuiet(h *member) {
	at := h.lastHeard() + m.silenceFor(h.name)
	if h.failed || h.quietAt > m.now && h.quietAt <= at {
		return
	}
	h.quietAt = at
	m.after(at-m.now, m.reigning(func() { m.judge(h) }))
}

// evidence is what is known of a silent host, for people.
func (m *Machine) evidence(h *member) map[string]string {
	need := seconds(m.silenceFor(h.name))
	ev := map[string]string{"network": fmt.Sprintf("no heartbeat for %s (a verdict needs %s)", seconds(m.now-h.lastHeard()), need)}
	if h.heard == 0 || h.heard < h.base {
		ev["network"] = fmt.Sprintf("never heard by this primary in %s (a verdict needs %s)", seconds(m.now-h.base), need)
	}
	switch {
	case !h.pinged:
		ev["ping"] = "not answered yet"
	case h.answered:
		ev["ping"] = "answered"
	default:
		ev["ping"] = "no answer"
	}
	for _, st := range m.storeBy {
		slot := st.slots[h.name]
		key := "slot on " + string(st.name)
		if hasName(h.heartbeats, st.name) {
			key = "heartbeat slot on " + string(st.name)
		}
		switch {
		case !st.here:
		case !m.readable(st):
			ev[key] = "unknown: " + st.problem
		case slot == nil:
			ev[key] = "none"
		default:
			ev[key] = fmt.Sprintf("unchanged for %s (stale from %s), sequence %d, armed %v",
				seconds(slot.age()), seconds(m.staleAfter(slot)), slot.id.Sequence, slot.valid && slot.slot.Flags.Has(model.SlotArmed))
		}
	}
	return ev
}

func evidenceText(ev map[string]string) string {
	var b strings.Builder
	for _, k := range sortedKeys(ev) {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		b.WriteString(k + ": " + ev[k])
	}
	return b.String()
}

// fail is the verdict "failed".
func (m *Machine) fail(h *member) {
	if h.failed {
		return
	}
	h.failed, h.failover = true, ""
	if h.heard == 0 && !m.slotMoved(h) {
		h.knownFailed = true // it was down before this agent started
	}
	if m.left(h) {
		h.knownFailed = true
		m.setState(h, model.HostDisconnected, leftWhy)
	} else {
		m.setState(h, model.HostFailed, failedWhy)
	}
	if !h.knownFailed {
		m.failoverOf(h)
	}
	h.knownFailed = false
	for _, oid := range sortedKeys(h.orders) {
		m.dropOrder(h.orders[oid], fmt.Sprintf("%s failed", h.name))
	}
	h.report, h.bootSaid, h.used = nil, "", 0
	clear(h.active)
	f := m.failovers[h.failover]
	if f != nil {
		f.judging = true
	}
	for _, v := range m.sortVMs(h.vms) {
		m.hostLost(v, h)
	}
	for _, st := range m.storeBy {
		m.listStep(st)
	}
	if f != nil {
		f.judging = false
		m.finishFailover(f)
	}
	m.poke(changeRoom)
}

// slotMoved tells whether any slot of h was seen to change.
func (m *Machine) slotMoved(h *member) bool {
	for _, st := range m.storeBy {
		if s := st.slots[h.name]; s != nil && s.changed {
			return true
		}
	}
	return false
}

const failedWhy = "silent on the network, and its heartbeat is stale on every datastore that can be read"

// failoverOf is the failover that a failed host's VMs belong to; the first call
// tells people what led to the verdict.
func (m *Machine) failoverOf(h *member) string {
	if h.failover != "" || !h.failed && h.state != model.HostIsolated {
		return h.failover
	}
	m.failSeq++
	id := fmt.Sprintf("fo-%s-%d-%d", m.cfg.Self, m.cfg.Start, m.failSeq)
	h.failover = id
	last := h.lastHeard()
	if h.heard < h.base {
		// Never heard by this primary: its last heartbeat on a datastore counts.
		seen := time.Duration(0)
		for _, st := range m.storeBy {
			if s := st.slots[h.name]; s != nil && s.changed {
				seen = max(seen, s.first)
			}
		}
		if seen > 0 {
			last = min(last, seen)
		}
	}
	m.failovers[id] = &failover{id: id, host: h.name, at: last, open: map[model.VMID]bool{}}
	m.emit(event.Event{At: last, Kind: event.LastHeartbeat, Host: h.name, Failover: id, Text: fmt.Sprintf("last heartbeat of %s", h.name)})
	m.emit(event.Event{At: h.since, Kind: event.Silence, Host: h.name, Failover: id, Text: fmt.Sprintf("%s noticed silent", h.name)})
	text, why := fmt.Sprintf("%s has failed", h.name), failedWhy
	if !h.failed {
		text, why = fmt.Sprintf("%s is isolated", h.name), h.why()
	}
	m.emit(event.Event{Kind: event.Verdict, Severity: event.Error, Host: h.name, Failover: id,
		Text: text, Cause: why, Evidence: m.evidence(h)})
	return id
}

// unfail takes a verdict back: the host's guard writes again.
func (m *Machine) unfail(h *member) {
	if h.failed {
		h.failed, h.failover = false, ""
		m.poke(changeRoom)
	}
}

// recovered: a host was heard.
func (m *Machine) recovered(h *member) {
	if !h.suspect {
		if h.state != model.HostConnected && h.state != model.HostMaintenance {
			m.shownConnected(h, "")
		}
		return
	}
	silent := m.now - h.since + m.silence()
	known := h.state == model.HostConnected || h.state == model.HostMaintenance
	m.unfail(h)
	h.suspect, h.knownFailed, h.failover = false, false, ""
	// What it said before its silence may be of a former boot, or of VMs that are
	// elsewhere since, as a host that followed another primary meanwhile shows.
	h.report = nil
	why := fmt.Sprintf("heard again after about %s", seconds(silent))
	if known {
		m.emit(event.Event{Kind: event.HostState, Host: h.name, Text: fmt.Sprintf("%s is heard again", h.name), Cause: why})
	}
	m.shownConnected(h, why)
	h.because("")
	m.watchSilence(h)
	m.poke(changeRoom)
}

// shownConnected shows a host that is heard as what the cluster file makes of it.
func (m *Machine) shownConnected(h *member, why string) {
	if h.conf.Maintenance {
		m.setState(h, model.HostMaintenance, why)
		return
	}
	m.setState(h, model.HostConnected, why)
}

// bootProven: two heartbeats in a row carry the same boot id. If another was
// seen before, or a lock names another, that boot is over.
func (m *Machine) bootProven(name model.HostID, s *slotSeen) {
	if s.before != "" {
		s.before = ""
		m.rebooted(name, s.slot.Boot)
		return
	}
	for _, id := range m.ids() {
		v := m.vms[id]
		if v.lockKnown && v.lock.Holder() == name && v.lock.Boot != s.slot.Boot {
			m.evaluate(v)
		}
	}
}

// rebooted: a host runs under another boot id: what the former boot ran is
// gone.
func (m *Machine) rebooted(name model.HostID, boot model.BootID) {
	h := m.members[name]
	if h == nil {
		return
	}
	if h.boot != boot {
		h.boot = boot
		m.emit(event.Event{Kind: event.HostState, Severity: event.Warning, Host: name,
			Text: fmt.Sprintf("%s has rebooted: the VMs of its former boot are gone", name), Evidence: map[string]string{"boot": string(boot)}})
	}
	for _, id := range m.ids() {
		v := m.vms[id]
		if v.lockKnown && v.lock.Owner == name && v.lock.Holder() != "" || v.p.Host == name {
			m.evaluate(v)
		}
	}
	m.poke(changeRoom)
}

// finishFailover reports a failover of which no VM is open any more.
func (m *Machine) finishFailover(f *failover) {
	if f == nil || f.judging || len(f.open) > 0 || m.failovers[f.id] == nil {
		return
	}
	if m.lockBusy+len(m.lockQueue) > 0 || m.listsPending() {
		// VMs of the failed host may still come to light.
		if !f.later {
			f.later = true
			m.after(m.interval(), m.reigning(func() { f.later = false; m.finishFailover(f) }))
		}
		return
	}
	delete(m.failovers, f.id)
	text := fmt.Sprintf("failover of %s is done: %d VMs", f.host, f.total)
	if f.id == m.coldID {
		text = fmt.Sprintf("restarts after the start of the whole cluster are done: %d VMs", f.total)
	}
	if f.stuck > 0 {
		text += fmt.Sprintf(", %d of them not running: see their reasons", f.stuck)
	}
	if f.total == 0 {
		text = fmt.Sprintf("%s ran no VM that had to be restarted", f.host)
	}
	m.emit(event.Event{Kind: event.FailoverDone, Host: f.host, Failover: f.id, Text: text,
		Evidence: map[string]string{"sinceLastHeartbeat": seconds(m.now - f.at)}})
}
