package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lab/host"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/network"
	"hanok.dev/hanok/internal/lab/watchdog"
)

const (
	bootTimeout = 30 * time.Second
	dieTimeout  = 20 * time.Second
)

// systemdPowerOff is SIGRTMIN+4, by which systemd as PID 1 starts poweroff.target.
const systemdPowerOff = unix.Signal(34 + 4)

// node is one host. Power actions are serialised by power; mu guards the
// fields, so that state can be read during a boot.
type node struct {
	s      *Supervisor
	number int
	name   string
	group  cgroup.Group
	addrs  map[string]netip.Addr
	stores []config.Datastore

	power sync.Mutex

	mu     sync.Mutex
	run    *running // nil while off
	frozen bool
	resets int
	cuts   map[string]network.Direction
	deaf   []*node // kept apart by a partition
	faults map[string]fusefs.Fault
}

// running is what exists only while a host is on.
type running struct {
	process  *host.Process
	bootID   string
	mounts   map[string]*fusefs.FS
	watchdog *watchdog.Device
	gone     chan struct{} // closed when PID 1 is gone
}

func (n *node) event(kind journal.Kind, format string, args ...any) {
	n.s.journal.Add(journal.Event{Kind: kind, Host: n.name, Detail: fmt.Sprintf(format, args...)})
}

