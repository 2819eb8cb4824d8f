package sim

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// guard is a host's guard: a lease.Machine and what internal/guard is around it.
type guard struct {
	h        *host
	m        *lease.Machine
	life     uint32
	lives    int // in this boot
	stopped  bool
	busy     bool
	inbox    []lease.Event
	orders   []lease.Effect // of a step, that wait while the guard is stopped
	alarm    alarm
	next     time.Duration // of the machine, if nextOK: it changes with its steps only
	nextOK   bool
	stall    int // stop before so many more effects; 0 is off
	stallFor time.Duration

	saved  *lease.Saved // in /run
	conn   uint64       // of the agent; 0 is none
	sub    bool
	conns  uint64
	asked  map[uint64]func(lease.Reply) // other connections
	hooked uint32                       // life of the libvirtd that proved the hook
	seen   map[seenKey]model.Epoch      // highest epochs, as the driver remembers
	procs  []lease.Proc
}

type seenKey struct {
	d    *disk
	lock model.LockID
}

func (g *guard) up() bool   { return g.m != nil }
func (g *guard) runs() bool { return g.m != nil && !g.stopped && !g.h.halted() }

// start begins a new life.
func (g *guard) start() {
	h, s := g.h, g.h.s
	if g.up() || !h.on {
		return
	}
	g.life++
	g.lives++
	g.stopped, g.busy, g.inbox, g.orders, g.conn, g.sub = false, false, nil, nil, 0, false
	g.alarm, g.nextOK = alarm{}, false
	g.hooked = 0
	g.asked, g.seen = map[uint64]func(lease.Reply){}, map[seenKey]model.Epoch{}
	cfg := g.config()
	cfg.Managed, cfg.ManagedUnknown = h.managed, !h.managedKnown && g.lives > 1
	cfg.Predecessor = g.lives > 1
	g.m = lease.New(cfg, g.saved)
	s.trace(h, "guard starts")
	if s.opts.NoWatchdog[h.name] {
		g.post(lease.Event{Kind: lease.EvWatchdog, Text: "there is no watchdog"})
	} else {
		g.post(lease.Event{Kind: lease.EvTick})
	}
	h.agent.dialGuard()
}

func (g *guard) config() lease.Config {
	h, s := g.h, g.h.s
	f := s.files[h.file]
	cfg := lease.Config{Host: h.name, Boot: h.boot, Incarnation: uint64(g.life), Timing: f.conf.Timing, Nonce: s.nonce,
		Identify: func(name model.DatastoreName, x model.Slot) string {
			if p := h.pathTo(name); p != nil {
				return p.digest(&x)
			}
			return digestOf(&x)
		}}
	for _, d := range f.cluster.DatastoresOf(h.name) {
		cfg.Datastores = append(cfg.Datastores, lease.DatastoreConfig{Name: d.Name, Fence: d.Fence, Unfenced: d.Unfenced == "accept" || s.opts.Off.Unfenced})
	}
	return cfg
}

// die is the end of the process. Whoever waits for it is told by the kernel.
func (g *guard) die() {
	if !g.up() {
		return
	}
	h := g.h
	g.m, g.stopped = nil, false
	g.life++
	g.inbox, g.orders, g.conn, g.sub = nil, nil, 0, false
	for _, p := range h.paths {
		if p != nil {
			p.processGone()
		}
	}
	h.agent.guardLost("the guard closed the connection")
}

// kill ends the guard; what supervises it starts it again.
func (g *guard) kill() {
	if !g.up() {
		return
	}
	h := g.h
	h.s.trace(h, "guard killed")
	g.die()
	boots := h.boots
	h.s.after(respawn, func() {
		if h.boots == boots && !h.s.opts.Off.NoRespawn {
			g.start()
		}
	})
}

func (g *guard) resume() {
	if g.runs() {
		g.drain()
		g.post(lease.Event{Kind: lease.EvTick})
	}
}

// idle: an event would be taken at once.
func (g *guard) idle() bool {
	return !g.busy && len(g.inbox) == 0 && len(g.orders) == 0 && g.h.slow == 0 && g.runs()
}

// post gives the machine an event, as soon as the process runs.
func (g *guard) post(ev lease.Event) {
	if !g.up() {
		return
	}
	if g.idle() {
		g.busy = true
		life := g.life
		g.step(&ev)
		if g.life != life {
			return
		}
		g.busy = false
		if len(g.inbox) > 0 {
			g.drain()
		} else if g.runs() {
			g.plan()
		}
		return
	}
	g.inbox = append(g.inbox, ev)
	if g.h.slow > 0 {
		life := g.life
		g.h.s.after(g.h.s.rng.between(0, g.h.slow), func() {
			if g.life == life {
				g.drain()
			}
		})
		return
	}
	g.drain()
}

