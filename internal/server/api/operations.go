package api

import (
	"context"
	"fmt"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Operations is OperationService.
type Operations struct{ *API }

// The kinds of tasks.
const (
	TaskApply     = "applyConfig"
	TaskStart     = "startVM"
	TaskShutdown  = "shutdownVM"
	TaskKill      = "killVM"
	TaskUnprotect = "unprotectVM"
)

// vmTask makes a task about a VM.
func (a *API) vmTask(ctx context.Context, kind, cluster, ref, text string, force bool) (*store.Txn, *hanokv1.Task, error) {
	v, err := a.vm(cluster, ref)
	if err != nil {
		return nil, nil, err
	}
	task := newTask(ctx, kind, cluster, v.Name)
	task.Force = force
	// A cluster that was removed meanwhile gets no task.
	w := a.cache.Wanted(cluster)
	if w == nil {
		return nil, nil, a.noCluster(cluster)
	}
	t := new(store.Txn).Unchanged(state.ConfigKey(cluster), w.Modified).Put(state.TaskKey(task.Id), state.Encode(task))
	audit(ctx, t, task.Id, cluster, v.Name, "", fmt.Sprintf("asked to %s %s", text, v.Name+forced(force)))
	return t, task, nil
}

// StartVM implements the service.
func (a Operations) StartVM(ctx context.Context, r *hanokv1.StartVMRequest) (*hanokv1.StartVMResponse, error) {
	out := &hanokv1.StartVMResponse{}
	return out, a.change(ctx, "StartVM", r.IdempotencyKey, r, out, func() (t *store.Txn, err error) {
		t, out.Task, err = a.vmTask(ctx, TaskStart, r.Cluster, r.Vm, "start", r.Force)
		return t, err
	})
}

// StopVM implements the service.
func (a Operations) StopVM(ctx context.Context, r *hanokv1.StopVMRequest) (*hanokv1.StopVMResponse, error) {
	out := &hanokv1.StopVMResponse{}
	kind, text := TaskShutdown, "shut down"
	if r.Kill {
		kind, text = TaskKill, "kill"
	}
	return out, a.change(ctx, "StopVM", r.IdempotencyKey, r, out, func() (t *store.Txn, err error) {
		t, out.Task, err = a.vmTask(ctx, kind, r.Cluster, r.Vm, text, false)
		return t, err
	})
}

// UnprotectVM implements the service.
func (a Operations) UnprotectVM(ctx context.Context, r *hanokv1.UnprotectVMRequest) (*hanokv1.UnprotectVMResponse, error) {
	out := &hanokv1.UnprotectVMResponse{}
	return out, a.change(ctx, "UnprotectVM", r.IdempotencyKey, r, out, func() (t *store.Txn, err error) {
		t, out.Task, err = a.vmTask(ctx, TaskUnprotect, r.Cluster, r.Vm, "stop protecting", false)
		return t, err
	})
}

// SetMaintenance implements the service.
func (a Operations) SetMaintenance(ctx context.Context, r *hanokv1.SetMaintenanceRequest) (*hanokv1.SetMaintenanceResponse, error) {
	out := &hanokv1.SetMaintenanceResponse{}
	text := r.Host + " goes into maintenance mode"
	if !r.On {
		text = r.Host + " leaves maintenance mode"
	}
	return out, a.change(ctx, "SetMaintenance", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, 0, r.Force, text, func(c *config.Cluster) (*config.Cluster, error) {
			h := c.HostByName(model.HostID(r.Host))
			if h == nil {
				return nil, invalid("host", "hanok host list shows them", "cluster %s has no host %q", r.Cluster, r.Host)
			}
			h.Maintenance = r.On
			return c, nil
		})
		if err != nil {
			return nil, err
		}
		out.Version, out.Task = e.version, e.task
		return t, nil
	})
}
