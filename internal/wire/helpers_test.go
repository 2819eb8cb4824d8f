package wire

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// event is one call of a handler.
type event struct {
	kind string // datagram, message, connected, disconnected
	host model.HostID
	text string // payload or reason; for datagrams network and payload
}

// recorder is a Handler that keeps what it was told.
type recorder struct {
	mu     sync.Mutex
	events []event
	news   chan struct{}
	block  chan struct{} // when set, Message waits for it
}

func newRecorder() *recorder { return &recorder{news: make(chan struct{}, 1)} }

func (r *recorder) add(e event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func (r *recorder) Datagram(from model.HostID, network string, payload []byte) {
	r.add(event{"datagram", from, network + " " + string(payload)})
}
func (r *recorder) Message(from model.HostID, payload []byte) {
	if r.block != nil {
		<-r.block
	}
	r.add(event{"message", from, string(payload)})
}
func (r *recorder) Connected(h model.HostID)              { r.add(event{"connected", h, ""}) }
func (r *recorder) Disconnected(h model.HostID, w Reason) { r.add(event{"disconnected", h, string(w)}) }

func (r *recorder) all() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]event(nil), r.events...)
}

func (r *recorder) count(kind string, host model.HostID) int {
	n := 0
	for _, e := range r.all() {
		if e.kind == kind && e.host == host {
			n++
		}
	}
	return n
}

func (r *recorder) has(e event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.events, e)
}

// wait blocks until the condition holds, looking again at every event and now
// and then.
func (r *recorder) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !cond() {
		again := time.NewTimer(5 * time.Millisecond)
		select {
		case <-r.news:
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("no %s; events %v", what, r.all())
		}
		again.Stop()
	}
}

func (r *recorder) waitFor(t *testing.T, e event) {
	t.Helper()
	r.wait(t, fmt.Sprint(e), func() bool {
		return r.has(e)
	})
}

// cluster is a set of nodes on loopback addresses: network n of host i is
// 127.<base>.<n>.<i>.
type cluster struct {
	t     *testing.T
	ca    string
	port  uint16
	base  byte
	hosts []model.HostID
	nodes map[model.HostID]*Node
	recs  map[model.HostID]*recorder
}

var networks = []string{"mgmt", "hb2"}

// clusters counts the clusters of this process.
var clusters atomic.Uint32

// ownPort returns a port for the next cluster of this process. It lies below
// the range that the kernel hands out by itself: a port of that range may be
// taken by any client between choosing it and listening.
func ownPort() uint16 {
	return uint16(10000 + (uint32(os.Getpid())*16+clusters.Add(1))%20000)
}

func newCluster(t *testing.T, hosts ...model.HostID) *cluster {
	t.Helper()
	c := &cluster{t: t, ca: filepath.Join(t.TempDir(), "ca"), port: ownPort(), base: byte(10 + os.Getpid()%200),
		hosts: hosts, nodes: map[model.HostID]*Node{}, recs: map[model.HostID]*recorder{}}
	if err := pki.Init(c.ca, "test", pki.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.Close()
		}
	})
	return c
}

func (c *cluster) addr(host model.HostID, network int) netip.Addr {
	for i, h := range c.hosts {
		if h == host {
			return netip.AddrFrom4([4]byte{127, c.base, byte(network), byte(i + 1)})
		}
	}
	return netip.AddrFrom4([4]byte{127, c.base, byte(network), 99})
}

func (c *cluster) addrs(host model.HostID) []Address {
	var out []Address
	for i, n := range networks {
		out = append(out, Address{n, c.addr(host, i)})
	}
	return out
}

func (c *cluster) credentials(ca string, host model.HostID, opt pki.Options) *pki.Credentials {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), string(host))
	if err := pki.Issue(ca, dir, host, nil, opt); err != nil {
		c.t.Fatal(err)
	}
	cr, err := pki.Load(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return cr
}

func (c *cluster) config(host model.HostID) Config {
	return Config{Credentials: c.credentials(c.ca, host, pki.Options{}), Listen: c.addrs(host), Port: c.port, Interval: 200 * time.Millisecond}
}

func (c *cluster) peers() map[model.HostID]Peer {
	out := map[model.HostID]Peer{}
	for _, h := range c.hosts {
		out[h] = Peer{Addresses: c.addrs(h)}
	}
	return out
}

// start runs a host; vary may change its configuration.
func (c *cluster) start(host model.HostID, vary ...func(*Config)) (*Node, *recorder) {
	c.t.Helper()
	cfg := c.config(host)
	for _, f := range vary {
		f(&cfg)
	}
	r := newRecorder()
	n, err := New(cfg, r)
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[host], c.recs[host] = n, r
	n.SetPeers(c.peers())
	return n, r
}

// waitKeys waits until every node can send datagrams to every other.
func (c *cluster) waitKeys() {
	c.t.Helper()
	for _, n := range c.nodes {
		r := c.recs[n.Self()]
		r.wait(c.t, "keys of "+string(n.Self()), func() bool {
			keyed := 0
			for _, p := range n.Peers() {
				if p.Keyed && c.nodes[p.Host] != nil {
					keyed++
				}
			}
			return keyed == len(c.nodes)-1
		})
	}
}

func (c *cluster) stat(host model.HostID, name string) uint64 {
	c.t.Helper()
	v, ok := c.nodes[host].Stats()[name]
	if !ok {
		c.t.Fatalf("no counter %q", name)
	}
	return v
}

// waitStat waits until a counter reaches a value.
func (c *cluster) waitStat(host model.HostID, name string, least uint64) {
	c.t.Helper()
	c.recs[host].wait(c.t, name+" on "+string(host), func() bool { return c.stat(host, name) >= least })
}

// datagram sends until it arrives, because datagrams may be lost.
func (c *cluster) datagram(from, to model.HostID, network, text string) {
	c.t.Helper()
	c.recs[to].wait(c.t, "datagram "+text, func() bool {
		if err := c.nodes[from].SendDatagram(network, to, []byte(text)); err != nil {
			return false
		}
		return c.recs[to].has(event{"datagram", from, network + " " + text})
	})
}

func (c *cluster) noRefusals(hosts ...model.HostID) {
	c.t.Helper()
	for _, h := range hosts {
		for name, v := range c.nodes[h].Stats() {
			if v > 0 && (strings.HasPrefix(name, "refused") || strings.HasPrefix(name, "handshakeE") || strings.HasPrefix(name, "frames")) {
				c.t.Errorf("%s: %s = %d", h, name, v)
			}
		}
	}
}
