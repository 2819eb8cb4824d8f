package rehearsal

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/sim"
)

// Question is a cluster whose losses are played.
type Question struct {
	// Cluster has its VMs on the hosts where they run.
	Cluster *config.Cluster
	// Absent are hosts that are down already.
	Absent []model.HostID
	// Seed is what is left to chance.
	Seed uint64
}

// Adopt puts each VM where a status says that it runs, and notes what is down.
// It changes Cluster. An error names the field of the status.
func (q *Question) Adopt(s *local.Status) error {
	for i := range s.Hosts {
		h := &s.Hosts[i]
		have := q.Cluster.HostByName(h.Name)
		if have == nil {
			return fmt.Errorf("hosts: %s is not in the cluster file", h.Name)
		}
		if h.Memory > 0 {
			have.Memory = h.Memory
		}
		switch h.State {
		case model.HostFailed, model.HostStandby, model.HostDisconnected:
			q.Absent = append(q.Absent, h.Name)
		}
	}
	runs := map[string]model.HostID{}
	for _, v := range s.VMs {
		if q.Cluster.VMByName(v.Name) == nil {
			return fmt.Errorf("vms: %s is not in the cluster file", v.Name)
		}
		if v.Host != "" && v.State != model.VMStopped && v.State != model.VMDisabled {
			runs[v.Name] = v.Host
		}
	}
	for i := range q.Cluster.VMs {
		v := &q.Cluster.VMs[i]
		if host, ok := runs[v.Name]; ok {
			v.Host = host
		} else if v.Requested == model.RequestedStarted {
			v.Requested = model.RequestedStopped
		}
	}
	return nil
}

// Losses are the sets of hosts that fail: hosts at once, or without any each
// host that is up, and with two also every two of them.
func (q *Question) Losses(hosts []model.HostID, two bool) [][]model.HostID {
	if len(hosts) > 0 {
		return [][]model.HostID{hosts}
	}
	var up []model.HostID
	for i := range q.Cluster.Hosts {
		if h := q.Cluster.Hosts[i].Name; !slices.Contains(q.Absent, h) {
			up = append(up, h)
		}
	}
	var out [][]model.HostID
	for _, h := range up {
		out = append(out, []model.HostID{h})
	}
	for i := range up {
		for j := i + 1; two && j < len(up); j++ {
			out = append(out, []model.HostID{up[i], up[j]})
		}
	}
	return out
}

// Run plays losses, several at once, and gives the answer to each, by its
// number, as soon as it is known; told is called by one goroutine at a time, and
// its error ends the rest, as ctx does.
func (q *Question) Run(ctx context.Context, losses [][]model.HostID, atOnce int, told func(i int, r sim.Rehearsal) error) error {
	type answer struct {
		i int
		r sim.Rehearsal
	}
	answers := make(chan answer)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for range losses {
			select {
			case a := <-answers:
				if err := told(a.i, a.r); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	players, pctx := errgroup.WithContext(ctx)
	players.SetLimit(atOnce)
	for i, failed := range losses {
		players.Go(func() error {
			if err := pctx.Err(); err != nil {
				return err
			}
			r, err := sim.Rehearse(q.Cluster, q.Absent, failed, q.Seed)
			if err != nil {
				return err
			}
			select {
			case answers <- answer{i, r}:
				return nil
			case <-pctx.Done():
				return pctx.Err()
			}
		})
	}
	g.Go(players.Wait)
	return g.Wait()
}
