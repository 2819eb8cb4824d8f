// Package fakeagent is a cluster of agents in memory, as the server's tests and
// benchmark need it: it answers what a server asks, carries orders out at once,
// and keeps its events like a host that outlives the server.
package fakeagent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/work"
)

// Cluster is one cluster of fake agents.
type Cluster struct {
	mu      sync.Mutex
	config  *config.Cluster
	file    []byte
	primary model.HostID
	vms     []local.VM
	index   map[string]int
	down    bool
	events  map[model.HostID][]event.Event
	moved   chan struct{}
	count   int
	refuse  func(file *config.Cluster, asked bool) string // why a file is refused
	forced  []string
	reports func(*local.Status)
	// Orders are the power orders carried out, as "start web".
	orders []string
	trust  map[model.HostID]*pki.Keeper
	away   map[model.HostID]bool
	behind map[model.HostID]uint64 // versions of the cluster file that hosts have instead
	stuck  bool
	forgot int // how often a host forgot events
}

// New makes a cluster whose hosts have a cluster file in force.
func New(c *config.Cluster) (*Cluster, error) {
	b, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	f := &Cluster{config: c, file: b, primary: c.Hosts[0].Name, index: map[string]int{}, events: map[model.HostID][]event.Event{}, moved: make(chan struct{})}
	for i, v := range c.VMs {
		id := v.ID
		if id == "" {
			id = model.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i))
		}
		f.index[v.Name] = len(f.vms)
		f.vms = append(f.vms, local.VM{Name: v.Name, ID: id, State: model.VMStarted, Host: v.Host, Datastore: v.Datastore, Protected: true, Epoch: 1, Alive: true, Priority: v.Restart.Priority})
	}
	return f, nil
}

// ID is that of the cluster.
func (f *Cluster) ID() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.config.ID
}

// SetDown makes all agents unreachable, or reachable again.
func (f *Cluster) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
	f.wake()
}

func (f *Cluster) wake() { close(f.moved); f.moved = make(chan struct{}) }

// Apply is a change of the cluster file on a host.
func (f *Cluster) Apply(c *config.Cluster) error {
	b, err := c.Marshal()
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.config, f.file = c, b
	return nil
}

// Version is the version in force.
func (f *Cluster) Version() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.config.Version
}

// Digest identifies the cluster file in force.
func (f *Cluster) Digest() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.config.Digest()
}

// Orders are the power orders that were carried out, in order.
func (f *Cluster) Orders() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.orders...)
}

// SetRefuse lets the primary refuse cluster files: refuse says why, "" is no
// refusal; asked is true for a question, false for the file itself. At the start
// of a VM it is asked about the file in force.
func (f *Cluster) SetRefuse(refuse func(file *config.Cluster, asked bool) string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// SetReports changes what the agents report, beside what they have.
func (f *Cluster) SetReports(change func(*local.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports = change
}

// Forced are those who overruled a refusal, in order.
func (f *Cluster) Forced() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.forced...)
}

// refusal is the primary's word on a cluster file; nil if it may pass.
func (f *Cluster) refusal(c *config.Cluster, asked bool) *fdm.AdminReply {
	if f.refuse == nil {
		return nil
	}
	why := f.refuse(c, asked)
	if why == "" {
		return nil
	}
	d := admission.Decision{Report: admission.Report{Policy: admission.Exact, Answer: "no", Reason: why}}
	return &fdm.AdminReply{Refused: true, Text: why, Help: []string{"add a host"}, Fields: []string{"hosts[host2].maintenance"}, Decision: &d}
}

// SetVM changes a VM.
func (f *Cluster) SetVM(i int, change func(*local.VM)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.vms[i%len(f.vms)])
}

// Emit makes an event of a host; the primary gets it, too.
func (f *Cluster) Emit(by model.HostID, e event.Event) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Wall, e.At = time.Now().UTC(), time.Duration(f.count+1)*time.Second
	return f.keep(by, e)
}

// Keep is Emit for an event that has its times.
func (f *Cluster) Keep(by model.HostID, e event.Event) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keep(by, e)
}

func (f *Cluster) keep(by model.HostID, e event.Event) string {
	f.count++
	e.ID, e.By = fmt.Sprintf("%s-1-%d", by, f.count), by
	f.events[by] = append(f.events[by], e)
	if by != f.primary {
		f.events[f.primary] = append(f.events[f.primary], e)
	}
	f.wake()
	return e.ID
}

// Dial is work.Dial for a set of clusters.
func Dial(find func(cluster string) *Cluster) work.Dial {
	return func(c *config.Cluster, host model.HostID) (work.Agent, error) {
		f := find(c.ID)
		if f == nil {
			return nil, errors.New("there is no such cluster")
		}
		return &Agent{f: f, host: host}, nil
	}
}

