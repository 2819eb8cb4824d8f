package work

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

func cloneCluster(c *hanokv1.Cluster) *hanokv1.Cluster { return proto.Clone(c).(*hanokv1.Cluster) }

// sameCluster compares two accounts but for the time.
func sameCluster(a, b *hanokv1.Cluster) bool {
	x, y := cloneCluster(a), cloneCluster(b)
	x.Reported, y.Reported = nil, nil
	return proto.Equal(x, y)
}

// task carries a task out, from wherever a predecessor left it.
func (w *worker) task(ctx context.Context, id string) {
	r := &running{w: w, id: id}
	t := w.Cache.Task(id)
	if t == nil || state.Ended(t) {
		return
	}
	if t.State == hanokv1.TaskState_TASK_STATE_QUEUED {
		if r.update(ctx, func(t *hanokv1.Task) {
			t.State, t.Started, t.Message = hanokv1.TaskState_TASK_STATE_RUNNING, timestamppb.Now(), "under way"
		}) != nil {
			return
		}
	}
	var err error
	switch t.Kind {
	case api.TaskApply:
		err = r.apply(ctx, t)
	case api.TaskReplaceAuthority:
		err = r.replaceAuthority(ctx, t)
	default:
		err = r.vm(ctx, t)
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, errDeposed) {
		w.Log.Warn("a task could not be written down", "task", id, "err", err)
		pause(ctx, time.Second) // attended again
	}
}

// maxOrders bounds how many orders about VMs are carried out at a time; tasks of
// other kinds are few for each cluster, and may wait long.
const maxOrders = 64

// isOrder: a task is about a VM.
func isOrder(kind string) bool { return kind != api.TaskApply && kind != api.TaskReplaceAuthority }

// running is a task under way.
type running struct {
	w  *worker
	id string
}

// update changes the task in the state.
func (r *running) update(ctx context.Context, f func(*hanokv1.Task)) error {
	for {
		it, err := r.w.Store.Get(ctx, state.TaskKey(r.id))
		if err != nil {
			return err
		}
		t, err := state.Decode[hanokv1.Task](it.Key, it.Value)
		if err != nil {
			return err
		}
		if state.Ended(t) {
			return nil
		}
		before := proto.Clone(t)
		if f(t); proto.Equal(before, t) {
			return nil
		}
		rev, err := r.w.commit(ctx, new(store.Txn).Unchanged(it.Key, it.Modified).Put(it.Key, state.Encode(t)))
		switch {
		case errors.Is(err, store.ErrConflict):
			pause(ctx, 10*time.Millisecond)
		case err != nil:
			return err
		default:
			return r.w.Cache.Wait(ctx, rev)
		}
	}
}

func (r *running) say(ctx context.Context, progress int, format string, args ...any) error {
	return r.update(ctx, func(t *hanokv1.Task) { t.Progress, t.Message = int32(progress), fmt.Sprintf(format, args...) })
}

func (r *running) end(ctx context.Context, s hanokv1.TaskState, format string, args ...any) error {
	return r.update(ctx, func(t *hanokv1.Task) {
		t.State, t.Message, t.Finished = s, fmt.Sprintf(format, args...), timestamppb.Now()
		if s == hanokv1.TaskState_TASK_STATE_SUCCEEDED {
			t.Progress = 100
		}
	})
}

// refused ends the task as refused by the primary; admission: by admission control,
// which force overrules.
func (r *running) refused(ctx context.Context, admission bool, why string) error {
	return r.update(ctx, func(t *hanokv1.Task) {
		t.State, t.Message, t.Finished, t.Refused = failed, "refused: "+why, timestamppb.Now(), admission
	})
}

const (
	succeeded = hanokv1.TaskState_TASK_STATE_SUCCEEDED
	failed    = hanokv1.TaskState_TASK_STATE_FAILED
	cancelled = hanokv1.TaskState_TASK_STATE_CANCELLED
)

