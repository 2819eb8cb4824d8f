package work

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/view"
	"hanok.dev/hanok/internal/store"
)

// Bounds of following.
const (
	askLimit = 5 * time.Second
	// reportedEvery is how often the time of the last report is written when
	// nothing else changes.
	reportedEvery = 10 * time.Second
	// handOverEvery is the pause between attempts to hand a version over.
	handOverEvery = 3 * time.Second
)

// follower follows one cluster.
type follower struct {
	w    *worker
	name string
	// created tells the cluster from another of its name, before or after.
	created int64
	stop    context.CancelFunc

	wanted  *state.Wanted // as of the last round
	agents  map[model.HostID]Agent
	streams map[model.HostID]*stream
	primary model.HostID // where accounts come from
	turn    int          // whom to ask next when the primary is unknown

	written  map[string][]byte // what the state has, by key
	reported time.Time         // written last
	handed   uint64            // version handed over last
	handedAt time.Time
	seen     uint64 // version of the hosts that was looked into
	refusal  string // of the version handed over

	dialled chan struct{}                       // closed when there are connections
	trust   map[model.HostID]*hanokv1.HostTrust // of this leadership, under w.mu
}

func newFollower(w *worker, name string, created int64) *follower {
	return &follower{w: w, name: name, created: created, agents: map[model.HostID]Agent{}, streams: map[model.HostID]*stream{}, written: map[string][]byte{},
		dialled: make(chan struct{})}
}

