package libvirt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

// Config sets up a Driver. The zero value is libvirtd of this host.
type Config struct {
	// Socket is libvirtd's socket; /run/libvirt/libvirt-sock if empty.
	Socket string
	// URI is the driver to open there; qemu:///system if empty.
	URI string
	// CallTimeout bounds each call but those below; 10 s if zero.
	CallTimeout time.Duration
	// StartTimeout bounds StartPaused; 60 s if zero: libvirt itself waits up
	// to 30 s for QEMU's monitor, and hooks and storage take their time.
	StartTimeout time.Duration
	// KillTimeout bounds Kill; 30 s if zero: libvirt needs 10 s before it
	// resorts to SIGKILL, and waits longer for a process in the kernel.
	KillTimeout time.Duration
	// ProbeInterval is the pause between proofs that libvirtd is alive, 1 s
	// if zero, and ProbeTimeout how long one may take, 2 s if zero. A hung
	// libvirtd is noticed within their sum.
	ProbeInterval, ProbeTimeout time.Duration
	// EventBuffer is how many events wait for their reader before they are
	// dropped for an EventResync; 1024 if zero.
	EventBuffer int
}

// Pauses between attempts to connect. libvirtd is ready 2 s after its start.
const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 2 * time.Second
	// connectTimeout bounds one attempt, subscriptions included. It is long
	// for the same reason as hangLimit: a dead libvirtd refuses at once.
	connectTimeout = 30 * time.Second
	// hangLimit is how long a libvirtd that does not answer keeps the control
	// connection. To give up connections with requests pending, and make new
	// ones, gains nothing while it hangs, and when it goes on libvirtd 9.0
	// now and then crashes over them.
	hangLimit = 30 * time.Second
)

func (c Config) withDefaults() Config {
	def := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	if c.Socket == "" {
		c.Socket = "/run/libvirt/libvirt-sock"
	}
	if c.URI == "" {
		c.URI = string(lv.QEMUSystem)
	}
	if c.EventBuffer <= 0 {
		c.EventBuffer = 1024
	}
	def(&c.CallTimeout, 10*time.Second)
	def(&c.StartTimeout, time.Minute)
	def(&c.KillTimeout, 30*time.Second)
	def(&c.ProbeInterval, time.Second)
	def(&c.ProbeTimeout, 2*time.Second)
	return c
}

var (
	errClosed      = errors.New("the driver is closed")
	errNotYet      = errors.New("not connected to libvirtd yet")
	errUnresponded = errors.New("libvirtd does not answer")
)

// Driver is a hypervisor.Driver for libvirt.
type Driver struct {
	cfg    Config
	events *queue
	pool   *pool // for calls about one VM
	safe   *pool // for calls that no frozen VM can hold up
	lanes  *lanes

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	up   bool
	err  error // why not up
	told bool  // the loss was reported as an event
}

var _ hypervisor.Driver = (*Driver)(nil)

// New returns a driver that connects in the background; an EventResync tells
// when it has. Close it.
func New(cfg Config) *Driver {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	d := &Driver{
		cfg: cfg, ctx: ctx, cancel: cancel, err: errNotYet,
		events: newQueue(cfg.EventBuffer),
		pool:   newPool(cfg.Socket, cfg.URI, maxCalls),
		safe:   newPool(cfg.Socket, cfg.URI, maxSafe),
		lanes:  newLanes(ctx, cfg.Socket, cfg.URI),
	}
	d.wg.Add(2)
	go func() { defer d.wg.Done(); d.events.pump(ctx) }()
	go func() { defer d.wg.Done(); d.control() }()
	return d
}

// Close implements hypervisor.Driver.
func (d *Driver) Close() error {
	d.cancel()
	d.mu.Lock()
	d.up, d.err = false, errClosed
	d.mu.Unlock()
	d.pool.close()
	d.safe.close()
	d.lanes.close()
	d.wg.Wait()
	return nil
}

// Events implements hypervisor.Driver.
func (d *Driver) Events() <-chan hypervisor.Event { return d.events.out }

// Connection implements hypervisor.Driver.
func (d *Driver) Connection() hypervisor.Connection {
	d.mu.Lock()
	defer d.mu.Unlock()
	return hypervisor.Connection{Up: d.up, Err: d.err}
}

