package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// onAdmin takes an administrator's request on this host.
func (m *Machine) onAdmin(e AdminAsked) {
	reply := func(r AdminReply) { m.do(Answer{ID: e.ID, Reply: r}) }
	if e.Request.Protect != nil {
		m.adoptHere(*e.Request.Protect, waive{force: e.Request.Force, by: e.Request.By}, reply)
		return
	}
	if e.Request.Leave != nil {
		m.leave(*e.Request.Leave, waive{force: e.Request.Force, by: e.Request.By}, reply)
		return
	}
	m.relay(e.Request, reply)
}

// relay brings a request to the primary.
func (m *Machine) relay(r AdminRequest, reply func(AdminReply)) {
	reply = m.once(reply)
	switch {
	case m.role == rolePrimary:
		m.serve(r, reply)
	case m.role == roleSecondary:
		m.relaySeq++
		id := m.relaySeq
		m.relays[id] = reply
		m.do(SendMessage{To: m.primary, Message: Message{Admin: &AdminRelay{ID: id, Request: r}}})
		m.after(adminLimit+5*time.Second, func() {
			delete(m.relays, id)
			reply(AdminReply{Text: "the primary did not answer: look at hanok status and ask again"})
		})
	case r.Apply != nil:
		m.applyConfig(*r.Apply, reply)
	case !m.loaded || !m.conf.Enabled:
		reply(AdminReply{Text: "HA is off: there is no primary to ask; use virsh on the VM's host, or turn HA on in the cluster file"})
	default:
		reply(AdminReply{Text: "there is no primary at the moment: an election is under way; ask again in a few seconds"})
	}
}

// once makes sure that a request is answered once.
func (m *Machine) once(f func(AdminReply)) func(AdminReply) {
	done := false
	return func(r AdminReply) {
		if !done {
			done = true
			f(r)
		}
	}
}

// onRelay: a secondary brings an administrator's request.
func (m *Machine) onRelay(h *member, a AdminRelay) {
	reply := m.once(func(r AdminReply) {
		m.do(SendMessage{To: h.name, Message: Message{Answer: &AnswerRelay{ID: a.ID, Reply: r}}})
	})
	if m.role != rolePrimary {
		reply(AdminReply{Text: fmt.Sprintf("%s is not primary any more: ask again", m.cfg.Self)})
		return
	}
	m.serve(a.Request, reply)
}

// serve carries out a request on the primary.
func (m *Machine) serve(r AdminRequest, reply func(AdminReply)) {
	w := waive{force: r.Force, by: r.By}
	switch {
	case r.Protect != nil:
		m.register(*r.Protect, reply)
	case r.Unprotect != nil:
		m.withVM(*r.Unprotect, reply, m.unprotect)
	case r.Start != nil:
		m.withVM(*r.Start, reply, func(v *vm, f func(AdminReply)) { m.startAdmitted(v, w, f) })
	case r.Shutdown != nil:
		m.withVM(*r.Shutdown, reply, func(v *vm, f func(AdminReply)) { m.stopAsked(v, CommandShutdown, f) })
	case r.Kill != nil:
		m.withVM(*r.Kill, reply, func(v *vm, f func(AdminReply)) { m.stopAsked(v, CommandKill, f) })
	case r.Apply != nil:
		m.applyAdmitted(*r.Apply, w, reply)
	case r.Consider != nil:
		m.consider(*r.Consider, w, reply)
	default:
		reply(AdminReply{Text: "the request is empty or of a newer version than this host's agent"})
	}
}

func (m *Machine) withVM(ref VMRef, reply func(AdminReply), f func(*vm, func(AdminReply))) {
	v := m.byName[ref.Name]
	if v == nil {
		v = m.vms[model.VMID(ref.Name)]
	}
	if v != nil {
		f(v, reply)
		return
	}
	for _, st := range m.storeBy {
		if st.list.phase != listOwned {
			reply(AdminReply{Text: fmt.Sprintf("no VM %q is known, but the protected list of %s is not at hand: %s", ref.Name, st.name, st.list.problem)})
			return
		}
	}
	reply(AdminReply{Text: fmt.Sprintf("Hanok does not manage a VM %q: see hanok status, or `hanok vm protect %s` on its host", ref.Name, ref.Name)})
}

