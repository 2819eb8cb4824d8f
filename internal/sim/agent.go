package sim

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// agentd is a host's agent: an fdm.Machine and what internal/agent is around it.
type agentd struct {
	h        *host
	m        *fdm.Machine
	life     uint32
	start64  uint64 // lives of the agent, over all boots
	stopped  bool
	busy     bool
	inbox    []fdm.Event
	orders   []fdm.Effect
	alarm    alarm
	stall    int
	stallFor time.Duration

	guardUp bool
	hvUp    bool
	heard   fdm.HeartbeatReceived // used again
	read    fdm.SlotsRead         // used again
	replied fdm.GuardReplied      // used again
	request lease.Request         // used again
	spare   []*fdm.GuardReplied   // used again, of those that waited
	asks    map[fdm.OpID]bool     // questions to the guard that are not answered
}

// Limits of the agent's operations, as in internal/agent.
func (a *agentd) readLimit() time.Duration {
	return max(time.Second, a.h.s.conf.Timing.Lease/2)
}

func (a *agentd) writeLimit() time.Duration { return a.h.s.conf.Timing.Lease }

func (a *agentd) up() bool   { return a.m != nil }
func (a *agentd) runs() bool { return a.m != nil && !a.stopped && !a.h.halted() }

func (a *agentd) start() {
	h, s := a.h, a.h.s
	if a.up() || !h.on {
		return
	}
	a.life++
	a.start64++
	a.stopped, a.busy, a.inbox, a.orders, a.guardUp, a.hvUp = false, false, nil, nil, false, false
	a.alarm = alarm{}
	a.asks = map[fdm.OpID]bool{}
	a.m = fdm.New(fdm.Config{Self: h.name, Boot: h.boot, Start: a.start64})
	s.trace(h, "agent starts")
	a.post(fdm.ConfigLoaded{Config: s.files[h.file].conf})
	a.dialGuard()
	h.virt.connected()
	s.topology(h)
}

// die ends the process; told: its kernel closes its connections.
func (a *agentd) die(told bool) {
	if !a.up() {
		return
	}
	h := a.h
	a.m, a.stopped = nil, false
	a.life++
	a.inbox, a.orders = nil, nil
	h.s.seeAlone()
	h.s.agentGone(h, told)
	if conn := h.guard.conn; conn != 0 && h.guard.up() {
		h.guard.conn, h.guard.sub = 0, false
		h.guard.post(lease.Event{Kind: lease.EvConnLost, Conn: conn})
	}
}

// kill ends the agent; what supervises it starts it again.
func (a *agentd) kill() {
	if !a.up() {
		return
	}
	h := a.h
	h.s.trace(h, "agent killed")
	a.die(true)
	boots := h.boots
	h.s.after(respawn, func() {
		if h.boots == boots && !h.s.opts.Off.NoRespawn {
			a.start()
		}
	})
}

// setStopped stops the process where it is, or lets it go on.
func (a *agentd) setStopped(on bool) {
	a.stopped = on && a.up()
	a.h.s.seeAlone()
	a.resume()
}

func (a *agentd) resume() {
	if a.runs() {
		a.drain()
		a.post(fdm.Tick{})
	}
}

func (a *agentd) post(ev fdm.Event) {
	if !a.up() {
		return
	}
	if off := a.h.s.opts.Off.AgentEvent; off != nil {
		if ev = off(a.h.name, ev); ev == nil {
			return
		}
	}
	if a.idle() {
		a.now(ev)
		return
	}
	a.inbox = append(a.inbox, ev)
	if a.h.slow > 0 {
		life := a.life
		a.h.s.after(a.h.s.rng.between(0, a.h.slow), func() {
			if a.life == life {
				a.drain()
			}
		})
		return
	}
	a.drain()
}

// idle: an event would be taken at once.
func (a *agentd) idle() bool {
	return !a.busy && len(a.inbox) == 0 && len(a.orders) == 0 && a.h.slow == 0 && a.runs()
}

// now steps an idle agent; what that leads to follows.
func (a *agentd) now(ev fdm.Event) {
	a.busy = true
	life := a.life
	a.step(ev)
	if a.life != life {
		return
	}
	a.busy = false
	if len(a.inbox) > 0 {
		a.drain()
	} else if a.runs() {
		a.plan()
	}
}

