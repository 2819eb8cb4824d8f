package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/event/eventlog"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
)

// Config sets an agent up. Hypervisor and Ports are required; the rest
// defaults to this host's own files.
type Config struct {
	// HostFile, ClusterFile and BootIDFile are read at the start.
	HostFile    string
	ClusterFile string
	BootIDFile  string
	// StateDir keeps the events, Socket is where the local API is served.
	StateDir string
	Socket   string
	// Metrics is the TCP address of metrics and health; "" for none. Whoever
	// reaches it reads names and states: keep it on loopback or behind a proxy.
	Metrics string
	// Hypervisor runs this host's domains. The agent closes it.
	Hypervisor hypervisor.Driver
	Ports      Ports
	Log        *slog.Logger
	// RetryInit is the pause between attempts to read the configuration.
	// Default 1 s.
	RetryInit time.Duration

	newCore func(fdm.Config) core // tests replace the machine
}

func (c Config) withDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.HostFile, paths.HostFile)
	def(&c.ClusterFile, paths.ClusterFile)
	def(&c.BootIDFile, paths.BootID)
	def(&c.StateDir, paths.StateDir)
	def(&c.Socket, paths.AgentSocket)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.RetryInit <= 0 {
		c.RetryInit = time.Second
	}
	if c.Ports.Now == nil {
		c.Ports.Now = BootClock
	}
	if c.newCore == nil {
		c.newCore = func(f fdm.Config) core { return fdm.New(f) }
	}
	return c
}

// Bounds of the agent's queues (package comment).
const (
	maxOperations = 1024
	eventQueue    = 1024
	beatQueue     = 256
	logQueue      = 1024
)

// Agent is one host's agent. Make it with New, run it once.
type Agent struct {
	cfg   Config
	log   *slog.Logger
	store config.Store
	count counters
	told  counters // events by severity

	host   model.HostID
	start  uint64
	events *eventlog.Log

	setup     atomic.Pointer[setup]
	transport Transport
	servers   Remote   // nil when none may ask
	control   *control // nil when nothing but the hosts' own port carries words
	links     *guardLink
	hv        *hypervisorWatch

	in      chan fdm.Event
	beats   chan fdm.Event
	queries chan func(core)
	logged  chan event.Event
	ops     chan struct{}
	// portChanged: the members changed, see guardPort.
	portChanged chan struct{}
	// optionsChanged: see logState.
	optionsChanged chan struct{}
	share          *share
	emitted        uint64

	hypervise, guests, pings, disk *workers

	addresses isolationAddresses

	admins  sync.Map // of uint64 to chan fdm.AdminReply
	adminID atomic.Uint64

	mu      sync.Mutex
	trouble *trouble // why the agent cannot work, nil when it does
	notices []string
	guardSt lease.Status
	// portNotices are about the firewall.
	portNotices []string
	hvUp        bool
	hvWhy       string

	wg sync.WaitGroup
}

// trouble is a reason for state initError.
type trouble struct {
	err    error
	remedy string
}

// New checks the configuration; nothing is opened before Run.
func New(cfg Config) (*Agent, error) {
	cfg = cfg.withDefaults()
	p := cfg.Ports
	if cfg.Hypervisor == nil || p.OpenTransport == nil || p.DialGuard == nil || p.OpenStore == nil || p.Ping == nil || p.Gateways == nil || p.Resolve == nil {
		return nil, errors.New("agent: a hypervisor and all ports are required")
	}
	return &Agent{
		cfg: cfg, log: cfg.Log, store: config.Store{Path: cfg.ClusterFile},
		in:          make(chan fdm.Event, eventQueue),
		beats:       make(chan fdm.Event, beatQueue),
		queries:     make(chan func(core)),
		logged:      make(chan event.Event, logQueue),
		ops:         make(chan struct{}, maxOperations),
		portChanged: make(chan struct{}, 1), optionsChanged: make(chan struct{}, 1),
	}, nil
}

// Run works until ctx ends, which is the only way that it returns nil. Without
// a usable configuration it serves the local API, says why, and tries again.
// Workers that hang in storage are left behind.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer a.wg.Wait()
	defer cancel()
	defer func() {
		if cerr := a.cfg.Hypervisor.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("close the hypervisor: %w", cerr)
		}
	}()
	unlock, err := takeInstance(a.cfg.Socket)
	if err != nil {
		return err
	}
	defer unlock()
	a.events, err = eventlog.Open(filepath.Join(a.cfg.StateDir, "events.jsonl"))
	if err != nil {
		return err
	}
	defer a.events.Close()

	a.fail(errors.New("the agent is starting"), "wait a moment")
	failed := make(chan error, 1)
	if err := a.serve(ctx, failed); err != nil {
		return err
	}
	a.observe(ctx)
	if !a.initialise(ctx, failed) {
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}
	defer a.transport.Close()
	defer a.openRemote(ctx)()
	a.hypervise = newWorkers(hypervisorWorkers, hypervisorBacklog)
	a.guests = newWorkers(guestWorkers, guestBacklog)
	a.pings = newWorkers(pingWorkers, pingBacklog)
	a.disk = newWorkers(1, 16)
	a.links = newGuardLink(a)
	a.hv = newHypervisorWatch(a)
	a.goes(func() { a.writeEvents(ctx) })
	a.goes(func() { a.links.run(ctx) })
	a.goes(func() { a.hv.run(ctx) })
	a.goes(func() { a.canary(ctx) })
	a.goes(func() { a.guardPort(ctx) })
	a.boundEvents(a.setup.Load().cluster)
	a.goes(func() { a.logState(ctx) })
	a.goes(func() { a.addresses.learn(ctx, a, a.setup.Load().cluster) })
	err = a.loop(ctx, failed)
	// Whoever waits to be heard gives up now, and nobody writes any more when
	// the transport and the log are closed.
	cancel()
	a.wg.Wait()
	return err
}