// control keeps the control connection until Close.
func (d *Driver) control() {
	backoff := backoffMin
	for d.ctx.Err() == nil {
		began := time.Now()
		err := d.session()
		if d.ctx.Err() != nil {
			return
		}
		d.lost(err)
		d.pool.dropIdle()
		d.safe.dropIdle()
		d.lanes.drop()
		if time.Since(began) > backoffMax {
			backoff = backoffMin
		}
		select {
		case <-time.After(backoff):
		case <-d.ctx.Done():
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// session connects, and serves events and probes until the connection fails.
func (d *Driver) session() error {
	ctx, cancel := context.WithTimeout(d.ctx, connectTimeout)
	defer cancel()
	c, err := open(ctx, d.cfg.Socket, d.cfg.URI)
	if err != nil {
		return err
	}
	sub := newSubscriptions(c, d.events)
	defer sub.wait() // after close: the streams end with the connection
	defer c.close()
	if err := sub.start(ctx); err != nil {
		sub.open(false)
		return fmt.Errorf("subscribe to libvirt's events: %w", err)
	}
	d.found("connected to libvirtd")
	sub.open(true)
	return d.watch(c, sub)
}

// watch returns when the connection is dead or libvirtd hangs for too long.
func (d *Driver) watch(c *conn, sub *subscriptions) error {
	var census census
	tick := time.NewTicker(d.cfg.ProbeInterval)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-c.dead():
			return fmt.Errorf("connection to libvirtd lost: %w", c.cause())
		case <-tick.C:
		}
		changes := sub.changes.Load()
		active, err := d.probe(c)
		if err != nil {
			return fmt.Errorf("connection to libvirtd lost: %w", err)
		}
		if census.silent(active, changes) {
			d.events.push(hypervisor.Event{Kind: hypervisor.EventResync, Detail: "domains changed without an event"})
		}
	}
}

// probe has libvirtd list its active domains. If the answer is late, libvirtd
// was lost and found in the meantime.
func (d *Driver) probe(c *conn) (active []lv.Domain, err error) {
	ctx, cancel := context.WithTimeout(d.ctx, hangLimit)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		answer <- c.do(ctx, func(l *lv.Libvirt) (err error) {
			active, _, err = l.ConnectListAllDomains(1, lv.ConnectListDomainsActive)
			return err
		})
	}()
	patience := time.NewTimer(d.cfg.ProbeTimeout)
	defer patience.Stop()
	select {
	case err = <-answer:
		return active, err
	case <-patience.C:
		d.lost(fmt.Errorf("%w within %v", errUnresponded, d.cfg.ProbeTimeout))
	}
	if err = <-answer; err == nil {
		d.found("libvirtd answers again")
	}
	return active, err
}

// census finds starts and stops of which libvirt gave no event: it gives none
// for a domain that it finds dead, or that dies, while it reconnects to its
// domains after its own restart.
type census struct {
	active  map[lv.Domain]bool // with their ids: another id is another run
	changes uint64
}

// silent compares the active domains with those of last time. changes counts
// the starts and stops that events told, before the list was made.
func (c *census) silent(list []lv.Domain, changes uint64) bool {
	active := make(map[lv.Domain]bool, len(list))
	for _, dom := range list {
		active[dom] = true
	}
	silent := c.active != nil && changes == c.changes && !maps.Equal(active, c.active)
	c.active, c.changes = active, changes
	return silent
}

// found notes that libvirtd answers, and how that came.
func (d *Driver) found(how string) {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.up, d.err, d.told = true, nil, false
	}
	d.mu.Unlock()
	d.events.push(hypervisor.Event{Kind: hypervisor.EventResync, Detail: how})
}

// lost notes that there is no connection, and why. Calls under way have
// their own connections and deadlines.
func (d *Driver) lost(err error) {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.up, d.err = false, err
	}
	told := d.told
	d.told = true
	d.mu.Unlock()
	if !told {
		d.events.push(hypervisor.Event{Kind: hypervisor.EventDisconnected, Detail: err.Error()})
	}
}

// ready says that there is no connection, if so.
func (d *Driver) ready(op string, vm model.VMID) error {
	if state := d.Connection(); !state.Up {
		return &hypervisor.Error{Op: op, VM: vm, Kind: hypervisor.KindUnavailable, Text: state.Err.Error(), Err: state.Err}
	}
	return nil
}

// limited bounds ctx by a deadline and by Close.
func (d *Driver) limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	stop := context.AfterFunc(d.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// call runs fn on a connection of its own, of p, under a deadline.
func (d *Driver) call(ctx context.Context, p *pool, op string, vm model.VMID, limit time.Duration, fn func(*lv.Libvirt) error) error {
	if err := d.ready(op, vm); err != nil {
		return err
	}
	ctx, cancel := d.limited(ctx, limit)
	defer cancel()
	c, err := p.get(ctx)
	if err != nil {
		return failure(op, vm, err)
	}
	defer p.put(c)
	return failure(op, vm, c.do(ctx, fn))
}

// callDomain is call for a domain that is looked up first.
func (d *Driver) callDomain(ctx context.Context, op string, vm model.VMID, limit time.Duration, fn func(*lv.Libvirt, lv.Domain) error) error {
	id, err := parseUUID(vm)
	if err != nil {
		return &hypervisor.Error{Op: op, VM: vm, Kind: hypervisor.KindNoDomain, Text: err.Error(), Err: err}
	}
	return d.call(ctx, d.pool, op, vm, limit, func(l *lv.Libvirt) error {
		dom, err := l.DomainLookupByUUID(id)
		if err != nil {
			return err
		}
		return fn(l, dom)
	})
}
