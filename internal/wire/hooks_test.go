package wire

import (
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// failAll cuts every connection with the peer.
func (p *peer) failAll(why Reason) {
	p.mu.Lock()
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	for _, c := range conns {
		c.fail(why)
	}
}

func (p *peer) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// size is the number of keys that open datagrams.
func (k *keyring) size() int { return len(*k.byID.Load()) }

// relay passes TCP on to another address until it is cut; then its sockets stay
// open and carry nothing, as behind a pulled cable.
type relay struct {
	l   net.Listener
	wg  sync.WaitGroup
	cut atomic.Bool
	mu  sync.Mutex
	all []net.Conn
}

func newRelay(t *testing.T, at, to netip.AddrPort) *relay {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l}
	r.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			r.keep(in)
			if r.cut.Load() {
				continue
			}
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				in.Close()
				continue
			}
			r.keep(out)
			r.wg.Go(func() { r.pass(in, out) })
			r.wg.Go(func() { r.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.all {
			c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

func (r *relay) keep(c net.Conn) {
	r.mu.Lock()
	r.all = append(r.all, c)
	r.mu.Unlock()
}

func (r *relay) pass(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if r.cut.Load() {
			if err != nil {
				return
			}
			continue
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = io.EOF
			}
		}
		if err != nil {
			from.Close()
			to.Close()
			return
		}
	}
}

func contextForTest() (context.Context, context.CancelFunc) {
	return context.WithCancel(context.Background())
}
