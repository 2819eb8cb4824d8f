package state

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/store"
)

// Cache is a copy of the state in memory that follows the store. Objects that it
// hands out are shared: nobody may change them.
type Cache struct {
	store *store.Store
	log   *slog.Logger

	mu       sync.RWMutex
	revision int64
	moved    chan struct{} // closed when revision grows
	clusters map[string]*cluster
	tasks    map[string]*hanokv1.Task
}

// cluster is what is known of one cluster.
type cluster struct {
	wanted     *Wanted
	foreign    *hanokv1.ConfigVersion
	account    *hanokv1.Cluster
	hosts      map[string]*hanokv1.Host
	vms        table[*hanokv1.VM]
	datastores map[string]*hanokv1.Datastore
}

// Wanted is the wanted configuration of a cluster.
type Wanted struct {
	Version *hanokv1.ConfigVersion
	Cluster *config.Cluster
	// Modified is the revision for changes that rest on it, Created that of the
	// cluster's first version: a cluster that was removed and added again is
	// another.
	Modified, Created int64
}

// NewCache makes an empty cache; Load fills it, Follow keeps it current.
func NewCache(s *store.Store, log *slog.Logger) *Cache {
	return &Cache{store: s, log: log, moved: make(chan struct{}), clusters: map[string]*cluster{}, tasks: map[string]*hanokv1.Task{}}
}

// cached are the kinds that the cache holds.
var cached = []string{kindConfig, kindForeign, kindCluster, kindHost, kindVM, kindDatastore, kindTask}

