package agent

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// core is the machine as the loop uses it.
type core interface {
	Step(now time.Duration, ev fdm.Event) []fdm.Effect
	Next() time.Duration
	View(now time.Duration) fdm.ClusterView
}

// Transport carries datagrams and messages between the agents of a cluster.
// Sending never blocks.
type Transport interface {
	// Datagram sends over one network; it may be lost.
	Datagram(to model.HostID, network string, payload []byte)
	// Message sends over the reliable link; it is lost when the link is down
	// or breaks.
	Message(to model.HostID, payload []byte)
	// Configure takes members and networks from a new cluster file.
	Configure(c *config.Cluster) error
	// Counters counts what was refused or dropped, by reason.
	Counters() map[string]uint64
	// CertificateExpires is the end of this host's certificate.
	CertificateExpires() time.Time
	// Reauthenticate ends all sessions and makes new ones: an authority is not
	// trusted any more.
	Reauthenticate() error
	Close() error
}

// Receiver is what a Transport calls for what arrives. Message and Link may
// block, which slows that link down; Datagram returns at once.
type Receiver interface {
	Datagram(from model.HostID, network string, payload []byte)
	Message(from model.HostID, payload []byte)
	Link(host model.HostID, up bool, reason string)
}

// Guard is a connection to this host's guard.
type Guard interface {
	// Do sends a request, whose ID it sets, and waits for the reply. It may be
	// called concurrently.
	Do(ctx context.Context, req lease.Request) (lease.Reply, error)
	// Notices is closed when the connection ends.
	Notices() <-chan lease.Notice
	Close() error
}

// Store is what the agent does with a datastore (datastore.Driver has more).
type Store interface {
	ReadSlots() ([]model.SlotReading, error)
	ReadList() (model.ProtectedList, error)
	WriteList(list model.ProtectedList) error
	WritePoweredOff(note model.PoweredOffNote) error
	ReadPoweredOff(vm model.VMID) (model.PoweredOffNote, error)
	Highest(lock model.LockID) (model.LockRecord, error)
}

var _ Store = datastore.Driver(nil)

// Remote listens for servers (package comment of local).
type Remote interface {
	// Configure takes this host's addresses from a new cluster file.
	Configure(c *config.Cluster) error
	Close() error
}

// Ports are the agent's connections to the world; all but OpenRemote, DialPeer,
// Trust and Firewall are required.
type Ports struct {
	// Trust is this host's identity; nil: no server can renew it.
	Trust Trust
	// OpenRemote listens for servers, and for words of other hosts; nil: no server
	// can ask this agent.
	OpenRemote func(c *config.Cluster, self model.HostID, h http.Handler) (Remote, error)
	// DialPeer is how words go to another host; nil: the hosts' own port stays
	// open to members while HA is off, because nothing else carries them.
	DialPeer func(c *config.Cluster, to model.HostID) (Teller, error)
	// OpenTransport listens for the other agents.
	OpenTransport func(c *config.Cluster, r Receiver) (Transport, error)
	// DialGuard connects to the guard and subscribes to its notices.
	DialGuard func(ctx context.Context) (Guard, error)
	// OpenStore makes the driver of a datastore; it must not touch the storage.
	OpenStore func(c *config.Cluster, d config.Datastore) (Store, error)
	// Ping sends ICMP echoes to addresses until one answers, which it returns,
	// or ctx ends.
	Ping func(ctx context.Context, addrs []netip.Addr) (netip.Addr, bool)
	// Gateways are the default gateways of this host; nil: none is known.
	Gateways func() []netip.Addr
	// Resolve looks a host name up.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Firewall closes the port to strangers; nil: it stays as it is.
	Firewall *Firewall
	// Now is the time since boot, suspend included.
	Now func() time.Duration
}
