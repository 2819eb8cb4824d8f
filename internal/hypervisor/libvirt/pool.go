package libvirt

import (
	"context"
	"sync"
)

// Sizes of the pools: calls under way at once, with the lanes below
// libvirtd's twenty workers; connections kept for the next call.
const (
	maxCalls = 12
	maxSafe  = 4
	maxIdle  = 4
)

// pool lends connections to calls, one each.
type pool struct {
	socket, uri string
	slots       chan struct{}

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

func newPool(socket, uri string, size int) *pool {
	return &pool{socket: socket, uri: uri, slots: make(chan struct{}, size)}
}

// get waits for a free slot and lends a connection; give it back with put.
func (p *pool) get(ctx context.Context) (*conn, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c := p.take(); c != nil {
		return c, nil
	}
	c, err := open(ctx, p.socket, p.uri)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

// take lends the idle connection used last, if one is alive.
func (p *pool) take() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !c.isDead() {
			return c
		}
	}
	return nil
}

func (p *pool) put(c *conn) {
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < maxIdle && !c.isDead()
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		c.close()
	}
	<-p.slots
}

// dropIdle closes connections not in use, as their daemon is lost.
func (p *pool) dropIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.close()
	}
	p.idle = nil
}

// close waits until all connections were given back, and closes them. The
// calls under way must have been told to end.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.dropIdle()
	for range cap(p.slots) {
		p.slots <- struct{}{}
	}
}