// adoptHere makes a VM of this host managed: its lock is made and, if it runs,
// taken before anyone hears of it.
func (m *Machine) adoptHere(p model.ProtectedVM, w waive, reply func(AdminReply)) {
	reply = m.once(reply)
	switch {
	case !m.loaded || !m.conf.Enabled:
		reply(AdminReply{Text: "HA is off: turn it on in the cluster file first"})
		return
	case m.role != rolePrimary && m.role != roleSecondary:
		reply(AdminReply{Text: "there is no primary at the moment: ask again in a few seconds"})
		return
	case !m.guardUp:
		reply(AdminReply{Text: "the guard of this host does not answer: nothing can be protected here"})
		return
	}
	if len(p.Datastores) == 0 {
		p.Datastores = []model.DatastoreName{p.Home}
	}
	if d := m.domains[p.ID]; d == nil || !d.Active {
		m.lockAdopted(p, reply) // it takes no room before its start
		return
	}
	ask := p
	ask.Host = m.cfg.Self
	m.relay(AdminRequest{Consider: &Consideration{Protect: &ask}, Force: w.force, By: w.by}, func(r AdminReply) {
		if !r.OK {
			reply(r)
			return
		}
		m.lockAdopted(p, func(end AdminReply) {
			end.Warnings = append(end.Warnings, r.Warnings...)
			reply(end)
		})
	})
}

// lockAdopted makes the lock of a VM that is being adopted.
func (m *Machine) lockAdopted(p model.ProtectedVM, reply func(AdminReply)) {
	g := managedVM(p)
	m.ask(lease.Request{Create: &lease.CreateRequest{VM: g}}, func(r lease.Reply) {
		if r.Code != lease.CodeOK {
			reply(AdminReply{Text: fmt.Sprintf("the lock of %s was not made (%s): %s", p.Name, r.Code, r.Text)})
			return
		}
		// The lock may have existed before: its highest record counts.
		m.do(ReadLock{Datastore: p.Home, VM: p.ID, Op: m.op(func(r LockRead) {
			if r.Err != "" || r.Kind != "" {
				reply(AdminReply{Text: fmt.Sprintf("the lock of %s cannot be read (%s): %s", p.Name, r.Kind, r.Err)})
				return
			}
			m.adoptLocked(p, r.Record, reply)
		})})
	})
}

// adoptLocked claims the lock of a VM that runs here, and registers it.
func (m *Machine) adoptLocked(p model.ProtectedVM, rec model.LockRecord, reply func(AdminReply)) {
	d := m.domains[p.ID]
	holder := rec.Holder()
	switch {
	case d == nil || !d.Active:
		if holder != "" && holder != m.cfg.Self {
			reply(AdminReply{Text: fmt.Sprintf("%s holds the lock of %s (epoch %d): protect it there", holder, p.Name, rec.Epoch)})
			return
		}
		if p.Requested == "" {
			p.Requested = model.RequestedStopped
		}
		p.LastEpoch = rec.Epoch
		m.relay(AdminRequest{Protect: &p}, reply)
		return
	case holder == m.cfg.Self && rec.Boot == m.ownBoot():
		p.Requested, p.Host, p.LastEpoch = model.RequestedStarted, m.cfg.Self, rec.Epoch
		m.relay(AdminRequest{Protect: &p}, reply)
		return
	}
	m.ask(lease.Request{Claim: &lease.ClaimRequest{VM: managedVM(p), Epoch: rec.Epoch, Running: true}}, func(r lease.Reply) {
		if r.Code != lease.CodeOK {
			text := r.Text
			if r.Record != nil {
				text += fmt.Sprintf(" (its lock: %s)", r.Record)
			}
			reply(AdminReply{Text: fmt.Sprintf("the lock of %s was not won (%s): %s", p.Name, r.Code, text)})
			return
		}
		p.Requested, p.Host, p.LastEpoch = model.RequestedStarted, m.cfg.Self, r.Epoch
		m.hypervise(CallNoAutostart, p.ID, "", func(HypervisorDone) {})
		m.relay(AdminRequest{Protect: &p}, reply)
	})
}

