package fdm

import (
	"fmt"
	"sort"
	"strings"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// Restarts of failovers go by class: infrastructure first, then the priorities
// from highest to lowest; a class starts when those above it are ready, each VM
// by its own condition. What cannot go on by itself (no host can take it, its
// attempts are used up, it waits for proof of death) is not waited for, nor is
// what takes longer than its time-out. Beside the classes, and outside of
// failovers too, a VM waits for those that it depends on.

// infrastructure is the class above all priorities.
const infrastructure = 6

// class is when a VM is restarted: higher first.
func (m *Machine) class(v *vm) int {
	if m.setOf(v).Infrastructure {
		return infrastructure
	}
	return m.priority(v).Rank()
}

func className(class int) string {
	if class == infrastructure {
		return "infrastructure"
	}
	for _, p := range []model.Priority{model.PriorityLowest, model.PriorityLow, model.PriorityMedium, model.PriorityHigh, model.PriorityHighest} {
		if p.Rank() == class {
			return "priority " + string(p)
		}
	}
	return "no priority"
}

// recover notes that a VM is being restarted, so that others may wait for it.
func (m *Machine) recover(v *vm) {
	if m.recovering[v.p.ID] == nil {
		m.recovering[v.p.ID] = v
		v.metAt, v.gateSince, v.gateOver, v.unplaced = 0, 0, false, false
	}
	m.orderDue = true
}

// orchestrate lets held VMs go on when those that they wait for are ready.
func (m *Machine) orchestrate() {
	if !m.orderDue {
		return
	}
	m.orderDue = false
	m.gate()
	for _, v := range m.sortVMs(m.held) {
		if why := m.mustWait(v); why != "" {
			if v.reason != why {
				v.reason, m.viewDue = why, true
			}
			continue
		}
		delete(m.held, v.p.ID)
		v.lockKnown = false // it may have waited for long
		m.evaluate(v)
	}
}

// gate works out up to which class VMs must wait, and which others hold them up.
func (m *Machine) gate() {
	m.blockers = m.blockers[:0]
	top, was := 0, m.gateClass
	for _, id := range sortedKeys(m.recovering) {
		v := m.recovering[id]
		s := m.settings(v)
		ready := m.isReady(v, s)
		switch {
		case v.running && (ready || v.gateOver || !v.p.Awaited), !v.running && !m.wanted(v):
			m.restored(v)
			continue
		case ready || m.stuck(v) || v.gateOver || !v.running && v.inFailover == "":
			continue
		}
		if c := m.class(v); c > top {
			top, m.blockers = c, append(m.blockers[:0], v)
		} else if c == top {
			m.blockers = append(m.blockers, v)
		}
	}
	m.gateClass = top
	if top != was {
		m.viewDue = true
		m.tellClass(was, top)
	}
	late := false
	for _, v := range m.blockers {
		late = m.countDown(v, "those of lower priority do not wait for it any longer") || late
	}
	if late {
		m.gate()
	}
}

// tellClass tells people that the wait for a class is over.
func (m *Machine) tellClass(was, now int) {
	if was <= now || len(m.held) == 0 {
		return
	}
	failover := ""
	for _, v := range m.sortVMs(m.held) {
		if failover == "" {
			failover = m.failoverOfVM(v)
		}
	}
	m.emit(event.Event{Kind: event.RestartOrder, Failover: failover,
		Text: fmt.Sprintf("%s is ready, or not waited for any longer: what comes after it starts", className(was))})
}

// countDown counts the time for which others wait for v; true when it is over.
func (m *Machine) countDown(v *vm, text string) bool {
	limit := m.settings(v).Timeout
	if v.gateSince == 0 {
		v.gateSince = m.now
		if limit > 0 {
			m.after(limit, m.reigning(func() { m.orderDue = true }))
		}
	}
	if v.gateOver || m.now-v.gateSince < limit {
		return v.gateOver
	}
	why := "it " + m.stateText(v)
	v.gateOver, m.viewDue = true, true
	if limit > 0 {
		m.emit(event.Event{Kind: event.RestartOrder, Severity: event.Warning, VM: v.p.Name, Host: v.p.Host, Failover: m.failoverOfVM(v),
			Text: fmt.Sprintf("%s is not ready after %s: %s", v.p.Name, limit, text), Cause: why})
	}
	return true
}

func (m *Machine) failoverOfVM(v *vm) string {
	if v.p.Down != nil {
		return v.p.Down.Failover
	}
	return v.inFailover
}

// restored forgets a VM whose restart is over.
func (m *Machine) restored(v *vm) {
	delete(m.recovering, v.p.ID)
	if v.p.Awaited {
		v.p.Awaited = false
		m.save(v)
	}
}

// stuck tells whether a VM waits for something that no restart brings about.
func (m *Machine) stuck(v *vm) bool {
	return !v.running && v.order == nil && (v.fence || v.standing || v.unplaced || v.behind != nil && m.held[v.p.ID] == v && m.stuck(v.behind))
}

// mustWait is why a VM may not start yet, for people; "" if it may. gate has
// been called.
func (m *Machine) mustWait(v *vm) string {
	if why := m.dependencyWait(v); why != "" {
		return why
	}
	if len(v.askers) == 0 && v.inFailover != "" && m.class(v) < m.gateClass {
		return fmt.Sprintf("waits for %s to be ready: %s", className(m.gateClass), names(m.blockers))
	}
	return ""
}

// dependencyWait is which of the VMs that v depends on is not ready.
func (m *Machine) dependencyWait(v *vm) string {
	v.behind = nil
	for _, name := range m.setOf(v).DependsOn {
		u := m.byName[name]
		switch {
		case u == v:
			continue
		case u == nil:
			if st := m.listsUnknown(); st != nil {
				return fmt.Sprintf("waits for %s, which it depends on and which may be on the protected list of %s: %s", name, st.name, st.list.problem)
			}
			continue
		case !m.wanted(u) && !u.running:
			continue // it is not to run
		}
		if m.isReady(u, m.settings(u)) || u.gateOver {
			continue
		}
		if u.running {
			// Only what runs and gives no sign of life is given up.
			if m.countDown(u, "those that depend on it do not wait any longer") {
				continue
			}
		}
		v.behind = u
		return fmt.Sprintf("waits for %s, which it depends on and which %s", name, m.stateText(u))
	}
	return ""
}

// listsUnknown is a datastore whose VMs are not known to this primary yet.
func (m *Machine) listsUnknown() *store {
	for _, st := range m.storeBy {
		if st.list.phase != listOwned && st.here {
			return st
		}
	}
	return nil
}

// stateText is how a VM that others wait for stands.
func (m *Machine) stateText(v *vm) string {
	switch {
	case v.running || v.order != nil:
		return m.readyText(v)
	case v.reason != "":
		return "is down: " + v.reason
	}
	return "is down"
}

// holdBack keeps a VM until those before it are ready.
func (m *Machine) holdBack(v *vm, why string) {
	v.reason = why
	m.held[v.p.ID] = v
	m.viewDue = true
	m.answerStart(v, AdminReply{OK: true, Text: fmt.Sprintf("%s %s; it starts by itself then", v.p.Name, why)})
	if v.heldSaid {
		return
	}
	v.heldSaid = true
	m.emit(event.Event{Kind: event.RestartOrder, VM: v.p.Name, Datastore: v.st.name, Failover: m.failoverOfVM(v),
		Text: fmt.Sprintf("%s waits its turn", v.p.Name), Cause: why})
}

// names lists VMs for people, at most three by name.
func names(list []*vm) string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.p.Name)
	}
	sort.Strings(out)
	if len(out) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(out[:3], ", "), len(out)-3)
	}
	return strings.Join(out, ", ")
}

// placeInOrder numbers the restarts that are not done.
func (m *Machine) placeInOrder() {
	n := 0
	for _, v := range m.sortVMs(m.recovering) {
		v.turn = 0
		if !v.running {
			n++
			v.turn = n
		}
	}
}

// remember keeps where a VM was before restarts brought it elsewhere, until it
// is back or its user starts it somewhere.
func (m *Machine) remember(v *vm, h *member) {
	p := &v.p
	switch {
	case p.Origin == h.name, p.Down == nil && p.Host != h.name:
		p.Origin = ""
	case p.Down != nil && p.Down.Failover != "" && p.Origin == "" && p.Host != "" && p.Host != h.name:
		p.Origin = p.Host
	}
}
