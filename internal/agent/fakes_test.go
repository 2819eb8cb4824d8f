package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

const vmA = model.VMID("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")

const clusterYAML = `version: 3
name: test
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1, path: %DIR%/ds1}, {name: ds2, path: %DIR%/ds2}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1}, memory: 16GiB, datastores: [ds1, ds2]}
- {name: host2, address: {mgmt: 10.0.0.2}, memory: 16GiB, datastores: [ds1, ds2]}
`

// fakeCore hands every event to the test and runs the effects that it is given.
type fakeCore struct {
	mu      sync.Mutex
	effects []fdm.Effect // for the next Tick
	next    time.Duration
	got     chan fdm.Event
}

func newFakeCore() *fakeCore { return &fakeCore{got: make(chan fdm.Event, 8192)} }

func (c *fakeCore) Step(now time.Duration, ev fdm.Event) []fdm.Effect {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = now + time.Millisecond
	if _, tick := ev.(fdm.Tick); tick {
		e := c.effects
		c.effects = nil
		return e
	}
	select {
	case c.got <- ev:
	default:
	}
	return nil
}

func (c *fakeCore) Next() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

func (c *fakeCore) View(time.Duration) fdm.ClusterView {
	return fdm.ClusterView{Primary: "host2", HA: true, Monitoring: true,
		Hosts: []fdm.HostView{{Name: "host1", Role: model.RoleSecondary, State: model.HostConnected}},
		VMs:   []fdm.VMView{{Name: "web", ID: vmA, State: model.VMStarted, Host: "host1", Protected: true}}}
}

func (c *fakeCore) do(e ...fdm.Effect) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.effects = append(c.effects, e...)
}

// await returns the next event for which match is true.
func await[E fdm.Event](t *testing.T, c *fakeCore, match func(E) bool) E {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		select {
		case ev := <-c.got:
			if e, ok := ev.(E); ok && (match == nil || match(e)) {
				return e
			}
		case <-limit:
			var zero E
			t.Fatalf("no %T came", zero)
			return zero
		}
	}
}

type fakeTransport struct {
	anew       atomic.Int32 // how often sessions were made anew
	mu         sync.Mutex
	recv       Receiver
	beats      chan string
	messages   chan sent
	configured []uint64
}

type sent struct {
	to      model.HostID
	payload []byte
}

func (f *fakeTransport) Datagram(to model.HostID, network string, payload []byte) {
	f.beats <- string(to) + "/" + network
}
func (f *fakeTransport) Message(to model.HostID, payload []byte) { f.messages <- sent{to, payload} }
func (f *fakeTransport) Configure(c *config.Cluster) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.configured = append(f.configured, c.Version)
	return nil
}
func (f *fakeTransport) Counters() map[string]uint64   { return map[string]uint64{"forged": 7} }
func (f *fakeTransport) CertificateExpires() time.Time { return time.Unix(2e9, 0) }
func (f *fakeTransport) Reauthenticate() error         { f.anew.Add(1); return nil }
func (f *fakeTransport) Close() error                  { return nil }

type fakeGuard struct {
	notices chan lease.Notice
	answer  func(lease.Request) (lease.Reply, error)
	once    sync.Once
}

func (g *fakeGuard) Do(ctx context.Context, r lease.Request) (lease.Reply, error) {
	if r.Status != nil {
		return lease.Reply{Code: lease.CodeOK, Status: &lease.Status{Host: "host1", LongestWrite: time.Second}}, nil
	}
	if g.answer == nil {
		return lease.Reply{Code: lease.CodeOK}, nil
	}
	return g.answer(r)
}
func (g *fakeGuard) Notices() <-chan lease.Notice { return g.notices }
func (g *fakeGuard) Close() error                 { g.die(); return nil }
func (g *fakeGuard) die()                         { g.once.Do(func() { close(g.notices) }) }

// fakeHypervisor answers at once unless block is set.
type fakeHypervisor struct {
	events chan hypervisor.Event
	mu     sync.Mutex
	block  chan struct{} // calls wait for it, and for their context
	err    error
	calls  []string
	canary chan string
}

func newFakeHypervisor() *fakeHypervisor {
	return &fakeHypervisor{events: make(chan hypervisor.Event, 64), canary: make(chan string, 64)}
}

func (h *fakeHypervisor) call(ctx context.Context, what string) error {
	h.mu.Lock()
	h.calls = append(h.calls, what)
	block, err := h.block, h.err
	h.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return &hypervisor.Error{Op: what, Kind: hypervisor.KindTimeout}
		}
	}
	return err
}