// await looks at the cluster whenever the state moves until look says that the
// task ended, it is cancelled, or it takes too long.
func (r *running) await(ctx context.Context, t *hanokv1.Task, look func() (bool, error), late func() string) error {
	limit := time.NewTimer(time.Until(t.Created.AsTime().Add(r.w.TaskLimit)))
	defer limit.Stop()
	for {
		moved := r.w.Cache.Moved() // before looking
		if ended, err := look(); ended || err != nil {
			return err
		}
		now := r.w.Cache.Task(r.id)
		if now == nil {
			return nil
		}
		if now.CancelRequested {
			return r.end(ctx, cancelled, "given up; what was handed to the hosts goes on there")
		}
		select {
		case <-moved:
		case <-limit.C:
			return r.end(ctx, failed, "not in time: %s", late())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// apply waits for the hosts to acknowledge a version; the follower hands it over.
func (r *running) apply(ctx context.Context, t *hanokv1.Task) error {
	last := "no host has reported"
	return r.await(ctx, t, func() (bool, error) {
		w := r.w.Cache.Wanted(t.Cluster)
		switch {
		case w == nil:
			return true, r.end(ctx, cancelled, "%v", errRemoved)
		case w.Cluster.Version > t.ConfigVersion:
			return true, r.end(ctx, cancelled, "replaced by version %d", w.Cluster.Version)
		case w.Cluster.Version < t.ConfigVersion && w.Version.RefusedAbove >= t.ConfigVersion:
			return true, r.refused(ctx, true, r.w.refusedWhy(ctx, t.Cluster, t.ConfigVersion))
		}
		acc := r.w.Cache.Account(t.Cluster)
		var waiting, away []string
		have := 0
		for _, h := range r.w.Cache.Hosts(t.Cluster) {
			switch {
			case h.ConfigVersion >= t.ConfigVersion:
				have++
			case h.State == string(model.HostPrimary), h.State == string(model.HostConnected), h.State == string(model.HostMaintenance), h.State == string(model.HostElection):
				waiting = append(waiting, h.Name)
			default:
				away = append(away, h.Name)
			}
		}
		all := have + len(waiting) + len(away)
		if acc != nil && acc.Unreachable == "" && acc.ObservedVersion >= t.ConfigVersion && len(waiting) == 0 && have > 0 {
			text := fmt.Sprintf("version %d is in force on %d of %d hosts", t.ConfigVersion, have, all)
			if len(away) > 0 {
				text += "; not connected, they get it when they come back: " + strings.Join(away, ", ")
			}
			return true, r.end(ctx, succeeded, "%s", text)
		}
		last = fmt.Sprintf("%d of %d hosts have version %d", have, all, t.ConfigVersion)
		if len(waiting) > 0 {
			last += ", waiting for " + strings.Join(waiting, ", ")
		}
		if f := r.w.follower(t.Cluster); f != nil {
			r.w.mu.Lock()
			why := f.refusal
			r.w.mu.Unlock()
			if why != "" {
				last += "; last answer: " + why
			}
		}
		return false, r.say(ctx, 100*have/max(1, all), "%s", last)
	}, func() string { return last + "; it is handed out as soon as they answer" })
}

// vm sends an order about a VM and waits for what it should bring.
func (r *running) vm(ctx context.Context, t *hanokv1.Task) error {
	ref := &fdm.VMRef{Name: t.Target}
	req, want := fdm.AdminRequest{}, model.VMStopped
	switch t.Kind {
	case api.TaskStart:
		req.Start, want = ref, model.VMStarted
		if t.Force {
			req.Force, req.By = true, t.Principal
		}
	case api.TaskShutdown:
		req.Shutdown = ref
	case api.TaskKill:
		req.Kill = ref
	case api.TaskUnprotect:
		req.Unprotect, want = ref, ""
	default:
		return r.end(ctx, failed, "this server does not know tasks of kind %q", t.Kind)
	}
	reached := func() bool {
		v := r.w.Cache.VM(t.Cluster, t.Target)
		if want == "" {
			return v == nil
		}
		return v != nil && v.State == string(want)
	}
	if ended, err := r.send(ctx, t, req, reached); ended || err != nil {
		return err
	}
	last := "not seen yet"
	return r.await(ctx, t, func() (bool, error) {
		if r.w.Cache.Wanted(t.Cluster) == nil {
			return true, r.end(ctx, cancelled, "%v", errRemoved)
		}
		v := r.w.Cache.VM(t.Cluster, t.Target)
		if reached() {
			if v != nil && v.Host != "" && want == model.VMStarted {
				return true, r.end(ctx, succeeded, "%s runs on %s", t.Target, v.Host)
			}
			return true, r.end(ctx, succeeded, "done")
		}
		if v != nil {
			last = "it is " + v.State
			if v.Reason != "" {
				last += ", " + v.Reason
			}
		}
		return false, r.say(ctx, 50, "waiting: %s", last)
	}, func() string { return last })
}

// send hands an order over. One that may have been sent before is sent again:
// the hosts carry out twice what is the same, unless somebody has asked for
// something else meanwhile.
func (r *running) send(ctx context.Context, t *hanokv1.Task, req fdm.AdminRequest, reached func() bool) (bool, error) {
	if now := r.w.Cache.Task(r.id); now != nil && now.CancelRequested && !now.Sent {
		return true, r.end(ctx, cancelled, "given up before anything was sent")
	}
	if t.Sent && reached() {
		return false, nil
	}
	if newer := r.newer(t); t.Sent && newer != "" {
		return true, r.end(ctx, failed, "a server ended while it carried this out, and task %s is newer: look at the VM", newer)
	}
	// One that comes out of a backup, or waited for a server, may be wanted no more.
	if time.Since(t.Created.AsTime()) > r.w.TaskLimit {
		return true, r.end(ctx, failed, "no server could carry it out in time: look at the VM, and ask again")
	}
	if err := r.update(ctx, func(t *hanokv1.Task) { t.Sent, t.Message = true, "sent to the primary" }); err != nil {
		return false, err
	}
	for {
		f := r.w.follower(t.Cluster)
		if f == nil {
			return true, r.end(ctx, cancelled, "%v", errRemoved)
		}
		reply, err := f.order(ctx, req)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err == nil && !reply.OK {
			return true, r.refused(ctx, reply.Refused, withHelp(reply))
		}
		if err == nil {
			return false, nil
		}
		if time.Since(t.Created.AsTime()) > r.w.TaskLimit {
			return true, r.end(ctx, failed, "not in time: %v", err)
		}
		if now := r.w.Cache.Task(r.id); now != nil && now.CancelRequested {
			return true, r.end(ctx, cancelled, "given up; it may have reached the hosts: %v", err)
		}
		if err := r.say(ctx, 0, "waiting for the cluster: %v", err); err != nil {
			return false, err
		}
		pause(ctx, time.Second)
	}
}

// withHelp is a refusal with what would help.
func withHelp(r fdm.AdminReply) string {
	if len(r.Help) == 0 {
		return r.Text
	}
	return r.Text + "; what would help: " + strings.Join(r.Help, "; or ")
}

// newer is a newer task about the same VM, or "".
func (r *running) newer(t *hanokv1.Task) string {
	for _, o := range r.w.Cache.Tasks() {
		if o.Cluster == t.Cluster && o.Target == t.Target && o.Id > t.Id {
			return o.Id
		}
	}
	return ""
}
