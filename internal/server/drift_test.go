package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

func (r *rig) drift() *hanokv1.Drift {
	r.t.Helper()
	c, err := r.inv.GetCluster(r.t.Context(), &hanokv1.GetClusterRequest{Cluster: "seoul"})
	if err != nil {
		r.t.Fatal(err)
	}
	return c.Cluster.Drift
}

func (r *rig) set(from uint64, delay string) *hanokv1.SetFieldsResponse {
	r.t.Helper()
	out, err := r.conf.SetFields(r.t.Context(), &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: from,
		Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: delay}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// A host that works with an older version is named: while the version is handed
// out, and when it falls back later.
func TestAHostWithAnOlderVersionIsNamed(t *testing.T) {
	r := newRig(t)
	r.hosts.SetBehind("host2", 1)
	out := r.set(1, "7s")
	r.until("the task waits for host2", func() bool {
		return strings.Contains(r.cache.Task(out.Task.Id).Message, "2 of 3 hosts have version 2, waiting for host2")
	})
	got, err := r.conf.GetConfig(t.Context(), &hanokv1.GetConfigRequest{Cluster: "seoul"})
	if err != nil || !slices.Equal(got.Waiting, []string{"host2"}) || !slices.Equal(got.Acknowledged, []string{"host1", "host3"}) {
		t.Errorf("%v, %v", got, err)
	}
	r.hosts.SetBehind("host2", 0)
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if d := r.drift(); d != nil {
		t.Errorf("drift where there is none: %v", d)
	}
	r.hosts.SetBehind("host2", 1)
	r.until("drift of host2", func() bool { d := r.drift(); return d != nil && slices.Equal(d.Hosts, []string{"host2"}) && !d.Foreign })
}

// What the hosts have of their own is drift again after a version that was to
// replace it was refused.
func TestDriftIsBackAfterARefusal(t *testing.T) {
	r := newRig(t)
	theirs := parsed(t, strings.Replace(strings.Replace(clusterFile, "version: 1", "version: 5", 1), "groups: [a]", "groups: [c]", 1))
	if err := r.hosts.Apply(theirs); err != nil {
		t.Fatal(err)
	}
	r.until("drift", func() bool { return r.drift().GetForeign() })
	r.hosts.SetRefuse(func(_ *config.Cluster, asked bool) string {
		if asked {
			return ""
		}
		return "no room"
	})
	out := r.set(1, "7s")
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_FAILED)
	r.until("drift again", func() bool { return r.drift().GetForeign() })
}

// A host's log overflowed while no server could ask it: the server says where, and
// what is left is there once.
func TestAnOverflowOfAHostIsTold(t *testing.T) {
	r := newRig(t)
	emit := func(n int) (ids []string) {
		for range n {
			ids = append(ids, r.hosts.Emit("host2", event.Event{Severity: event.Info, Kind: event.VMUp, Text: "x"}))
		}
		return ids
	}
	events := func() (list []*hanokv1.Event) {
		p, err := r.events.ListEvents(t.Context(), &hanokv1.ListEventsRequest{Cluster: "seoul", PageSize: 500})
		if err != nil {
			t.Fatal(err)
		}
		return p.Events
	}
	count := func(id string) (n int) {
		for _, e := range events() {
			if e.Id == id {
				n++
			}
		}
		return n
	}
	first := emit(3)
	r.until("the first events", func() bool { return count(first[2]) == 1 })
	r.hosts.SetDown(true)
	emit(10)
	r.hosts.Forget("host2", 8)
	r.hosts.Forget("host1", 8) // the primary, too
	rest := emit(2)
	r.hosts.SetDown(false)
	r.until("the events after the overflow", func() bool { return count(rest[1]) == 1 })
	var gaps []string
	for _, e := range events() {
		if e.Kind == "server.gap" {
			gaps = append(gaps, e.Host)
			if e.Severity != "warning" || !strings.Contains(e.Text, "events of "+e.Host+" may be missing before this moment") || e.Cause == "" {
				t.Errorf("%v", e)
			}
		}
		if e.By != "server" && count(e.Id) != 1 {
			t.Errorf("%s is there %d times", e.Id, count(e.Id))
		}
	}
	if slices.Sort(gaps); !slices.Contains(gaps, "host2") || len(gaps) > 2 {
		t.Errorf("gaps of %v were told", gaps)
	}
}

// History is dropped: who comes with an older token is told to list again, streams
// that are open go on, and so does the server.
func TestATokenOlderThanTheHistory(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := r.inv.ListVMs(ctx, &hanokv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	open, err := r.inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: list.ResumeToken, Kinds: []string{"vm"}})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	change := func(s model.VMState) {
		r.hosts.SetVM(0, func(v *local.VM) { v.State = s })
		seenBy(t, open, func(w *hanokv1.WatchResponse) bool { return w.GetVm().GetState() == string(s) })
	}
	change(model.VMFrozen)
	rev, err := r.store.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	for kind, stream := range map[string]func() (interface{ Err() error }, bool){
		"Watch": func() (interface{ Err() error }, bool) {
			s, err := r.inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: list.ResumeToken})
			if err != nil {
				t.Fatal(err)
			}
			return s, s.Receive()
		},
		"WatchEvents": func() (interface{ Err() error }, bool) {
			s, err := r.events.WatchEvents(ctx, &hanokv1.WatchEventsRequest{ResumeToken: list.ResumeToken})
			if err != nil {
				t.Fatal(err)
			}
			return s, s.Receive()
		},
	} {
		s, got := stream()
		if help := detailOf[hanokv1.Remedy](s.Err()); got || connect.CodeOf(s.Err()) != connect.CodeOutOfRange || help == nil || !strings.Contains(help.Text, "list again") {
			t.Errorf("%s from before the history: %v, %v", kind, s.Err(), help)
		}
	}
	change(model.VMStarted)
	r.ends(r.set(1, "7s").Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
}

// A task is given up at its worst moment: when its order is with the primary, and
// another server, or the same, is just about to write down that it was sent.
func TestATaskIsGivenUpAtAnyMoment(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for i := range 12 {
		vm, method := "web", r.ops.StopVM
		out, err := method(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: vm, Kill: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		for range i { // later and later
			if _, err := r.tasks.GetTask(ctx, &hanokv1.GetTaskRequest{Task: out.Task.Id}); err != nil {
				t.Fatal(err)
			}
		}
		before := len(r.hosts.Orders())
		if _, err := r.tasks.CancelTask(ctx, &hanokv1.CancelTaskRequest{Task: out.Task.Id}); err != nil {
			t.Fatal(err)
		}
		r.until("its end", func() bool { return r.cache.Task(out.Task.Id).Finished != nil })
		end := r.cache.Task(out.Task.Id)
		orders := len(r.hosts.Orders()) - before
		switch end.State {
		case hanokv1.TaskState_TASK_STATE_SUCCEEDED:
		case hanokv1.TaskState_TASK_STATE_CANCELLED:
			if end.Message == "given up before anything was sent" && (end.Sent || orders > 0) {
				t.Errorf("round %d: %s, and it was sent", i, end.Message)
			}
		default:
			t.Errorf("round %d: it ended as %s: %s", i, end.State, end.Message)
		}
		if again, err := r.tasks.CancelTask(ctx, &hanokv1.CancelTaskRequest{Task: out.Task.Id}); err != nil || again.Task.State != end.State {
			t.Errorf("one that has ended: %v, %v", again, err)
		}
		on, err := r.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: vm, IdempotencyKey: fmt.Sprint("on", i)})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(on.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	}
}
