package work

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
)

// Agent is a connection to a host's agent (local.Client over TLS).
type Agent interface {
	Status(ctx context.Context) (*local.Status, error)
	Admin(ctx context.Context, req fdm.AdminRequest) (fdm.AdminReply, error)
	Config(ctx context.Context) ([]byte, error)
	Follow(ctx context.Context, after string, own bool, gap func(), each func(*event.Event) error) error
	Trust(ctx context.Context) (*local.Trust, error)
	RequestCertificate(ctx context.Context) ([]byte, error)
	InstallTrust(ctx context.Context, in local.TrustInstall) (*local.Trust, error)
	Close()
}

// Dial makes a connection to the agent of a host of a cluster file.
type Dial func(c *config.Cluster, host model.HostID) (Agent, error)

// DialLapsed is Dial for a host whose certificate has ended, to give it another
// and for nothing else: known is asked whether the end of the one that it shows is
// forgiven.
type DialLapsed func(c *config.Cluster, host model.HostID, known func(*x509.Certificate) bool) (Agent, error)

// TLS dials agents with the server's certificate of the cluster.
func TLS(credentials func(ctx context.Context, clusterID string) (*pki.Credentials, error), port uint16) (Dial, DialLapsed) {
	of := func(c *config.Cluster) func() (*pki.Credentials, error) {
		return func() (*pki.Credentials, error) { return credentials(context.Background(), c.ID) }
	}
	at := func(c *config.Cluster, host model.HostID) (addrs []netip.AddrPort) {
		if h := c.HostByName(host); h != nil {
			for _, n := range c.HeartbeatNetworks() {
				if a := h.AddressOf(n); a.IsValid() {
					addrs = append(addrs, netip.AddrPortFrom(a, port))
				}
			}
		}
		return addrs
	}
	dial := func(c *config.Cluster, host model.HostID) (Agent, error) {
		return local.NewRemoteClient(of(c), host, at(c, host)), nil
	}
	lapsed := func(c *config.Cluster, host model.HostID, known func(*x509.Certificate) bool) (Agent, error) {
		return local.NewLapsedClient(of(c), host, at(c, host), known), nil
	}
	return dial, lapsed
}

// Config sets the work up.
type Config struct {
	// Name is what this server is called as leader.
	Name  string
	Store *store.Store
	Cache *state.Cache
	Dial  Dial
	// DialLapsed reaches hosts whose certificate has ended; nil: they need a token.
	DialLapsed DialLapsed
	Log        *slog.Logger
	// Interval is how often the primary is asked. Default 1 s.
	Interval time.Duration
	// Trust looks after the hosts' certificates; nil: nobody does.
	Trust *trust.Book
	// TrustInterval is how often each host is looked after. Default 1 min.
	TrustInterval time.Duration
	// TaskLimit is how long a task may wait for its outcome. Default 3 min.
	TaskLimit time.Duration
}

// Leadership is the name under which servers elect who works.
const Leadership = "work"