func (g *guard) drain() {
	if g.busy {
		return
	}
	g.busy = true
	life := g.life
	for g.runs() && g.life == life {
		if len(g.orders) > 0 {
			e := g.orders[0]
			g.orders = g.orders[1:]
			g.carryOut(&e)
			continue
		}
		if len(g.inbox) == 0 {
			break
		}
		ev := g.inbox[0]
		copy(g.inbox, g.inbox[1:])
		g.inbox[len(g.inbox)-1] = lease.Event{}
		g.inbox = g.inbox[:len(g.inbox)-1]
		g.step(&ev)
	}
	if g.life == life {
		g.busy = false
		if g.runs() {
			g.plan()
		}
	}
}

func (g *guard) step(ev *lease.Event) {
	s := g.h.s
	s.steps++
	life := g.life
	g.nextOK = false
	effects := g.m.Step(g.h.clock(), *ev)
	for i := range effects {
		e := &effects[i]
		if g.stall > 0 {
			if g.stall--; g.stall == 0 {
				s.stopGuard(g.h, g.stallFor)
			}
		}
		if !g.runs() || g.life != life {
			if g.life == life {
				rest := slices.Clone(effects[i:])
				for k := range rest {
					rest[k].Known = slices.Clone(rest[k].Known)
				}
				g.orders = append(g.orders, rest...)
			}
			return
		}
		g.carryOut(e)
	}
}

// due is when the machine wants its next tick.
func (g *guard) due() time.Duration {
	if !g.nextOK {
		g.next, g.nextOK = g.m.Next(), true
	}
	return g.next
}

// plan makes sure that the machine is woken in time.
func (g *guard) plan() {
	h := g.h
	if g.alarm.set(h, g.due()) {
		h.s.queue.push(item{at: g.alarm.at, kind: kindGuard, h: h, life: g.life})
	}
}

func (g *guard) wakeUp(life uint32) {
	if g.life != life || g.alarm.at != g.h.s.now {
		return // another one is in the queue
	}
	g.alarm.at = 0
	if !g.runs() {
		return
	}
	if g.due() > g.h.clock() {
		g.plan()
		return
	}
	g.post(lease.Event{Kind: lease.EvTick})
}

// carryOut does what the machine ordered.
func (g *guard) carryOut(e *lease.Effect) {
	h, s := g.h, g.h.s
	if s.opts.Off.Guard != nil && !s.opts.Off.Guard(h.name, e) {
		return
	}
	if e.Before != 0 && h.clock() > e.Before {
		return
	}
	switch e.Kind {
	case lease.EffSaveState:
		if g.saved == nil {
			g.saved = &lease.Saved{}
		}
		g.m.SaveTo(g.saved)
	case lease.EffSaveManaged:
		h.managed, h.managedKnown = g.m.ManagedVMs(), true
	case lease.EffWriteSlot:
		g.writeSlot(e)
	case lease.EffReadSlot, lease.EffListLock, lease.EffLinkLock, lease.EffCreateLock:
		g.storage(*e)
	case lease.EffPrune:
	case lease.EffScan:
		p := s.queue.load()
		p.op = e.Op
		s.queue.push(item{at: s.now + 2*time.Millisecond, kind: kindScan, h: h, life: g.life, p: p})
	case lease.EffFreeze:
		g.freeze(e.Op, e.VM)
	case lease.EffThaw:
		g.thaw(e.VM)
	case lease.EffKill:
		if p := h.procs[e.VM]; p != nil {
			p.end(endGuard, "killed by the guard")
		} else {
			g.post(lease.Event{Kind: lease.EvGone, VM: e.VM})
		}
	case lease.EffPet:
		if s.opts.NoWatchdog[h.name] {
			return
		}
		set := !h.dog.open || h.dog.by != g.life || h.dog.timeout != e.Timeout
		h.dog.timeout, h.dog.by = e.Timeout, g.life
		h.dog.feed(h)
		if set {
			g.post(lease.Event{Kind: lease.EvWatchdog, On: true, Open: true, Timeout: e.Timeout})
		}
	case lease.EffReply:
		g.reply(e.Conn, e.Reply)
	case lease.EffSubscribe:
		g.sub = g.sub || e.Conn == g.conn
	case lease.EffNotify:
		if g.conn != 0 && g.sub && (e.Conn == 0 || e.Conn == g.conn) {
			h.agent.noticed(e.Notice)
		}
	case lease.EffReload:
		cfg := g.config()
		g.post(lease.Event{Kind: lease.EvConfig, Config: &cfg})
	}
}

func (g *guard) reply(conn uint64, r *lease.Reply) {
	if f := g.asked[conn]; f != nil {
		delete(g.asked, conn)
		f(*r)
		return
	}
	if conn == g.conn && conn != 0 {
		delete(g.h.agent.asks, fdm.OpID(r.ID))
		g.h.s.check.replied(g, r)
		g.h.agent.answered(fdm.OpID(r.ID), r)
	}
}

