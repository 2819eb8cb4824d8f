package fdm

import (
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// What admission control is asked about: starts, adoptions, the shutdown of a
// host in order, and cluster files.

// withWarnings hands what admission control warns of on with the answer.
func withWarnings(d admission.Decision, reply func(AdminReply)) func(AdminReply) {
	return func(r AdminReply) {
		r.Warnings = append(r.Warnings, d.Warnings...)
		reply(r)
	}
}

// admitStart asks about a start, unless it is none: the VM runs, or is wanted
// running already, so that this only hastens its restart.
func (m *Machine) admitStart(v *vm, w waive, reply func(AdminReply), then func(admission.Decision)) {
	if v.running || v.order != nil || m.requested(v) != model.RequestedStopped {
		then(admission.Decision{Allowed: true})
		return
	}
	id := v.p.ID
	m.admit(&question{text: "the start of " + v.p.Name, vm: v.p.Name, waive: w, reply: reply, then: then,
		ask: func() *admission.Ask {
			v := m.vms[id]
			if v == nil || v.running || m.requested(v) != model.RequestedStopped {
				return nil
			}
			x := m.spec(v)
			x.NoRestart = m.priority(v) == model.PriorityDisabled
			return m.wholeRoom([]admission.Request{{Action: admission.PowerOn, VM: x}})
		}})
}

// startAdmitted asks about a start, and carries it out.
func (m *Machine) startAdmitted(v *vm, w waive, reply func(AdminReply)) {
	id := v.p.ID
	m.admitStart(v, w, reply, func(d admission.Decision) {
		v := m.vms[id]
		if v == nil {
			reply(AdminReply{Text: "the VM is not managed any more"})
			return
		}
		v.admitted = d.Host
		m.startAsked(v, withWarnings(d, reply))
	})
}

// consider answers what admission control says to something.
func (m *Machine) consider(c Consideration, w waive, reply func(AdminReply)) {
	w.dry = c.Dry
	then := func(d admission.Decision) {
		r := AdminReply{OK: true, Text: d.Reason, Warnings: d.Warnings}
		if d.Answer != "" {
			r.Decision = &d
		}
		reply(r)
	}
	switch {
	case c.Protect != nil:
		m.admitAdoption(*c.Protect, w, reply, then)
	case c.Start != nil:
		m.withVM(*c.Start, reply, func(v *vm, f func(AdminReply)) { m.admitStart(v, w, f, then) })
	case c.Leave != "":
		m.admitLeave(c.Leave, w, reply, then)
	case c.Apply != nil:
		m.admitConfig(*c.Apply, w, reply, then)
	default:
		reply(AdminReply{Text: "the question is empty or of a newer version than this host's agent"})
	}
}

// admitAdoption asks about a VM that runs on p.Host and is to be managed.
func (m *Machine) admitAdoption(p model.ProtectedVM, w waive, reply func(AdminReply), then func(admission.Decision)) {
	m.admit(&question{text: "the adoption of " + p.Name, vm: p.Name, host: p.Host, waive: w, reply: reply, then: then,
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
func (m *Machine) admitLeave(name model.HostID, w waive, reply func(AdminReply), then func(admission.Decision)) {
	m.admit(&question{text: fmt.Sprintf("the shutdown of %s", name), host: name, waive: w, reply: reply, then: then,
		ask: func() *admission.Ask {
			h := m.members[name]
			if h == nil || m.unfit(h) != "" {
				return nil // it gives no room as it is
			}
			a := m.wholeRoom([]admission.Request{{Action: admission.Leave, Host: name}})
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

// applyAdmitted asks about a cluster file, and brings it into force.
func (m *Machine) applyAdmitted(o ConfigOffer, w waive, reply func(AdminReply)) {
	m.admitConfig(o, w, reply, func(d admission.Decision) { m.applyConfig(o, withWarnings(d, reply)) })
}

// admitConfig asks about a cluster file that takes hosts away, reserves more or
// starts VMs; a dry question gets an answer for any.
func (m *Machine) admitConfig(o ConfigOffer, w waive, reply func(AdminReply), then func(admission.Decision)) {
	unasked := func() { then(admission.Decision{Allowed: true}) }
	if !m.loaded || o.Version <= m.conf.Version {
		unasked() // there it is refused
		return
	}
	m.do(ReadConfig{Version: o.Version, File: o.File, Op: m.op(func(r ConfigRead) {
		if r.Err != "" || m.role != rolePrimary {
			unasked() // a file that cannot be read is refused by whoever stores it
			return
		}
		next := r.Config
		if next.Admission.Kind == admission.Off || next.Admission.Kind == "" || !next.Enabled {
			unasked()
			return
		}
		q := &question{text: fmt.Sprintf("version %d of the cluster file", o.Version), waive: w, reply: reply, then: then}
		q.ask = func() *admission.Ask {
			a, fields := m.askConfig(next)
			if q.fields = fields; len(a.Requests) > 0 {
				return a
			}
			if !w.dry {
				return nil
			}
			q.look = true // it takes no room: only whether it is there
			return a
		}
		m.admit(q)
	})})
}

// askConfig is the cluster under another cluster file: its Requests are what takes
// room, fields name each of them.
func (m *Machine) askConfig(next Cluster) (a *admission.Ask, fields []string) {
	var first, list, less []admission.Request
	a = m.wholeRoom(nil)
	a.Policy = next.Admission
	stays := map[model.HostID]bool{}
	for _, h := range next.Hosts {
		stays[h.Name] = true
		x, _, ok := a.State.Host(h.Name)
		if !ok {
			continue
		}
		now := m.members[h.Name]
		a.State.SetHost(hostAfter(x, now.conf, h))
		if h.Maintenance && !now.conf.Maintenance && x.Unfit == "" {
			list = append(list, admission.Request{Action: admission.Maintenance, Host: h.Name})
			fields = append(fields, fmt.Sprintf("hosts[%s].maintenance", h.Name))
		}
	}
	for _, h := range m.order {
		if x, _, ok := a.State.Host(h.name); ok && !stays[h.name] && x.Unfit == "" {
			list = append(list, admission.Request{Action: admission.Remove, Host: h.name})
			fields = append(fields, fmt.Sprintf("hosts[%s]", h.name))
		}
	}
	for _, id := range m.ids() {
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
			if !grows(before, x) {
				less = append(less, r)
				continue
			}
			first = append(first, r) // before hosts are taken away
			fields = append(fields, fmt.Sprintf("vms[%s].reservation", v.p.Name))
		case will == model.RequestedStarted && was != "" && was != will && m.requested(v) != model.RequestedStarted:
			x.NoRestart = next.VMs[v.p.Name].Priority == model.PriorityDisabled
			first = append(first, admission.Request{Action: admission.PowerOn, VM: x})
			fields = append(fields, fmt.Sprintf("vms[%s].requested", v.p.Name))
		}
	}
	a.State.SetRules(next.Rules)
	if len(fields) > 0 {
		a.Requests = slices.Concat(less, first, list)
	}
	return a, fields
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
