package agent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

// setup is what follows from one version of the cluster file. It is replaced
// whole and never modified.
type setup struct {
	cluster *config.Cluster
	stores  map[model.DatastoreName]*storeOf
}

type storeOf struct {
	conf    config.Datastore
	cluster string
	driver  Store
	pool    *datastore.Pool
}

// newSetup makes drivers for this host's datastores. Those that did not change
// keep their driver, and all keep their pool with the workers that may hang
// in it.
func (a *Agent) newSetup(c *config.Cluster) (*setup, error) {
	s := &setup{cluster: c, stores: map[model.DatastoreName]*storeOf{}}
	old := a.setup.Load()
	for _, d := range c.DatastoresOf(a.host) {
		if old != nil {
			if o := old.stores[d.Name]; o != nil && o.conf == d && o.cluster == c.ID {
				s.stores[d.Name] = o
				continue
			}
		}
		driver, err := a.cfg.Ports.OpenStore(c, d)
		if err != nil {
			return nil, fmt.Errorf("datastore %s: %w", d.Name, err)
		}
		st := &storeOf{conf: d, cluster: c.ID, driver: driver}
		if o := old.store(d.Name); o != nil {
			st.pool = o.pool
		} else {
			st.pool = datastore.NewPool(string(d.Name), datastore.PoolOptions{Now: a.cfg.Ports.Now})
		}
		s.stores[d.Name] = st
	}
	return s, nil
}

// store is safe on nil.
func (s *setup) store(name model.DatastoreName) *storeOf {
	if s == nil {
		return nil
	}
	return s.stores[name]
}

// saveConfig keeps a newer cluster file and brings it into force; one that is
// refused leaves everything as it was, with an event.
func (a *Agent) saveConfig(ctx context.Context, e fdm.SaveConfig) {
	err, out := call(ctx, a.disk, 30*time.Second, func() error { return a.adopt(ctx, e) })
	switch out {
	case late:
		err = fmt.Errorf("the disk under %s does not answer", a.cfg.ClusterFile)
	case full:
		err = fmt.Errorf("too many versions of the cluster file at once")
	}
	if err != nil {
		a.count.add("config-refused")
		a.tell(ctx, event.Event{Severity: event.Error, Kind: event.Config, Host: a.host,
			Text:  fmt.Sprintf("version %d of the cluster file was not taken over on %s", e.Version, a.host),
			Cause: err.Error()})
	} else {
		a.post(ctx, fdm.ConfigLoaded{Config: ClusterOf(a.setup.Load().cluster, a.host)})
	}
	if e.Op != 0 {
		done := fdm.ConfigSaved{Op: e.Op}
		if err != nil {
			done.Err = err.Error()
		}
		a.post(ctx, done)
	}
}

// readConfig reads a file that was offered as if it came into force.
func (a *Agent) readConfig(e fdm.ReadConfig) fdm.Event {
	c, err := config.Parse(e.File)
	if err == nil {
		err = c.CheckDeployable("")
	}
	if err != nil {
		return fdm.ConfigRead{Op: e.Op, Err: err.Error()}
	}
	return fdm.ConfigRead{Op: e.Op, Config: ClusterOf(c, a.host)}
}

// adopt runs in the only worker of its lane, so one version comes after another.
func (a *Agent) adopt(ctx context.Context, e fdm.SaveConfig) error {
	c, err := config.Parse(e.File)
	if err != nil {
		return err
	}
	if err := c.CheckDeployable(""); err != nil {
		return err
	}
	if c.Version != e.Version {
		return fmt.Errorf("the file says version %d, its offer %d", c.Version, e.Version)
	}
	if now := a.setup.Load().cluster; c.ID != now.ID {
		return fmt.Errorf("the file belongs to cluster %q, this host to %q; the id of a cluster never changes", c.ID, now.ID)
	}
	s, err := a.newSetup(c)
	if err != nil {
		return err
	}
	save := a.store.Save
	if e.Over {
		save = a.store.Replace
	}
	if err := save(c); err != nil {
		return err
	}
	a.setup.Store(s)
	a.goes(func() { a.addresses.learn(ctx, a, c) })
	a.mu.Lock()
	a.notices = nil // Save repaired the files
	a.mu.Unlock()
	if a.servers != nil {
		if err := a.servers.Configure(c); err != nil {
			a.log.Warn("a server cannot ask this host", "err", err)
		}
	}
	a.portMembersChanged()
	a.boundEvents(c)
	select {
	case a.optionsChanged <- struct{}{}:
	default: // it is looked at anyway
	}
	return a.transport.Configure(c)
}

// tell emits an event from outside the loop.
func (a *Agent) tell(ctx context.Context, e event.Event) {
	select {
	case a.queries <- func(core) { a.emit(a.cfg.Ports.Now(), e) }:
	case <-ctx.Done():
	}
}

