package wire

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hanok.dev/hanok/internal/model"
)

// peer is another member: its queue, its connections and the one goroutine that
// connects to it.
type peer struct {
	n      *Node
	id     model.HostID
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{}

	// sendKey is read for every datagram; sendSet is the keyring's.
	sendKey atomic.Pointer[sendKey]
	sendSet *keySet
	// heardSet is the set of the last datagram that came.
	heardSet atomic.Pointer[keySet]

	// evMu orders the calls of the handler about this peer. It is taken
	// before mu.
	evMu sync.Mutex
	up   bool // Connected was called last

	mu        sync.Mutex
	addrs     []Address
	queue     [][]byte // frames
	queued    int      // bytes in queue
	seq       uint64   // of the last message sent
	conns     []*conn
	active    *conn // messages are written here
	wantUntil time.Time
	notBefore time.Time // earliest next round of connecting
	fails     int

	// Of the peer's current run, by its hello:
	instance [16]byte
	lastSeq  uint64
}

func newPeer(n *Node, id model.HostID) *peer {
	p := &peer{n: n, id: id, wake: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(n.ctx)
	if n.self > id {
		p.notBefore = time.Now().Add(keyGrace)
	}
	return p
}

func (p *peer) setAddresses(addrs []Address) {
	p.mu.Lock()
	p.addrs = slices.Clone(addrs)
	for i := range p.addrs {
		p.addrs[i].Addr = p.addrs[i].Addr.Unmap()
	}
	p.mu.Unlock()
	p.poke()
}

// address returns the peer's address on a network, or the zero Addr.
func (p *peer) address(network string) netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.addrs {
		if a.Network == network {
			return a.Addr
		}
	}
	return netip.Addr{}
}

func (p *peer) activeNetwork() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active == nil {
		return ""
	}
	return p.active.network
}

// remove ends everything with the peer, without waiting.
func (p *peer) remove(why Reason) {
	p.cancel() // before looking: nothing registers afterwards
	p.mu.Lock()
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	for _, c := range conns {
		c.fail(why)
	}
}

func (p *peer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// enqueue adds a message to what is to be sent.
func (p *peer) enqueue(payload []byte) error {
	p.mu.Lock()
	if len(p.queue) >= queueFrames || p.queued+len(payload) > queueBytes {
		c := p.active
		p.dropQueue()
		p.mu.Unlock()
		p.n.stats.add(queuesFull)
		if c != nil {
			c.fail(ReasonQueueFull)
		}
		return ErrQueueFull
	}
	p.seq++
	var seq [8]byte
	putUint64(seq[:], p.seq)
	f := appendFrame(make([]byte, 0, frameHeader+8+len(payload)), frameMessage, seq[:], payload)
	p.queue = append(p.queue, f)
	p.queued += len(f)
	c := p.active
	p.mu.Unlock()
	if c != nil {
		c.poke()
	} else {
		p.poke()
	}
	return nil
}

// dropQueue discards what waits; p.mu is held.
func (p *peer) dropQueue() (lost int) {
	lost = len(p.queue)
	p.queue, p.queued = nil, 0
	p.n.stats[messagesDropped].Add(uint64(lost))
	return lost
}

// take hands the queue to the connection that sends; p.mu is held.
func (p *peer) take(c *conn) [][]byte {
	if p.active != c {
		return nil
	}
	q := p.queue
	p.queue, p.queued = nil, 0
	return q
}

// run connects to the peer whenever there is a reason to.
func (p *peer) run() {
	defer p.cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p.ctx.Err() == nil {
		now := time.Now()
		need, at := p.plan(now)
		if need && !at.After(now) {
			p.round()
			continue
		}
		timer.Reset(max(time.Until(at), time.Millisecond))
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.ctx.Done():
		}
	}
}

