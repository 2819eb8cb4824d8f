package guard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/hypervisor/proc"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
)

// eventQueue bounds the events that wait for the machine; whoever produces
// more waits.
const eventQueue = 1024

// configPoll is how often a guard without a cluster file looks for one.
const configPoll = time.Second

// Options are where a guard finds what it needs. DefaultOptions are those of a
// real host.
type Options struct {
	ClusterFile string
	HostFile    string
	BootIDFile  string
	MachineFile string
	RunDir      string // holds the lock file
	Socket      string
	StateFile   string
	ManagedFile string
	Watchdog    string // "" for none
	// CgroupRoot and ProcDir are found by themselves when empty.
	CgroupRoot string
	ProcDir    string
	LibvirtRun string
	// UID may talk to the guard, beside root.
	UID uint32
	// Locked: this process is locked in memory and guarded as far as it can
	// be. Off in tests.
	Locked bool
	// Datastore is passed on to the posix driver.
	Datastore datastore.Options
	// Log must never wait, whatever it writes to: the loop that feeds the watchdog
	// logs too (package logging keeps this).
	Log *slog.Logger
}

// DefaultOptions are those of a real host.
func DefaultOptions() Options {
	return Options{
		ClusterFile: paths.ClusterFile, HostFile: paths.HostFile, BootIDFile: paths.BootID, MachineFile: paths.MachineID,
		RunDir: paths.RunDir, Socket: paths.GuardSocket, StateFile: paths.GuardState, ManagedFile: paths.ManagedFile,
		Watchdog: paths.Watchdog, Locked: true, Log: slog.Default(),
	}
}

// Guard is a running guard.
type Guard struct {
	opts    Options
	id      identity
	machine *lease.Machine
	events  chan lease.Event
	quit    chan struct{} // closed when the loop has ended
	server  *ipc.Server
	procs   *proc.Worker
	dog     *watchdog
	saver   *saver
	stores  map[model.DatastoreName]*store
	subs    []uint64
	daemon  daemonWatch
	saveErr string // the last failure to save state, said once
	reload  chan struct{}
	// clusters carries cluster files that were read again.
	clusters chan *config.Cluster
	wg       sync.WaitGroup // goroutines that deliver events
}