// Run leads whenever it may, until ctx ends.
func Run(ctx context.Context, cfg Config) {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	if cfg.TaskLimit <= 0 {
		cfg.TaskLimit = 3 * time.Minute
	}
	if cfg.TrustInterval <= 0 {
		cfg.TrustInterval = time.Minute
	}
	for ctx.Err() == nil {
		lead, err := cfg.Store.Lead(ctx, Leadership, cfg.Name)
		if err != nil {
			if ctx.Err() == nil {
				cfg.Log.Warn("this server cannot stand for election", "err", err)
				pause(ctx, time.Second)
			}
			continue
		}
		cfg.Log.Info("this server does the background work now")
		w := &worker{Config: cfg, lead: lead, clusters: map[string]*follower{}, tasks: map[string]bool{}, again: make(chan struct{}, 1)}
		w.run(ctx)
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		lead.Resign(stop)
		cancel()
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// worker is one leadership.
type worker struct {
	Config
	lead *store.Leadership
	wg   sync.WaitGroup

	mu       sync.Mutex
	clusters map[string]*follower
	tasks    map[string]bool // being carried out
	orders   int             // of them, about VMs
	again    chan struct{}   // one of them ended
}

func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.wg.Wait()
	defer cancel()
	go func() {
		select {
		case <-w.lead.Lost():
			cancel()
		case <-ctx.Done():
		}
	}()
	// What was written before this server led must be known first.
	if rev, err := w.Store.Revision(ctx); err != nil || w.Cache.Wait(ctx, rev) != nil {
		return
	}
	w.wg.Go(func() { w.clean(ctx) })
	for {
		moved := w.Cache.Moved() // before looking
		w.attend(ctx)
		select {
		case <-ctx.Done():
			return
		case <-moved:
		case <-w.again:
		}
	}
}

// attend starts and stops followers and tasks as the state wants it.
func (w *worker) attend(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]bool{}
	for _, name := range w.Cache.Names() {
		known[name] = true
		wanted := w.Cache.Wanted(name)
		if f := w.clusters[name]; f != nil && wanted != nil && f.created != wanted.Created {
			f.stop() // it was removed and added again meanwhile
			delete(w.clusters, name)
		}
		if w.clusters[name] == nil && wanted != nil {
			f := newFollower(w, name, wanted.Created)
			fctx, cancel := context.WithCancel(ctx)
			f.stop = cancel
			w.clusters[name] = f
			w.wg.Go(func() { f.run(fctx) })
			if w.Trust != nil {
				w.wg.Go(func() { f.keepTrust(fctx) })
			}
		}
	}
	for name, f := range w.clusters {
		if !known[name] {
			f.stop()
			delete(w.clusters, name)
		}
	}
	w.startTasks(ctx)
}

// startTasks begins what waits; w.mu is held.
func (w *worker) startTasks(ctx context.Context) {
	busy := map[string]bool{}
	for _, t := range w.Cache.Active() {
		// Orders about one VM are carried out one after another.
		about := t.Cluster + "/" + t.Target
		waits := t.Target != "" && busy[about] && !t.CancelRequested
		busy[about] = true
		order := isOrder(t.Kind)
		if waits || w.tasks[t.Id] || order && w.orders >= maxOrders {
			continue
		}
		w.tasks[t.Id] = true
		if order {
			w.orders++
		}
		id := t.Id
		w.wg.Go(func() {
			w.task(ctx, id)
			w.mu.Lock()
			delete(w.tasks, id)
			if order {
				w.orders--
			}
			w.mu.Unlock()
			select { // the next one may begin
			case w.again <- struct{}{}:
			default:
			}
		})
	}
}

func (w *worker) follower(cluster string) *follower {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clusters[cluster]
}

var errDeposed = errors.New("another server does the background work now")

// commit writes with the leadership as a condition.
func (w *worker) commit(ctx context.Context, t *store.Txn) (int64, error) {
	rev, err := w.Store.Commit(ctx, w.lead.Fence(t))
	if errors.Is(err, store.ErrConflict) {
		select {
		case <-w.lead.Lost():
			return 0, errDeposed
		default:
		}
	}
	return rev, err
}

// errRemoved: the cluster that something is about is there no more.
var errRemoved = errors.New("the cluster was removed from the server")

// commit writes what belongs to the cluster, unless it was removed meanwhile:
// nothing of it may come back then.
func (f *follower) commit(ctx context.Context, t *store.Txn) (int64, error) {
	key := state.ConfigKey(f.name)
	rev, err := f.w.commit(ctx, t.Same(key, f.created))
	if errors.Is(err, store.ErrConflict) {
		it, gerr := f.w.Store.Get(ctx, key)
		if errors.Is(gerr, store.ErrNotFound) || gerr == nil && it.Created != f.created {
			return 0, errRemoved
		}
	}
	return rev, err
}

// order sends a request to the cluster's primary, through any host.
func (f *follower) order(ctx context.Context, req fdm.AdminRequest) (fdm.AdminReply, error) {
	a, host, err := f.agent()
	if err != nil {
		return fdm.AdminReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Second)
	defer cancel()
	f.w.Store.Failpoint("agent.before")
	r, err := a.Admin(ctx, req)
	f.w.Store.Failpoint("agent.after")
	if err != nil {
		return r, fmt.Errorf("ask %s: %w", host, err)
	}
	return r, nil
}