// Agent is one host's agent.
type Agent struct {
	f    *Cluster
	host model.HostID
	// known forgives the end of its certificate; nil: nobody does.
	known func(*x509.Certificate) bool
}

var errDown = errors.New("no route to host")

// Close implements work.Agent.
func (*Agent) Close() {}

// Status implements work.Agent.
func (a *Agent) Status(context.Context) (*local.Status, error) {
	f := a.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	c := f.config
	s := &local.Status{Host: a.host, Cluster: c.Name, Software: "fake", Role: model.RoleSecondary, State: model.HostConnected, Primary: f.primary,
		HA: true, HostMonitoring: true, ConfigVersion: c.Version, VMs: append([]local.VM(nil), f.vms...)}
	for i := range c.Hosts {
		h := local.Host{Name: c.Hosts[i].Name, Role: model.RoleSecondary, State: model.HostConnected, Armed: true, Hook: true, Guard: true, Hypervisor: true,
			ConfigVersion: c.Version, Memory: c.Hosts[i].Memory}
		if v, ok := f.behind[h.Name]; ok {
			h.ConfigVersion = v
		}
		if h.Name == f.primary {
			h.Role, h.State = model.RolePrimary, model.HostPrimary
		}
		for _, d := range c.Hosts[i].Datastores {
			h.Leases = append(h.Leases, local.Lease{Datastore: d, OK: true, LeftSeconds: 4})
		}
		s.Hosts = append(s.Hosts, h)
	}
	for _, d := range c.Datastores {
		s.Datastores = append(s.Datastores, local.Datastore{Name: d.Name, Owner: f.primary, Term: 1, VMs: len(f.vms)})
	}
	if f.reports != nil {
		f.reports(s)
	}
	return s, nil
}

// Admin implements work.Agent.
func (a *Agent) Admin(_ context.Context, r fdm.AdminRequest) (fdm.AdminReply, error) {
	f := a.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return fdm.AdminReply{}, errDown
	}
	power := func(word string, ref *fdm.VMRef, s model.VMState) (fdm.AdminReply, error) {
		i, ok := f.index[ref.Name]
		if !ok {
			return fdm.AdminReply{Text: "Hanok does not manage a VM " + ref.Name}, nil
		}
		if !f.stuck {
			f.vms[i].State = s
		}
		f.orders = append(f.orders, word+" "+ref.Name)
		return fdm.AdminReply{OK: true}, nil
	}
	switch {
	case r.Consider != nil && r.Consider.Apply != nil:
		c, err := config.Parse(r.Consider.Apply.File)
		if err != nil {
			return fdm.AdminReply{Text: err.Error()}, nil
		}
		if no := f.refusal(c, true); no != nil {
			return *no, nil
		}
		return fdm.AdminReply{OK: true}, nil
	case r.Apply != nil:
		c, err := config.Parse(r.Apply.File)
		if err != nil {
			return fdm.AdminReply{Text: err.Error()}, nil
		}
		if c.Version <= f.config.Version {
			return fdm.AdminReply{Text: fmt.Sprintf("version %d is not above %d", c.Version, f.config.Version)}, nil
		}
		if no := f.refusal(c, false); no != nil {
			if !r.Force {
				return *no, nil
			}
			f.forced = append(f.forced, r.By)
		}
		f.config, f.file = c, r.Apply.File
		return fdm.AdminReply{OK: true}, nil
	case r.Start != nil:
		if no := f.refusal(f.config, false); no != nil {
			if !r.Force {
				return *no, nil
			}
			f.forced = append(f.forced, r.By)
		}
		return power("start", r.Start, model.VMStarted)
	case r.Shutdown != nil:
		return power("shutdown", r.Shutdown, model.VMStopped)
	case r.Kill != nil:
		return power("kill", r.Kill, model.VMStopped)
	}
	return fdm.AdminReply{Text: "not known"}, nil
}

// Config implements work.Agent.
func (a *Agent) Config(context.Context) ([]byte, error) {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	if a.f.down {
		return nil, errDown
	}
	return a.f.file, nil
}

// Follow implements work.Agent.
func (a *Agent) Follow(ctx context.Context, after string, own bool, gap func(), each func(*event.Event) error) error {
	f, at := a.f, 0
	f.mu.Lock()
	found, forgot := after == "", f.forgot
	for i, e := range f.events[a.host] {
		if e.ID == after {
			found, at = true, i+1
		}
	}
	f.mu.Unlock()
	if !found {
		gap()
	}
	for {
		f.mu.Lock()
		if f.down || f.forgot != forgot {
			f.mu.Unlock()
			return errDown
		}
		list, moved := f.events[a.host][at:], f.moved
		f.mu.Unlock()
		for _, e := range list {
			at++
			if own && e.By != a.host {
				continue
			}
			if err := each(&e); err != nil {
				return err
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
