package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/fakeagent"
)

const clusterFile = `version: 1
name: seoul
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1}, memory: 16GiB, datastores: [ds1], groups: [a]}
- {name: host2, address: {mgmt: 10.0.0.2}, memory: 16GiB, datastores: [ds1], groups: [b]}
- {name: host3, address: {mgmt: 10.0.0.3}, memory: 16GiB, datastores: [ds1], groups: [b]}
vms:
- {name: web, datastore: ds1, host: host1, memory: 1GiB}
- {name: db, datastore: ds1, host: host2, memory: 1GiB}
`

// rig is a server beside a cluster of fake agents.
type rig struct {
	*Server
	t      *testing.T
	hosts  *fakeagent.Cluster
	inv    hanokv1connect.InventoryServiceClient
	conf   hanokv1connect.ConfigServiceClient
	ops    hanokv1connect.OperationServiceClient
	tasks  hanokv1connect.TaskServiceClient
	events hanokv1connect.EventServiceClient
	ha     hanokv1connect.HAServiceClient
}

func parsed(t *testing.T, yaml string) *config.Cluster {
	t.Helper()
	c, err := config.Parse([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newRigAt(t *testing.T, hosts *fakeagent.Cluster, dir string) *rig {
	t.Helper()
	cfg := Config{Name: "s1", Interval: 20 * time.Millisecond,
		Dial: fakeagent.Dial(func(string) *fakeagent.Cluster { return hosts })}
	cfg.Store.Dir = dir
	r := &rig{t: t, hosts: hosts}
	r.serve(start(t, cfg))
	return r
}

func (r *rig) serve(s *Server) {
	r.Server = s
	h := overSocket(s)
	const at = "http://server"
	r.inv, r.conf = hanokv1connect.NewInventoryServiceClient(h, at), hanokv1connect.NewConfigServiceClient(h, at)
	r.ops, r.tasks = hanokv1connect.NewOperationServiceClient(h, at), hanokv1connect.NewTaskServiceClient(h, at)
	r.events, r.ha = hanokv1connect.NewEventServiceClient(h, at), hanokv1connect.NewHAServiceClient(h, at)
}

// newRigWithoutCluster is a server that does not know its hosts' cluster yet.
func newRigWithoutCluster(t *testing.T) *rig {
	t.Helper()
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	return newRigAt(t, hosts, t.TempDir())
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := newRigWithoutCluster(t)
	out, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	return r
}

// ends waits for a task to end in a state.
func (r *rig) ends(t *hanokv1.Task, want hanokv1.TaskState) *hanokv1.Task {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	s, err := r.tasks.WatchTask(ctx, &hanokv1.WatchTaskRequest{Task: t.Id})
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
		t = s.Msg().Task
	}
	if s.Err() != nil || t.State != want {
		r.t.Fatalf("task %s ended as %s: %s (%v), want %s", t.Kind, t.State, t.Message, s.Err(), want)
	}
	return t
}

func detailOf[M any](err error) *M {
	var e *connect.Error
	if errors.As(err, &e) {
		for _, d := range e.Details() {
			if v, derr := d.Value(); derr == nil {
				if m, ok := any(v).(*M); ok {
					return m
				}
			}
		}
	}
	return nil
}

func TestConfigurationReachesTheHosts(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	out, err := r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: 1, Fields: []*hanokv1.FieldValue{
		{Field: "ha.isolationResponse", Value: "powerOff"}, {Field: "vms[web].restart.priority", Value: "high"}}})
	if err != nil || out.Version != 2 || len(out.Changes) != 2 {
		t.Fatalf("%v, %v", out, err)
	}
	done := r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if r.hosts.Version() != 2 || !strings.Contains(done.Message, "3 of 3") || done.Progress != 100 {
		t.Errorf("hosts have %d: %s", r.hosts.Version(), done.Message)
	}
	got, err := r.conf.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: "seoul"})
	if err != nil || got.Config.Digest != r.hosts.Digest() || len(got.Acknowledged) != 3 || len(got.Waiting) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	// One who edits an older version is told what the newest one is.
	_, err = r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: 1, Fields: []*hanokv1.FieldValue{{Field: "ha.enabled", Value: "false"}}})
	s := detailOf[hanokv1.Stale](err)
	if connect.CodeOf(err) != connect.CodeAborted || s == nil || s.CurrentVersion != 2 || !strings.Contains(s.CurrentYaml, "powerOff") || len(s.Changes) != 2 {
		t.Errorf("a stale edit: %v, %v", err, s)
	}
	// What is wrong is said field by field, and nothing changes.
	_, err = r.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{ExpectedVersion: 2, Yaml: strings.Replace(clusterFile, "memory: 1GiB", "memroy: 1GiB", 2)})
	if f := detailOf[hanokv1.FieldErrors](err); connect.CodeOf(err) != connect.CodeInvalidArgument || f == nil || len(f.Errors) != 2 || f.Errors[0].Field != "vms[0].memroy" {
		t.Errorf("bad fields: %v, %v", err, f)
	}
	list, err := r.conf.ListConfigVersions(ctx, &hanokv1.ListConfigVersionsRequest{Cluster: "seoul"})
	if err != nil || len(list.Versions) != 2 || list.Versions[0].Version != 2 || list.Versions[0].MadeFrom != 1 {
		t.Errorf("%v, %v", list, err)
	}
	check, err := r.conf.CheckConfig(ctx, &hanokv1.CheckConfigRequest{Yaml: clusterFile + "rules: [{name: a, kind: resourceAffinity, vms: [web, db], policy: together}, {name: b, kind: resourceAffinity, vms: [web, db], policy: apart}]\n"})
	if err != nil || check.Errors != nil || check.NextVersion != 3 || len(check.Conflicts) != 1 || check.Admission == nil || len(check.Changes) != 4 {
		t.Errorf("dry run: %v, %v", check, err)
	}
}