func (a *agentd) drain() {
	if a.busy {
		return
	}
	a.busy = true
	life := a.life
	for a.runs() && a.life == life {
		if len(a.orders) > 0 {
			e := a.orders[0]
			a.orders = a.orders[1:]
			a.carryOut(e)
			continue
		}
		if len(a.inbox) == 0 {
			break
		}
		ev := a.inbox[0]
		copy(a.inbox, a.inbox[1:])
		a.inbox[len(a.inbox)-1] = nil
		a.inbox = a.inbox[:len(a.inbox)-1]
		a.step(ev)
		if e, ok := ev.(*fdm.GuardReplied); ok && len(a.spare) < 16 {
			a.spare = append(a.spare, e)
		}
	}
	if a.life == life {
		a.busy = false
		if a.runs() {
			a.plan()
		}
	}
}

func (a *agentd) step(ev fdm.Event) {
	s := a.h.s
	s.steps++
	life := a.life
	effects := a.m.Step(a.h.clock(), ev)
	if r, ok := ev.(fdm.MessageReceived); ok && r.Message.Command != nil && a.h.s.conf.Enabled {
		s.check.ordered(a.h, r.Message.Command)
	}
	for i, e := range effects {
		if a.stall > 0 {
			if a.stall--; a.stall == 0 {
				s.stopAgent(a.h, a.stallFor)
			}
		}
		if !a.runs() || a.life != life {
			if a.life == life {
				a.orders = append(a.orders, kept(effects[i:])...)
			}
			return
		}
		a.carryOut(e)
	}
}

// kept are effects that are carried out after the machine's next step.
func kept(effects []fdm.Effect) []fdm.Effect {
	out := slices.Clone(effects)
	for i, e := range out {
		if b, ok := e.(*fdm.SendHeartbeat); ok {
			c := *b
			out[i] = &c
		}
	}
	return out
}

func (a *agentd) plan() {
	h := a.h
	if a.alarm.set(h, a.m.Next()) {
		h.s.queue.push(item{at: a.alarm.at, kind: kindAgent, h: h, life: a.life})
	}
}

func (a *agentd) wakeUp(life uint32) {
	if a.life != life || a.alarm.at != a.h.s.now {
		return
	}
	a.alarm.at = 0
	if !a.runs() {
		return
	}
	if a.m.Next() > a.h.clock() {
		a.plan()
		return
	}
	a.post(fdm.Tick{})
}

func (a *agentd) beat(from *host, net int, b *fdm.Heartbeat) {
	if a.h.s.opts.Off.AgentEvent != nil || !a.idle() {
		a.post(fdm.HeartbeatReceived{From: from.name, Network: a.h.s.nets[net], Beat: *b})
		return
	}
	a.heard = fdm.HeartbeatReceived{From: from.name, Network: a.h.s.nets[net], Beat: *b}
	a.now(&a.heard)
}

// answered: the guard answers a question.
func (a *agentd) answered(op fdm.OpID, r *lease.Reply) {
	switch {
	case a.h.s.opts.Off.AgentEvent != nil || !a.up():
		a.post(fdm.GuardReplied{Op: op, Reply: *r})
		return
	case !a.idle():
		var e *fdm.GuardReplied
		if n := len(a.spare); n > 0 {
			e, a.spare = a.spare[n-1], a.spare[:n-1]
		} else {
			e = &fdm.GuardReplied{}
		}
		*e = fdm.GuardReplied{Op: op, Reply: *r}
		a.post(e)
		return
	}
	a.replied = fdm.GuardReplied{Op: op, Reply: *r}
	a.now(&a.replied)
}

// later answers an operation of this life of the agent.
func (a *agentd) later(d time.Duration, f func() fdm.Event) {
	life := a.life
	a.h.s.after(d, func() {
		if a.life == life && a.up() {
			a.post(f())
		}
	})
}

