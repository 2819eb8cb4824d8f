package wire

import (
	"bufio"
	"bytes"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/config"
)

// The window accepts each counter once, whatever the order, and never refuses
// one that is less than 1024 behind.
func TestWindowProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen := map[uint64]bool{}
		top := uint64(0)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			var n uint64
			if rapid.Bool().Draw(t, "forward") {
				n = top + uint64(rapid.IntRange(1, 3*windowBits).Draw(t, "ahead"))
			} else {
				back := uint64(rapid.IntRange(0, 3*windowBits).Draw(t, "back"))
				n = top - min(back, top)
			}
			got := w.mark(n)
			switch {
			case got && (seen[n] || n == 0):
				t.Fatalf("%d accepted twice, top %d", n, top)
			case !got && !seen[n] && n != 0 && n+1024 > top:
				t.Fatalf("%d refused, top %d", n, top)
			}
			if got {
				seen[n] = true
				top = max(top, n)
			}
			if w.fresh(n) {
				t.Fatalf("%d is fresh after mark", n)
			}
		}
	})
	var w window
	for n := uint64(1); n < 5*windowBits; n++ { // no bit of an earlier lap stays
		if !w.mark(n) {
			t.Fatalf("%d refused in order", n)
		}
	}
	for n := range uint64(5 * windowBits) {
		if w.fresh(n) {
			t.Fatalf("%d is fresh again", n)
		}
	}
	if w.mark(^uint64(0)) {
		t.Error("a counter near overflow must be refused")
	}
}

func TestBackoff(t *testing.T) {
	want := []time.Duration{100, 200, 400, 800, 1600, 2000, 2000}
	for fails, ms := range want {
		most, least := backoff(fails, 0), backoff(fails, 1)
		if most != ms*time.Millisecond || least != most*3/4 {
			t.Errorf("after %d failures %v to %v, want up to %vms", fails, least, most, int(ms))
		}
	}
	if backoff(1<<30, 0) != backoffMax {
		t.Error("large number of failures")
	}
}

func TestGate(t *testing.T) {
	var g gate
	now := time.Unix(1000, 0)
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range gateStrangers {
		if !g.enter(a, false, now) {
			t.Fatalf("stranger %d refused", i)
		}
	}
	if g.enter(b, false, now) {
		t.Error("too many strangers")
	}
	for i := range gatePerMember {
		if !g.enter(a, true, now) {
			t.Fatalf("member refused at %d, because of strangers", i)
		}
	}
	if g.enter(a, true, now) || !g.enter(b, true, now) {
		t.Error("the bound of a member is its own")
	}
	for range gateStrangers {
		g.leave(a, false)
	}
	left := 0
	for g.enter(a, false, now) {
		g.leave(a, false)
		left++
	}
	if left != gateRate-gateStrangers {
		t.Errorf("%d more handshakes in the same second, want %d", left, gateRate-gateStrangers)
	}
	if !g.enter(a, false, now.Add(time.Second)) {
		t.Error("a second later")
	}
}

// Two hosts that made sessions at the same time and learn of them in different
// orders must end up sending with keys that the other still has.
func TestKeyOrderIsTheSameOnBothSides(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newTestRing(), newTestRing()
		type session struct{ a, b *keySet }
		var sessions []session
		clock := time.Unix(0, 0)
		// Without datagrams nothing but the bound makes a side forget keys.
		anyLost := false
		quiet := rapid.Bool().Draw(t, "quiet")
		for i := range rapid.IntRange(1, 3*setsPerPeer).Draw(t, "sessions") {
			raw := func(x byte) halfKey { return halfKey{id: keyID{x, byte(i)}} }
			ab, ba := raw(byte(rapid.IntRange(0, 255).Draw(t, "id"))), raw(byte(rapid.IntRange(0, 255).Draw(t, "id")))
			s := session{
				&keySet{send: &sendKey{halfKey: ab}, recv: &recvKey{halfKey: ba, peer: a.p}},
				&keySet{send: &sendKey{halfKey: ba}, recv: &recvKey{halfKey: ab, peer: b.p}},
			}
			s.a.recv.set, s.b.recv.set = s.a, s.b
			sessions = append(sessions, s)
		}
		for len(sessions) > 0 {
			// One to three sessions are made at once: both sides accept before
			// either knows the number, then learn it in any order.
			n := min(rapid.IntRange(1, 3).Draw(t, "at once"), len(sessions))
			now := sessions[:n]
			sessions = sessions[n:]
			gens := make([]uint64, n)
			lost := make([]bool, n) // a dials, and never learns what b has agreed to
			for i := range now {
				lost[i] = rapid.IntRange(0, 3).Draw(t, "lost") == 3
				anyLost = anyLost || lost[i]
				gens[i] = max(a.k.nextGen(a.p), b.k.nextGen(b.p))
			}
			for _, i := range rapid.Permutation(indices(n)).Draw(t, "made at a") {
				clock = clock.Add(1)
				now[i].a.made = clock
				a.k.accept(a.p, now[i].a)
			}
			for _, i := range rapid.Permutation(indices(n)).Draw(t, "made at b") {
				clock = clock.Add(1)
				now[i].b.made = clock
				b.k.accept(b.p, now[i].b)
			}
			for _, i := range rapid.Permutation(indices(n)).Draw(t, "order at a") {
				if !lost[i] {
					a.k.agree(a.p, now[i].a, gens[i])
				}
				a.k.settle(a.p, now[i].a)
				exchange(t, a, b, !quiet && rapid.Bool().Draw(t, "a sends"))
			}
			for _, i := range rapid.Permutation(indices(n)).Draw(t, "order at b") {
				b.k.agree(b.p, now[i].b, gens[i])
				b.k.settle(b.p, now[i].b)
				exchange(t, b, a, !quiet && rapid.Bool().Draw(t, "b sends"))
			}
			if a.k.size() > setsPerPeer || b.k.size() > setsPerPeer {
				t.Fatalf("%d and %d sets are kept", a.k.size(), b.k.size())
			}
			exchange(t, a, b, !quiet)
			exchange(t, b, a, !quiet)
		}
		exchange(t, a, b, true)
		exchange(t, b, a, true)
		if !anyLost && (a.k.size() > 3 || b.k.size() > 3) {
			t.Fatalf("%d and %d sets are kept", a.k.size(), b.k.size())
		}
	})
}