// Load reads everything anew.
func (c *Cache) Load(ctx context.Context) error {
	rev, err := c.store.Revision(ctx)
	if err != nil {
		return err
	}
	fresh := NewCache(c.store, c.log)
	for _, kind := range cached {
		after := ""
		for {
			items, _, err := c.store.List(ctx, kind+"/", store.ListOptions{Limit: 1000, After: after, Revision: rev})
			if err != nil {
				return err
			}
			for _, it := range items {
				after = it.Key
				if err := fresh.set(it); err != nil {
					return err
				}
			}
			if len(items) < 1000 {
				break
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clusters, c.tasks = fresh.clusters, fresh.tasks
	c.advance(rev)
	return nil
}

// Follow keeps the cache current until ctx ends. After a failure it begins anew.
func (c *Cache) Follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.store.Watch(ctx, "", c.Revision(), c.apply)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, store.ErrCompacted) {
			c.log.Warn("the state could not be followed", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
		if err := c.Load(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("the state cannot be read", "err", err)
		}
	}
}

func (c *Cache) apply(b store.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range b.Events {
		if e.Deleted {
			c.drop(e.Key)
			continue
		}
		if err := c.set(e.Item); err != nil {
			c.log.Error("part of the state is left out", "err", err)
		}
	}
	c.advance(b.Revision)
	return nil
}

func (c *Cache) advance(rev int64) {
	if rev <= c.revision {
		return
	}
	c.revision = rev
	close(c.moved)
	c.moved = make(chan struct{})
}

// Revision is how far the cache is.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.revision
}

// Wait returns when the cache has a revision, so that a caller reads what it
// wrote; at the latest when ctx ends.
func (c *Cache) Wait(ctx context.Context, rev int64) error {
	for {
		c.mu.RLock()
		now, moved := c.revision, c.moved
		c.mu.RUnlock()
		if now >= rev {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Moved is closed when the cache has changed.
func (c *Cache) Moved() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.moved
}

func (c *Cache) at(name string) *cluster {
	x := c.clusters[name]
	if x == nil {
		x = &cluster{hosts: map[string]*hanokv1.Host{}, datastores: map[string]*hanokv1.Datastore{}}
		c.clusters[name] = x
	}
	return x
}

// set takes one item in.
func (c *Cache) set(it store.Item) (err error) {
	kind, p := split(it.Key)
	switch {
	case kind == kindTask && len(p) == 1:
		c.tasks[p[0]], err = keep[hanokv1.Task](it, c.tasks[p[0]])
	case kind == kindConfig && len(p) == 1:
		var w *Wanted
		if w, err = ReadWanted(it); err == nil {
			c.at(p[0]).wanted = w
		}
	case kind == kindForeign && len(p) == 1:
		c.at(p[0]).foreign, err = DecodeConfig(it.Key, it.Value)
	case kind == kindCluster && len(p) == 1:
		c.at(p[0]).account, err = keep[hanokv1.Cluster](it, c.at(p[0]).account)
	case kind == kindHost && len(p) == 2:
		x := c.at(p[0])
		x.hosts[p[1]], err = keep[hanokv1.Host](it, x.hosts[p[1]])
	case kind == kindDatastore && len(p) == 2:
		x := c.at(p[0])
		x.datastores[p[1]], err = keep[hanokv1.Datastore](it, x.datastores[p[1]])
	case kind == kindVM && len(p) == 2:
		var v *hanokv1.VM
		if v, err = Decode[hanokv1.VM](it.Key, it.Value); err == nil {
			c.at(p[0]).vms.set(p[1], v)
		}
	}
	return err
}

// keep decodes a value, or leaves what was there.
func keep[M any, P interface {
	*M
	proto.Message
}](it store.Item, old P) (P, error) {
	m, err := Decode[M, P](it.Key, it.Value)
	if err != nil {
		return old, err
	}
	return m, nil
}

// ReadWanted decodes the item of a wanted configuration.
func ReadWanted(it store.Item) (*Wanted, error) {
	v, err := DecodeConfig(it.Key, it.Value)
	if err != nil {
		return nil, err
	}
	cc, err := config.Parse([]byte(v.Yaml))
	if err != nil {
		return nil, err
	}
	return &Wanted{Version: v, Cluster: cc, Modified: it.Modified, Created: it.Created}, nil
}

func (c *Cache) drop(k string) {
	kind, p := split(k)
	switch {
	case kind == kindTask && len(p) == 1:
		delete(c.tasks, p[0])
		return
	case len(p) == 0 || c.clusters[p[0]] == nil:
		return
	}
	x := c.clusters[p[0]]
	switch {
	case kind == kindConfig:
		delete(c.clusters, p[0]) // with all that belongs to it
	case kind == kindForeign:
		x.foreign = nil
	case kind == kindCluster:
		x.account = nil
	case kind == kindHost && len(p) == 2:
		delete(x.hosts, p[1])
	case kind == kindDatastore && len(p) == 2:
		delete(x.datastores, p[1])
	case kind == kindVM && len(p) == 2:
		x.vms.drop(p[1])
	}
}

// Names are the clusters' names, in order.
func (c *Cache) Names() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []string
	for n, x := range c.clusters {
		if x.wanted != nil {
			out = append(out, n)
		}
	}
	sort.Strings(out)
	return out
}

// known returns a cluster that is configured, or nil; c.mu is held.
func (c *Cache) known(name string) *cluster {
	if x := c.clusters[name]; x != nil && x.wanted != nil {
		return x
	}
	return nil
}

// Wanted is the wanted configuration of a cluster, nil for an unknown one.
func (c *Cache) Wanted(name string) *Wanted {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if x := c.known(name); x != nil {
		return x.wanted
	}
	return nil
}

// Foreign is what a cluster's hosts have of their own, or nil.
func (c *Cache) Foreign(name string) *hanokv1.ConfigVersion {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if x := c.known(name); x != nil {
		return x.foreign
	}
	return nil
}

// Account is the hosts' own account of a cluster, nil when there is none.
func (c *Cache) Account(name string) *hanokv1.Cluster {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if x := c.clusters[name]; x != nil {
		return x.account
	}
	return nil
}

// Tasks are all tasks, the newest first.
func (c *Cache) Tasks() []*hanokv1.Task {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]*hanokv1.Task, 0, len(c.tasks))
	for _, t := range c.tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *hanokv1.Task) int { return strings.Compare(b.Id, a.Id) })
	return out
}