// carryOut does what the machine ordered.
func (a *agentd) carryOut(e fdm.Effect) {
	h, s := a.h, a.h.s
	if off := s.opts.Off.Agent; off != nil {
		if e = off(h.name, e); e == nil {
			return
		}
	}
	switch e := e.(type) {
	case *fdm.SendHeartbeat:
		s.sendBeat(h, e)
	case fdm.SendMessage:
		s.sendMessage(h, &e)
	case fdm.AskGuard:
		a.askGuard(e)
	case fdm.ReadSlots:
		a.readSlots(e)
	case fdm.ReadList:
		r := fdm.ListRead{Op: e.Op, Datastore: e.Datastore}
		a.storage(e.Datastore, latencyList, false, a.writeLimit(), func(p *path) *lease.Fault {
			var f *lease.Fault
			if r.Lock, f = p.listing(model.ListLock); f == nil {
				r.List = p.d.lists[p.d.term]
			}
			return f
		}, func(kind, text string) fdm.Event { r.Kind, r.Err = kind, text; return r })
	case fdm.WriteList:
		s.check.listWritten(h, e)
		a.storage(e.Datastore, latencyList, true, a.writeLimit(), func(p *path) *lease.Fault { return p.d.writeList(e.List) },
			func(kind, text string) fdm.Event {
				return fdm.ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version, Kind: kind, Err: text}
			})
	case fdm.ReadLock:
		r := fdm.LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM}
		a.storage(e.Datastore, latencyLock, false, a.readLimit(), func(p *path) *lease.Fault {
			var f *lease.Fault
			r.Record, f = p.listing(model.VMLock(e.VM))
			return f
		}, func(kind, text string) fdm.Event { r.Kind, r.Err = kind, text; return r })
	case fdm.Hypervise:
		h.virt.call(e)
	case fdm.PingGuest:
		a.pingGuest(e)
	case fdm.PingHost:
		a.pingHost(e)
	case fdm.PingAddresses:
		a.pingAddresses(e)
	case fdm.WriteNote:
		a.storage(e.Datastore, latencyList, true, a.writeLimit(), func(p *path) *lease.Fault { return p.d.writeNote(e.Note) },
			func(kind, text string) fdm.Event { return fdm.NoteWritten{Op: e.Op, Kind: kind, Err: text} })
	case fdm.ReadNote:
		r := fdm.NoteRead{Op: e.Op}
		a.storage(e.Datastore, latencyLock, false, a.readLimit(), func(p *path) *lease.Fault {
			r.Note = p.d.notes[e.VM]
			return nil
		}, func(kind, text string) fdm.Event { r.Kind, r.Err = kind, text; return r })
	case fdm.Emit:
		s.emitted(h, &e.Event)
	case fdm.SaveConfig:
		a.later(5*time.Millisecond, func() fdm.Event {
			saved := fdm.ConfigSaved{Op: e.Op}
			if e.Version > h.file && s.files[e.Version] != nil {
				h.file = e.Version
			} else {
				saved.Err = "it is older than the version kept"
			}
			loaded := fdm.ConfigLoaded{Config: s.files[h.file].conf}
			if e.Op == 0 {
				return loaded
			}
			a.post(loaded)
			return saved
		})
	case fdm.Consider:
		a.later(20*time.Millisecond, func() fdm.Event { return fdm.Considered{Op: e.Op, Decision: e.Ask.Answer()} })
	case fdm.ReadConfig:
		a.later(5*time.Millisecond, func() fdm.Event {
			f := s.files[e.Version]
			if f == nil {
				return fdm.ConfigRead{Op: e.Op, Err: "no such file"}
			}
			return fdm.ConfigRead{Op: e.Op, Config: f.conf}
		})
	case fdm.Answer:
		if f := s.asked[e.ID]; f != nil {
			delete(s.asked, e.ID)
			f(e.Reply)
		}
	default:
		s.unknownEffect(h, e)
	}
}

// readSlots is the hot one of the reads: on a good path it needs no closure.
func (a *agentd) readSlots(e fdm.ReadSlots) {
	h, s := a.h, a.h.s
	p := h.pathTo(e.Datastore)
	started := h.clock()
	if p != nil && p.state == pathGood {
		l := s.queue.load()
		l.path, l.op, l.started = p, uint64(e.Op), started
		s.queue.push(item{at: s.now + p.latency(latencySlot), kind: kindSlots, h: h, life: a.life, p: l})
		return
	}
	r := fdm.SlotsRead{Op: e.Op, Datastore: e.Datastore, Started: started}
	a.storage(e.Datastore, latencySlot, false, a.readLimit(), func(p *path) *lease.Fault {
		if p.d.gone {
			return errGone
		}
		r.Slots, r.Completed = slices.Clone(p.slots()), h.clock()
		return nil
	}, func(kind, text string) fdm.Event {
		r.Kind, r.Err = kind, text
		if kind != "" {
			r.Completed = h.clock()
		}
		return r
	})
}

