package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rehearsal"
	"hanok.dev/hanok/internal/server/view"
	"hanok.dev/hanok/internal/sim"
)

// Bounds of rehearsals on the server, which has other things to do. What is
// larger is rehearsed elsewhere: hanok sim rehearse FILE --status FILE.
const (
	maxRehearsedHosts = 200
	maxRehearsedVMs   = 5000
	maxLosses         = 2500
	rehearsalLimit    = 10 * time.Minute
)

// Rehearse implements the service.
func (a HA) Rehearse(ctx context.Context, r *hanokv1.RehearseRequest, out *connect.ServerStream[hanokv1.RehearseResponse]) error {
	q, losses, err := a.rehearsal(r)
	if err != nil {
		return err
	}
	select {
	case a.rehearsing <- struct{}{}:
		defer func() { <-a.rehearsing }()
	default:
		return fail(connect.CodeResourceExhausted, "ask again when it has ended, or use hanok sim rehearse FILE --status FILE elsewhere", "this server plays another rehearsal")
	}
	ctx, cancel := context.WithTimeout(ctx, rehearsalLimit)
	defer cancel()
	err = q.Run(ctx, losses, 1, func(i int, x sim.Rehearsal) error {
		return out.Send(rehearsed(q, len(losses), i, x))
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(connect.CodeDeadlineExceeded, "rehearse single hosts", "the rehearsal took longer than %v", rehearsalLimit)
	}
	return err
}

// rehearsal is the question of a request, with the losses that answer it.
func (a *API) rehearsal(r *hanokv1.RehearseRequest) (*rehearsal.Question, [][]model.HostID, error) {
	w := a.cache.Wanted(r.Cluster)
	if w == nil {
		return nil, nil, a.noCluster(r.Cluster)
	}
	q := &rehearsal.Question{Cluster: w.Cluster.Clone(), Seed: max(r.Seed, 1)}
	if r.Yaml != "" {
		c, err := config.Parse([]byte(r.Yaml))
		if err != nil {
			return nil, nil, badConfig(err)
		}
		q.Cluster = c
	}
	seen := a.cache.Account(r.Cluster)
	if seen == nil || seen.Reported == nil {
		return nil, nil, fail(connect.CodeFailedPrecondition, "hanok sim rehearse FILE needs no hosts", "no host of %s has reported yet", r.Cluster)
	}
	s := &hanokv1.GetStatusResponse{Cluster: seen, Hosts: a.cache.Hosts(r.Cluster)}
	a.cache.VMs(r.Cluster, "", func(v *hanokv1.VM) bool { s.Vms = append(s.Vms, v); return true })
	if len(q.Cluster.Hosts) > maxRehearsedHosts || max(len(q.Cluster.VMs), len(s.Vms)) > maxRehearsedVMs {
		return nil, nil, fail(connect.CodeFailedPrecondition, "hanok sim rehearse FILE --status FILE on another machine",
			"a server rehearses clusters of at most %d hosts and %d VMs", maxRehearsedHosts, maxRehearsedVMs)
	}
	if err := q.Adopt(view.Status(s, time.Now())); err != nil {
		return nil, nil, fail(connect.CodeFailedPrecondition, "add it to the cluster file, or take it out of management", "%v", err)
	}
	var hosts []model.HostID
	for i, h := range r.Hosts {
		if q.Cluster.HostByName(model.HostID(h)) == nil {
			return nil, nil, invalid(fmt.Sprintf("hosts[%d]", i), "hanok host list shows them", "cluster %s has no host %q", r.Cluster, h)
		}
		hosts = append(hosts, model.HostID(h))
	}
	losses := q.Losses(hosts, r.Two)
	if len(losses) > maxLosses {
		return nil, nil, invalid("two", "name the hosts", "%d losses: at most %d", len(losses), maxLosses)
	}
	return q, losses, nil
}

func rehearsed(q *rehearsal.Question, losses, i int, x sim.Rehearsal) *hanokv1.RehearseResponse {
	m := &hanokv1.RehearseResponse{Losses: int32(losses), Loss: int32(i), Seconds: x.Seconds, Down: int32(x.Down), Warning: x.Warning}
	for _, h := range x.Failed {
		m.Failed = append(m.Failed, string(h))
	}
	for _, h := range q.Absent {
		m.Absent = append(m.Absent, string(h))
	}
	for _, v := range x.VMs {
		m.Vms = append(m.Vms, &hanokv1.RehearsedVM{Name: v.Name, From: string(v.From), To: string(v.To), Seconds: v.Seconds, Reason: v.Reason})
	}
	return m
}