// Run guards this host until ctx ends. It returns an error only if it could
// not start; all that fails later is said in the status and retried.
func Run(ctx context.Context, opts Options) error {
	unlock, err := lockAlone(ctx, opts.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	var warnings []string
	if opts.Locked {
		warnings = protectProcess(opts.RunDir)
	}
	id, err := readIdentity(opts)
	if err != nil {
		return err
	}
	cluster, err := waitForCluster(ctx, opts)
	if err != nil {
		return err
	}
	g := &Guard{opts: opts, id: id, events: make(chan lease.Event, eventQueue), quit: make(chan struct{}),
		stores: map[model.DatastoreName]*store{}, reload: make(chan struct{}, 1), clusters: make(chan *config.Cluster)}
	return g.run(ctx, cluster, warnings)
}

// waitForCluster reads the cluster file; a host that has none yet waits.
func waitForCluster(ctx context.Context, opts Options) (*config.Cluster, error) {
	said := ""
	for {
		loaded, err := config.Store{Path: opts.ClusterFile}.Load()
		if err == nil {
			for _, n := range loaded.Notices {
				opts.Log.Warn("cluster file", "notice", n)
			}
			return loaded.Cluster, nil
		}
		if text := err.Error(); text != said {
			said = text
			if errors.Is(err, fs.ErrNotExist) {
				opts.Log.Info("waiting for a cluster file", "path", opts.ClusterFile)
			} else {
				opts.Log.Error("cluster file", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("stopped while waiting for the cluster file: %w", ctx.Err())
		case <-time.After(configPoll):
		}
	}
}

func (g *Guard) run(ctx context.Context, cluster *config.Cluster, warnings []string) error {
	cfg := g.leaseConfig(cluster)
	cfg.Warnings = warnings
	managed, err := ReadManaged(g.opts.ManagedFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.opts.Log.Error("managed VMs", "error", err)
		cfg.ManagedUnknown = true
	}
	cfg.Managed = managed
	saved, err := readState(g.opts.StateFile)
	if err != nil {
		g.opts.Log.Warn("state of the guard before", "error", err)
	}
	cfg.Predecessor = proc.Used(g.opts.CgroupRoot)
	g.machine = lease.New(cfg, saved)
	g.procs, err = proc.Start(proc.Options{Root: g.opts.CgroupRoot, ProcDir: g.opts.ProcDir, LibvirtRun: g.opts.LibvirtRun,
		Now: datastore.BootTime, Deliver: g.deliver})
	if err != nil {
		return err
	}
	g.saver = startSaver(g.opts.ManagedFile, g.opts.Log)
	g.dog = startWatchdog(g.opts.Watchdog, g.deliver, g.slowDevice)
	g.server, err = ipc.Listen(g.opts.Socket, g.opts.UID, handler{g})
	if err != nil {
		close(g.quit)
		g.dog.stop(false)
		g.saver.stop()
		g.procs.Close()
		return err
	}
	g.wg.Add(1)
	go g.reloader()
	g.opts.Log.Info("guarding", "host", g.id.host, "boot", g.id.boot, "cluster", cluster.Name, "version", cluster.Version)
	g.loop(ctx)
	g.stop()
	return nil
}

// loop owns the machine.
func (g *Guard) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := datastore.BootTime()
	for {
		var ev lease.Event
		select {
		case <-ctx.Done():
			return
		case ev = <-g.events:
		case c := <-g.clusters:
			cfg := g.leaseConfig(c)
			ev = lease.Event{Kind: lease.EvConfig, Config: &cfg}
			g.opts.Log.Info("cluster file", "version", c.Version)
		case <-timer.C:
			ev = lease.Event{Kind: lease.EvTick}
		}
		g.take(&ev)
		now := datastore.BootTime()
		var slow slowest
		for _, e := range g.machine.Step(now, ev) {
			from := datastore.BootTime()
			g.carryOut(&e)
			slow.note(e.Kind, datastore.BootTime()-from)
		}
		end := datastore.BootTime()
		if text := stalled(now-due, end-now, slow); text != "" {
			g.stalled(text)
		}
		due = max(g.machine.Next(), end)
		timer.Reset(due - end)
	}
}

// take does the shell's own part of an event.
func (g *Guard) take(ev *lease.Event) {
	switch ev.Kind {
	case lease.EvConnLost:
		g.subs = slices.DeleteFunc(g.subs, func(c uint64) bool { return c == ev.Conn })
	case lease.EvRequest:
		if h := ev.Request.Hook; h != nil && h.Daemon > 0 {
			g.daemon.note(h.Daemon)
		}
	}
}

// stop ends in the order that keeps the host safe: the watchdog is disarmed
// only if nothing runs here.
func (g *Guard) stop() {
	why := g.machine.StopProblem()
	disarm := why == ""
	if !disarm && g.dog.armed() {
		g.opts.Log.Warn("the watchdog stays armed: it resets this host unless a guard starts again in time", "why", why)
	}
	close(g.quit)
	g.server.Close()
	g.procs.Close()
	g.dog.stop(disarm)
	g.saver.stop()
	g.wg.Wait()
	for _, s := range g.stores {
		s.pool.Close() // what hangs in it is left to the storage
	}
}

// deliver hands an event to the loop; it blocks while the loop is behind.
func (g *Guard) deliver(ev lease.Event) {
	select {
	case g.events <- ev:
	case <-g.quit:
	}
}

type handler struct{ g *Guard }

func (h handler) Request(conn uint64, r *lease.Request) {
	h.g.deliver(lease.Event{Kind: lease.EvRequest, Conn: conn, Request: r})
}

func (h handler) Lost(conn uint64) { h.g.deliver(lease.Event{Kind: lease.EvConnLost, Conn: conn}) }

// leaseConfig makes the machine's configuration and the datastores behind it.
func (g *Guard) leaseConfig(c *config.Cluster) lease.Config {
	cfg := lease.Config{Host: g.id.host, Boot: g.id.boot, Incarnation: g.id.incarnation, Timing: c.Timing(),
		Nonce: newNonce, Identify: g.identify}
	for _, d := range c.DatastoresOf(g.id.host) {
		if err := g.openStore(c.ID, d); err != nil {
			g.opts.Log.Error("datastore", "name", d.Name, "error", err)
			continue
		}
		cfg.Datastores = append(cfg.Datastores, lease.DatastoreConfig{Name: d.Name, Fence: d.Fence, Unfenced: d.Unfenced == "accept"})
	}
	if c.HostByName(g.id.host) == nil {
		g.opts.Log.Error("this host is not in the cluster file", "host", g.id.host)
	}
	return cfg
}

// reloader reads the cluster file when asked to, beside the loop: the local
// disk may hang too.
func (g *Guard) reloader() {
	defer g.wg.Done()
	for {
		select {
		case <-g.quit:
			return
		case <-g.reload:
		}
		loaded, err := config.Store{Path: g.opts.ClusterFile}.Load()
		if err != nil {
			g.opts.Log.Error("reload", "error", err)
			continue
		}
		select {
		case g.clusters <- loaded.Cluster:
		case <-g.quit:
		}
	}
}

// lockAlone makes sure that this is the only guard of the host. A predecessor
// that is just ending gets a moment.
func lockAlone(ctx context.Context, dir string) (func(), error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	return lockFile(ctx, dir+"/guard.lock", 5*time.Second)
}