func TestDriftIsVisible(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	theirs := parsed(t, strings.Replace(strings.Replace(clusterFile, "version: 1", "version: 5", 1), "groups: [a]", "groups: [c]", 1))
	if err := r.hosts.Apply(theirs); err != nil {
		t.Fatal(err)
	}
	var d *hanokv1.Drift
	r.until("drift", func() bool {
		c, err := r.inv.GetCluster(ctx, &hanokv1.GetClusterRequest{Cluster: "seoul"})
		if err != nil {
			t.Fatal(err)
		}
		d = c.Cluster.Drift
		return d != nil && d.Foreign
	})
	if len(d.Changes) != 1 || d.Changes[0].Field != "hosts[host1].groups" || len(d.Hosts) != 3 {
		t.Errorf("%v", d)
	}
	out, err := r.conf.AdoptConfig(ctx, &hanokv1.AdoptConfigRequest{Cluster: "seoul", ExpectedVersion: 1})
	if err != nil || out.Version != 6 {
		t.Fatalf("%v, %v", out, err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	c, err := r.inv.GetCluster(ctx, &hanokv1.GetClusterRequest{Cluster: "seoul"})
	if err != nil || c.Cluster.Drift != nil || c.Cluster.ObservedVersion != 6 {
		t.Errorf("after adoption: %v, %v", c, err)
	}
}

// until looks again until it is so.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	r.untilElse(what, func() string { return "" }, ok)
}

// untilElse is until with more to say when it does not come.
func (r *rig) untilElse(what string, more func() string, ok func() bool) {
	r.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		moved := r.cache.Moved()
		if ok() {
			return
		}
		select {
		case <-moved:
		case <-limit:
			r.t.Fatalf("%s did not come\n%s", what, more())
		}
	}
}

func TestPowerIsATask(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	req := &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: "k1"}
	first, err := r.ops.StopVM(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	r.ends(first.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	again, err := r.ops.StopVM(ctx, req)
	if err != nil || again.Task.Id != first.Task.Id || len(r.hosts.Orders()) != 1 {
		t.Errorf("asked again: %v, %v, orders %v", again, err, r.hosts.Orders())
	}
	if _, err := r.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: "k1"}); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("one key for two requests: %v", err)
	}
	if _, err := r.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "../x"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("an unknown VM: %v", err)
	}
	// One that cannot be sent can be given up.
	r.hosts.SetDown(true)
	out, err := r.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.tasks.CancelTask(ctx, &hanokv1.CancelTaskRequest{Task: out.Task.Id}); err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_CANCELLED)
}