// ask sends a request on a connection of its own; f is not called if the guard
// ends or never answers.
func (g *guard) ask(r *lease.Request, f func(lease.Reply)) {
	g.conns++
	conn := g.conns<<8 | 1
	g.asked[conn] = f
	g.post(lease.Event{Kind: lease.EvRequest, Conn: conn, Request: r})
}

func (g *guard) writeSlot(e *lease.Effect) {
	h, s := g.h, g.h.s
	p := h.pathTo(e.Datastore)
	if p == nil {
		g.post(lease.Event{Kind: lease.EvSlotWritten, Op: e.Op, Fault: faultOf("invalid", "this host has no such datastore")})
		return
	}
	if p.state != pathGood {
		op, slot, known, digest := e.Op, e.Slot, slices.Clone(e.Known), p.digest(&e.Slot)
		p.call(latencySlot, true, false, g.living(), func() *lease.Fault { return p.d.writeSlot(h, known, &slot, digest) }, func(f *lease.Fault) {
			g.post(lease.Event{Kind: lease.EvSlotWritten, Op: op, Fault: f})
		})
		return
	}
	l := s.queue.load()
	l.path, l.op, l.slot, l.known = p, e.Op, e.Slot, append(l.known[:0], e.Known...)
	s.queue.push(item{at: s.now + p.latency(latencySlot), kind: kindWrote, h: h, life: g.life, p: l})
}

// wrote: a heartbeat on a good path reaches the device and returns.
func (g *guard) wrote(life uint32, l *load) {
	h, s := g.h, g.h.s
	defer s.queue.release(l)
	p := l.path
	switch {
	case g.life != life:
		if !h.on || !s.rng.chance(500) {
			return // lost with its process
		}
	case p.hangs():
		op, slot, known, digest := l.op, l.slot, slices.Clone(l.known), p.digest(&l.slot)
		var f *lease.Fault
		p.keep(stuckCall{g.living(), func() { f = p.d.writeSlot(h, known, &slot, digest) },
			func() { g.post(lease.Event{Kind: lease.EvSlotWritten, Op: op, Fault: f}) }})
		return
	}
	f := p.fails(true, false)
	if f == nil {
		f = p.d.writeSlot(h, l.known, &l.slot, p.digest(&l.slot))
	}
	if g.life == life {
		g.post(lease.Event{Kind: lease.EvSlotWritten, Op: l.op, Fault: f})
	}
}

// living tells later whether this life of the guard goes on.
func (g *guard) living() func() bool {
	life := g.life
	return func() bool { return g.life == life }
}

// answers are the events that answer storage calls.
var answers = [...]lease.EventKind{lease.EffReadSlot: lease.EvSlotRead, lease.EffListLock: lease.EvLockListed,
	lease.EffLinkLock: lease.EvLockLinked, lease.EffCreateLock: lease.EvLockCreated}

// storage makes a call about a lock or another host's slot.
func (g *guard) storage(e lease.Effect) {
	h := g.h
	ev := lease.Event{Kind: answers[e.Kind], Op: e.Op}
	p := h.pathTo(e.Datastore)
	if p == nil {
		ev.Fault = faultOf("invalid", "this host has no such datastore")
		g.post(ev)
		return
	}
	alive := g.living()
	done := func(f *lease.Fault) {
		if alive() {
			ev.Fault = f
			g.post(ev)
		}
	}
	switch e.Kind {
	case lease.EffReadSlot:
		p.call(latencySlot, false, false, alive, func() *lease.Fault {
			r := p.d.slotOf(h.s.byName[e.Host])
			switch {
			case p.d.gone:
				return errGone
			case r == nil:
				return errNoSlot
			}
			ev.Reading = *r
			return nil
		}, done)
	case lease.EffListLock:
		p.call(latencyLock, false, false, alive, func() *lease.Fault {
			rec, f := p.listing(e.Lock)
			k := seenKey{p.d, e.Lock}
			if f == nil && rec.Epoch < g.seen[k] && p.state != pathCached {
				return errOlder
			}
			g.seen[k] = max(g.seen[k], rec.Epoch)
			ev.Record = rec
			return f
		}, done)
	case lease.EffLinkLock:
		p.call(latencyLink, true, true, alive, func() *lease.Fault {
			delete(p.cache, e.Record.Lock) // a client sees what it did itself
			return p.d.link(e.Record)
		}, done)
	case lease.EffCreateLock:
		p.call(latencyLink, true, true, alive, func() *lease.Fault { return p.d.createLock(e.Lock, e.Record) }, done)
	}
}

func (h *host) pathTo(name model.DatastoreName) *path {
	for _, p := range h.paths {
		if p != nil && p.d.name == name {
			return p
		}
	}
	return nil
}
