package fdm

import (
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
)

// The primary sends its heartbeats over every heartbeat network, so a secondary
// sees at once which of them carry anything; it sends over one of them, and
// moves to another within two intervals. A lost network is a warning, never a
// verdict: the host is heard on another.

// missedAfter is the age, in intervals, from which a heartbeat counts as missed:
// one that is late by half an interval is not.
func (m *Machine) missedAfter() time.Duration { return m.interval() + m.interval()/2 }

// NetworkStatus is a heartbeat network as a secondary sees it.
type NetworkStatus struct {
	Name string `json:"name"`
	// OK: it carries the primary's heartbeats. Used: this host sends over it.
	OK   bool `json:"ok"`
	Used bool `json:"used,omitempty"`
}

// chooseNetwork moves to another network when the one in use carries nothing in
// one of the two directions; called with each heartbeat of the primary.
func (m *Machine) chooseNetwork(p *member) {
	n := len(m.conf.HeartbeatNetworks)
	if n < 2 || m.network >= n || m.now-m.switchAt < m.interval() {
		return
	}
	m.countUnheard(p)
	next, why := m.network, ""
	switch {
	case m.newestBeat(p)-p.nets[m.network] > m.missedAfter():
		for i := range p.nets {
			if p.nets[i] > p.nets[next] {
				next = i
			}
		}
		why = fmt.Sprintf("%s carries no heartbeats of %s", m.conf.HeartbeatNetworks[m.network], p.name)
	case m.unheard >= unheardSwitch && m.now-m.switchAt >= 2*m.interval():
		next = (m.network + 1) % n
		why = fmt.Sprintf("%s does not hear this host over %s", p.name, m.conf.HeartbeatNetworks[m.network])
	}
	if next == m.network {
		return
	}
	if m.switchSaid == 0 || m.now-m.switchSaid >= switchQuiet {
		m.switchSaid = m.now
		m.emit(event.Event{Kind: event.Network, Severity: event.Warning, Host: m.cfg.Self,
			Text: fmt.Sprintf("heartbeats to primary %s switch from network %s to %s", p.name,
				m.conf.HeartbeatNetworks[m.network], m.conf.HeartbeatNetworks[next]), Cause: why})
	}
	m.network, m.switchAt, m.reportDue, m.unheard = next, m.now, true, 0
	m.beatTo(p, BeatSecondary) // over every network: it is missed now
}

// switchQuiet is for how long after a switch was told no other one is: on
// networks that lose packets there are many.
const switchQuiet = 30 * time.Second

// unheardSwitch is how many heartbeats of the primary in a row must say that it
// misses this host before another network is used for good. Already with the
// first one this host answers over all of them, so that nothing is missed
// meanwhile.
const unheardSwitch = 3

func (m *Machine) countUnheard(p *member) {
	switch {
	case p.beat.Hears:
		m.unheard = 0
	case p.beat.Stamp != m.unheardAt:
		m.unheardAt = p.beat.Stamp
		if m.unheard++; m.unheard == 1 {
			m.beatTo(p, BeatSecondary)
		}
	}
}

// newestBeat is when h was last heard on any network.
func (m *Machine) newestBeat(h *member) time.Duration {
	var at time.Duration
	for _, t := range h.nets {
		at = max(at, t)
	}
	return at
}

// watchNetworks tells people, once, of networks that carry nothing while others
// do; called every interval by a secondary.
func (m *Machine) watchNetworks() {
	p := m.members[m.primary]
	if m.role != roleSecondary || p == nil || m.now-m.since < 2*m.silence() {
		return
	}
	newest := m.newestBeat(p)
	if m.now-newest > m.missedAfter() {
		return // nothing is heard at all: not a matter of one network
	}
	for i, name := range m.conf.HeartbeatNetworks {
		lost := newest-p.nets[i] > m.silence()
		if lost == m.netLost[name] {
			continue
		}
		m.netLost[name], m.reportDue = lost, true
		if lost {
			m.emit(event.Event{Kind: event.Network, Severity: event.Warning, Host: m.cfg.Self,
				Text:  fmt.Sprintf("heartbeat network %s is lost between %s and primary %s", name, m.cfg.Self, p.name),
				Cause: fmt.Sprintf("no heartbeat of %s on it for %s, while others carry them", p.name, seconds(m.now-p.nets[i]))})
			continue
		}
		m.emit(event.Event{Kind: event.Network, Host: m.cfg.Self,
			Text: fmt.Sprintf("heartbeat network %s works again between %s and primary %s", name, m.cfg.Self, p.name)})
	}
}

// networkReport is the state of the heartbeat networks for this host's report.
func (m *Machine) networkReport() []NetworkStatus {
	if m.role != roleSecondary {
		return nil
	}
	out := make([]NetworkStatus, 0, len(m.conf.HeartbeatNetworks))
	for i, name := range m.conf.HeartbeatNetworks {
		out = append(out, NetworkStatus{Name: name, OK: !m.netLost[name], Used: i == m.network})
	}
	return out
}

// networkWarnings says what is wrong with a host's heartbeat networks.
func (m *Machine) networkWarnings(h *member) []string {
	var lost []string
	if h.report != nil && !h.suspect {
		for _, n := range h.report.Networks {
			if !n.OK {
				lost = append(lost, n.Name)
			}
		}
	}
	var out []string
	if len(lost) > 0 {
		out = append(out, fmt.Sprintf("%s has lost heartbeat network %s: heartbeats go over another, and the loss of that one too would cut it off", h.name, strings.Join(lost, ", ")))
	}
	if h.self && len(m.conf.HeartbeatNetworks) < 2 && len(m.order) > 1 && !m.conf.IgnoreOneNetwork {
		out = append(out, "the hosts share a single heartbeat network: its loss isolates them all; add one, or set das.ignoreRedundantNetWarning")
	}
	return out
}
