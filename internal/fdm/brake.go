package fdm

import (
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// The brake of mass failures: when more than a share of the cluster seems dead at
// once, the likelier cause is the eye that sees it. Then a primary makes sure of
// its own view before it gives a verdict: that it ran all the time, that what it
// reads on the datastores is fresh (its own heartbeat is seen to move there), and
// that its network carries (another host, or an isolation address, answers). It
// looks from the moment at which the hosts fall silent, so that with a sound view
// nothing waits. The locks decide all the same.

const (
	// brakeLimit is how long a network that nobody answers on holds verdicts
	// back; a sound view of the datastores is enough then. It leaves an isolation
	// address twice the time in which a gateway fails over.
	brakeLimit = 10 * time.Second
	// atOnce is how far apart failures may lie to count together.
	atOnce = time.Minute
)

// brake is what a primary knows of its own view during a mass failure.
type brake struct {
	since time.Duration // of the mass failure; 0: there is none
	slept time.Duration // when this agent last found that it had not run
	said  string        // last told to people
}

// seemDead are the silent hosts that no datastore shows alive, failed or not,
// whose silence began lately.
func (m *Machine) seemDead() []string {
	var out []string
	for _, h := range m.order {
		if h.suspect && !h.self && (!h.failed || m.now-h.since < atOnce) && !m.look(h).alive {
			out = append(out, string(h.name))
		}
	}
	return out
}

// braked is why no verdict may be given yet, "" if it may. due: one would be
// given now.
func (m *Machine) braked(due bool) string {
	b, share := &m.brake, m.conf.MassFailure
	dead := m.seemDead()
	if share <= 0 || len(dead) < 2 || 100*len(dead) <= share*len(m.order) {
		b.since, b.said = 0, ""
		return ""
	}
	if b.since == 0 {
		b.since = m.now
		m.emit(event.Event{Kind: event.MassFailure, Severity: event.Warning, Host: m.cfg.Self,
			Text:     fmt.Sprintf("%d of %d hosts seem dead at once: %s checks its own view before it acts", len(dead), len(m.order), m.cfg.Self),
			Cause:    fmt.Sprintf("that is more than %d %% of the hosts (ha.massFailurePercent)", share),
			Evidence: map[string]string{"hosts": strings.Join(dead, ", ")}})
	}
	m.pingAddresses()
	why := m.doubt()
	if !due || b.said == "acts" && why == "" || b.said != "" && b.said == why {
		return why
	}
	ev := event.Event{Kind: event.MassFailure, Severity: event.Warning, Host: m.cfg.Self, Text: fmt.Sprintf("%s acts on the failures", m.cfg.Self),
		Cause: "its own heartbeat is seen to move on the datastores, and " + m.networkText()}
	if why != "" {
		ev.Severity, ev.Text, ev.Cause = event.Error, fmt.Sprintf("%s does not act on the failures: its own view is in doubt", m.cfg.Self), why
	}
	b.said = why
	if why == "" {
		b.said = "acts"
	}
	m.emit(ev)
	return why
}

// doubt is what speaks against this primary's view of a mass failure.
func (m *Machine) doubt() string {
	b := &m.brake
	if b.slept > 0 && m.now-b.slept < m.silence() {
		return fmt.Sprintf("this agent itself did not run until %s ago", seconds(m.now-b.slept))
	}
	for _, st := range m.storeBy {
		if !st.here || !m.readable(st) {
			continue // no verdict rests on it
		}
		if ok, why := m.accessible(st); !ok {
			return why
		}
		if s := st.slots[m.cfg.Self]; s == nil || !s.changed || s.first <= b.since {
			return fmt.Sprintf("its own heartbeat is not seen to move on %s: what it reads there may be old", st.name)
		}
	}
	if !m.networkAnswers() && m.now-b.since < brakeLimit {
		return fmt.Sprintf("nobody answers on its network; that holds it back for %s at most", seconds(brakeLimit))
	}
	return ""
}

// networkAnswers tells whether anything spoke to this host since the mass failure,
// or there is nothing that could.
func (m *Machine) networkAnswers() bool {
	return m.heardSince() != "" || m.iso.answeredAt > m.brake.since || !m.iso.asking && m.iso.addresses == 0
}

func (m *Machine) heardSince() model.HostID {
	for _, h := range m.order {
		if !h.self && h.heard > m.brake.since {
			return h.name
		}
	}
	return ""
}

func (m *Machine) networkText() string {
	switch {
	case m.heardSince() != "":
		return fmt.Sprintf("it hears %s", m.heardSince())
	case m.iso.answeredAt > m.brake.since:
		return "an isolation address answers"
	case m.networkAnswers():
		return "there is neither another host nor an isolation address that could answer"
	}
	return fmt.Sprintf("nobody answered on its network for %s", seconds(m.now-m.brake.since))
}