// Active are the tasks that have not ended, the oldest first.
func (c *Cache) Active() []*hanokv1.Task {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []*hanokv1.Task
	for _, t := range c.tasks {
		if !Ended(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *hanokv1.Task) int { return strings.Compare(a.Id, b.Id) })
	return out
}

// Task is one task, or nil.
func (c *Cache) Task(id string) *hanokv1.Task {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.tasks[id]
}

// VM is a VM by id or name, or nil.
func (c *Cache) VM(cluster, ref string) *hanokv1.VM {
	c.mu.RLock()
	defer c.mu.RUnlock()
	x := c.known(cluster)
	if x == nil {
		return nil
	}
	if v, ok := x.vms.items[ref]; ok {
		return v
	}
	for _, v := range x.vms.items {
		if v.Name == ref {
			return v
		}
	}
	return nil
}

// VMs gives the VMs of a cluster that come after a name and id, ordered by
// them, until each says that it is enough.
func (c *Cache) VMs(cluster, after string, each func(*hanokv1.VM) bool) {
	c.mu.Lock() // the order may have to be made
	defer c.mu.Unlock()
	if x := c.known(cluster); x != nil {
		for _, v := range x.vms.sorted(vmOrder, after) {
			if !each(v) {
				return
			}
		}
	}
}

// vmOrder is what VMs are ordered by: names need not be unique for a moment.
func vmOrder(v *hanokv1.VM) string { return v.Name + "\x00" + v.Id }

// VMOrder is the place of a VM in the order of VMs.
func VMOrder(v *hanokv1.VM) string { return vmOrder(v) }

// Hosts are the hosts of a cluster by name: those of its file, with what was
// reported of them.
func (c *Cache) Hosts(cluster string) []*hanokv1.Host {
	c.mu.RLock()
	defer c.mu.RUnlock()
	x := c.known(cluster)
	if x == nil {
		return nil
	}
	var out []*hanokv1.Host
	for i := range x.wanted.Cluster.Hosts {
		out = append(out, x.host(cluster, &x.wanted.Cluster.Hosts[i]))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Host is one host, or nil.
func (c *Cache) Host(cluster, name string) *hanokv1.Host {
	c.mu.RLock()
	defer c.mu.RUnlock()
	x := c.known(cluster)
	if x == nil {
		return nil
	}
	if h := x.wanted.Cluster.HostByName(model.HostID(name)); h != nil {
		return x.host(cluster, h)
	}
	return nil
}

// host joins what is configured and what was reported.
func (x *cluster) host(cluster string, h *config.Host) *hanokv1.Host {
	out := &hanokv1.Host{Cluster: cluster, Name: string(h.Name), Role: string(model.RoleNone), State: string(model.HostUninitialized),
		Reason: "no host of the cluster has reported it to a server yet"}
	if seen := x.hosts[string(h.Name)]; seen != nil {
		out = proto.Clone(seen).(*hanokv1.Host)
	}
	out.Groups, out.FailureDomain, out.Maintenance = h.Groups, h.FailureDomain, h.Maintenance
	out.Address = map[string]string{}
	for n, a := range h.Address {
		out.Address[n] = a.String()
	}
	return out
}

// Datastores are the datastores of a cluster by name, like Hosts.
func (c *Cache) Datastores(cluster string) []*hanokv1.Datastore {
	c.mu.RLock()
	defer c.mu.RUnlock()
	x := c.known(cluster)
	if x == nil {
		return nil
	}
	var out []*hanokv1.Datastore
	for _, d := range x.wanted.Cluster.Datastores {
		o := &hanokv1.Datastore{Cluster: cluster, Name: string(d.Name)}
		if seen := x.datastores[string(d.Name)]; seen != nil {
			o = proto.Clone(seen).(*hanokv1.Datastore)
		}
		o.Path, o.Backing, o.Fence = d.Path, d.Backing, string(d.Fence)
		out = append(out, o)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
