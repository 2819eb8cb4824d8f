package sim

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// pathState is the state of one host's path to one datastore.
type pathState uint8

const (
	pathGood       pathState = iota
	pathHang                 // calls block; those of a killed process have no effect
	pathHangHard             // calls block; all take effect when the path answers
	pathLost                 // input/output errors
	pathSlow                 // 0.7 s longer each
	pathFull                 // what needs blocks fails
	pathReadonly             // changes fail
	pathFlaky                // errors at random, with or without effect, some of them late
	pathCached               // listings are up to some seconds old, as on NFS with caches
	pathUnanswered           // calls take effect at once and are not answered
	pathStale                // heartbeats are read as they were when it began
)

var pathStates = map[scenario.Fault]pathState{
	scenario.FaultNone: pathGood, scenario.FaultHang: pathHang, scenario.FaultHangHard: pathHangHard, scenario.FaultLost: pathLost,
	scenario.FaultSlow: pathSlow, scenario.FaultFull: pathFull, scenario.FaultReadonly: pathReadonly,
	scenario.FaultFlaky: pathFlaky, scenario.FaultCached: pathCached, scenario.FaultUnanswered: pathUnanswered, scenario.FaultStale: pathStale,
}

// Latencies of storage calls, about those that were measured on a lab host.
const (
	latencySlot = 400 * time.Microsecond
	latencyLock = time.Millisecond
	latencyLink = 6 * time.Millisecond
	latencyList = 15 * time.Millisecond
	slowBy      = 700 * time.Millisecond
	cachedFor   = 3 * time.Second
)

// path is one host's way to one datastore.
type path struct {
	h     *host
	d     *disk
	state pathState
	since time.Duration // of state
	stuck []stuckCall
	sent  model.Slot // whose digest was worked out last
	mark  string     // that digest
	cache map[model.LockID]cached
	old   []model.SlotReading // what pathStale shows
}

type cached struct {
	rec model.LockRecord
	at  time.Duration
}

// stuckCall is a call that the path does not answer. apply is its effect, or
// nil if it has had it; it is dropped with its process on a path that hangs softly.
type stuckCall struct {
	alive func() bool
	apply func()
	done  func()
}

// write tells whether a call that changes something fails on the path, as far
// as that is certain. grows: it needs new blocks.
func (p *path) fails(write, grows bool) *lease.Fault {
	switch {
	case p.state == pathLost:
		return errLost
	case p.state == pathReadonly && write:
		return errReadonly
	case p.state == pathFull && grows:
		return errFull
	}
	return nil
}

// hangs tells whether nothing is answered.
func (p *path) hangs() bool {
	return p.state == pathHang || p.state == pathHangHard || p.state == pathUnanswered
}

// keep makes a call wait until the path answers again. Where only answers are
// missing it takes effect at once.
func (p *path) keep(c stuckCall) {
	if p.state == pathUnanswered && c.apply != nil {
		c.apply()
		c.apply = nil
	}
	p.stuck = append(p.stuck, c)
}

// digest is digestOf a slot that the host writes: asked for when the guard
// orders the write, and when it reaches the device.
func (p *path) digest(x *model.Slot) string {
	if p.mark == "" || *x != p.sent {
		p.sent, p.mark = *x, digestOf(x)
	}
	return p.mark
}

func (p *path) latency(base time.Duration) time.Duration {
	d := base + p.h.s.rng.between(0, base)
	if p.state == pathSlow {
		d += slowBy
	}
	return d
}

// call makes a storage call of a process: apply at the moment at which it
// reaches the device, done when the process learns of it. On a path that hangs
// both wait; on a flaky one the answer may be an error whatever happened.
func (p *path) call(base time.Duration, write, grows bool, alive func() bool, apply func() *lease.Fault, done func(*lease.Fault)) {
	s := p.h.s
	if p.hangs() {
		var f *lease.Fault
		p.keep(stuckCall{alive, func() { f = apply() }, func() { done(f) }})
		return
	}
	early := write && s.rng.chance(500) // it lands at once, the answer takes its time
	var f *lease.Fault
	if f = p.fails(write, grows); f == nil && early {
		f = apply()
	}
	s.after(p.latency(base), func() {
		switch {
		case !p.h.on:
			return // it was on its way when the power went: lost, or landed early
		case p.hangs() && !early && f == nil:
			p.keep(stuckCall{alive, func() { f = apply() }, func() { done(f) }})
			return
		case p.hangs():
			p.keep(stuckCall{alive, nil, func() { done(f) }})
			return
		}
		if f == nil && p.state == pathFlaky && s.rng.chance(200) {
			s.cover[LostReplies]++
			switch {
			case early || !write:
			case s.rng.chance(400):
				apply()
			case s.rng.chance(500):
				s.cover[LateWrites]++
				s.after(s.rng.between(0, 12*time.Second), func() { apply() })
			}
			f = errLost
		} else if !early && f == nil {
			if f = p.fails(write, grows); f == nil {
				f = apply()
			}
		}
		done(f)
	})
}

// set changes the path's state; what hung goes on when it answers again.
func (p *path) set(state pathState) {
	if p.state == state {
		return
	}
	was := p.hangs()
	p.state, p.since = state, p.h.s.now
	p.cache, p.old = nil, nil
	if state == pathStale {
		p.old = slices.Clone(p.d.slots)
	}
	p.h.s.disturbed()
	if was && !p.hangs() {
		p.release()
	}
	for _, q := range slices.Clone(p.h.order) {
		switch {
		case state == pathGood && (q.ioError || q.busy == p), q.busy == p && !p.hangs():
			q.healed()
		default:
			q.touchStorage()
		}
	}
}

// release lets what hung go on.
func (p *path) release() {
	stuck := p.stuck
	p.stuck = nil
	late := 0
	for _, c := range stuck {
		switch {
		case c.apply == nil && c.alive():
			p.h.s.cover[LateReplies]++
		case c.apply != nil && !c.alive():
			late++
		}
		if c.apply != nil {
			c.apply()
		}
		if c.alive() {
			p.h.s.after(p.latency(latencySlot), func() {
				if c.alive() {
					c.done()
				}
			})
		}
	}
	p.h.s.cover[LateWrites] += late
}

// processGone drops what a dead process waits for: it has no effect, except on
// a path that hangs in the kernel.
func (p *path) processGone() {
	if p.state != pathHangHard {
		p.stuck = slices.DeleteFunc(p.stuck, func(c stuckCall) bool { return !c.alive() })
	}
}

// powerLost drops everything. Of calls that were on their way in the fabric one
// in four lands a moment later.
func (p *path) powerLost() {
	for _, c := range p.stuck {
		if c.apply != nil && p.h.s.rng.chance(250) {
			p.h.s.cover[LateWrites]++
			p.h.s.after(p.h.s.rng.between(0, 100*time.Millisecond), c.apply)
		}
	}
	p.stuck = nil
}

// slots are the heartbeats that this host's agent reads; nobody changes them.
func (p *path) slots() []model.SlotReading {
	if p.state == pathStale {
		return p.old
	}
	return p.d.slots
}

// listing is what this host sees as a lock's highest record.
func (p *path) listing(lock model.LockID) (model.LockRecord, *lease.Fault) {
	s := p.h.s
	if p.state == pathCached {
		if c, ok := p.cache[lock]; ok && s.now-c.at < cachedFor {
			return c.rec, nil
		}
	}
	rec, f := p.d.highest(lock)
	if f == nil && p.state == pathCached {
		if p.cache == nil {
			p.cache = map[model.LockID]cached{}
		}
		p.cache[lock] = cached{rec, s.now}
	}
	return rec, f
}