func (a *agentd) slotsRead(life uint32, l *load) {
	h, s := a.h, a.h.s
	p, op, started := l.path, fdm.OpID(l.op), l.started
	s.queue.release(l)
	if a.life != life {
		return
	}
	r := fdm.SlotsRead{Op: op, Datastore: p.d.name, Started: started, Completed: h.clock()}
	switch {
	case p.hangs():
		a.hungRead(r)
		return
	case p.fails(false, false) != nil:
		r.Kind, r.Err = errLost.Kind, errLost.Text
	case p.d.gone:
		r.Kind, r.Err = errGone.Kind, errGone.Text
	case a.idle() && h.s.opts.Off.AgentEvent == nil:
		a.read = r
		a.read.Slots = p.slots()
		a.now(&a.read)
		return
	default:
		r.Slots = slices.Clone(p.slots())
	}
	a.post(r)
}

func (a *agentd) hungRead(r fdm.SlotsRead) {
	a.later(a.readLimit(), func() fdm.Event {
		r.Completed, r.Kind, r.Err = a.h.clock(), "hung", "the datastore did not answer in time"
		return r
	})
}

// storage makes a storage call of the agent, which is given up after limit.
func (a *agentd) storage(name model.DatastoreName, base time.Duration, write bool, limit time.Duration,
	apply func(*path) *lease.Fault, answer func(kind, text string) fdm.Event) {
	s := a.h.s
	p := a.h.pathTo(name)
	if p == nil {
		a.later(0, func() fdm.Event { return answer("invalid", "this host has no such datastore") })
		return
	}
	life, over := a.life, false
	alive := func() bool { return a.life == life }
	end := func(kind, text string) {
		if !over && alive() {
			over = true
			a.post(answer(kind, text))
		}
	}
	p.call(base, write, write, alive, func() *lease.Fault {
		if over && !write {
			return nil // nobody waits, and the answer is sent already
		}
		return apply(p)
	}, func(f *lease.Fault) {
		if f != nil {
			end(f.Kind, f.Text)
		} else {
			end("", "")
		}
	})
	s.after(limit, func() { end("hung", "the datastore did not answer in time") })
}

// dialGuard connects to the guard as soon as both are there.
func (a *agentd) dialGuard() {
	h := a.h
	g := &h.guard
	if !a.up() || !g.up() || a.guardUp {
		return
	}
	life, glife := a.life, g.life
	h.s.after(20*time.Millisecond, func() {
		if a.life != life || g.life != glife || a.guardUp {
			return
		}
		if !g.runs() || !a.runs() {
			a.dialGuard()
			return
		}
		a.guardUp = true
		g.conns++
		g.conn, g.sub = g.conns<<8|2, false
		a.post(fdm.GuardChanged{Up: true})
		g.post(lease.Event{Kind: lease.EvRequest, Conn: g.conn, Request: &lease.Request{Subscribe: &lease.SubscribeNotice{}}})
	})
}

func (a *agentd) guardLost(why string) {
	if !a.guardUp {
		return
	}
	a.guardUp = false
	if !a.up() {
		return
	}
	for _, op := range sortedOps(a.asks) {
		delete(a.asks, op)
		a.post(fdm.GuardReplied{Op: op, Reply: lease.Reply{Code: lease.CodeTimeout, Text: "the guard did not answer: " + why}})
	}
	a.post(fdm.GuardChanged{Reason: why})
}

func sortedOps(m map[fdm.OpID]bool) []fdm.OpID {
	out := make([]fdm.OpID, 0, len(m))
	for op := range m {
		out = append(out, op)
	}
	slices.Sort(out)
	return out
}