// plan says whether to connect, and when to look again.
func (p *peer) plan(now time.Time) (need bool, at time.Time) {
	age, keyed := p.n.keys.age(p, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	rekey := !keyed || age >= p.n.cfg.Rekey
	need = rekey || p.active == nil && (len(p.queue) > 0 || now.Before(p.wantUntil))
	if need {
		return true, p.notBefore
	}
	return false, now.Add(p.n.cfg.Rekey - age)
}

// round tries the peer's networks in order, each dialStagger after the one
// before unless that has failed already, and keeps the first connection.
func (p *peer) round() {
	p.mu.Lock()
	var addrs []Address
	for _, a := range p.addrs {
		if _, ok := p.n.own[a.Network]; ok && a.Addr.IsValid() {
			addrs = append(addrs, a)
		}
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, handshakeTimeout)
	defer cancel()
	results := make(chan *conn)
	stagger := time.NewTimer(0)
	defer stagger.Stop()
	<-stagger.C
	started, pending := 0, 0
	next := func() {
		a := addrs[started]
		started++
		pending++
		stagger.Reset(dialStagger)
		p.n.wg.Go(func() { results <- p.n.dial(ctx, p, a) })
	}
	if len(addrs) > 0 {
		next()
	}
	var won *conn
	for pending > 0 {
		select {
		case c := <-results:
			pending--
			switch {
			case c == nil:
				if won == nil && started < len(addrs) && ctx.Err() == nil {
					next()
				}
			case won == nil:
				won = c
				cancel()
			default:
				c.raw.Close()
			}
		case <-stagger.C:
			if won == nil && started < len(addrs) && ctx.Err() == nil {
				next()
			}
		}
	}
	if won != nil {
		p.n.wg.Go(won.run)
		// Its first act is to become the connection in use; without waiting
		// for that, the loop would connect once more.
		<-won.registered
		return
	}
	p.roundFailed()
}

func (p *peer) roundFailed() {
	p.evMu.Lock()
	defer p.evMu.Unlock()
	p.mu.Lock()
	p.pushBack()
	lost := 0
	if p.active == nil { // the peer may have connected to us meanwhile
		lost = p.dropQueue()
	}
	p.mu.Unlock()
	if lost > 0 && p.ctx.Err() == nil {
		p.up = false
		p.n.handler.Disconnected(p.id, ReasonUnreachable)
	}
}

// pushBack sets the time of the next round; p.mu is held.
func (p *peer) pushBack() {
	p.notBefore = time.Now().Add(backoff(p.fails, rand.Float64()))
	p.fails++
}

// backoff is the pause after so many failures in a row: doubling from
// backoffMin to backoffMax, shortened by up to a quarter at random (0 to 1) so
// that hosts do not act in step.
func backoff(fails int, random float64) time.Duration {
	d := backoffMax
	if fails < 8 {
		d = min(backoffMin<<fails, backoffMax)
	}
	return d - time.Duration(random*float64(d)/4)
}

// register makes a connection usable; false when it is not wanted any more.
func (p *peer) register(c *conn) bool {
	p.evMu.Lock()
	defer p.evMu.Unlock()
	p.mu.Lock()
	if p.ctx.Err() != nil {
		p.mu.Unlock()
		return false
	}
	var old []*conn
	why := ReasonSuperseded
	restarted := c.instance != p.instance
	if restarted {
		// The peer's agent is another run: what its predecessor left is dead.
		why = ReasonRestarted
		old = slices.Clone(p.conns)
		p.conns, p.active = nil, nil
		p.instance, p.lastSeq = c.instance, 0
	} else if len(p.conns) >= connsPerPeer {
		i := slices.IndexFunc(p.conns, func(x *conn) bool { return x != p.active })
		old = []*conn{p.conns[i]}
	}
	p.conns = append(p.conns, c)
	wasUp := p.up
	if p.active == nil {
		p.active = c
	}
	p.up = true
	p.mu.Unlock()
	for _, o := range old {
		o.fail(why)
	}
	if wasUp && restarted {
		p.n.handler.Disconnected(p.id, ReasonRestarted)
	}
	if !wasUp || restarted {
		p.n.handler.Connected(p.id)
	}
	p.poke()
	return true
}

// unregister forgets a connection that ended, tells the handler and has it
// made again when it was in use.
func (p *peer) unregister(c *conn, why Reason) {
	p.evMu.Lock()
	defer p.evMu.Unlock()
	p.mu.Lock()
	was := slices.Contains(p.conns, c)
	p.conns = slices.DeleteFunc(p.conns, func(x *conn) bool { return x == c })
	inUse := p.active == c
	if inUse {
		p.active = p.spare()
	}
	next := p.active
	if was && why != ReasonIdle {
		now := time.Now()
		if now.Sub(c.born) > p.n.silence() {
			p.fails = 0
		}
		p.pushBack()
		if !c.dialed {
			p.notBefore = p.notBefore.Add(keyGrace) // the dialler goes first
		}
		if now.Sub(c.lastUsed()) < p.n.cfg.Idle {
			p.wantUntil = now.Add(p.n.cfg.Idle)
		}
	}
	if next == nil && why != ReasonIdle {
		p.dropQueue()
	}
	p.mu.Unlock()
	if was && p.up && (inUse || next == nil) {
		p.up = next != nil
		p.n.handler.Disconnected(p.id, why)
		if next != nil {
			p.n.handler.Connected(p.id)
			next.poke()
		}
	}
	p.poke()
}

// spare is another connection to send on; p.mu is held.
func (p *peer) spare() *conn {
	for _, c := range p.conns {
		if !c.retired {
			return c
		}
	}
	return nil
}

// retire stops sending messages on a connection; p.mu is held.
func (p *peer) retire(c *conn) {
	c.retired = true
	if p.active == c {
		p.active = p.spare()
		if p.active != nil {
			p.active.poke()
		} else {
			p.poke()
		}
	}
}

// deliver hands a message to the handler unless it is older than one that came
// over another connection.
func (p *peer) deliver(c *conn, seq uint64, payload []byte) {
	p.evMu.Lock()
	defer p.evMu.Unlock()
	p.mu.Lock()
	stale := c.instance != p.instance || seq <= p.lastSeq || !slices.Contains(p.conns, c)
	if !stale {
		p.lastSeq = seq
	}
	p.mu.Unlock()
	if stale {
		p.n.stats.add(messagesStale)
		return
	}
	p.n.stats.add(messagesReceived)
	p.n.handler.Message(p.id, payload)
}