// register puts an adopted VM on the list of its home datastore.
func (m *Machine) register(p model.ProtectedVM, reply func(AdminReply)) {
	st := m.stores[p.Home]
	switch {
	case st == nil:
		reply(AdminReply{Text: fmt.Sprintf("no datastore %q in the cluster file", p.Home)})
		return
	case st.list.phase != listOwned:
		reply(AdminReply{Text: fmt.Sprintf("%s cannot be protected now: the protected list of %s is not at hand: %s", p.Name, p.Home, st.list.problem)})
		return
	}
	if o := m.byName[p.Name]; o != nil && o.p.ID != p.ID {
		reply(AdminReply{Text: fmt.Sprintf("another VM of the name %s is managed already (%s)", p.Name, o.p.ID)})
		return
	}
	v := m.vms[p.ID]
	if v == nil {
		if p.Requested == "" {
			p.Requested = model.RequestedStarted
		}
		p.Down = nil
		v = m.addVM(st, p)
		v.seen = true
		m.rediscover(v)
	} else {
		if v.st != st {
			reply(AdminReply{Text: fmt.Sprintf("%s is managed with home datastore %s: unprotect it first", p.Name, v.st.name)})
			return
		}
		delete(m.byName, v.p.Name)
		keep := v.p
		v.p = p
		v.p.Down, v.p.Host, v.p.LastEpoch = keep.Down, keep.Host, max(keep.LastEpoch, p.LastEpoch)
		v.p.Requested, v.p.Settled = keep.Requested, keep.Settled
		if p.Requested == model.RequestedStarted && v.running {
			v.p.Requested = p.Requested
		}
		m.byName[p.Name] = v
	}
	m.emit(event.Event{Kind: event.Admin, VM: p.Name, Host: p.Host, Datastore: st.name, Text: fmt.Sprintf("%s is managed by Hanok", p.Name)})
	m.saveFor(v, true, func() {
		reply(AdminReply{OK: true, Text: fmt.Sprintf("%s is managed and recorded on %s", p.Name, st.name)})
	})
	m.welcomeDue = true
	m.enforce(v)
	m.evaluate(v)
}

// unprotect takes a VM off the list; it keeps running if it runs.
func (m *Machine) unprotect(v *vm, reply func(AdminReply)) {
	if v.order != nil {
		reply(AdminReply{Text: fmt.Sprintf("a %s of %s is under way: wait for its end", v.order.kind, v.p.Name)})
		return
	}
	st, name := v.st, v.p.Name
	m.removeVM(v, fmt.Sprintf("%s is not managed any more", name))
	m.emit(event.Event{Kind: event.Unprotected, VM: name, Host: v.p.Host, Datastore: st.name, Text: fmt.Sprintf("%s is not managed any more", name), Cause: "an administrator asked for it"})
	m.saveFor(v, true, func() { reply(AdminReply{OK: true, Text: fmt.Sprintf("%s is not managed any more", name)}) })
}

// startAsked: an administrator wants a VM running.
func (m *Machine) startAsked(v *vm, reply func(AdminReply)) {
	switch r := m.requested(v); {
	case v.running:
		if v.p.Requested == model.RequestedStopped && v.order == nil {
			v.p.Requested = model.RequestedStarted
			m.save(v)
		}
		reply(AdminReply{Text: fmt.Sprintf("%s already runs on %s", v.p.Name, v.p.Host)})
		return
	case r == model.RequestedDisabled || r == model.RequestedIgnored:
		reply(AdminReply{Text: fmt.Sprintf("%s is %s in the cluster file: change its `requested` first", v.p.Name, r)})
		return
	case v.order != nil && v.order.kind != CommandStart:
		reply(AdminReply{Text: fmt.Sprintf("a %s of %s is under way", v.order.kind, v.p.Name)})
		return
	}
	m.await(v, CommandStart, reply)
	if v.order != nil {
		return
	}
	m.startAnew(v, "an administrator asked for its start")
	m.emit(event.Event{Kind: event.Admin, VM: v.p.Name, Text: fmt.Sprintf("start of %s asked for", v.p.Name)})
	m.evaluate(v)
}

