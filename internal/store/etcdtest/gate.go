package etcdtest

import (
	"net"
	"net/url"
	"sync"
	"testing"
)

// Gate is a network between a client and an endpoint, which can be cut: while it
// is, packets vanish, and neither side is told.
type Gate struct {
	ln     net.Listener
	target string

	mu   sync.Mutex
	open chan struct{} // closed: packets pass
	wg   sync.WaitGroup
	all  map[net.Conn]bool
}

// NewGate makes an open gate before an endpoint of http.
func NewGate(t testing.TB, endpoint string) *Gate {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{target: u.Host, open: make(chan struct{}), all: map[net.Conn]bool{}}
	close(g.open)
	if g.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	g.wg.Go(g.accept)
	t.Cleanup(g.close)
	return g
}

// Endpoint is where the client connects instead.
func (g *Gate) Endpoint() string { return "http://" + g.ln.Addr().String() }

// Cut cuts the network.
func (g *Gate) Cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

// Mend lets everything pass again, what was held first.
func (g *Gate) Mend() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *Gate) close() {
	_ = g.ln.Close()
	g.Mend()
	g.mu.Lock()
	for c := range g.all {
		_ = c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}

func (g *Gate) accept() {
	for {
		in, err := g.ln.Accept()
		if err != nil {
			return
		}
		g.wg.Go(func() {
			g.pass()
			out, err := net.Dial("tcp", g.target)
			if err != nil {
				_ = in.Close()
				return
			}
			g.mu.Lock()
			g.all[in], g.all[out] = true, true
			g.mu.Unlock()
			g.wg.Go(func() { g.copy(in, out) })
			g.copy(out, in)
		})
	}
}

// pass waits until packets pass.
func (g *Gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

func (g *Gate) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		g.pass()
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