// goes runs f in a goroutine that Run waits for.
func (a *Agent) goes(f func()) {
	a.wg.Add(1)
	go func() { defer a.wg.Done(); f() }()
}

// fail notes why the agent cannot work; nil clears it.
func (a *Agent) fail(err error, remedy string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.trouble = nil
		return
	}
	if a.trouble == nil || a.trouble.err.Error() != err.Error() {
		a.log.Warn("the agent cannot work", "err", err, "remedy", remedy)
	}
	a.trouble = &trouble{err, remedy}
}

// initialise reads identity and configuration and opens the transport, trying
// again until it succeeds; false when ctx ended or the local API failed.
func (a *Agent) initialise(ctx context.Context, failed chan error) bool {
	var servers renewal
	defer servers.close()
	for {
		t := a.prepare(ctx)
		if t == nil {
			a.fail(nil, "")
			return true
		}
		a.fail(t.err, t.remedy)
		servers.open(a, t.err)
		select {
		case <-ctx.Done():
			return false
		case err := <-failed:
			failed <- err
			return false
		case <-time.After(a.cfg.RetryInit):
		}
	}
}

func (a *Agent) prepare(ctx context.Context) *trouble {
	host, err := readHost(a.cfg.HostFile)
	if err != nil {
		return &trouble{err, "write this host's name in the cluster into " + a.cfg.HostFile}
	}
	a.host = host
	loaded, err := a.store.Load()
	if err != nil {
		return &trouble{err, "copy the cluster file from another host of the cluster, or `hanok cluster apply -f FILE` here"}
	}
	c := loaded.Cluster
	if err := c.CheckDeployable(host); err != nil {
		return &trouble{err, "correct " + a.cfg.HostFile + " or the cluster file, `hanok cluster apply -f FILE`"}
	}
	// Keeps a copy from the first start on, and repairs what Load found damaged.
	if err := a.store.Save(c); err != nil {
		return &trouble{err, "make the directory of " + paths.ClusterFile + " writable"}
	}
	if a.start == 0 {
		if a.start, err = nextLife(a.cfg.StateDir, time.Now()); err != nil {
			return &trouble{err, "make " + a.cfg.StateDir + " writable"}
		}
	}
	s, err := a.newSetup(c)
	if err != nil {
		return &trouble{err, "correct the datastores in the cluster file"}
	}
	a.setup.Store(s)
	if a.transport, err = a.cfg.Ports.OpenTransport(c, receiver{a, ctx}); err != nil {
		return &trouble{err, "check " + paths.PKIDir + " (`hanok pki show`) and that the address and port 8182 are this host's and free"}
	}
	a.mu.Lock()
	a.notices = loaded.Notices
	a.mu.Unlock()
	for _, n := range loaded.Notices {
		a.log.Warn("cluster file", "notice", n)
	}
	return nil
}

// serve starts the local API; an error that ends it goes to failed.
func (a *Agent) serve(ctx context.Context, failed chan error) error {
	ln, err := listenLocal(a.cfg.Socket)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           a.handler(ctx),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
	a.goes(func() {
		if err := srv.Serve(limitListener(ln, maxClients)); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("local API on %s: %w", a.cfg.Socket, err)
		}
	})
	a.goes(func() {
		<-ctx.Done()
		_ = srv.Close() // its clients notice; there is nobody else to tell
	})
	return nil
}

// guardStatus is the guard's newest account that this agent has.
func (a *Agent) guardStatus() lease.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.guardSt
}

func (a *Agent) setHypervisor(up bool, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hvUp, a.hvWhy = up, why
}

// localPart is what only this host knows, for the local API.
func (a *Agent) localPart() local.Local {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := local.Local{Notices: slices.Concat(a.notices, a.portNotices), Hypervisor: a.hvUp, HypervisorProblem: a.hvWhy, Counters: a.count.all(), Events: a.told.all()}
	if a.trouble != nil {
		out.Error, out.Remedy = a.trouble.err.Error(), a.trouble.remedy
	}
	if a.transport != nil && a.trouble == nil {
		if at := a.transport.CertificateExpires(); !at.IsZero() {
			out.CertificateExpires = at.Unix()
		}
		for k, n := range a.transport.Counters() {
			out.Counters["wire."+k] = n
		}
	}
	return out
}