// ClusterOf is the cluster file as the core needs it. A host without memory in
// the file has what its kernel says, which only that host itself knows.
func ClusterOf(c *config.Cluster, self model.HostID) fdm.Cluster {
	out := CoreOf(c, self)
	out.File, _ = c.Marshal() // a Cluster from Parse can be written: that is how it came here
	return out
}

// CoreOf is ClusterOf without the file itself, which takes longer to write than
// all the rest.
func CoreOf(c *config.Cluster, self model.HostID) fdm.Cluster {
	out := fdm.Cluster{
		Version: c.Version, Enabled: c.HA.Enabled, HostMonitoring: c.HA.HostMonitoring, Timing: c.Timing(),
		HeartbeatNetworks: c.HeartbeatNetworks(), VMs: map[string]fdm.VMSettings{},
		MaxRestarts: c.HA.Options.Int("das.maxvmrestartcount"),
		PerHost:     c.HA.Options.Int("das.perHostConcurrentFailoversLimit"),
		Admission:   snapshot.Policy(c), MassFailure: c.HA.MassFailurePercent,
	}
	out.HostShutdown = fdm.HostShutdown(c.HA.HostShutdown)
	out.Isolation = fdm.Isolation{Response: fdm.IsolationResponse(c.HA.IsolationResponse), Delay: c.IsolationDelay(),
		ShutdownLimit: c.HA.Options.Duration("das.isolationShutdownTimeout")}
	out.HeartbeatStores = c.HA.Options.Int("das.heartbeatDsPerHost")
	out.IgnoreFewHeartbeats = c.HA.Options.Bool("das.ignoreInsufficientHbDatastore")
	out.IgnoreOneNetwork = c.HA.Options.Bool("das.ignoreRedundantNetWarning")
	out.HostTimeout = c.HostTimeout()
	out.DeadPing = c.HA.Options.Duration("das.config.fdm.deadIcmpPingInterval")
	out.MaskCleanShutdown = c.HA.Options.Bool("das.maskCleanShutdownEnabled")
	s := c.HA.Storage
	out.Storage = fdm.StoragePolicy{APD: fdm.StorageResponse(s.APD), APDTimeout: s.APDTimeout, APDDelay: s.APDDelay,
		APDReset: s.APDRecovery == "reset", PDL: fdm.StorageResponse(s.PDL)}
	specs := snapshot.Hosts(c)
	for i, h := range c.Hosts {
		ch := fdm.ClusterHost{Name: h.Name, Datastores: h.Datastores, Memory: h.Memory,
			CPU: h.CPU.MHz * model.MHz(h.CPU.Cores), Maintenance: h.Maintenance, Spec: specs[i]}
		if ch.Memory == 0 && h.Name == self {
			ch.Memory = systemMemory()
		}
		out.Hosts = append(out.Hosts, ch)
	}
	for _, d := range c.Datastores {
		out.Datastores = append(out.Datastores, fdm.ClusterDatastore{Name: d.Name, Path: d.Path, Fence: d.Fence, Unfenced: d.Unfenced == "accept",
			Backing: d.Backing, Server: d.Server, FailureDomain: d.FailureDomain, OnHostNetwork: d.OnHostNetwork, Preference: preferences[d.Heartbeat]})
	}
	out.Specs = make(map[string]placement.VM, len(c.VMs))
	for i := range c.VMs {
		v := &c.VMs[i]
		out.VMs[v.Name], out.Specs[v.Name] = settingsOf(c, v), snapshot.VM(v)
	}
	if len(c.Rules) > 0 {
		r := snapshot.Check(c, rules.Options{})
		out.Rules, out.Conflicts = snapshot.ForRestart(r.Active, c.HA.Options), r.Conflicts
	}
	return out
}

// preferences are the words of datastores[].heartbeat.
var preferences = map[string]fdm.Preference{"prefer": fdm.PreferencePrefer, "avoid": fdm.PreferenceAvoid}

func settingsOf(c *config.Cluster, v *config.VM) fdm.VMSettings {
	s := fdm.VMSettings{Priority: v.Restart.Priority, Requested: v.Requested, DependsOn: c.DependenciesOf(v),
		Infrastructure: v.Restart.Infrastructure, Ready: model.ReadyWhen(v.Restart.ReadyWhen), Delay: v.Restart.Delay, Timeout: v.Restart.Timeout,
		Isolation: fdm.IsolationResponse(v.IsolationResponse)}
	if restarts, relocations, ok := v.Restart.Limits(); ok {
		s.Limits = &fdm.AttemptLimits{Restarts: restarts, Relocations: relocations}
	}
	if s.Timeout == 0 {
		s.Timeout = -1 // nobody waits; the core's 0 is its default
	}
	return s
}

func systemMemory() model.MiB {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return model.MiB(uint64(info.Totalram) * uint64(info.Unit) >> 20)
}
