package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// idleAfter is how often a stream says that it lives.
const idleAfter = 15 * time.Second

// kinds that Watch knows.
var watchKinds = []string{"cluster", "host", "vm", "datastore", "task"}

// Watch implements the service.
func (a Inventory) Watch(ctx context.Context, r *hanokv1.WatchRequest, out *connect.ServerStream[hanokv1.WatchResponse]) error {
	for _, k := range r.Kinds {
		if !slices.Contains(watchKinds, k) {
			return invalid("kinds", "cluster, host, vm, datastore or task", "%q is unknown", k)
		}
	}
	if r.Cluster != "" && a.cache.Wanted(r.Cluster) == nil {
		return a.noCluster(r.Cluster)
	}
	from, err := a.resumeAt(r.ResumeToken)
	if err != nil {
		return err
	}
	return a.stream(ctx, "", from, func(b store.Batch) error {
		var list []*hanokv1.WatchResponse
		for _, e := range b.Events {
			c := state.ChangeOf(e)
			if c == nil || r.Cluster != "" && c.Cluster != r.Cluster || len(r.Kinds) > 0 && !slices.Contains(r.Kinds, c.Kind) || !mayView(ctx, c.Cluster) {
				continue
			}
			if m := a.watched(c); m != nil {
				list = append(list, m)
			}
		}
		if len(list) == 0 && len(b.Events) > 0 {
			return nil // the token moves on with the next sign of life
		}
		if len(list) == 0 {
			list = append(list, &hanokv1.WatchResponse{Change: &hanokv1.WatchResponse_Idle{Idle: &hanokv1.Idle{}}})
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

// watched is a change as Watch shows it.
func (a *API) watched(c *state.Change) *hanokv1.WatchResponse {
	m := &hanokv1.WatchResponse{}
	switch {
	case c.Removed && c.Kind == "config":
		m.Change = &hanokv1.WatchResponse_Removed{Removed: &hanokv1.Removed{Kind: "cluster", Cluster: c.Cluster, Name: c.Cluster}}
	case c.Removed:
		m.Change = &hanokv1.WatchResponse_Removed{Removed: &hanokv1.Removed{Kind: c.Kind, Cluster: c.Cluster, Name: c.Name}}
	case c.Task != nil:
		m.Change = &hanokv1.WatchResponse_Task{Task: c.Task}
	case c.VM != nil:
		m.Change = &hanokv1.WatchResponse_Vm{Vm: c.VM}
	case c.Kind == "host":
		h := a.cache.Host(c.Cluster, c.Name)
		if h == nil {
			return nil
		}
		m.Change = &hanokv1.WatchResponse_Host{Host: h}
	case c.Kind == "datastore":
		for _, d := range a.cache.Datastores(c.Cluster) {
			if d.Name == c.Name {
				m.Change = &hanokv1.WatchResponse_Datastore{Datastore: d}
			}
		}
	default: // cluster, or its wanted configuration
		x := a.cluster(c.Cluster)
		if x == nil {
			return nil
		}
		m.Change = &hanokv1.WatchResponse_Cluster{Cluster: x}
	}
	if m.Change == nil {
		return nil
	}
	return m
}

// stream follows the store below a prefix after a revision, once the cache has
// each change. A batch without events is a sign of life, at least every
// idleAfter.
func (a *API) stream(ctx context.Context, prefix string, from int64, each func(store.Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan store.Batch)
	ended := make(chan error, 1)
	go func() {
		ended <- a.store.Watch(ctx, prefix, from, func(b store.Batch) error {
			if err := a.cache.Wait(ctx, b.Revision); err != nil {
				return err
			}
			select {
			case batches <- b:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	last := from
	for {
		var err error
		select {
		case b := <-batches:
			last = max(last, b.Revision)
			err = each(b)
		case <-tick.C:
			err = each(store.Batch{Revision: last})
		case werr := <-ended:
			switch {
			case errors.Is(werr, store.ErrCompacted):
				return tooOld(werr)
			case ctx.Err() != nil:
				return connect.NewError(connect.CodeCanceled, ctx.Err())
			}
			return unavailable(werr)
		}
		if err != nil {
			cancel()
			<-ended
			return err
		}
	}
}

// ListTasks implements TaskService.
func (a Tasks) ListTasks(ctx context.Context, r *hanokv1.ListTasksRequest) (*hanokv1.ListTasksResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListTasksResponse{ResumeToken: a.now()}
	for _, t := range a.cache.Tasks() {
		if r.Cluster != "" && t.Cluster != r.Cluster || r.Active && state.Ended(t) || !mayView(ctx, t.Cluster) || p.after != "" && t.Id >= p.after {
			continue
		}
		if len(out.Tasks) == p.size {
			out.NextPageToken = tokenOf(out.Tasks[p.size-1].Id)
			break
		}
		out.Tasks = append(out.Tasks, t)
	}
	return out, nil
}

// Tasks is TaskService.
type Tasks struct{ *API }

func (a Tasks) task(ctx context.Context, id string, role hanokv1.Role) (*hanokv1.Task, error) {
	t := a.cache.Task(id)
	if t == nil || !mayView(ctx, t.Cluster) {
		return nil, fail(connect.CodeNotFound, "hanok task list shows them", "there is no task %q", id)
	}
	return t, mayOn(ctx, role, t.Cluster)
}

// GetTask implements the service.
func (a Tasks) GetTask(ctx context.Context, r *hanokv1.GetTaskRequest) (*hanokv1.GetTaskResponse, error) {
	t, err := a.task(ctx, r.Task, hanokv1.Role_ROLE_VIEWER)
	return &hanokv1.GetTaskResponse{Task: t}, err
}

// WatchTask implements the service.
func (a Tasks) WatchTask(ctx context.Context, r *hanokv1.WatchTaskRequest, out *connect.ServerStream[hanokv1.WatchTaskResponse]) error {
	var last *hanokv1.Task
	for {
		moved := a.cache.Moved() // before reading
		t, err := a.task(ctx, r.Task, hanokv1.Role_ROLE_VIEWER)
		if err != nil {
			return err
		}
		if t != last { // every change is a new object
			last = t
			if err := out.Send(&hanokv1.WatchTaskResponse{Task: t}); err != nil {
				return err
			}
		}
		if state.Ended(t) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}

// CancelTask implements the service.
func (a Tasks) CancelTask(ctx context.Context, r *hanokv1.CancelTaskRequest) (*hanokv1.CancelTaskResponse, error) {
	out := &hanokv1.CancelTaskResponse{}
	now, err := a.task(ctx, r.Task, hanokv1.Role_ROLE_OPERATOR)
	if err != nil {
		return nil, err
	}
	if r.Cluster != "" && r.Cluster != now.Cluster {
		return nil, invalid("cluster", "leave it out, or name the task's", "task %s is not of cluster %s", r.Task, r.Cluster)
	}
	return out, a.change(ctx, "CancelTask", "", r, out, func() (*store.Txn, error) {
		it, err := a.store.Get(ctx, state.TaskKey(r.Task))
		if err != nil {
			return nil, unavailable(err)
		}
		t, err := state.Decode[hanokv1.Task](it.Key, it.Value)
		if err != nil {
			return nil, unavailable(err)
		}
		out.Task = t
		if state.Ended(t) || t.CancelRequested {
			return nil, nil
		}
		t.CancelRequested = true
		x := new(store.Txn).Unchanged(it.Key, it.Modified).Put(it.Key, state.Encode(t))
		audit(ctx, x, t.Id+"-cancel", t.Cluster, "", "", "asked to give up task "+t.Id+" ("+t.Kind+")")
		return x, nil
	})
}
