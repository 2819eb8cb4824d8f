package wire

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// DefaultPort is the port of agents, UDP and TCP.
const DefaultPort = 8182

// Bounds of what one call may send.
const (
	// MaxDatagram is the largest payload of a datagram, so that the sealed
	// datagram fits into an unfragmented IPv6 packet everywhere.
	MaxDatagram = 1200
	// MaxMessage is the largest payload of a message.
	MaxMessage = 1 << 20
)

// Times and bounds; variables only where tests must not wait for them.
const (
	defaultInterval  = 500 * time.Millisecond
	defaultIdle      = 10 * time.Second
	defaultRekey     = 24 * time.Hour
	handshakeTimeout = 2 * time.Second
	// dialStagger is the head start of a peer's preferred network.
	dialStagger = 250 * time.Millisecond
	// keyGrace is how long the host with the higher name waits for the other
	// to dial first.
	keyGrace = 250 * time.Millisecond
	// backoffMin and backoffMax bound the pause between rounds of connecting.
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second
	// queueFrames and queueBytes bound what waits to be sent to one peer.
	queueFrames = 1024
	queueBytes  = 4 << 20
	// connsPerPeer bounds the connections with one peer.
	connsPerPeer = 4
)

// Errors of Send and SendDatagram.
var (
	ErrUnknownPeer = errors.New("not a member of the cluster")
	ErrNoAddress   = errors.New("no address on that network")
	ErrNoKey       = errors.New("no key with that host yet")
	ErrTooLarge    = errors.New("too large")
	ErrQueueFull   = errors.New("send queue full, connection dropped")
	ErrClosed      = errors.New("closed")
)

// Reason says in one word why a connection ended.
type Reason string

// The reasons of Disconnected.
const (
	ReasonIdle        Reason = "idle"        // unused; nothing was lost
	ReasonSilent      Reason = "silent"      // nothing came for too long
	ReasonClosed      Reason = "closed"      // the peer or the kernel ended it
	ReasonQueueFull   Reason = "queueFull"   // the peer took messages too slowly
	ReasonRestarted   Reason = "restarted"   // the peer's agent is another one now
	ReasonUnreachable Reason = "unreachable" // no connection could be made
	ReasonBadFrame    Reason = "badFrame"    // the peer sent what this version refuses
	ReasonSuperseded  Reason = "superseded"  // too many connections with the peer
	ReasonRemoved     Reason = "removed"     // the peer is no member any more
	ReasonShutdown    Reason = "shutdown"    // this node was closed
)

// Handler receives what peers send. Calls about one host never overlap, except
// Datagram's; Message is only called between Connected and Disconnected of its
// host. A call that does not return holds up that host's connection, or, for
// Datagram, the network. Methods may call every method of the Node but Close.
type Handler interface {
	// Datagram was received on a network; the payload is the callee's.
	Datagram(from model.HostID, network string, payload []byte)
	// Message was received; the payload is the callee's.
	Message(from model.HostID, payload []byte)
	// Connected: messages can be exchanged with the host now.
	Connected(host model.HostID)
	// Disconnected: messages sent since the last Connected may be lost, except
	// with ReasonIdle. With ReasonUnreachable also without a Connected before.
	Disconnected(host model.HostID, reason Reason)
}

// Address is a host's address on one network.
type Address struct {
	Network string
	Addr    netip.Addr
}

// Peer is another member of the cluster.
type Peer struct {
	// Addresses on heartbeat networks, in the order in which they are tried.
	Addresses []Address
}

// Credentials are this host's, as they are at the moment (pki.Keeper, or
// pki.Credentials that never change).
type Credentials interface{ Current() *pki.Credentials }

// Config says who and where this node is.
type Config struct {
	// Credentials prove this host. They are asked for at each handshake, so that
	// renewed ones count; the name in the cluster is that of the first.
	Credentials Credentials
	// Listen are this host's own addresses, one per heartbeat network. They
	// need not be up yet.
	Listen []Address
	// Port of all members. Default DefaultPort.
	Port uint16
	// Interval between signs of life on a connection. Default 500 ms; use
	// model.Timing.Interval.
	Interval time.Duration
	// Idle is how long an unused connection is kept. Default 10 s.
	Idle time.Duration
	// Rekey is the age at which keys of datagrams are replaced. Default 24 h.
	Rekey time.Duration
	// Log receives refusals, at most one each 10 s and kind. Default: none.
	Log *slog.Logger
}

// Node is this host's end of the wire. All methods are safe for concurrent use.
type Node struct {
	cfg      Config
	self     model.HostID
	handler  Handler
	instance [16]byte
	start    time.Time
	stats    stats
	log      refusalLog

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	listeners []net.Listener
	sockets   map[string]*socket
	own       map[string]netip.Addr
	keys      keyring
	gate      gate

	setMu   sync.Mutex // serialises SetPeers and Close
	closed  bool
	hears   bool // SetPeers was called
	peers   atomic.Pointer[map[model.HostID]*peer]
	members atomic.Pointer[map[netip.Addr]bool]
}