func (f *follower) run(ctx context.Context) {
	defer f.close()
	if err := f.load(ctx); err != nil {
		f.w.Log.Warn("a cluster cannot be followed", "cluster", f.name, "err", err)
	}
	tick := time.NewTicker(f.w.Interval)
	defer tick.Stop()
	for {
		if err := f.round(ctx); errors.Is(err, errDeposed) || errors.Is(err, errRemoved) || ctx.Err() != nil {
			return
		} else if err != nil {
			f.w.Log.Warn("the account of a cluster was not taken over", "cluster", f.name, "err", err)
			clear(f.written)
			_ = f.load(ctx) // the next round writes what differs
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (f *follower) close() {
	for _, s := range f.streams {
		s.stop()
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for _, a := range f.agents {
		a.Close()
	}
}

// load reads what the state has of the cluster, to write only what differs.
func (f *follower) load(ctx context.Context) error {
	for _, prefix := range []string{state.HostKey(f.name, ""), state.VMKey(f.name, ""), state.DatastoreKey(f.name, "")} {
		after := ""
		for {
			items, _, err := f.w.Store.List(ctx, prefix, store.ListOptions{Limit: 2000, After: after})
			if err != nil {
				return err
			}
			for _, it := range items {
				after = it.Key
				f.written[it.Key] = it.Value
			}
			if len(items) < 2000 {
				break
			}
		}
	}
	return nil
}

// round asks once and does what follows.
func (f *follower) round(ctx context.Context) error {
	w := f.w.Cache.Wanted(f.name)
	if w == nil || w.Created != f.created {
		return errRemoved
	}
	if f.wanted == nil || f.wanted.Modified != w.Modified {
		f.wanted = w
		f.seen = 0 // what the hosts have is to be compared with the new one
		f.redial()
	}
	f.follow(ctx)
	s, err := f.ask(ctx)
	if err != nil {
		return f.unreachable(ctx, err)
	}
	if err := f.record(ctx, s); err != nil {
		return err
	}
	return f.reconcile(ctx, s)
}

// redial makes connections for the hosts of the file; those of hosts whose
// address changed are made anew.
func (f *follower) redial() {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for _, a := range f.agents {
		a.Close()
	}
	clear(f.agents)
	for i := range f.wanted.Cluster.Hosts {
		h := f.wanted.Cluster.Hosts[i].Name
		a, err := f.w.Dial(f.wanted.Cluster, h)
		if err != nil {
			f.w.Log.Warn("a host cannot be asked", "cluster", f.name, "host", h, "err", err)
			continue
		}
		f.agents[h] = a
	}
	select {
	case <-f.dialled:
	default:
		close(f.dialled)
	}
}

// agent is the connection that answers for the cluster.
func (f *follower) agent() (Agent, model.HostID, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if a := f.agents[f.primary]; a != nil {
		return a, f.primary, nil
	}
	return nil, "", fmt.Errorf("no host of %s answers the server", f.name)
}

// ask gets an account: from the primary, or from whoever answers.
func (f *follower) ask(ctx context.Context) (*local.Status, error) {
	hosts := f.wanted.Cluster.Hosts
	order := make([]model.HostID, 0, 4)
	if f.primary != "" {
		order = append(order, f.primary)
	}
	for i := 0; i < len(hosts) && i < 3; i++ { // a few at a time: each may take its time
		order = append(order, hosts[(f.turn+i)%len(hosts)].Name)
	}
	err := errors.New("the cluster file has no hosts")
	for i, h := range order {
		f.w.mu.Lock()
		a := f.agents[h]
		f.w.mu.Unlock()
		if a == nil {
			err = fmt.Errorf("the server has no certificate for the cluster, or %s no address", h)
			continue
		}
		var s *local.Status
		if s, err = f.askOne(ctx, a); err != nil {
			continue
		}
		f.w.mu.Lock()
		f.primary = h
		f.w.mu.Unlock()
		if s.Primary != "" && s.Primary != h && i < len(order) {
			// The primary's own account is better; this one will do if it fails.
			f.w.mu.Lock()
			p := f.agents[s.Primary]
			f.w.mu.Unlock()
			if p != nil {
				if better, perr := f.askOne(ctx, p); perr == nil && better.Primary == s.Primary {
					f.w.mu.Lock()
					f.primary = s.Primary
					f.w.mu.Unlock()
					return better, nil
				}
			}
		}
		return s, nil
	}
	f.turn += 3
	f.w.mu.Lock()
	f.primary = ""
	f.w.mu.Unlock()
	return nil, err
}

func (f *follower) askOne(ctx context.Context, a Agent) (*local.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s, err := a.Status(ctx)
	if err == nil && s.Local.Error != "" {
		err = errors.New(s.Local.Error)
	}
	return s, err
}

// unreachable notes that nobody answers.
func (f *follower) unreachable(ctx context.Context, why error) error {
	c := &hanokv1.Cluster{Name: f.name}
	if old := f.w.Cache.Account(f.name); old != nil {
		c = cloneCluster(old)
	}
	if c.Unreachable != "" {
		return nil // the reason may vary from host to host; the first one stays
	}
	c.Unreachable = why.Error()
	_, err := f.commit(ctx, new(store.Txn).Put(state.ClusterKey(f.name), state.Encode(c)))
	f.reported = time.Time{}
	return err
}

// record writes what changed.
func (f *follower) record(ctx context.Context, s *local.Status) error {
	now := time.Now().UTC()
	want := map[string][]byte{}
	byHost := map[model.HostID]int{}
	for i := range s.VMs {
		v := &s.VMs[i]
		if v.State == model.VMStarted {
			byHost[v.Host]++
		}
		want[state.VMKey(f.name, string(v.ID))] = state.Encode(view.VM(f.name, v, now))
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		want[state.HostKey(f.name, string(h.Name))] = state.Encode(view.Host(f.name, h, byHost[h.Name]))
	}
	for i := range s.Datastores {
		d := &s.Datastores[i]
		want[state.DatastoreKey(f.name, string(d.Name))] = state.Encode(view.Datastore(f.name, d))
	}
	t := new(store.Txn)
	flush := func(full int) error {
		if t.Len() < full {
			return nil
		}
		_, err := f.commit(ctx, t)
		t = new(store.Txn)
		return err
	}
	for k, v := range want {
		if bytes.Equal(f.written[k], v) {
			continue
		}
		if err := flush(store.MaxOps - 1); err != nil {
			return err
		}
		t.Put(k, v)
		f.written[k] = v
	}
	// Only the primary's own account is complete.
	if s.Primary != "" && s.Primary == s.Host {
		for k := range f.written {
			if _, ok := want[k]; !ok {
				if err := flush(store.MaxOps - 1); err != nil {
					return err
				}
				t.Delete(k)
				delete(f.written, k)
			}
		}
	}
	c := view.Cluster(f.name, s)
	c.Reported = timestamppb.New(now)
	// The cluster's account comes last: with it all the rest is there.
	if old := f.w.Cache.Account(f.name); t.Len() > 0 || old == nil || !sameCluster(old, c) || now.Sub(f.reported) >= reportedEvery {
		t.Put(state.ClusterKey(f.name), state.Encode(c))
		f.reported = now
	}
	return flush(1)
}

// reconcile hands the wanted version over, and notices what is not wanted.
func (f *follower) reconcile(ctx context.Context, s *local.Status) error {
	want := f.wanted.Cluster
	if s.ConfigVersion >= want.Version {
		if s.ConfigVersion != f.seen {
			return f.compare(ctx, s.ConfigVersion)
		}
		return nil
	}
	if f.handed == want.Version && time.Since(f.handedAt) < handOverEvery {
		return nil
	}
	f.handed, f.handedAt = want.Version, time.Now()
	req := fdm.AdminRequest{Apply: &fdm.ConfigOffer{Version: want.Version, File: []byte(f.wanted.Version.Yaml)}}
	if f.wanted.Version.Forced {
		req.Force, req.By = true, f.wanted.Version.Principal
	}
	r, err := f.order(ctx, req)
	if err == nil && r.Refused {
		return f.takeBack(ctx, withHelp(r))
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	switch {
	case err != nil:
		f.refusal = err.Error()
	case !r.OK:
		f.refusal = r.Text
	default:
		f.refusal = ""
	}
	return nil // tried again in the next rounds
}

// compare looks what the hosts' version holds.
func (f *follower) compare(ctx context.Context, version uint64) error {
	a, _, err := f.agent()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	b, err := a.Config(ctx)
	if err != nil {
		return nil // in the next round
	}
	theirs, err := config.Parse(b)
	if err != nil || theirs.Version != version {
		return nil
	}
	want := f.wanted.Cluster
	t := new(store.Txn)
	if theirs.Version == want.Version && theirs.Digest() == want.Digest() {
		if f.w.Cache.Foreign(f.name) != nil {
			t.Delete(state.ForeignKey(f.name))
		}
	} else {
		t.Put(state.ForeignKey(f.name), state.EncodeConfig(&hanokv1.ConfigVersion{Version: theirs.Version, Yaml: string(b), Digest: theirs.Digest()}))
	}
	if t.Len() > 0 {
		t.Unchanged(state.ConfigKey(f.name), f.wanted.Modified)
		if _, err := f.w.commit(ctx, t); err != nil {
			if errors.Is(err, store.ErrConflict) {
				return nil // the wanted version changed meanwhile
			}
			return err
		}
	}
	f.seen = version
	return nil
}
