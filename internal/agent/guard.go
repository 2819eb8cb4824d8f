package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
)

// Pauses between attempts to reach the guard, which is restarted within 100 ms.
const (
	guardRetryMin = 100 * time.Millisecond
	guardRetryMax = time.Second
)

// guardLink keeps a connection to this host's guard.
type guardLink struct {
	a *Agent

	mu   sync.Mutex
	conn Guard
	why  string // why there is none
	// hookSeen wakes the canary when the guard has not seen the hook.
	unseen chan struct{}
}

func newGuardLink(a *Agent) *guardLink {
	return &guardLink{a: a, why: "not connected yet", unseen: make(chan struct{}, 1)}
}

func (g *guardLink) run(ctx context.Context) {
	pause := guardRetryMin
	for ctx.Err() == nil {
		dctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		conn, err := g.a.cfg.Ports.DialGuard(dctx)
		cancel()
		if err == nil {
			pause = guardRetryMin
			err = g.session(ctx, conn)
			g.a.post(ctx, fdm.GuardChanged{Reason: err.Error()})
		}
		g.mu.Lock()
		g.why = err.Error()
		g.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, guardRetryMax)
	}
}

// session serves one connection until it ends, and says why it did.
func (g *guardLink) session(ctx context.Context, conn Guard) error {
	defer conn.Close()
	g.set(conn)
	defer g.set(nil)
	g.a.post(ctx, fdm.GuardChanged{Up: true})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n, ok := <-conn.Notices():
			if !ok {
				return fmt.Errorf("the guard closed the connection; it restarts by itself, see its log otherwise")
			}
			if n.Status != nil {
				g.noteStatus(*n.Status)
			}
			g.a.post(ctx, fdm.GuardNoticed{Notice: n})
		}
	}
}

func (g *guardLink) set(conn Guard) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conn = conn
}

func (g *guardLink) get() (Guard, string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conn, g.why
}

func (g *guardLink) noteStatus(s lease.Status) {
	g.a.mu.Lock()
	g.a.guardSt = s
	g.a.mu.Unlock()
	if !s.HookSeen {
		select {
		case g.unseen <- struct{}{}:
		default:
		}
	}
}

// do asks the guard and turns every failure into a reply: CodeBusy when nothing
// was done, CodeTimeout when nobody knows.
func (g *guardLink) do(ctx context.Context, req lease.Request) lease.Reply {
	conn, why := g.get()
	if conn == nil {
		return lease.Reply{Code: lease.CodeBusy, Text: "the guard is not reachable: " + why}
	}
	ctx, cancel := context.WithTimeout(ctx, guardLimit(req))
	defer cancel()
	r, err := conn.Do(ctx, req)
	if err != nil {
		g.a.count.add("guard-no-answer")
		return lease.Reply{Code: lease.CodeTimeout, Text: "the guard did not answer: " + err.Error()}
	}
	return r
}

// guardLimit is how long the guard may take. It bounds its storage steps by the
// lease itself; these are for a guard that hangs.
func guardLimit(r lease.Request) time.Duration {
	switch {
	case r.Beat != nil, r.Status != nil:
		return 2 * time.Second
	case r.Kill != nil, r.Claim != nil, r.Release != nil, r.ClaimList != nil:
		return 30 * time.Second
	default:
		return 10 * time.Second
	}
}
