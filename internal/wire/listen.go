package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// protocol is what the TLS sessions of agents are for (ALPN): a session made
// for libvirt with the same certificates is not accepted.
const protocol = "hanok-agent/1"

// listen opens UDP and TCP on one own address. The address may be missing yet
// (IP_FREEBIND): an agent must start while a network is down.
func (n *Node) listen(a Address) error {
	a.Addr = a.Addr.Unmap()
	if !a.Addr.IsValid() {
		return ErrNoAddress
	}
	if _, dup := n.own[a.Network]; dup {
		return errors.New("has two own addresses; give one")
	}
	lc := net.ListenConfig{Control: freebind}
	at := netip.AddrPortFrom(a.Addr, n.cfg.Port).String()
	l, err := lc.Listen(n.ctx, "tcp", at)
	if err != nil {
		return err
	}
	n.listeners = append(n.listeners, &netListener{l, a.Network})
	pc, err := lc.ListenPacket(n.ctx, "udp", at)
	if err != nil {
		return err
	}
	u, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return fmt.Errorf("%T is no UDP socket", pc)
	}
	s := &socket{network: a.Network, conn: u}
	n.sockets[a.Network], n.own[a.Network] = s, a.Addr
	// Room for heartbeats beside a flood; less only means more loss.
	_ = u.SetReadBuffer(1 << 20)
	s.raw, err = u.SyscallConn()
	return err
}

// netListener knows the network that it listens on.
type netListener struct {
	net.Listener
	network string
}

func freebind(network, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		if network == "tcp6" || network == "udp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(cerr, err)
}

func (n *Node) acceptLoop(l net.Listener) {
	network := l.(*netListener).network
	for n.ctx.Err() == nil {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.pause(50 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		from := addrOf(c)
		member := (*n.members.Load())[from]
		if !n.gate.enter(from, member, time.Now()) {
			n.stats.add(handshakeBusy)
			c.Close()
			continue
		}
		n.wg.Go(func() {
			conn, err := n.welcome(c, network)
			n.gate.leave(from, member)
			if err != nil {
				c.Close()
				n.refused(from.String(), err)
				return
			}
			conn.run()
		})
	}
}

func addrOf(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// The gate's bounds. Members' own addresses have places that strangers cannot
// take; strangers' handshakes are also limited in rate, because each costs a
// signature.
const (
	gateMembers   = 256
	gatePerMember = 8
	gateStrangers = 16
	gateRate      = 50 // handshakes of strangers a second
)

// gate bounds the handshakes under way.
type gate struct {
	mu        sync.Mutex
	members   map[netip.Addr]int
	total     int
	strangers int
	tokens    float64
	filled    time.Time
}

func (g *gate) enter(from netip.Addr, member bool, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if member {
		if g.total >= gateMembers || g.members[from] >= gatePerMember {
			return false
		}
		if g.members == nil {
			g.members = map[netip.Addr]int{}
		}
		g.total++
		g.members[from]++
		return true
	}
	if g.filled.IsZero() {
		g.tokens = gateRate
	} else {
		g.tokens = math.Min(gateRate, g.tokens+now.Sub(g.filled).Seconds()*gateRate)
	}
	g.filled = now
	if g.strangers >= gateStrangers || g.tokens < 1 {
		return false
	}
	g.tokens--
	g.strangers++
	return true
}

func (g *gate) leave(from netip.Addr, member bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !member {
		g.strangers--
		return
	}
	g.total--
	if g.members[from]--; g.members[from] <= 0 {
		delete(g.members, from)
	}
}

// member is the rule of who may speak: members of the cluster file, not
// somebody with this host's own name.
func (n *Node) member(id pki.Identity) error {
	if id.Host == n.self || n.peer(id.Host) == nil {
		return notMember(id.Host)
	}
	return nil
}

func notMember(host model.HostID) error {
	return &pki.Refused{Reason: pki.ReasonNotMember, Detail: fmt.Sprintf("%s is not among the other hosts of the cluster file", host)}
}

// welcome is the listening side of the handshake, hello included, in at most
// handshakeTimeout.
func (n *Node) welcome(raw net.Conn, network string) (*conn, error) {
	ctx, cancel := context.WithTimeout(n.ctx, handshakeTimeout)
	defer cancel()
	t, tc, err := n.shake(ctx, raw, func(c net.Conn) *tls.Conn {
		return tls.Server(c, n.cfg.Credentials.Current().ServerTLS(protocol, n.member))
	})
	if err != nil {
		return nil, err
	}
	cs := tc.ConnectionState()
	id, err := pki.PeerIdentity(cs)
	if err != nil {
		return nil, err
	}
	p := n.peer(id.Host)
	if p == nil {
		return nil, notMember(id.Host) // removed since the handshake began
	}
	keys, err := deriveKeys(cs, p, false)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	r := bufio.NewReaderSize(tc, 16<<10)
	h, err := readHello(r)
	if err != nil {
		return nil, err
	}
	if !h.common() {
		return nil, errVersion{h}
	}
	gen := max(h.gen, n.keys.nextGen(p))
	n.keys.accept(p, keys)
	defer n.keys.settle(p, keys)
	if _, err := tc.Write(hello{versionMin, versionMax, n.instance, gen}.frame()); err != nil {
		return nil, err
	}
	n.keys.agree(p, keys, gen)
	n.stats.add(handshakesDone)
	return newConn(n, p, t, tc, r, h, false, network), nil
}

// shake runs a TLS handshake and leaves the connection with the deadline of
// ctx.
func (n *Node) shake(ctx context.Context, raw net.Conn, wrap func(net.Conn) *tls.Conn) (*timedConn, *tls.Conn, error) {
	t := &timedConn{Conn: raw}
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, nil, err
	}
	// Closing the node ends a handshake at once.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	tc := wrap(t)
	err := tc.HandshakeContext(ctx)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	return t, tc, err
}

// dial is the other side; nil when it failed.
func (n *Node) dial(ctx context.Context, p *peer, to Address) *conn {
	c, err := n.connect(ctx, p, to)
	if err != nil {
		if p.ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			n.stats.add(dialErrors)
			var r *pki.Refused
			if errors.As(err, &r) {
				n.refused(to.Addr.String(), err)
			}
		}
		return nil
	}
	return c
}

