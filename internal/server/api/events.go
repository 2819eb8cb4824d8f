package api

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Events is EventService.
type Events struct{ *API }

var gravity = map[string]int{"": 0, "info": 0, "warning": 1, "error": 2}

// scan gives the events of a cluster, or of all, newest first, from before a
// revision, until each says that it is enough.
func (a *API) scan(ctx context.Context, cluster string, before int64, each func(it store.Item, e *hanokv1.Event) bool) error {
	for {
		items, _, err := a.store.List(ctx, state.EventPrefix(cluster), store.ListOptions{NewestFirst: true, Limit: 1000, CreatedBefore: before})
		if err != nil {
			return unavailable(err)
		}
		// Those of one Commit have one revision: their order must not vary.
		slices.SortFunc(items, func(x, y store.Item) int {
			return cmp.Or(cmp.Compare(y.Created, x.Created), strings.Compare(x.Key, y.Key))
		})
		for i, it := range items {
			// Nor may they be cut apart.
			if len(items) == 1000 && i > 0 && it.Created == items[len(items)-1].Created && it.Created != items[0].Created {
				break
			}
			before = it.Created
			e, err := state.Decode[hanokv1.Event](it.Key, it.Value)
			if err != nil {
				return unavailable(err)
			}
			if !each(it, e) {
				return nil
			}
		}
		if len(items) < 1000 {
			return nil
		}
	}
}

// ListEvents implements the service.
func (a Events) ListEvents(ctx context.Context, r *hanokv1.ListEventsRequest) (*hanokv1.ListEventsResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	least, ok := gravity[r.Severity]
	if !ok {
		return nil, invalid("severity", "info, warning or error", "%q is unknown", r.Severity)
	}
	before, skip := int64(0), 0 // of the revision that the page ended in
	if p.after != "" {
		rev, n, _ := cutLast(p.after)
		if rev <= 0 {
			return nil, invalid("pageToken", "give the token of the page before", "is none of this list")
		}
		before, skip = rev+1, n
	}
	out := &hanokv1.ListEventsResponse{ResumeToken: a.now()}
	at, within := int64(0), 0
	err = a.scan(ctx, r.Cluster, before, func(it store.Item, e *hanokv1.Event) bool {
		if it.Created != at {
			at, within = it.Created, 0
		}
		within++
		if at == before-1 && within <= skip {
			return true
		}
		if !mayView(ctx, e.Cluster) || r.Host != "" && e.Host != r.Host && e.By != r.Host || r.Vm != "" && e.Vm != r.Vm ||
			gravity[e.Severity] < least || r.Failover != "" && e.Failover != r.Failover {
			return true
		}
		if len(out.Events) == p.size {
			out.NextPageToken = tokenOf(strconv.FormatInt(at, 16) + "." + strconv.Itoa(within-1))
			return false
		}
		out.Events = append(out.Events, e)
		return true
	})
	return out, err
}

// cutLast reads the token of a page of events: revision and how many of it.
func cutLast(s string) (rev int64, n int, err error) {
	for i := range s {
		if s[i] == '.' {
			if rev, err = strconv.ParseInt(s[:i], 16, 64); err == nil {
				n, err = strconv.Atoi(s[i+1:])
			}
			return rev, n, err
		}
	}
	return 0, 0, strconv.ErrSyntax
}