// Handshakes that end badly push out neither the keys that the peer sends
// with, nor the highest agreed, nor those of a handshake under way.
func TestDeadHandshakesLeaveKeysThatMayBeUsed(t *testing.T) {
	r := newTestRing()
	made := byte(0)
	accept := func() *keySet {
		made++
		s := &keySet{send: &sendKey{halfKey: halfKey{id: keyID{1, made}}}, recv: &recvKey{halfKey: halfKey{id: keyID{2, made}}, peer: r.p}}
		s.recv.set = s
		r.k.accept(r.p, s)
		return s
	}
	heard, agreed, underWay := accept(), accept(), accept()
	r.k.agree(r.p, heard, 1)
	r.k.settle(r.p, heard)
	r.k.opened(heard.recv)
	r.k.agree(r.p, agreed, 2)
	r.k.settle(r.p, agreed)
	for range 3 * setsPerPeer {
		r.k.settle(r.p, accept())
	}
	for what, s := range map[string]*keySet{"heard": heard, "agreed": agreed, "under way": underWay} {
		if r.k.lookup(s.recv.id) == nil {
			t.Errorf("%s: forgotten", what)
		}
	}
	if got := r.k.size(); got != setsPerPeer+1 {
		t.Errorf("%d sets are kept; want %d and one under way", got, setsPerPeer)
	}
}

type testRing struct {
	k *keyring
	p *peer
}

func newTestRing() testRing {
	k := &keyring{}
	k.init()
	n := &Node{}
	n.ctx, n.cancel = contextForTest()
	return testRing{k, newPeer(n, "x")}
}

// exchange has one side send with the key it chose; the other must know it.
func exchange(t *rapid.T, from, to testRing, really bool) {
	if !really {
		return
	}
	key := from.p.sendKey.Load()
	if key == nil {
		return
	}
	r := to.k.lookup(key.id)
	if r == nil {
		t.Fatalf("sent with key %x, which the peer has forgotten", key.id)
	}
	to.k.opened(r)
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestMembers(t *testing.T) {
	c, err := config.Parse([]byte(`{version: 1, name: c, networks: [{name: hb2, heartbeat: true}, {name: vm}, {name: mgmt, heartbeat: true}],
hosts: [{name: a, address: {mgmt: 10.0.0.1, hb2: 10.0.1.1, vm: 10.0.2.1}}, {name: b, address: {mgmt: 10.0.0.2}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	peers, own := Members(c, "a")
	if len(own) != 2 || own[0] != (Address{"hb2", netip.MustParseAddr("10.0.1.1")}) || own[1].Network != "mgmt" {
		t.Errorf("own %v", own)
	}
	if len(peers) != 1 || len(peers["b"].Addresses) != 1 || peers["b"].Addresses[0].Network != "mgmt" {
		t.Errorf("peers %v", peers)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, framePing))
	f.Add(hello{1, 1, [16]byte{1}, 3}.frame())
	f.Add(appendFrame(nil, frameMessage, make([]byte, 8), []byte("payload")))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, body, err := readFrame(bufio.NewReader(bytes.NewReader(data)))
		if err == nil && !bytes.HasPrefix(data, appendFrame(nil, kind, body)) {
			t.Errorf("read %d %q", kind, body)
		}
		_, _ = readHello(bufio.NewReader(bytes.NewReader(data)))
	})
}
