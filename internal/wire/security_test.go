package wire

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// stranger sends raw packets to a host's UDP port.
func (c *cluster) stranger(to model.HostID) *net.UDPConn {
	c.t.Helper()
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.addr(to, 0), c.port)))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { u.Close() })
	return u
}

func (c *cluster) raw(to model.HostID) net.Conn {
	c.t.Helper()
	conn, err := net.Dial("tcp", netip.AddrPortFrom(c.addr(to, 0), c.port).String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

func write(t *testing.T, w io.Writer, b []byte) {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// host3 is a member with a valid certificate and keys of its own. Whatever it
// makes of them never counts as host1's.
func TestForgeryWithAnotherMembersCertificate(t *testing.T) {
	c := newCluster(t, "host1", "host2", "host3")
	for _, h := range c.hosts {
		c.start(h)
	}
	c.waitKeys()
	c.datagram("host1", "host2", "mgmt", "genuine")
	u := c.stranger("host2")
	r2 := c.recs["host2"]
	victims := c.nodes["host1"].peer("host2").sendKey.Load() // its id is visible on the network
	own := c.nodes["host3"].peer("host2").sendKey.Load()

	// host1's key id over host3's key.
	forged := &sendKey{halfKey: own.halfKey}
	forged.id = victims.id
	forged.counter.Store(1000)
	write(t, u, seal(nil, forged, "mgmt", []byte("I am host1")))
	c.waitStat("host2", "refusedForged", 1)

	// host3's own packet, its header changed to host1's.
	p := seal(nil, own, "mgmt", []byte("I am host1"))
	copy(p[2:], victims.id[:])
	binary.BigEndian.PutUint64(p[2+keyIDSize:], 1001)
	write(t, u, p)
	c.waitStat("host2", "refusedForged", 2)

	// Sent by the right key but from host1's address: still host3's.
	write(t, u, seal(nil, own, "mgmt", []byte("I am host3")))
	r2.waitFor(t, event{"datagram", "host3", "mgmt I am host3"})

	// A genuine packet of host1, moved to the other network.
	write(t, u, seal(nil, victims, "hb2", []byte("moved")))
	c.waitStat("host2", "refusedForged", 3)

	// host2's own packet sent back to it.
	back := c.nodes["host2"].peer("host1").sendKey.Load()
	write(t, u, seal(nil, back, "mgmt", []byte("echo")))
	c.waitStat("host2", "refusedUnknownKey", 1)

	// A failed forgery must not use up the counters that it claimed.
	c.datagram("host1", "host2", "mgmt", "still genuine")
	for _, e := range r2.all() {
		if e.kind == "datagram" && e.host == "host1" && e.text != "mgmt genuine" && e.text != "mgmt still genuine" {
			t.Errorf("delivered: %v", e)
		}
	}
}

func TestReplayIsRefused(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	c.start("host1")
	c.start("host2")
	c.waitKeys()
	key := c.nodes["host1"].peer("host2").sendKey.Load()
	u := c.stranger("host2")
	p := seal(nil, key, "mgmt", []byte("once"))
	for range 3 {
		write(t, u, p)
	}
	c.waitStat("host2", "refusedReplay", 2)
	for range windowBits { // beyond the window, in memory: the socket might lose some
		c.nodes["host2"].receive("mgmt", seal(nil, key, "mgmt", nil))
	}
	write(t, u, p)
	c.waitStat("host2", "refusedReplay", 3)
	n := 0
	for _, e := range c.recs["host2"].all() {
		if e.text == "mgmt once" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("delivered %d times", n)
	}
}

// Each of these has a certificate that must not be enough, dials host1 and
// claims to be host2.
func TestCertificatesThatAreNotEnough(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	foreign, busan := filepath.Join(t.TempDir(), "f"), filepath.Join(t.TempDir(), "b")
	for dir, cluster := range map[string]string{foreign: "test", busan: "busan"} {
		if err := pki.Init(dir, cluster, pki.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	_, r1 := c.start("host1")
	for _, tt := range []struct {
		name    string
		cred    *pki.Credentials
		counter string
	}{
		{"foreign CA", c.credentials(foreign, "host2", pki.Options{}), "refusedForeignCA"},
		{"foreign CA of another cluster", c.credentials(busan, "host2", pki.Options{}), "refusedForeignCA"},
		{"expired", c.credentials(c.ca, "host2", pki.Options{Expires: time.Now().Add(-time.Second)}), "refusedExpired"},
		{"not a member", c.credentials(c.ca, "host9", pki.Options{}), "refusedNotMember"},
		{"this host's own name", c.credentials(c.ca, "host1", pki.Options{}), "refusedNotMember"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := c.stat("host1", tt.counter)
			conf := tt.cred.ClientTLS(protocol, func(pki.Identity) error { return nil })
			conf.VerifyConnection = nil // an attacker accepts anybody
			conn := tls.Client(c.raw("host1"), conf)
			if err := conn.HandshakeContext(t.Context()); err == nil {
				// In TLS 1.3 the refusal comes with the first read.
				write(t, conn, hello{1, 1, [16]byte{1}, 1}.frame())
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Error("welcomed")
				}
			}
			c.waitStat("host1", tt.counter, before+1)
		})
	}
	if got := r1.all(); len(got) != 0 {
		t.Errorf("the handler heard of it: %v", got)
	}
	if n := c.nodes["host1"].keys.size(); n != 0 {
		t.Errorf("%d keys were made", n)
	}
}

// The certificate is right and its owner a member, but not the one at this
// address: host1 dials host2 and finds host3.
func TestAnotherMemberAtTheAddress(t *testing.T) {
	c := newCluster(t, "host1", "host2", "host3")
	n1, r1 := c.start("host1")
	c.start("host3", func(cfg *Config) { cfg.Listen = c.addrs("host2") })
	peers := c.peers()
	delete(peers, "host3")
	n1.SetPeers(peers)
	if err := n1.Send("host2", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	c.waitStat("host1", "refusedWrongHost", 1)
	r1.waitFor(t, event{"disconnected", "host2", string(ReasonUnreachable)})
	if c.recs["host3"].count("message", "host1") != 0 {
		t.Error("the message reached host3")
	}
}

func TestBadFrames(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	_, r1 := c.start("host1")
	dial := func(first []byte) *tls.Conn {
		conn := tls.Client(c.raw("host1"), c.credentials(c.ca, "host2", pki.Options{}).ClientTLS(protocol, func(pki.Identity) error { return nil }))
		write(t, conn, first)
		return conn
	}
	good := hello{versionMin, versionMax, [16]byte{7}, 1}.frame()
	head := func(size uint32, kind byte) []byte { return append(binary.BigEndian.AppendUint32(nil, size), kind) }
	for _, tt := range []struct {
		name, counter string
		first, then   []byte
	}{
		{"oversized message", "framesTooLarge", good, head(maxBody+1, frameMessage)},
		{"oversized ping", "framesTooLarge", good, head(maxControl+1, framePing)},
		{"oversized hello", "framesTooLarge", head(1<<31, frameHello), nil},
		{"short message", "framesBad", good, appendFrame(nil, frameMessage, []byte("1234567"))},
		{"second hello", "framesBad", good, good},
		{"no hello", "framesBad", appendFrame(nil, framePing), nil},
		{"wrong magic", "framesBad", appendFrame(nil, frameHello, make([]byte, helloSize)), nil},
		{"future version", "refusedVersion", hello{versionMax + 1, versionMax + 9, [16]byte{7}, 1}.frame(), nil},
		{"unknown type is skipped", "framesUnknown", good, append(appendFrame(nil, 99, []byte("x")), appendFrame(nil, frameMessage, make([]byte, 8), []byte("seq 0"))...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := c.stat("host1", tt.counter)
			conn := dial(tt.first)
			if tt.then != nil {
				if _, err := io.ReadFull(conn, make([]byte, len(good))); err != nil {
					t.Fatalf("no welcome: %v", err)
				}
				write(t, conn, tt.then)
			}
			c.waitStat("host1", tt.counter, before+1)
			conn.Close()
		})
	}
	c.waitStat("host1", "messagesStale", 1) // sequence numbers begin at 1
	if r1.count("message", "host2") != 0 {
		t.Errorf("delivered: %v", r1.all())
	}
}

// Strangers that open connections and say nothing, or speak a byte at a time,
// take up bounded room for a bounded time; members get through meanwhile.
func TestSlowLoris(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	n1, _ := c.start("host1")
	for range 3 * gateStrangers {
		conn := c.raw("host1") // source 127.0.0.1, a stranger
		write(t, conn, []byte{22, 3, 1})
	}
	c.waitStat("host1", "handshakeBusy", 2*gateStrangers)
	c.start("host2")
	c.waitKeys()
	if err := c.nodes["host2"].Send("host1", []byte("through")); err != nil {
		t.Fatal(err)
	}
	c.recs["host1"].waitFor(t, event{"message", "host2", "through"})
	start := time.Now()
	c.waitStat("host1", "handshakeTimeouts", gateStrangers)
	if d := time.Since(start); d > 2*handshakeTimeout {
		t.Errorf("strangers stayed %v", d)
	}
	if n1.gate.strangers != 0 && c.stat("host1", "handshakeTimeouts") > gateStrangers {
		t.Error("the gate lost count")
	}
}

func TestRandomFlood(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	c.start("host1")
	_, r2 := c.start("host2")
	c.waitKeys()
	before := len(r2.all())
	u := c.stranger("host2")
	key := c.nodes["host1"].peer("host2").sendKey.Load()
	const packets = 10000
	buf := make([]byte, 1400)
	for i := range packets {
		size := i % len(buf)
		if _, err := rand.Read(buf[:size]); err != nil {
			t.Fatal(err)
		}
		switch { // some look right at the beginning
		case size > 2 && i%3 == 0:
			buf[0], buf[1] = datagramMagic, datagramFormat
		case size > headerSize && i%7 == 0:
			copy(buf, append([]byte{datagramMagic, datagramFormat}, key.id[:]...))
		}
		if _, err := u.Write(buf[:size]); err != nil {
			t.Fatal(err)
		}
	}
	c.datagram("host1", "host2", "mgmt", "through")
	refused := uint64(0)
	for _, name := range []string{"refusedShort", "refusedFormat", "refusedUnknownKey", "refusedForged", "refusedReplay"} {
		refused += c.stat("host2", name)
	}
	if refused < packets/2 { // the kernel may drop some
		t.Errorf("only %d of %d were seen and refused", refused, packets)
	}
	for _, e := range r2.all()[before:] {
		if e != (event{"datagram", "host1", "mgmt through"}) {
			t.Errorf("effect of the flood: %v", e)
		}
	}
}

// What 10,000 random datagrams a second cost is 10,000 times this.
func BenchmarkRandomDatagram(b *testing.B) {
	n := &Node{}
	n.keys.init()
	packet := make([]byte, 300)
	if _, err := rand.Read(packet); err != nil {
		b.Fatal(err)
	}
	packet[0], packet[1] = datagramMagic, datagramFormat
	b.ReportAllocs()
	for b.Loop() {
		n.receive("mgmt", packet)
	}
}

// BenchmarkFloodThroughSocket includes the kernel and the sender's own work.
func BenchmarkFloodThroughSocket(b *testing.B) {
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	n := &Node{}
	n.keys.init()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			size, _, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			n.receive("mgmt", buf[:size])
		}
	}()
	out, err := net.Dial("udp", u.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	packet := make([]byte, 300)
	packet[0], packet[1] = datagramMagic, datagramFormat
	for b.Loop() {
		if _, err := out.Write(packet); err != nil {
			b.Fatal(err)
		}
	}
	out.Close()
	u.Close()
	<-done
}

func BenchmarkSealAndOpen(b *testing.B) {
	h, err := newHalf(make([]byte, keySize+saltSize+keyIDSize))
	if err != nil {
		b.Fatal(err)
	}
	n := &Node{handler: nothing{}}
	n.keys.init()
	r := &recvKey{halfKey: h, peer: &peer{}}
	r.used.Store(true)
	n.keys.byID.Store(&map[keyID]*recvKey{h.id: r})
	s := &sendKey{halfKey: h}
	payload := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		n.receive("mgmt", seal(nil, s, "mgmt", payload))
	}
	if got := n.stats[datagramsReceived].Load(); got != uint64(b.N) {
		b.Fatalf("%d of %d received", got, b.N)
	}
}

type nothing struct{}

func (nothing) Datagram(model.HostID, string, []byte) {}
func (nothing) Message(model.HostID, []byte)          {}
func (nothing) Connected(model.HostID)                {}
func (nothing) Disconnected(model.HostID, Reason)     {}
