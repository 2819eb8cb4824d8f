package agent

import (
	"context"
	"time"

	"hanok.dev/hanok/internal/fdm"
)

// loop owns the machine. Heartbeats go first: they are short, and the verdict
// on a host must not wait behind other work.
func (a *Agent) loop(ctx context.Context, failed <-chan error) error {
	now := a.cfg.Ports.Now
	m := a.cfg.newCore(fdm.Config{Self: a.host, Boot: a.bootID(), Start: a.start})
	a.share = newShare(a.host, a.events.Recent(backlogEvents, nil))
	var own []fdm.Event // answers that the loop gives itself
	step := func(ev fdm.Event) {
		at := now()
		for _, e := range m.Step(at, ev) {
			own = append(own, a.carryOut(ctx, at, e)...)
		}
	}
	step(fdm.ConfigLoaded{Config: ClusterOf(a.setup.Load().cluster, a.host)})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		a.drainBeats(step)
		if len(own) > 0 {
			ev := own[0]
			own = own[1:]
			step(ev)
			continue
		}
		a.flushEvents()
		timer.Reset(max(0, m.Next()-now()))
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case ev := <-a.beats:
			step(ev)
		case ev := <-a.in:
			if shared, ok := a.takeShared(ev); ok {
				a.keepShared(shared)
				continue
			}
			if l, ok := ev.(fdm.LinkChanged); ok {
				a.share.link(l.Host, l.Up)
			}
			step(ev)
		case q := <-a.queries:
			q(m)
		case <-timer.C:
			step(fdm.Tick{})
		}
	}
}

// drainBeats steps the heartbeats that wait, at most one queue's worth.
func (a *Agent) drainBeats(step func(fdm.Event)) {
	for range beatQueue {
		select {
		case ev := <-a.beats:
			step(ev)
		default:
			return
		}
	}
}

// post gives an event to the loop, waiting while its queue is full.
func (a *Agent) post(ctx context.Context, ev fdm.Event) {
	select {
	case a.in <- ev:
	case <-ctx.Done():
	}
}

// operate runs op, which answers one operation, in a goroutine of its own; when
// too many are under way the loop answers with busy itself.
func (a *Agent) operate(ctx context.Context, busy fdm.Event, op func() fdm.Event) []fdm.Event {
	select {
	case a.ops <- struct{}{}:
	default:
		a.count.add("operations-busy")
		return []fdm.Event{busy}
	}
	a.goes(func() {
		defer func() { <-a.ops }()
		a.post(ctx, op())
	})
	return nil
}

// ask runs f on the loop with the machine; false when the loop did not come to
// it in time.
func (a *Agent) ask(ctx context.Context, f func(core)) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	done := make(chan struct{})
	select {
	case a.queries <- func(m core) { f(m); close(done) }:
		<-done
		return true
	case <-ctx.Done():
		return false
	}
}