func TestStatusAndPage(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	s, err := r.inv.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: "seoul"})
	if err != nil || len(s.Hosts) != 3 || len(s.Vms) != 2 || len(s.Problems) != 0 || s.Cluster.Primary != "host1" {
		t.Fatalf("%v, %v", s, err)
	}
	p, err := r.ha.GetHAStatus(ctx, &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
	if err != nil || p.Control.State != "quorum OK" || p.Control.Role != "CRM (master node)" || len(p.Agents) != 3 || p.Agents[0].State != "active" || p.Agents[2].State != "wait_for_agent_lock" {
		t.Errorf("%v, %v", p, err)
	}
	rule, err := r.ha.PutRule(ctx, &hanokv1.PutRuleRequest{Cluster: "seoul", ExpectedVersion: 1, Rule: &hanokv1.Rule{Name: "near", Kind: "nodeAffinity", Resources: []string{"web"},
		Nodes: []*hanokv1.NodeWeight{{Node: "host1", Weight: proto.Int32(0)}, {Node: "host2", Weight: proto.Int32(5)}}}})
	if err != nil || rule.Version != 2 {
		t.Fatalf("%v, %v", rule, err)
	}
	res, err := r.ha.PutResource(ctx, &hanokv1.PutResourceRequest{Cluster: "seoul", ExpectedVersion: 2, Resource: &hanokv1.Resource{Name: "web", Type: "vm", Id: "vm:web", MaxRestart: proto.Int32(3)}})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(res.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	p, err = r.ha.GetHAStatus(ctx, &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
	if err != nil || len(p.NodeRules) != 1 || len(p.NodeRules[0].Nodes) != 2 || p.NodeRules[0].Nodes[1].GetWeight() != 0 || p.Resources[1].GetMaxRestart() != 3 || p.Resources[1].Id != "vm:web" {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := r.ha.PutResource(ctx, &hanokv1.PutResourceRequest{Cluster: "seoul", ExpectedVersion: 3, Resource: &hanokv1.Resource{Name: "web", Type: "vm", Id: "vm:db"}}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("the id was changed: %v", err)
	}
	// The hosts go on alone; the server says so.
	r.hosts.SetDown(true)
	r.until("unreachable", func() bool {
		s, err := r.inv.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: "seoul"})
		return err == nil && s.Cluster.Unreachable != "" && len(s.Problems) > 0 && len(s.Vms) == 2
	})
}

func TestPagesAreComplete(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	var names []string
	req := &hanokv1.ListVMsRequest{PageSize: 1}
	for {
		p, err := r.inv.ListVMs(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range p.Vms {
			names = append(names, v.Name)
		}
		if req.PageToken = p.NextPageToken; req.PageToken == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"db", "web"}) {
		t.Errorf("%v", names)
	}
	if _, err := r.inv.ListVMs(ctx, &hanokv1.ListVMsRequest{PageToken: "../"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a token of nothing: %v", err)
	}
}

// The server is down for an hour of the hosts' events; afterwards all are there,
// each once, also those of hosts that never reached the primary.
func TestEventsHaveNoGap(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := map[string]bool{}
	emit := func(n int) {
		for i := range n {
			by := model.HostID(fmt.Sprintf("host%d", i%3+1))
			want[hosts.Emit(by, event.Event{Severity: event.Info, Kind: event.VMUp, Text: "x"})] = true
		}
	}
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { // each with a server of its own
			r := newRigAt(t, hosts, dir)
			if round == 0 {
				if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile}); err != nil {
					t.Fatal(err)
				}
			}
			emit(100)
			got := map[string]int{}
			r.until("all events", func() bool {
				clear(got)
				req := &hanokv1.ListEventsRequest{Cluster: "seoul", PageSize: 97}
				for {
					p, err := r.events.ListEvents(t.Context(), req)
					if err != nil {
						t.Fatal(err)
					}
					for _, e := range p.Events {
						if e.Kind == "server.gap" {
							t.Fatalf("a gap: %v", e)
						}
						if e.By != "server" {
							got[e.Id]++
						}
					}
					if req.PageToken = p.NextPageToken; req.PageToken == "" {
						break
					}
				}
				return len(got) >= len(want)
			})
			for id := range want {
				if got[id] != 1 {
					t.Errorf("%s is there %d times", id, got[id])
				}
			}
		})
		emit(3600) // while no server runs: one each second of an hour
	}
}

func TestStreamsResume(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := r.inv.ListVMs(ctx, &hanokv1.ListVMsRequest{Cluster: "seoul"})
	if err != nil {
		t.Fatal(err)
	}
	token := list.ResumeToken
	for i := range 5 {
		state := []model.VMState{model.VMStopped, model.VMStarting, model.VMStarted, model.VMFrozen, model.VMError}[i]
		r.hosts.SetVM(0, func(v *local.VM) { v.State = state })
		s, err := r.inv.Watch(ctx, &hanokv1.WatchRequest{Cluster: "seoul", ResumeToken: token, Kinds: []string{"vm"}})
		if err != nil {
			t.Fatal(err)
		}
		for s.Receive() {
			if tok := s.Msg().ResumeToken; tok != "" {
				token = tok
			}
			if v := s.Msg().GetVm(); v != nil {
				if v.Name != "web" || v.State != string(state) {
					t.Errorf("after resuming: %v, want %s", v, state)
				}
				break
			}
		}
		if s.Err() != nil {
			t.Fatal(s.Err())
		}
		_ = s.Close()
	}
	for _, bad := range []string{"x", "1.2", r.store.ID() + ".zz"} {
		s, err := r.inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: bad})
		if err != nil {
			t.Fatal(err)
		}
		if s.Receive() || s.Err() == nil {
			t.Errorf("token %q was taken", bad)
		}
		_ = s.Close()
	}
}
