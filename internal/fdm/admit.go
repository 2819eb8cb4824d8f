package fdm

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// Admission control: before an administrator starts or adopts a VM, reserves more
// for one, or takes a host away, the primary asks whether the cluster could then
// still lose what it is meant to survive. Restarts are never asked about. The
// question is put together here and answered beside the machine (Consider), one at
// a time, so that two of them never count on the same room.

const (
	// mostQuestions is how many questions may wait for their turn.
	mostQuestions = 256
	// gatherRoom is how long a question waits for members that have not reported
	// to a new primary yet.
	gatherRoom = 5 * time.Second
	// roomPause is the least pause between two looks whether the room is there.
	roomPause = 10 * time.Second
)

// waive is how a request stands to admission control.
type waive struct {
	force bool   // it is carried out though it is refused
	by    string // who asks
	dry   bool   // nothing follows from the answer: no event
}

// question is one request to admission control.
type question struct {
	text   string // what is asked for, for people
	vm     string
	host   model.HostID
	fields []string // of the cluster file, that it is about
	waive  waive
	look   bool // any answer will do
	asked  time.Duration
	// ask puts it together when its turn comes; nil: there is nothing to ask.
	ask   func() *admission.Ask
	reply func(AdminReply)
	// then carries on with what was admitted.
	then func(admission.Decision)
}

// questions are those that wait, and what the last look at the room brought.
type questions struct {
	list   []*question
	busy   bool
	reign  uint64 // of the question under way
	wake   time.Duration
	report *admission.Report
	told   string // the verdict and the warnings that people know
	sum    uint64 // digest of what the last look was about
	lookAt time.Duration
	look   bool
}

// admit asks admission control and then goes on, or replies with the refusal.
func (m *Machine) admit(q *question) {
	if m.conf.Admission.Kind == admission.Off || m.conf.Admission.Kind == "" {
		q.then(admission.Decision{Allowed: true, Report: admission.Report{Reason: "admission control is off"}})
		return
	}
	if len(m.admission.list) >= mostQuestions {
		q.reply(AdminReply{Text: "too many requests wait for admission control: ask again"})
		return
	}
	q.asked = m.now
	m.admission.list = append(m.admission.list, q)
}

// pumpQuestions asks the next question, when the one before is answered and the
// members are known.
func (m *Machine) pumpQuestions() {
	a := &m.admission
	if a.busy && a.reign != m.reign {
		a.busy = false
	}
	for !a.busy && len(a.list) > 0 {
		q := a.list[0]
		if m.roomUnknown() && m.now-q.asked < gatherRoom {
			if a.wake <= m.now {
				a.wake = m.now + m.interval()
				m.after(m.interval(), func() {})
			}
			return
		}
		a.list = a.list[1:]
		ask := q.ask()
		if ask == nil {
			q.then(admission.Decision{Allowed: true})
			continue
		}
		a.busy, a.reign = true, m.reign
		reign := m.reign
		m.do(Consider{Ask: ask, Op: m.op(func(r Considered) {
			if m.reign != reign {
				q.reply(AdminReply{Text: fmt.Sprintf("%s is not primary any more: ask again", m.cfg.Self)})
				return
			}
			a.busy = false
			m.decided(q, r.Decision)
		})})
	}
}

// dropQuestions answers those that wait when this host ceases to be primary.
func (m *Machine) dropQuestions() {
	list := m.admission.list
	m.admission = questions{}
	for _, q := range list {
		q.reply(AdminReply{Text: fmt.Sprintf("%s is not primary any more: ask again", m.cfg.Self)})
	}
}

// roomUnknown: a member that is heard has not said yet what it has and runs, or a
// list is not at hand.
func (m *Machine) roomUnknown() bool {
	for _, h := range m.order {
		if !h.self && !h.suspect && h.report == nil {
			return true
		}
	}
	return m.listsPending()
}

// decided goes on as admission control says.
func (m *Machine) decided(q *question, d admission.Decision) {
	if d.Allowed || q.look {
		q.then(d)
		return
	}
	ev := event.Event{Kind: event.Admission, Severity: event.Warning, VM: q.vm, Host: q.host, Cause: d.Reason,
		Evidence: map[string]string{"policy": string(d.Policy), "verdict": d.Answer}}
	if len(d.Help) > 0 {
		ev.Evidence["what would help"] = strings.Join(d.Help, "; or ")
	}
	if q.waive.by != "" {
		ev.Evidence["asked by"] = q.waive.by
	}
	if q.waive.force && !q.waive.dry {
		ev.Text = fmt.Sprintf("%s is carried out by force (%s): admission control refused it", q.text, cmp.Or(q.waive.by, "an administrator"))
		m.emit(ev)
		q.then(d)
		return
	}
	if !q.waive.dry {
		ev.Text = fmt.Sprintf("%s was refused by admission control", q.text)
		m.emit(ev)
	}
	q.reply(AdminReply{Text: fmt.Sprintf("admission control (%s) refuses %s: %s", d.Policy, q.text, d.Reason), Help: d.Help, Refused: true,
		Warnings: d.Warnings, Fields: q.fields, Decision: &d})
}

// wholeRoom is the cluster as it is, for admission control.
func (m *Machine) wholeRoom(requests []admission.Request) *admission.Ask {
	all := make([]*vm, 0, len(m.vms))
	for _, id := range m.ids() {
		all = append(all, m.vms[id])
	}
	a := &admission.Ask{State: m.room(all), Policy: m.conf.Admission, Requests: requests}
	pending := map[model.VMID]*vm{}
	for _, v := range all {
		x := m.spec(v)
		x.NoRestart = m.priority(v) == model.PriorityDisabled || m.requested(v) != model.RequestedStarted
		a.State.SetVM(x)
		if v.placeOf() == nil && v.p.Down != nil && m.requested(v) == model.RequestedStarted {
			pending[v.p.ID] = v
		}
	}
	for _, v := range m.sortVMs(pending) {
		w := m.wantOf(v)
		w.Only, w.Class = v.want.only, infrastructure-m.class(v)
		a.Pending = append(a.Pending, w)
	}
	return a
}