func (n *node) current() *running {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// on boots the host.
func (n *node) on(ctx context.Context, noWatchdog bool) error {
	n.power.Lock()
	defer n.power.Unlock()
	if n.current() != nil {
		return fmt.Errorf("host %s is on already", n.name)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	r := &running{bootID: uuid.NewString(), mounts: map[string]*fusefs.FS{}, gone: make(chan struct{})}
	if err := n.assemble(r, noWatchdog); err != nil {
		return errors.Join(err, n.dismantle(r))
	}
	if err := r.process.Boot(ctx, n.spec(r)); err != nil {
		return errors.Join(err, n.dismantle(r))
	}
	n.mu.Lock()
	n.run, n.frozen = r, false
	n.mu.Unlock()
	n.event(journal.Power, "on, boot id %s", r.bootID)
	n.s.background.Go(func() { n.outlive(r) })
	return nil
}

// assemble makes all that surrounds a host, and its first process.
func (n *node) assemble(r *running, noWatchdog bool) error {
	if err := n.group.Create(); err != nil {
		return err
	}
	for _, ds := range n.stores {
		name := string(ds.Name)
		point := n.s.lab.MountPoint(n.name, name)
		if err := os.MkdirAll(point, 0o700); err != nil {
			return err
		}
		m, err := fusefs.Mount(n.s.lab.Backing(name), point, fusefs.Options{
			Name: "hanok-lab-" + n.s.lab.Name() + "-" + name, BatteryCache: !n.s.settings.SyncDisk})
		if err != nil {
			return err
		}
		m.SetFault(n.fault(name))
		r.mounts[name] = m
	}
	if !noWatchdog {
		dir := n.s.lab.WatchdogDir(n.name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		var err error
		if r.watchdog, err = watchdog.Mount(dir, func() { n.bite(r) }); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(n.s.lab.NewRoot(n.name), 0o700); err != nil {
		return err
	}
	console, err := os.OpenFile(filepath.Join(n.s.lab.HostVar(n.name), "log/hanok/init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	if r.process, err = host.Start("/proc/self/exe", n.group, console); err != nil {
		return err
	}
	go func() { // joined through gone
		r.process.Wait()
		close(r.gone)
	}()
	if err := n.s.network.Plug(n.number, r.process.Pid, n.addrs); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for net, d := range n.cuts {
		if err := n.s.network.Cut(n.number, net, d); err != nil {
			return err
		}
	}
	return n.s.network.Separate(n.number, numbers(n.deaf))
}

func numbers(nodes []*node) []int {
	var out []int
	for _, n := range nodes {
		out = append(out, n.number)
	}
	return out
}

// separate keeps the host apart from others.
func (n *node) separate(from []*node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf = from
	if n.run == nil {
		return nil
	}
	return n.s.network.Separate(n.number, numbers(from))
}

func (n *node) spec(r *running) host.Spec {
	spec := host.Spec{Name: n.name, BootID: r.bootID, NewRoot: n.s.lab.NewRoot(n.name),
		Etc: n.s.lab.HostEtc(n.name), Var: n.s.lab.HostVar(n.name), CgroupMount: n.s.cgroupMount,
		Binds: []host.Bind{{Source: n.s.settings.GuestDir, Target: layout.HostGuest, ReadOnly: true}}}
	if n.s.settings.Packages {
		spec.Usr, spec.CgroupMount = n.s.lab.HostUsr(n.name), "/sys/fs/cgroup"
	} else {
		spec.Binds = append(spec.Binds, host.Bind{Source: n.s.settings.BinDir, Target: layout.HostBin, ReadOnly: true})
	}
	for _, ds := range n.stores {
		spec.Binds = append(spec.Binds, host.Bind{Source: n.s.lab.MountPoint(n.name, string(ds.Name)), Target: ds.Path})
	}
	if r.watchdog != nil {
		spec.Watchdog = r.watchdog.Path()
	}
	return spec
}

// outlive cleans up when a host ends without being told to: its PID 1 died or
// shut down in order.
func (n *node) outlive(r *running) {
	<-r.gone
	n.power.Lock()
	defer n.power.Unlock()
	if n.current() != r {
		return
	}
	if err := n.dismantle(r); err != nil {
		n.s.log.Error("clean up after a host that ended", "host", n.name, "err", err)
	}
	n.event(journal.Power, "off: its init ended")
}

// off is a power loss. A host that is off already stays so.
func (n *node) off() error {
	n.power.Lock()
	defer n.power.Unlock()
	r := n.current()
	if r == nil {
		return nil
	}
	err := n.dismantle(r)
	n.event(journal.Power, "off: lost power")
	return err
}

// dismantle takes a host away in the order in which a power loss shows: first
// its networks fall silent, so that no dying socket says goodbye, then all its
// processes and I/O end at once; only then is cleaned up.
func (n *node) dismantle(r *running) error {
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s of host %s: %w", what, n.name, err))
		}
	}
	if r.process != nil {
		try("cut networks", n.s.network.Cut(n.number, "", network.Both))
	}
	if n.group.Exists() {
		try("kill processes", n.group.Kill())
	}
	for _, m := range r.mounts {
		m.Abort()
	}
	ctx, cancel := context.WithTimeout(context.Background(), dieTimeout)
	defer cancel()
	try("wait for processes", n.group.WaitEmpty(ctx))
	if r.process != nil {
		select {
		case <-r.gone:
		case <-ctx.Done():
			try("wait for init", ctx.Err())
		}
	}
	try("unplug", n.s.network.Unplug(n.number))
	for name, m := range r.mounts {
		try("unmount "+name, m.Unmount())
	}
	if r.watchdog != nil {
		try("remove watchdog", r.watchdog.Unmount())
	}
	// A frozen host died frozen; the next boot must not be.
	if n.group.Exists() {
		try("thaw", n.group.Freeze(false))
	}
	try("remove cgroup", removeGroup(ctx, n.group))
	n.mu.Lock()
	n.run, n.frozen = nil, false
	n.mu.Unlock()
	return errors.Join(errs...)
}

// removeGroup tries again while the kernel still counts the last dead process.
func removeGroup(ctx context.Context, g cgroup.Group) error {
	for {
		err := g.Remove()
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freeze freezes or thaws the whole host.
func (n *node) freeze(ctx context.Context, on bool) error {
	n.power.Lock()
	defer n.power.Unlock()
	if n.current() == nil {
		return fmt.Errorf("host %s is off", n.name)
	}
	if err := n.group.Freeze(on); err != nil {
		return fmt.Errorf("freeze host %s: %w", n.name, err)
	}
	n.mu.Lock()
	n.frozen = on
	n.mu.Unlock()
	n.event(journal.Power, "%s", map[bool]string{true: "frozen", false: "thawed"}[on])
	if !on {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return n.group.WaitFrozen(ctx)
}

// shutdown asks the host's init to end in order, and waits.
func (n *node) shutdown(ctx context.Context) error {
	r := n.current()
	if r == nil {
		return nil
	}
	signal := unix.SIGTERM
	if n.s.settings.Packages {
		signal = systemdPowerOff
	}
	if err := unix.Kill(r.process.Pid, signal); err != nil {
		return fmt.Errorf("shut down host %s: %w", n.name, err)
	}
	n.event(journal.Power, "shutting down")
	select {
	case <-r.gone:
	case <-ctx.Done():
		return fmt.Errorf("shut down host %s: %w", n.name, ctx.Err())
	}
	return n.off() // cleans up, if outlive has not yet
}

func (n *node) cut(name string, d network.Direction) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := slices.Sorted(maps.Keys(n.addrs))
	if name != "" && !slices.Contains(known, name) {
		return fmt.Errorf("host %s has no network %q; it has %s", n.name, name, strings.Join(known, ", "))
	}
	for _, net := range known {
		if name == "" || name == net {
			n.cuts[net] |= d
			if n.run != nil {
				if err := n.s.network.Cut(n.number, net, d); err != nil {
					return err
				}
			}
		}
	}
	n.event(journal.Fault, "network %s cut %s", orAll(name), d)
	return nil
}

func (n *node) heal() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	n.deaf = nil
	clear(n.faults)
	if n.run != nil {
		for _, m := range n.run.mounts {
			m.SetFault(fusefs.None)
		}
		if err := n.s.network.Heal(n.number); err != nil {
			return err
		}
	}
	n.event(journal.Fault, "healed")
	return nil
}

func (n *node) fault(datastore string) fusefs.Fault {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f, ok := n.faults[datastore]; ok {
		return f
	}
	return fusefs.None
}

func (n *node) setFault(datastore string, f fusefs.Fault) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var known []string
	for _, ds := range n.stores {
		known = append(known, string(ds.Name))
	}
	if !slices.Contains(known, datastore) {
		return fmt.Errorf("host %s has no datastore %q; it has %s", n.name, datastore, strings.Join(known, ", "))
	}
	n.faults[datastore] = f
	if n.run != nil {
		n.run.mounts[datastore].SetFault(f)
	}
	n.event(journal.Fault, "datastore %s: %s", datastore, f)
	return nil
}

func (n *node) state() Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := Host{Name: n.name, Power: "off", Frozen: n.frozen, Resets: n.resets, Watchdog: "none",
		Cuts: map[string]string{}, Storage: map[string]string{}}
	for net, d := range n.cuts {
		h.Cuts[net] = d.String()
	}
	for _, other := range n.deaf {
		h.Deaf = append(h.Deaf, other.name)
	}
	for ds, f := range n.faults {
		if f != fusefs.None {
			h.Storage[ds] = string(f)
		}
	}
	if r := n.run; r != nil {
		h.Power, h.BootID, h.Pid = "on", r.bootID, r.process.Pid
		if r.watchdog != nil {
			h.Watchdog = "idle"
			if running, timeout := r.watchdog.Running(); running {
				h.Watchdog = timeout.String()
			}
		}
	}
	return h
}

func orAll(network string) string {
	if network == "" {
		return "(all)"
	}
	return network
}
