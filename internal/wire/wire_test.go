package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

func TestMessagesAndDatagrams(t *testing.T) {
	c := newCluster(t, "host1", "host2", "host3")
	for _, h := range c.hosts {
		c.start(h)
	}
	c.waitKeys()
	for _, from := range c.hosts {
		for _, to := range c.hosts {
			if from == to {
				continue
			}
			for i := range 50 {
				if err := c.nodes[from].Send(to, fmt.Appendf(nil, "%d", i)); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range networks {
				c.datagram(from, to, n, "hi")
			}
		}
	}
	for _, to := range c.hosts {
		r := c.recs[to]
		r.wait(t, "messages", func() bool {
			n := 0
			for _, from := range c.hosts {
				n += r.count("message", from)
			}
			return n >= 100
		})
		next := map[model.HostID]int{}
		up := map[model.HostID]bool{}
		for _, e := range r.all() {
			switch e.kind {
			case "connected":
				up[e.host] = true
			case "disconnected":
				up[e.host] = false
			case "message":
				if e.text != fmt.Sprint(next[e.host]) || !up[e.host] {
					t.Fatalf("%s got %v; want number %d, connected %v", to, e, next[e.host], up[e.host])
				}
				next[e.host]++
			}
		}
	}
	c.noRefusals(c.hosts...)
}

// TestMembersWaitForTheirNames: a host that is not told yet who the members are
// refuses none of them; they wait.
func TestMembersWaitForTheirNames(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	r2 := newRecorder()
	n2, err := New(c.config("host2"), r2)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes["host2"], c.recs["host2"] = n2, r2
	n1, _ := c.start("host1")
	if err := n1.Send("host2", []byte("early")); err != nil {
		t.Fatal(err)
	}
	for range 20 { // long enough for a refusal
		time.Sleep(10 * time.Millisecond)
		c.noRefusals("host2")
	}
	n2.SetPeers(c.peers())
	r2.waitFor(t, event{"message", "host1", "early"})
	c.noRefusals("host1", "host2")
}

func TestLargestAndTooLarge(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	n1, _ := c.start("host1")
	_, r2 := c.start("host2")
	c.waitKeys()
	big := bytes.Repeat([]byte("x"), MaxMessage)
	if err := n1.Send("host2", big); err != nil {
		t.Fatal(err)
	}
	r2.waitFor(t, event{"message", "host1", string(big)})
	if err := n1.Send("host2", append(big, 'x')); !errors.Is(err, ErrTooLarge) {
		t.Errorf("message: %v", err)
	}
	c.datagram("host1", "host2", "mgmt", string(big[:MaxDatagram]))
	if err := n1.SendDatagram("mgmt", "host2", big[:MaxDatagram+1]); !errors.Is(err, ErrTooLarge) {
		t.Errorf("datagram: %v", err)
	}
	if err := n1.Send("host9", nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("unknown: %v", err)
	}
	if err := n1.SendDatagram("vm", "host2", nil); !errors.Is(err, ErrNoAddress) {
		t.Errorf("network: %v", err)
	}
	n1.Close()
	if err := n1.Send("host2", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// Both hosts begin to send at the same moment, again and again.
func TestDialFromBothSidesAtOnce(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	n1, r1 := c.start("host1")
	n2, r2 := c.start("host2")
	c.waitKeys()
	for round := range 10 {
		for _, n := range []*Node{n1, n2} {
			for _, p := range *n.peers.Load() {
				p.failAll(ReasonClosed)
			}
		}
		text := fmt.Sprintf("round %d", round)
		// A message may be lost with the connection that was just cut; so both
		// repeat, as the agent does.
		send := func(n *Node, to model.HostID, r *recorder) {
			r.wait(t, text, func() bool {
				if err := n.Send(to, []byte(text)); err != nil {
					t.Error(err)
				}
				return r.has(event{"message", n.Self(), text})
			})
		}
		done := make(chan struct{})
		go func() { defer close(done); send(n1, "host2", r2) }()
		send(n2, "host1", r1)
		<-done
		c.datagram("host1", "host2", "mgmt", text)
		c.datagram("host2", "host1", "hb2", text)
	}
	for _, n := range []*Node{n1, n2} {
		for _, p := range *n.peers.Load() {
			if got := p.connections(); got > connsPerPeer {
				t.Errorf("%d connections", got)
			}
		}
	}
	c.noRefusals("host1", "host2")
}

func TestRestartOfAPeer(t *testing.T) {
	for _, who := range []model.HostID{"host1", "host2"} { // the lower and the higher name
		t.Run(string(who), func(t *testing.T) {
			c := newCluster(t, "host1", "host2")
			other := model.HostID("host2")
			if who == other {
				other = "host1"
			}
			c.start("host1")
			c.start("host2")
			c.waitKeys()
			for i := range 3 {
				text := fmt.Sprintf("run %d", i)
				c.datagram(other, who, "mgmt", text)
				c.datagram(who, other, "mgmt", text)
				if err := c.nodes[who].Send(other, []byte(text)); err != nil {
					t.Fatal(err)
				}
				c.recs[other].waitFor(t, event{"message", who, text})
				c.nodes[who].Close()
				c.start(who)
			}
			c.waitKeys()
			if got := c.nodes[other].keys.size(); got > setsPerPeer {
				t.Errorf("%d key sets are kept", got)
			}
		})
	}
}

// TCP is cut for good; datagrams must go on.
func TestDatagramsOutliveTCP(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	n1, r1 := c.start("host1")
	n2, _ := c.start("host2")
	c.waitKeys()
	if err := n1.Send("host2", []byte("x")); err != nil {
		t.Fatal(err)
	}
	c.recs["host2"].waitFor(t, event{"message", "host1", "x"})
	for _, n := range []*Node{n1, n2} {
		for _, l := range n.listeners {
			l.Close()
		}
		for _, p := range *n.peers.Load() {
			p.failAll(ReasonClosed)
		}
	}
	r1.waitFor(t, event{"disconnected", "host2", string(ReasonClosed)})
	if err := n1.Send("host2", []byte("lost")); err != nil {
		t.Fatal(err)
	}
	r1.waitFor(t, event{"disconnected", "host2", string(ReasonUnreachable)})
	for i := range 5 {
		c.datagram("host1", "host2", "mgmt", fmt.Sprint(i))
		c.datagram("host2", "host1", "hb2", fmt.Sprint(i))
	}
}

// One network falls silent without a word, as a cut cable does: the connection
// moves to the other network.
func TestFailsOverToAnotherNetwork(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	at := netip.AddrFrom4([4]byte{127, c.base, 0, 77})
	cable := newRelay(t, netip.AddrPortFrom(at, c.port), netip.AddrPortFrom(c.addr("host2", 0), c.port))
	peers := c.peers()
	peers["host2"].Addresses[0].Addr = at
	n1, r1 := c.start("host1")
	n1.SetPeers(peers)
	n2, r2 := c.start("host2")
	n2.SetPeers(map[model.HostID]Peer{"host1": {}}) // it cannot dial
	c.waitKeys()
	send := func(text string) {
		r2.wait(t, text, func() bool {
			if err := n1.Send("host2", []byte(text)); err != nil && !errors.Is(err, ErrQueueFull) {
				t.Error(err)
			}
			return r2.has(event{"message", "host1", text})
		})
	}
	send("before")
	if got := n1.peer("host2").activeNetwork(); got != "mgmt" {
		t.Fatalf("connected on %q", got)
	}
	cable.cut.Store(true)
	start := time.Now()
	send("after")
	if got := n1.peer("host2").activeNetwork(); got != "hb2" {
		t.Errorf("connected on %q", got)
	}
	// 700 ms of silence, 100 ms of backoff, 250 ms for the dead network.
	t.Logf("moved in %v", time.Since(start).Round(10*time.Millisecond))
	r1.waitFor(t, event{"disconnected", "host2", string(ReasonSilent)})
}

func TestUnusedConnectionsCloseWithoutLoss(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	short := func(cfg *Config) { cfg.Interval, cfg.Idle = 200*time.Millisecond, 250*time.Millisecond }
	n1, r1 := c.start("host1", short)
	n2, r2 := c.start("host2", short)
	c.waitKeys()
	sent := 0
	for range 4 { // each side sends as the connection is about to be closed
		r1.wait(t, "idle close", func() bool { return n1.peer("host2").connections() == 0 })
		r2.wait(t, "idle close", func() bool { return n2.peer("host1").connections() == 0 })
		for range 3 {
			if err := n1.Send("host2", fmt.Appendf(nil, "%d", sent)); err != nil {
				t.Fatal(err)
			}
			if err := n2.Send("host1", fmt.Appendf(nil, "%d", sent)); err != nil {
				t.Fatal(err)
			}
			sent++
			n := sent
			r2.wait(t, "message", func() bool { return r2.count("message", "host1") >= n })
			r1.wait(t, "message", func() bool { return r1.count("message", "host2") >= n })
		}
	}
	for _, r := range []*recorder{r1, r2} {
		idle := 0
		for _, e := range r.all() {
			if e.kind == "disconnected" {
				if e.text != string(ReasonIdle) {
					t.Errorf("disconnected: %s", e.text)
				}
				idle++
			}
		}
		if idle == 0 {
			t.Error("never idle")
		}
	}
	c.datagram("host1", "host2", "mgmt", "still keyed")
}

// A peer that takes no messages costs the sender a connection, not its time.
func TestFullQueueDropsTheConnection(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	n1, r1 := c.start("host1")
	cfg := c.config("host2")
	r2 := newRecorder()
	r2.block = make(chan struct{})
	n2, err := New(cfg, r2)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes["host2"], c.recs["host2"] = n2, r2
	n2.SetPeers(c.peers())
	t.Cleanup(func() { close(r2.block); n2.Close() })
	c.waitKeys()
	payload := make([]byte, 64<<10)
	var full error
	for range 10000 {
		start := time.Now()
		full = n1.Send("host2", payload)
		if d := time.Since(start); d > time.Second {
			t.Fatalf("Send took %v", d)
		}
		if full != nil {
			break
		}
	}
	if !errors.Is(full, ErrQueueFull) {
		t.Fatalf("got %v", full)
	}
	r1.wait(t, "disconnection", func() bool { return r1.count("disconnected", "host2") > 0 })
}

func TestRemovedMember(t *testing.T) {
	c := newCluster(t, "host1", "host2", "host3")
	n1, r1 := c.start("host1")
	n2, _ := c.start("host2")
	c.start("host3")
	c.waitKeys()
	if err := n2.Send("host1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	r1.waitFor(t, event{"message", "host2", "x"})
	peers := c.peers()
	delete(peers, "host2")
	n1.SetPeers(peers)
	r1.waitFor(t, event{"disconnected", "host2", string(ReasonRemoved)})
	if err := n2.SendDatagram("mgmt", "host1", []byte("old key")); err != nil {
		t.Fatal(err)
	}
	c.waitStat("host1", "refusedUnknownKey", 1)
	if err := n2.Send("host1", []byte("y")); err != nil {
		t.Fatal(err)
	}
	c.waitStat("host1", "refusedNotMember", 1)
	if err := n1.Send("host2", nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("got %v", err)
	}
	for _, e := range r1.all() {
		if e.text == "y" || e.text == "mgmt old key" {
			t.Errorf("delivered: %v", e)
		}
	}
	n1.SetPeers(c.peers()) // and back again
	c.datagram("host2", "host1", "mgmt", "again")
}

func TestKeysAreReplacedInTime(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	often := func(cfg *Config) { cfg.Rekey = 100 * time.Millisecond }
	n1, _ := c.start("host1", often)
	c.start("host2", often)
	c.waitKeys()
	seen := map[keyID]bool{}
	for i := 0; len(seen) < 4; i++ {
		seen[n1.peer("host2").sendKey.Load().id] = true
		c.datagram("host1", "host2", "mgmt", fmt.Sprint(i))
		c.datagram("host2", "host1", "mgmt", fmt.Sprint(i))
	}
	if got := n1.keys.size(); got > setsPerPeer {
		t.Errorf("%d key sets are kept", got)
	}
}
