package fdm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
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

// question is one request to admission control.
type question struct {
	text  string // what is asked for, for people
	vm    string
	host  model.HostID
	force bool
	look  bool // any answer will do
	asked time.Duration
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
	if q.force {
		ev.Text = fmt.Sprintf("%s is carried out by force: admission control refused it", q.text)
		m.emit(ev)
		q.then(d)
		return
	}
	ev.Text = fmt.Sprintf("%s was refused by admission control", q.text)
	m.emit(ev)
	q.reply(AdminReply{Text: fmt.Sprintf("admission control (%s) refuses %s: %s", d.Policy, q.text, d.Reason), Help: d.Help, Refused: true, Warnings: d.Warnings})
}

// wholeRoom is the cluster as it is, for admission control.
func (m *Machine) wholeRoom(requests []admission.Request) *admission.Ask {
	all := make([]*vm, 0, len(m.vms))
	for _, id := range sortedKeys(m.vms) {
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

// admitStart asks about a start, unless it is none: the VM runs, or is wanted
// running already, so that this only hastens its restart.
func (m *Machine) admitStart(v *vm, force bool, reply func(AdminReply), then func(*vm, func(AdminReply))) {
	if v.running || v.order != nil || m.requested(v) != model.RequestedStopped {
		then(v, reply)
		return
	}
	id := v.p.ID
	now := func() *vm { return m.vms[id] }
	m.admit(&question{text: "the start of " + v.p.Name, vm: v.p.Name, force: force, reply: reply,
		ask: func() *admission.Ask {
			v := now()
			if v == nil || v.running || m.requested(v) != model.RequestedStopped {
				return nil
			}
			x := m.spec(v)
			x.NoRestart = m.priority(v) == model.PriorityDisabled
			return m.wholeRoom([]admission.Request{{Action: admission.PowerOn, VM: x}})
		},
		then: func(d admission.Decision) {
			v := now()
			if v == nil {
				reply(AdminReply{Text: "the VM is not managed any more"})
				return
			}
			v.admitted = d.Host
			then(v, func(r AdminReply) {
				r.Warnings = append(r.Warnings, d.Warnings...)
				reply(r)
			})
		}})
}

// consider answers what admission control says to something.
func (m *Machine) consider(c Consideration, force bool, reply func(AdminReply)) {
	ok := func(d admission.Decision) {
		reply(AdminReply{OK: true, Text: d.Reason, Warnings: d.Warnings})
	}
	switch {
	case c.Protect != nil:
		m.admitAdoption(*c.Protect, force, reply, ok)
	case c.Start != nil:
		m.withVM(*c.Start, reply, func(v *vm, f func(AdminReply)) {
			m.admitStart(v, force, f, func(v *vm, f func(AdminReply)) { f(AdminReply{OK: true}) })
		})
	case c.Leave != "":
		m.admitLeave(c.Leave, force, reply, ok)
	case c.Apply != nil:
		m.admitConfig(*c.Apply, force, reply, func(_ ConfigOffer, f func(AdminReply)) { f(AdminReply{OK: true}) })
	default:
		reply(AdminReply{Text: "the question is empty or of a newer version than this host's agent"})
	}
}

// admitAdoption asks about a VM that runs on p.Host and is to be managed.
func (m *Machine) admitAdoption(p model.ProtectedVM, force bool, reply func(AdminReply), then func(admission.Decision)) {
	m.admit(&question{text: "the adoption of " + p.Name, vm: p.Name, host: p.Host, force: force, reply: reply, then: then,
		ask: func() *admission.Ask {
			h := m.members[p.Host]
			if h == nil {
				return nil
			}
			v := m.vms[p.ID]
			if v != nil && p.Memory <= v.p.Memory {
				return nil // its definition is only recorded anew
			}
			x := m.spec(&vm{p: p, st: m.stores[p.Home]})
			x.NoRestart = p.Priority == model.PriorityDisabled
			if v != nil {
				return m.wholeRoom([]admission.Request{{Action: admission.Reserve, VM: x}})
			}
			a := m.wholeRoom([]admission.Request{{Action: admission.Adopt, VM: x, Host: p.Host}})
			if lv, ok := h.active[p.ID]; ok {
				// What it takes so far is in the host's Reserved.
				s, _, _ := a.State.Host(h.name)
				s.Reserved.Memory = max(s.Reserved.Memory-lv.Memory, 0)
				a.State.SetHost(s)
			}
			return a
		}})
}

// admitLeave asks about the shutdown of a host in order.
func (m *Machine) admitLeave(name model.HostID, force bool, reply func(AdminReply), then func(admission.Decision)) {
	m.admit(&question{text: fmt.Sprintf("the shutdown of %s", name), host: name, force: force, reply: reply, then: then,
		ask: func() *admission.Ask {
			h := m.members[name]
			if h == nil || m.unfit(h) != "" {
				return nil // it gives no room as it is
			}
			a := m.wholeRoom([]admission.Request{{Action: admission.Maintenance, Host: name}})
			if m.conf.HostShutdown == HostShutdownStop {
				for _, vm := range a.State.VMs() { // they wait for their host
					if on, _ := a.State.On(vm); on == name {
						a.State.Stop(vm)
					}
				}
			}
			return a
		}})
}

// admitConfig asks about a cluster file that takes hosts away, reserves more or
// starts VMs; then brings it into force.
func (m *Machine) admitConfig(o ConfigOffer, force bool, reply func(AdminReply), then func(ConfigOffer, func(AdminReply))) {
	if !m.loaded || o.Version <= m.conf.Version {
		then(o, reply) // there it is refused
		return
	}
	m.do(ReadConfig{Version: o.Version, File: o.File, Op: m.op(func(r ConfigRead) {
		if r.Err != "" || m.role != rolePrimary {
			then(o, reply) // a file that cannot be read is refused by whoever stores it
			return
		}
		next := r.Config
		if next.Admission.Kind == admission.Off || next.Admission.Kind == "" || !next.Enabled {
			then(o, reply)
			return
		}
		m.admit(&question{text: fmt.Sprintf("version %d of the cluster file", o.Version), force: force, reply: reply,
			ask: func() *admission.Ask { return m.askConfig(next) },
			then: func(d admission.Decision) {
				then(o, func(r AdminReply) {
					r.Warnings = append(r.Warnings, d.Warnings...)
					reply(r)
				})
			}})
	})})
}

// askConfig is the cluster under another cluster file, as far as that takes room;
// nil if it takes none.
func (m *Machine) askConfig(next Cluster) *admission.Ask {
	var list, less []admission.Request
	a := m.wholeRoom(nil)
	a.Policy = next.Admission
	for _, h := range next.Hosts {
		x, _, ok := a.State.Host(h.Name)
		if !ok {
			continue
		}
		now := m.members[h.Name]
		a.State.SetHost(hostAfter(x, now.conf, h))
		if h.Maintenance && !now.conf.Maintenance && x.Unfit == "" {
			list = append(list, admission.Request{Action: admission.Maintenance, Host: h.Name})
		}
	}
	for _, id := range sortedKeys(m.vms) {
		v := m.vms[id]
		before := m.spec(v)
		x := specIn(next.Specs, v)
		on, _ := a.State.On(v.p.Name)
		was, will := m.conf.VMs[v.p.Name].Requested, next.VMs[v.p.Name].Requested
		switch {
		case on != "":
			if x.Need() == before.Need() {
				continue
			}
			x.NoRestart = next.VMs[v.p.Name].Priority == model.PriorityDisabled
			r := admission.Request{Action: admission.Reserve, VM: x}
			if grows(before, x) {
				list = slices.Insert(list, 0, r) // before hosts are taken away
			} else {
				less = append(less, r)
			}
		case will == model.RequestedStarted && was != "" && was != will && m.requested(v) != model.RequestedStarted:
			x.NoRestart = next.VMs[v.p.Name].Priority == model.PriorityDisabled
			list = slices.Insert(list, 0, admission.Request{Action: admission.PowerOn, VM: x})
		}
	}
	if len(list) == 0 {
		return nil
	}
	a.State.SetRules(next.Rules)
	a.Requests = append(less, list...)
	return a
}

func grows(before, after placement.VM) bool {
	b, a := before.Need(), after.Need()
	return a.CPU > b.CPU || a.Memory > b.Memory
}

// hostAfter is a host under another cluster file; it goes into maintenance by a
// request of its own.
func hostAfter(x placement.Host, old, now ClusterHost) placement.Host {
	out := now.Spec
	out.Name, out.Memory, out.Datastores, out.Unfit, out.Starting, out.StartLimit = x.Name, x.Memory, x.Datastores, x.Unfit, x.Starting, x.StartLimit
	out.Reserved.Memory += x.Reserved.Memory - old.Spec.Reserved.Memory
	out.Maintenance = old.Maintenance && now.Maintenance
	return out
}

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
	add(fmt.Sprint(m.conf.Version))
	for _, h := range m.order {
		s := m.hostSpec(h, 0)
		add(fmt.Sprint(h.name, s.Memory, s.Reserved, s.Unfit, len(s.Datastores)))
	}
	for _, id := range slices.Sorted(maps.Keys(m.vms)) {
		v := m.vms[id]
		add(string(id))
		if h := v.placeOf(); h != nil {
			add(string(h.name))
		}
		add(string(m.requested(v)))
	}
	return max(sum, 1)
}