// New listens on all own addresses and returns the node. Whoever connects waits
// until SetPeers tells who the members are. Close it.
func New(cfg Config, handler Handler) (*Node, error) {
	if cfg.Credentials == nil || cfg.Credentials.Current() == nil || len(cfg.Listen) == 0 {
		return nil, errors.New("wire: credentials and at least one own address are required")
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Idle <= 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.Rekey <= 0 {
		cfg.Rekey = defaultRekey
	}
	n := &Node{cfg: cfg, self: cfg.Credentials.Current().Identity.Host, handler: handler, start: time.Now(),
		sockets: map[string]*socket{}, own: map[string]netip.Addr{}, log: refusalLog{log: cfg.Log}}
	if _, err := rand.Read(n.instance[:]); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.peers.Store(&map[model.HostID]*peer{})
	n.members.Store(&map[netip.Addr]bool{})
	n.keys.init()
	for _, a := range cfg.Listen {
		if err := n.listen(a); err != nil {
			n.Close()
			return nil, fmt.Errorf("wire: listen on network %s: %w", a.Network, err)
		}
	}
	return n, nil
}

// hear begins to take connections and datagrams.
func (n *Node) hear() {
	for _, l := range n.listeners {
		n.wg.Go(func() { n.acceptLoop(l) })
	}
	for _, s := range n.sockets {
		n.wg.Go(func() { n.receiveLoop(s) })
	}
}

// Self returns this host's name.
func (n *Node) Self() model.HostID { return n.self }

// SetPeers makes peers, without this host, the members: others are refused even
// with a valid certificate, and keys and connections with them are dropped.
// It does not wait for connections to end.
func (n *Node) SetPeers(peers map[model.HostID]Peer) {
	n.setMu.Lock()
	defer n.setMu.Unlock()
	if n.closed {
		return
	}
	old := *n.peers.Load()
	next := make(map[model.HostID]*peer, len(peers))
	members := make(map[netip.Addr]bool)
	for id, conf := range peers {
		if id == n.self {
			continue
		}
		for _, a := range conf.Addresses {
			members[a.Addr.Unmap()] = true
		}
		p := old[id]
		if p == nil {
			p = newPeer(n, id)
		}
		p.setAddresses(conf.Addresses)
		next[id] = p
	}
	n.members.Store(&members)
	n.peers.Store(&next)
	if !n.hears {
		n.hears = true
		n.hear()
	}
	for id, p := range next {
		if old[id] == nil {
			n.wg.Go(p.run)
		}
	}
	for id, p := range old {
		if next[id] == nil {
			p.remove(ReasonRemoved)
			n.keys.forget(p)
		}
	}
}

func (n *Node) peer(id model.HostID) *peer { return (*n.peers.Load())[id] }

// Send queues a message for a host and connects if needed. It does not block.
func (n *Node) Send(to model.HostID, payload []byte) error {
	if n.ctx.Err() != nil {
		return fmt.Errorf("send to %s: %w", to, ErrClosed)
	}
	p := n.peer(to)
	if p == nil {
		return fmt.Errorf("send to %s: %w", to, ErrUnknownPeer)
	}
	if len(payload) > MaxMessage {
		return fmt.Errorf("send %d bytes to %s: %w, at most %d", len(payload), to, ErrTooLarge, MaxMessage)
	}
	if err := p.enqueue(payload); err != nil {
		return fmt.Errorf("send to %s: %w", to, err)
	}
	return nil
}

// Close ends all connections and waits for every goroutine of the node. It must
// not be called from a Handler.
func (n *Node) Close() {
	n.setMu.Lock()
	n.closed = true
	n.cancel()
	for _, l := range n.listeners {
		l.Close()
	}
	for _, s := range n.sockets {
		s.conn.Close()
	}
	for _, p := range *n.peers.Load() {
		p.remove(ReasonShutdown)
	}
	n.setMu.Unlock()
	n.wg.Wait()
}

// Stats returns the counters by name, refusals and traffic since New.
func (n *Node) Stats() map[string]uint64 { return n.stats.snapshot() }

// PeerStatus is how this node stands with one peer.
type PeerStatus struct {
	Host model.HostID
	// Network of the connection in use; empty without one.
	Network string
	// Keyed: datagrams can be sent.
	Keyed bool
}

// Peers returns the status of every peer, in no particular order.
func (n *Node) Peers() []PeerStatus {
	peers := *n.peers.Load()
	out := make([]PeerStatus, 0, len(peers))
	for id, p := range peers {
		out = append(out, PeerStatus{Host: id, Network: p.activeNetwork(), Keyed: p.sendKey.Load() != nil})
	}
	return out
}