func (h *fakeHypervisor) Events() <-chan hypervisor.Event { return h.events }
func (h *fakeHypervisor) Connection() hypervisor.Connection {
	return hypervisor.Connection{Up: true}
}
func (h *fakeHypervisor) List(ctx context.Context) ([]hypervisor.Domain, error) {
	return []hypervisor.Domain{{VM: vmA, Name: "web", Active: true, State: hypervisor.StateRunning, Persistent: true},
		{VM: "ffffffff-0f0a-4c58-9a4e-2b9f0c7d1e55", Name: lease.CanaryPrefix + "1", Active: true}}, nil
}
func (h *fakeHypervisor) XML(context.Context, model.VMID, bool) (string, error) {
	return "<domain type='kvm'><name>web</name><uuid>" + string(vmA) + "</uuid><memory unit='MiB'>96</memory><vcpu>2</vcpu></domain>", nil
}
func (h *fakeHypervisor) Stats(context.Context, func(model.VMID) bool) ([]hypervisor.Stats, error) {
	return nil, nil
}
func (h *fakeHypervisor) Define(ctx context.Context, xml string) (model.VMID, error) {
	return vmA, h.call(ctx, "define")
}
func (h *fakeHypervisor) Undefine(ctx context.Context, vm model.VMID) error {
	return h.call(ctx, "undefine")
}
func (h *fakeHypervisor) SetAutostart(ctx context.Context, vm model.VMID, on bool) error {
	return h.call(ctx, "autostart")
}
func (h *fakeHypervisor) StartPaused(ctx context.Context, vm model.VMID) error {
	return h.call(ctx, "start")
}
func (h *fakeHypervisor) Resume(ctx context.Context, vm model.VMID) error {
	return h.call(ctx, "resume")
}
func (h *fakeHypervisor) Reset(ctx context.Context, vm model.VMID) error {
	return h.call(ctx, "reset")
}
func (h *fakeHypervisor) Shutdown(ctx context.Context, vm model.VMID) (hypervisor.ShutdownMethod, error) {
	return "", h.call(ctx, "shutdown")
}
func (h *fakeHypervisor) Kill(ctx context.Context, vm model.VMID) error { return h.call(ctx, "kill") }
func (h *fakeHypervisor) AgentPing(ctx context.Context, vm model.VMID, d time.Duration) error {
	return h.call(ctx, "ping")
}
func (h *fakeHypervisor) Canary(_ context.Context, name, token string) error {
	h.canary <- name
	return nil
}
func (h *fakeHypervisor) Close() error { return nil }

// fakeStore hangs while hang is set.
type fakeStore struct {
	name string
	mu   sync.Mutex
	hang chan struct{}
	err  error
}

func (s *fakeStore) wait() error {
	s.mu.Lock()
	hang, err := s.hang, s.err
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func (s *fakeStore) ReadSlots() ([]model.SlotReading, error) {
	return []model.SlotReading{{Host: "host2"}}, s.wait()
}
func (s *fakeStore) ReadList() (model.ProtectedList, error) {
	return model.ProtectedList{Term: 4}, s.wait()
}
func (s *fakeStore) WriteList(model.ProtectedList) error { return s.wait() }
func (s *fakeStore) WritePoweredOff(model.PoweredOffNote) error {
	return s.wait()
}
func (s *fakeStore) ReadPoweredOff(vm model.VMID) (model.PoweredOffNote, error) {
	return model.PoweredOffNote{VM: vm, LockEpoch: 4, Host: "host1"}, s.wait()
}
func (s *fakeStore) Highest(l model.LockID) (model.LockRecord, error) {
	return model.LockRecord{Lock: l, Epoch: 9}, s.wait()
}

// rig is an agent with fakes all around.
type rig struct {
	t      *testing.T
	dir    string
	core   *fakeCore
	net    *fakeTransport
	hv     *fakeHypervisor
	stores map[model.DatastoreName]*fakeStore
	guard  chan *fakeGuard // the next connection; none: refused
	agent  *Agent
	client *local.Client
	remote func(*config.Cluster, model.HostID, http.Handler) (Remote, error)
	trust  Trust
	// certified is asked before the transport opens.
	certified func() error
	// dialPeer is Ports.DialPeer.
	dialPeer func(*config.Cluster, model.HostID) (Teller, error)
	// gateways and names are this host's routes and its DNS.
	gateways []netip.Addr
	names    map[string]netip.Addr
	seen     uint64 // events of the log that nextEvent gave
}

func newRig(t *testing.T, prepare func(*rig)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, core: newFakeCore(), hv: newFakeHypervisor(), guard: make(chan *fakeGuard, 4),
		net:    &fakeTransport{beats: make(chan string, 1024), messages: make(chan sent, 1024)},
		stores: map[model.DatastoreName]*fakeStore{"ds1": {name: "ds1"}, "ds2": {name: "ds2"}}}
	r.write("host", "host1\n")
	r.write("cluster.yaml", clusterYAML)
	if prepare != nil {
		prepare(r)
	}
	cfg := Config{HostFile: r.path("host"), ClusterFile: r.path("cluster.yaml"), BootIDFile: r.path("boot"),
		StateDir: r.path("state"), Socket: r.path("run/agent.sock"), Hypervisor: r.hv, RetryInit: 5 * time.Millisecond,
		Log:     slog.New(slog.DiscardHandler),
		newCore: func(fdm.Config) core { return r.core },
		Ports:   r.ports(),
	}
	if err := os.MkdirAll(r.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.agent, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	r.client = local.NewClient(cfg.Socket)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func (r *rig) ports() Ports {
	return Ports{
		OpenRemote: r.remote,
		Trust:      r.trust,
		DialPeer:   r.dialPeer,
		OpenTransport: func(_ *config.Cluster, rc Receiver) (Transport, error) {
			if r.certified != nil {
				if err := r.certified(); err != nil {
					return nil, err
				}
			}
			r.net.recv = rc
			return r.net, nil
		},
		DialGuard: func(context.Context) (Guard, error) {
			select {
			case g := <-r.guard:
				return g, nil
			default:
				return nil, errors.New("connection refused")
			}
		},
		OpenStore: func(_ *config.Cluster, d config.Datastore) (Store, error) { return r.stores[d.Name], nil },
		Ping: func(_ context.Context, a []netip.Addr) (netip.Addr, bool) {
			gw := netip.MustParseAddr("10.0.0.2")
			return gw, slices.Contains(a, gw)
		},
		Gateways: func() []netip.Addr { return r.gateways },
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			if a, ok := r.names[name]; ok {
				return []netip.Addr{a}, nil
			}
			return nil, errors.New("no such host")
		},
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) read(name string) string {
	b, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r *rig) write(name, content string) {
	r.t.Helper()
	content = string(replaceDir([]byte(content), r.dir))
	if err := os.WriteFile(r.path(name), []byte(content), 0o600); err != nil {
		r.t.Fatal(err)
	}
}