func (n *Node) connect(ctx context.Context, p *peer, to Address) (c *conn, err error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: n.own[to.Network].AsSlice()}}
	raw, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to.Addr, n.cfg.Port).String())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			raw.Close()
		}
	}()
	expect := func(id pki.Identity) error {
		if id.Host != p.id {
			return &pki.Refused{Reason: pki.ReasonWrongHost, Detail: fmt.Sprintf("%s answers as %s; expected was %s", to.Addr, id.Host, p.id)}
		}
		return nil
	}
	t, tc, err := n.shake(ctx, raw, func(c net.Conn) *tls.Conn {
		return tls.Client(c, n.cfg.Credentials.Current().ClientTLS(protocol, expect))
	})
	if err != nil {
		return nil, err
	}
	keys, err := deriveKeys(tc.ConnectionState(), p, true)
	if err != nil {
		return nil, err
	}
	// Before hello: the peer may send with the keys as soon as it has read it.
	n.keys.accept(p, keys)
	defer n.keys.settle(p, keys)
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	if _, err := tc.Write(hello{versionMin, versionMax, n.instance, n.keys.nextGen(p)}.frame()); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(tc, 16<<10)
	h, err := readHello(r)
	if err != nil {
		return nil, fmt.Errorf("no welcome: %w", err)
	}
	if !h.common() {
		return nil, errVersion{h}
	}
	if h.gen == 0 {
		return nil, fmt.Errorf("%w: no key number", errBadFrame)
	}
	n.keys.agree(p, keys, h.gen)
	n.stats.add(handshakesDone)
	return newConn(n, p, t, tc, r, h, true, to.Network), nil
}

type errVersion struct{ h hello }

func (e errVersion) Error() string {
	return fmt.Sprintf("the peer speaks wire versions %d to %d and this agent %d to %d; upgrade the older one",
		e.h.min, e.h.max, versionMin, versionMax)
}

var refusedBy = map[pki.Reason]counter{
	pki.ReasonNoCertificate: refusedNoCertificate, pki.ReasonForeignCA: refusedForeignCA,
	pki.ReasonExpired: refusedExpired, pki.ReasonNotYetValid: refusedNotYetValid, pki.ReasonUsage: refusedUsage,
	pki.ReasonNoIdentity: refusedNoIdentity, pki.ReasonWrongCluster: refusedWrongCluster,
	pki.ReasonWrongHost: refusedWrongHost, pki.ReasonNotMember: refusedNotMember, pki.ReasonProtocol: refusedProtocol,
}

// refused counts and logs why a handshake came to nothing.
func (n *Node) refused(from string, err error) {
	if n.ctx.Err() != nil {
		return
	}
	c := handshakeErrors
	var r *pki.Refused
	var v errVersion
	switch {
	case errors.As(err, &r):
		c = refusedBy[r.Reason]
	case errors.As(err, &v):
		c = refusedVersion
	case errors.Is(err, errFrameTooLarge):
		c = framesTooLarge
	case errors.Is(err, errBadFrame):
		c = framesBad
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		c = handshakeTimeouts
	}
	n.stats.add(c)
	n.log.note(c, from, err)
}
