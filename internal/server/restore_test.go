package server

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// edited rewrites the tasks of a state while no server runs there.
func edited(t *testing.T, s *store.Store, change func(*hanokv1.Task)) {
	t.Helper()
	items, _, err := s.List(t.Context(), state.TaskKey(""), store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x := new(store.Txn)
	for _, it := range items {
		task, err := state.Decode[hanokv1.Task](it.Key, it.Value)
		if err != nil {
			t.Fatal(err)
		}
		change(task)
		x.Put(it.Key, state.Encode(task))
	}
	if _, err := s.Commit(t.Context(), x); err != nil {
		t.Fatal(err)
	}
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A server that is restored from an old backup changes nothing on the hosts by
// itself: their newer configuration is drift, and an order that was under way when
// the backup was made is given up.
func TestAnOldBackupChangesNothingOnTheHosts(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	var token string
	var stop *hanokv1.Task
	events := map[string]bool{}
	emit := func() {
		events[hosts.Emit("host2", event.Event{Severity: event.Info, Kind: event.VMUp, Text: "x"})] = true
	}
	t.Run("before", func(t *testing.T) {
		r := newRigAt(t, hosts, t.TempDir())
		out, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		emit()
		r.until("the event", func() bool { return r.hasOnce(events) })
		hosts.SetDown(true)
		stopped, err := r.ops.StopVM(t.Context(), &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
		if err != nil {
			t.Fatal(err)
		}
		stop = stopped.Task
		r.until("the order is under way", func() bool { return r.cache.Task(stop.Id).Sent })
		if err := r.store.Backup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		// After the backup: the order is carried out and reversed, the configuration
		// goes on, and hosts have events.
		hosts.SetDown(false)
		r.ends(stop, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		started, err := r.ops.StartVM(t.Context(), &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web"})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(started.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		for i, delay := range []string{"7s", "8s"} {
			set, err := r.conf.SetFields(t.Context(), &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: uint64(i + 1),
				Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: delay}}})
			if err != nil {
				t.Fatal(err)
			}
			r.ends(set.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		}
		list, err := r.inv.ListVMs(t.Context(), &hanokv1.ListVMsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		token = list.ResumeToken
		emit()
	})
	orders, digest := hosts.Orders(), hosts.Digest()
	dir := t.TempDir()
	s := openStore(t, dir)
	if err := s.Restore(t.Context(), bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	edited(t, s, func(x *hanokv1.Task) { // some time has passed
		x.Created = timestamppb.New(x.Created.AsTime().Add(-time.Hour))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	emit()
	r := newRigAt(t, hosts, dir)
	if end := r.ends(stop, hanokv1.TaskState_TASK_STATE_FAILED); !strings.Contains(end.Message, "no server could carry it out in time") {
		t.Errorf("the order of the backup: %s", end.Message)
	}
	var c *hanokv1.Cluster
	r.until("drift", func() bool {
		got, err := r.inv.GetCluster(t.Context(), &hanokv1.GetClusterRequest{Cluster: "seoul"})
		if err != nil {
			t.Fatal(err)
		}
		c = got.Cluster
		return c.Drift.GetForeign()
	})
	if c.ObservedVersion != 3 || len(c.Drift.Changes) != 1 || c.Drift.Changes[0].Field != "ha.isolationDelay" || len(c.Drift.Hosts) != 3 {
		t.Errorf("the hosts are newer: %v", c)
	}
	r.until("the events of the time after the backup", func() bool { return r.hasOnce(events) })
	if hosts.Version() != 3 || hosts.Digest() != digest || !slices.Equal(hosts.Orders(), orders) {
		t.Errorf("the hosts were changed: version %d, orders %v, before %v", hosts.Version(), hosts.Orders(), orders)
	}
	w, err := r.inv.Watch(t.Context(), &hanokv1.WatchRequest{ResumeToken: token})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.Receive() || connect.CodeOf(w.Err()) != connect.CodeOutOfRange {
		t.Errorf("a token of the state that is gone: %v", w.Err())
	}
	// The next change is above all that the hosts have.
	set, err := r.conf.SetFields(t.Context(), &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: 1, Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: "9s"}}})
	if err != nil || set.Version != 4 {
		t.Fatalf("%v, %v", set, err)
	}
	r.ends(set.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
}

// A cluster that is removed takes its tasks along, wherever they are.
func TestAClusterRemovedWhileTasksRun(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	r.hosts.SetStuck(true) // taken, and nothing comes of it
	sent, err := r.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	r.until("the order is with the hosts", func() bool { return len(r.hosts.Orders()) == 1 })
	r.hosts.SetDown(true)
	unsent, err := r.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db"})
	if err != nil {
		t.Fatal(err)
	}
	set, err := r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: 1, Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: "9s"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.conf.RemoveCluster(ctx, &hanokv1.RemoveClusterRequest{Cluster: "seoul", ExpectedVersion: set.Version}); err != nil {
		t.Fatal(err)
	}
	for _, task := range []*hanokv1.Task{sent.Task, unsent.Task, set.Task} {
		if end := r.ends(task, hanokv1.TaskState_TASK_STATE_CANCELLED); !strings.Contains(end.Message, "was removed") {
			t.Errorf("%s: %s", end.Kind, end.Message)
		}
	}
	r.hosts.SetDown(false)
	added, err := r.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(added.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	r.until("its hosts and VMs are known again", func() bool {
		s, err := r.inv.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: "seoul"})
		return err == nil && len(s.Vms) == 2 && !slices.ContainsFunc(s.Hosts, func(h *hanokv1.Host) bool { return h.State == string(model.HostUninitialized) })
	})
}

// An order that a server left behind, and that somebody has reversed since, is not
// sent again.
func TestAnOrderThatWasReversedIsNotSentAgain(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var stop, began *hanokv1.Task
	t.Run("before", func(t *testing.T) {
		r := newRigAt(t, hosts, dir)
		out, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		hosts.SetDown(true)
		first, err := r.ops.StopVM(t.Context(), &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
		if err != nil {
			t.Fatal(err)
		}
		r.until("the order is under way", func() bool { return r.cache.Task(first.Task.Id).Sent })
		second, err := r.ops.StartVM(t.Context(), &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web"})
		if err != nil {
			t.Fatal(err)
		}
		stop, began = first.Task, second.Task
	})
	hosts.SetDown(false)
	r := newRigAt(t, hosts, dir)
	if end := r.ends(stop, hanokv1.TaskState_TASK_STATE_FAILED); !strings.Contains(end.Message, began.Id+" is newer") {
		t.Errorf("the older order: %s", end.Message)
	}
	r.ends(began, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if got := hosts.Orders(); slices.Contains(got, "shutdown web") {
		t.Errorf("orders: %v", got)
	}
}