// stopAsked: an administrator wants a VM stopped. That it is to stay down is
// recorded before the command leaves.
func (m *Machine) stopAsked(v *vm, kind CommandKind, reply func(AdminReply)) {
	if v.order != nil && (kind != CommandKill || v.order.kind != CommandShutdown) {
		reply(AdminReply{Text: fmt.Sprintf("a %s of %s on %s is under way: wait for its end", v.order.kind, v.p.Name, v.order.host.name)})
		return
	}
	m.emit(event.Event{Kind: event.Admin, VM: v.p.Name, Host: v.p.Host, Text: fmt.Sprintf("%s of %s asked for", kind, v.p.Name)})
	if !v.running {
		m.stopDown(v, reply)
		return
	}
	if h := v.host; h.suspect {
		reply(AdminReply{Text: fmt.Sprintf("%s is on %s, which is %s: it cannot be told", v.p.Name, h.name, h.state)})
		return
	}
	if v.order != nil {
		delete(m.orders, v.order.id)
		m.endOrder(v.order)
		m.answerStop(v, AdminReply{Text: "a kill replaced the shutdown"})
	}
	v.p.Requested = model.RequestedStopped
	m.await(v, kind, reply)
	o := m.newOrder(v, v.host, kind, v.local.Epoch)
	m.saveFor(v, true, func() { m.send(o) })
	m.showProtection(v)
}

// stopDown: the VM to be stopped does not run.
func (m *Machine) stopDown(v *vm, reply func(AdminReply)) {
	if m.requested(v) != model.RequestedStarted {
		reply(AdminReply{Text: fmt.Sprintf("%s does not run", v.p.Name)})
		return
	}
	if h := v.host; h != nil && h.suspect && !h.failed {
		reply(AdminReply{Text: fmt.Sprintf("%s holds the lock of %s and is %s: it cannot be told", h.name, v.p.Name, h.state)})
		return
	}
	v.p.Requested, v.p.Down = model.RequestedStopped, nil
	m.answerStart(v, AdminReply{Text: "its stop was asked for meanwhile"})
	m.evaluate(v)
	m.saveFor(v, true, func() {
		reply(AdminReply{OK: true, Text: fmt.Sprintf("%s did not run and stays down", v.p.Name)})
	})
}

// await answers f when what was asked of v has come to an end, or in time.
func (m *Machine) await(v *vm, kind CommandKind, f func(AdminReply)) {
	v.askers = append(v.askers, asker{kind, f})
	m.after(adminLimit, func() {
		f(AdminReply{Text: fmt.Sprintf("%s of %s is still under way: see hanok status", kind, v.p.Name)})
	})
}

func (m *Machine) answerWhere(v *vm, start bool, r AdminReply) {
	if len(v.askers) == 0 {
		return
	}
	keep := v.askers[:0:0]
	for _, a := range v.askers {
		if (a.kind == CommandStart) == start {
			a.f(r)
		} else {
			keep = append(keep, a)
		}
	}
	v.askers = keep
}

func (m *Machine) answerStart(v *vm, r AdminReply) { m.answerWhere(v, true, r) }
func (m *Machine) answerStop(v *vm, r AdminReply)  { m.answerWhere(v, false, r) }
func (m *Machine) answerWaiters(v *vm, r AdminReply) {
	m.answerStart(v, r)
	m.answerStop(v, r)
}

// settingsChanged looks at every VM anew after a change of the cluster file.
func (m *Machine) settingsChanged() {
	for _, id := range m.ids() {
		v := m.vms[id]
		m.enforce(v)
		m.showProtection(v)
		if !v.running {
			v.nextTry, v.lockKnown = 0, false
			m.evaluate(v)
		}
	}
}