// WatchEvents implements the service.
func (a Events) WatchEvents(ctx context.Context, r *hanokv1.WatchEventsRequest, out *connect.ServerStream[hanokv1.WatchEventsResponse]) error {
	if r.Cluster != "" && a.cache.Wanted(r.Cluster) == nil {
		return a.noCluster(r.Cluster)
	}
	from, err := a.resumeAt(r.ResumeToken)
	if err != nil {
		return err
	}
	return a.stream(ctx, state.EventPrefix(r.Cluster), from, func(b store.Batch) error {
		var list []*hanokv1.WatchEventsResponse
		for _, x := range b.Events {
			if x.Deleted {
				continue
			}
			e, err := state.Decode[hanokv1.Event](x.Key, x.Value)
			if err != nil {
				return unavailable(err)
			}
			if mayView(ctx, e.Cluster) {
				list = append(list, &hanokv1.WatchEventsResponse{Event: e})
			}
		}
		if len(list) == 0 {
			list = append(list, &hanokv1.WatchEventsResponse{})
		}
		list[len(list)-1].ResumeToken = a.resumeToken(b.Revision)
		for _, m := range list {
			if err := out.Send(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// ToEvent and FromEvent translate between the hosts' events and the API's.
func ToEvent(cluster string, e *event.Event) *hanokv1.Event {
	return &hanokv1.Event{Id: e.ID, Cluster: cluster, Time: timestamppb.New(e.Wall), At: int64(e.At), By: string(e.By), Severity: string(e.Severity),
		Kind: string(e.Kind), Host: string(e.Host), Vm: e.VM, Datastore: string(e.Datastore), Failover: e.Failover, Text: e.Text, Cause: e.Cause, Evidence: e.Evidence}
}

// FromEvent is the reverse of ToEvent.
func FromEvent(e *hanokv1.Event) event.Event {
	return event.Event{ID: e.Id, At: time.Duration(e.At), Wall: e.Time.AsTime(), By: model.HostID(e.By), Severity: event.Severity(e.Severity),
		Kind: event.Kind(e.Kind), Host: model.HostID(e.Host), VM: e.Vm, Datastore: model.DatastoreName(e.Datastore), Failover: e.Failover,
		Text: e.Text, Cause: e.Cause, Evidence: e.Evidence}
}

// failovers are all events of a cluster that belong to failovers.
func (a *API) failovers(ctx context.Context, cluster string) ([]event.Event, error) {
	if a.cache.Wanted(cluster) == nil {
		return nil, a.noCluster(cluster)
	}
	var out []event.Event
	err := a.scan(ctx, cluster, 0, func(_ store.Item, e *hanokv1.Event) bool {
		if e.Failover != "" {
			out = append(out, FromEvent(e))
		}
		return true
	})
	slices.Reverse(out)
	return out, err
}

func summaryOf(cluster string, s event.Summary) *hanokv1.FailoverSummary {
	return &hanokv1.FailoverSummary{Failover: s.Failover, Cluster: cluster, Host: string(s.Host), Began: timestamppb.New(s.Began),
		Vms: int32(s.VMs), Running: int32(s.Running), Done: s.Done, LastRunning: s.LastRunning}
}

// ListFailovers implements the service.
func (a Events) ListFailovers(ctx context.Context, r *hanokv1.ListFailoversRequest) (*hanokv1.ListFailoversResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	events, err := a.failovers(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	list := event.Failovers(events)
	slices.Reverse(list)
	begin := 0
	if p.after != "" {
		begin = slices.IndexFunc(list, func(s event.Summary) bool { return s.Failover == p.after }) + 1
	}
	out := &hanokv1.ListFailoversResponse{}
	for _, s := range list[begin:] {
		if len(out.Failovers) == p.size {
			out.NextPageToken = tokenOf(out.Failovers[p.size-1].Failover)
			break
		}
		out.Failovers = append(out.Failovers, summaryOf(r.Cluster, s))
	}
	return out, nil
}

// GetFailover implements the service.
func (a Events) GetFailover(ctx context.Context, r *hanokv1.GetFailoverRequest) (*hanokv1.GetFailoverResponse, error) {
	events, err := a.failovers(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	id := r.Failover
	list := event.Failovers(events)
	if id == "last" && len(list) > 0 {
		id = list[len(list)-1].Failover
	}
	tl, ok := event.Build(events, id)
	if !ok {
		return nil, fail(connect.CodeNotFound, "ListFailovers shows those that are known", "no failover %q of cluster %s is known", r.Failover, r.Cluster)
	}
	out := &hanokv1.GetFailoverResponse{By: string(tl.By), Steps: steps(tl.Steps), LastAlive: tl.LastAlive,
		Heading: tl.Heading(), Findings: tl.Findings(english), Conclusion: tl.Conclusion()}
	for _, s := range list {
		if s.Failover == id {
			out.Summary = summaryOf(r.Cluster, s)
		}
	}
	for _, v := range tl.VMs {
		out.Vms = append(out.Vms, &hanokv1.FailoverVM{Vm: v.VM, From: string(v.From), To: string(v.To), Attempts: int32(v.Attempts),
			Steps: steps(v.Steps), Outcome: v.Outcome, Reason: v.Reason})
	}
	return out, nil
}

func steps(list []event.Step) []*hanokv1.FailoverStep {
	var out []*hanokv1.FailoverStep
	for _, s := range list {
		out = append(out, &hanokv1.FailoverStep{Kind: string(s.Kind), Since: s.Since, Delta: s.Delta, Approximate: s.Approximate, By: string(s.By),
			Text: s.Text, Cause: s.Cause, Evidence: s.Evidence})
	}
	return out
}

// english leaves texts as they are: clients translate them for their readers.
func english(text string) string { return text }
