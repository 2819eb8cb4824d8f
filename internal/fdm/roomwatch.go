package fdm

import (
	"strings"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/placement"
)

// watchRoom looks whether the room is still there after something changed, and
// tells people when that changes.
func (m *Machine) watchRoom() {
	a := &m.admission
	if m.now < a.lookAt || a.look || len(m.order) == 0 {
		return
	}
	a.lookAt = m.now + roomPause
	if m.conf.Admission.Kind == admission.Off || m.conf.Admission.Kind == "" || !m.conf.HostMonitoring {
		if a.report != nil {
			a.report, a.told, a.sum, m.viewDue = nil, "", 0, true
		}
		return
	}
	m.after(roomPause, func() {})
	sum := m.roomSum()
	if sum == a.sum || m.roomUnknown() || !m.gatherDone {
		return
	}
	a.look = true
	m.admit(&question{look: true, reply: func(AdminReply) { m.admission.look = false },
		ask: func() *admission.Ask { return m.wholeRoom(nil) },
		then: func(d admission.Decision) {
			m.admission.look, m.admission.sum = false, sum
			m.roomLooked(d.Report)
		}})
}

// roomLooked tells people when there is no room any more, or again.
func (m *Machine) roomLooked(r admission.Report) {
	a := &m.admission
	before := a.report
	a.report, m.viewDue = &r, true
	told := r.Answer + "\n" + strings.Join(r.Warnings, "\n")
	if told == a.told {
		return
	}
	a.told = told
	ev := event.Event{Kind: event.Admission, Cause: r.Reason, Evidence: map[string]string{"policy": string(r.Policy), "verdict": r.Answer}}
	switch {
	case r.Verdict != placement.Yes:
		ev.Severity, ev.Text = event.Warning, "the room that admission control keeps for failures is not there"
		if len(r.Help) > 0 {
			ev.Evidence["what would help"] = strings.Join(r.Help, "; or ")
		}
		m.emit(ev)
	case before != nil && before.Verdict != placement.Yes:
		ev.Text = "the room that admission control keeps for failures is there again"
		m.emit(ev)
	}
	for _, w := range r.Warnings {
		m.emit(event.Event{Kind: event.Admission, Severity: event.Warning, Text: "after failures VMs would get less than they use now", Cause: w})
	}
}

// roomSum is a digest of what the answer depends on (FNV-1a).
func (m *Machine) roomSum() uint64 {
	sum := uint64(14695981039346656037)
	add := func(s string) {
		for i := 0; i < len(s); i++ {
			sum = (sum ^ uint64(s[i])) * 1099511628211
		}
		sum = (sum ^ 0xff) * 1099511628211
	}
	number := func(x uint64) {
		for ; x != 0; x >>= 8 {
			sum = (sum ^ x&0xff) * 1099511628211
		}
		sum = (sum ^ 0x100) * 1099511628211
	}
	number(m.conf.Version)
	for _, h := range m.order {
		s := m.hostSpec(h, 0)
		add(string(h.name))
		add(s.Unfit)
		for _, x := range []int64{int64(s.Memory), int64(s.Reserved.Memory), int64(s.Reserved.CPU), int64(len(s.Datastores))} {
			number(uint64(x))
		}
	}
	for _, id := range m.ids() {
		v := m.vms[id]
		add(string(id))
		if h := v.placeOf(); h != nil {
			add(string(h.name))
		}
		add(string(m.requested(v)))
	}
	return max(sum, 1)
}