func (a *agentd) askGuard(e fdm.AskGuard) {
	g := &a.h.guard
	if !a.guardUp {
		a.later(0, func() fdm.Event {
			return fdm.GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeBusy, Text: "the guard is not reachable"}}
		})
		return
	}
	if e.Request.Beat != nil && g.idle() { // the check of requests looks at none
		a.request = e.Request
		a.request.ID = uint64(e.Op)
		g.post(lease.Event{Kind: lease.EvRequest, Conn: g.conn, Request: &a.request})
		return
	}
	r := e.Request
	r.ID = uint64(e.Op)
	a.h.s.check.requested(a.h, &r)
	if r.Beat != nil && g.runs() {
		g.post(lease.Event{Kind: lease.EvRequest, Conn: g.conn, Request: &r})
		return
	}
	a.asks[e.Op] = true
	conn, life := g.conn, a.life
	send := func() {
		if g.conn == conn {
			g.post(lease.Event{Kind: lease.EvRequest, Conn: conn, Request: &r})
		}
	}
	if j := a.h.s.opts.Jitter; j > 0 {
		a.h.s.after(a.h.s.rng.between(0, j), send)
	} else {
		send()
	}
	a.h.s.after(guardLimit(&r), func() {
		if a.life == life && a.asks[e.Op] {
			delete(a.asks, e.Op)
			a.post(fdm.GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeTimeout, Text: "the guard did not answer in time"}})
		}
	})
}

func guardLimit(r *lease.Request) time.Duration {
	switch {
	case r.Beat != nil, r.Status != nil:
		return 2 * time.Second
	case r.Kill != nil, r.Claim != nil, r.Release != nil, r.ClaimList != nil:
		return 30 * time.Second
	}
	return 10 * time.Second
}

func (a *agentd) noticed(n *lease.Notice) {
	if n.Status != nil && !n.Status.HookSeen {
		a.h.virt.proveHook()
	}
	a.post(fdm.GuardNoticed{Notice: *n})
}

func (a *agentd) pingGuest(e fdm.PingGuest) {
	h := a.h
	p := h.procs[e.VM]
	if p != nil && p.runs() && !p.hung && p.alive <= h.s.now && h.virt.runs() {
		a.later(20*time.Millisecond, func() fdm.Event { return fdm.GuestPinged{Op: e.Op, Alive: h.procs[e.VM] == p} })
		return
	}
	a.later(e.Timeout, func() fdm.Event { return fdm.GuestPinged{Op: e.Op} })
}

// pingHost: the kernel answers, also that of a frozen host.
func (a *agentd) pingHost(e fdm.PingHost) {
	h, s := a.h, a.h.s
	to := s.byName[e.Host]
	d := 2 * s.conf.Timing.Interval
	if to != nil && s.joined(h, to) {
		d = time.Millisecond
	}
	a.later(d, func() fdm.Event {
		return fdm.HostPinged{Op: e.Op, Host: e.Host, Answered: to != nil && d == time.Millisecond && s.joined(h, to)}
	})
}

// pingAddresses: isolation addresses are on the first network, beyond whatever
// keeps hosts apart.
func (a *agentd) pingAddresses(e fdm.PingAddresses) {
	h, s := a.h, a.h.s
	o := s.cluster.HA.Options
	n := len(o.List("das.isolationaddress"))
	if o.Bool("das.usedefaultisolationaddress") {
		n++
	}
	answers := func() bool { return n > 0 && h.on && !h.suspend && !h.nics[0].mute && !h.nics[0].deaf }
	d := 2 * s.conf.Timing.Interval
	if answers() {
		d = time.Millisecond
	}
	a.later(d, func() fdm.Event {
		r := fdm.AddressesPinged{Op: e.Op, Asked: n}
		if d == time.Millisecond && answers() {
			r.Answered = "gateway"
		}
		return r
	})
}

// telling is an event for people, as an expectation may ask for it.
type telling struct {
	at   time.Duration
	host model.HostID
	kind event.Kind
	text string
}

func (s *Sim) emitted(h *host, e *event.Event) {
	if s.opts.Events != nil {
		s.opts.Events(h.name, *e)
	}
	switch e.Kind {
	case event.Verdict:
		s.cover[Verdicts]++
	case event.FailoverDone:
		s.cover[Failovers]++
	case event.Election:
		s.cover[Elections]++
	}
	text := e.Text
	if e.Cause != "" {
		text += " [" + e.Cause + "]"
	}
	if s.opts.Trace != nil {
		s.trace(h, "%s: %s", e.Kind, text)
	}
	if len(s.told) < 100_000 {
		s.told = append(s.told, telling{s.now, h.name, e.Kind, text})
	}
	for i := range len(text) {
		s.hash = mix(s.hash, uint64(text[i]))
	}
}
