package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/wire"
)

// HostPorts are the ports of a real host: TLS and sealed datagrams with the
// certificates in pkiDir, the guard at guardSocket, mounted datastores, ICMP.
func HostPorts(pkiDir, guardSocket string, log *slog.Logger) Ports {
	keeper := pki.NewKeeper(pkiDir)
	return Ports{
		Trust:         keeper,
		OpenTransport: func(c *config.Cluster, r Receiver) (Transport, error) { return openNode(keeper, pkiDir, c, r, log) },
		OpenRemote: func(c *config.Cluster, self model.HostID, h http.Handler) (Remote, error) {
			return openHostRemote(keeper, c, self, h, log)
		},
		DialPeer:  func(c *config.Cluster, to model.HostID) (Teller, error) { return dialHostPeer(keeper, c, to) },
		DialGuard: func(ctx context.Context) (Guard, error) { return dialGuard(ctx, guardSocket) },
		OpenStore: func(c *config.Cluster, d config.Datastore) (Store, error) {
			return datastore.Open(d.Path, c.ID, datastore.Options{Expect: d.UUID})
		},
		Ping:     Ping,
		Firewall: &HostFirewall,
		Gateways: gateways,
		Resolve: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
		Now: BootClock,
	}
}

// node is a Transport over package wire.
type node struct {
	keeper *pki.Keeper
	self   model.HostID
	recv   Receiver
	log    *slog.Logger

	configuring sync.Mutex // held by Configure and Close
	own         []wire.Address
	interval    time.Duration
	cluster     *config.Cluster
	closed      bool

	mu   sync.Mutex
	wire *wire.Node
	past map[string]uint64 // counters of nodes before this one
}

func openNode(keeper *pki.Keeper, pkiDir string, c *config.Cluster, r Receiver, log *slog.Logger) (Transport, error) {
	creds, err := keeper.Load()
	if err != nil {
		return nil, err
	}
	if err := creds.Check(time.Now()); err != nil {
		return nil, err
	}
	if creds.Identity.Cluster != c.ID {
		return nil, fmt.Errorf("the certificate in %s is for cluster %q, this host belongs to %q", pkiDir, creds.Identity.Cluster, c.ID)
	}
	n := &node{keeper: keeper, self: creds.Identity.Host, recv: r, log: log, past: map[string]uint64{}}
	return n, n.Configure(c)
}

// Configure gives the node its members. It starts anew when this host's own
// addresses or the interval changed, which loses the connections for a moment.
func (n *node) Configure(c *config.Cluster) error {
	n.configuring.Lock()
	defer n.configuring.Unlock()
	return n.configure(c)
}

// Reauthenticate ends all sessions and makes new ones, which loses the
// connections for a moment.
func (n *node) Reauthenticate() error {
	n.configuring.Lock()
	defer n.configuring.Unlock()
	n.stop()
	return n.configure(n.cluster)
}

// configure needs n.configuring.
func (n *node) configure(c *config.Cluster) error {
	if n.closed {
		return wire.ErrClosed
	}
	n.cluster = c
	peers, own := wire.Members(c, n.self)
	w := n.current()
	if w == nil || !reflect.DeepEqual(own, n.own) || n.interval != c.Timing().Interval {
		n.stop()
		var err error
		w, err = wire.New(wire.Config{Credentials: n.keeper, Listen: own, Interval: c.Timing().Interval, Log: n.log}, handler{n.recv})
		if err != nil {
			return err
		}
		n.own, n.interval = own, c.Timing().Interval
		n.mu.Lock()
		n.wire = w
		n.mu.Unlock()
	}
	w.SetPeers(peers)
	return nil
}

// stop ends the present node and keeps its counters. It holds no lock while it
// waits: what the node delivers at last may want to send.
func (n *node) stop() {
	n.mu.Lock()
	w := n.wire
	n.wire = nil
	n.mu.Unlock()
	if w == nil {
		return
	}
	w.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, v := range w.Stats() {
		n.past[k] += v
	}
}

func (n *node) current() *wire.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wire
}

// Datagram drops what cannot be sent: the counters tell.
func (n *node) Datagram(to model.HostID, network string, payload []byte) {
	if w := n.current(); w != nil {
		_ = w.SendDatagram(network, to, payload)
	}
}

func (n *node) Message(to model.HostID, payload []byte) {
	w := n.current()
	if w == nil {
		return
	}
	if err := w.Send(to, payload); errors.Is(err, wire.ErrTooLarge) {
		n.log.Error("a message cannot be sent", "to", to, "err", err)
	}
}

func (n *node) Counters() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string]uint64{}
	for k, v := range n.past {
		out[k] = v
	}
	if n.wire != nil {
		for k, v := range n.wire.Stats() {
			out[k] += v
		}
	}
	return out
}

func (n *node) CertificateExpires() time.Time {
	if c := n.keeper.Current(); c != nil {
		return c.Expires
	}
	return time.Time{}
}

func (n *node) Close() error {
	n.configuring.Lock()
	defer n.configuring.Unlock()
	n.closed = true
	n.stop()
	return nil
}

// handler passes on what package wire delivers.
type handler struct{ Receiver }

func (h handler) Connected(host model.HostID) { h.Link(host, true, "") }

// Disconnected: an idle connection lost nothing and comes back when needed.
func (h handler) Disconnected(host model.HostID, why wire.Reason) {
	if why != wire.ReasonIdle {
		h.Link(host, false, string(why))
	}
}

// guardConn is a Guard over package ipc.
type guardConn struct{ c *ipc.Client }

func dialGuard(ctx context.Context, path string) (Guard, error) {
	c, err := ipc.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := c.Subscribe(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return guardConn{c}, nil
}

func (g guardConn) Do(ctx context.Context, r lease.Request) (lease.Reply, error) {
	return g.c.Call(ctx, r)
}
func (g guardConn) Notices() <-chan lease.Notice { return g.c.Notices() }
func (g guardConn) Close() error                 { g.c.Close(); return nil }
