package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
	"hanok.dev/hanok/internal/store/etcdtest"
)

// A process of its own, so that it can be killed without a word to etcd.
func startVictimAt(t *testing.T, dir, hosts, endpoint string) *victimServer {
	t.Helper()
	v := startVictim(t, dir, hosts, 1<<30, "HANOK_TEST_ENDPOINT="+endpoint)
	t.Cleanup(func() { _ = v.cmd.Process.Kill() })
	return v
}

// Two servers over one etcd: one truth, one worker, and another worker within
// seconds when that one is killed.
func TestSeveralServers(t *testing.T) {
	endpoint := etcdtest.Start(t, etcdtest.Options{}).Endpoints()[0]
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(hosts.Handler())
	defer backend.Close()
	defer backend.CloseClientConnections()
	dir, err := os.MkdirTemp("", "hanok") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	first := startVictimAt(t, dir, backend.URL, endpoint)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	waitLeader(ctx, t, first, "victim")
	cfg := Config{Name: "s2", Interval: 20 * time.Millisecond, Dial: fakeagent.Over(http.DefaultClient, backend.URL),
		Store: store.Config{Endpoints: []string{endpoint}, Log: slog.New(slog.DiscardHandler)}}
	second := &rig{t: t, hosts: hosts}
	second.serve(start(t, cfg))

	// An edit through one is on the stream of the other.
	list, err := second.inv.ListClusters(ctx, &hanokv1.ListClustersRequest{})
	if err != nil || len(list.Clusters) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	stream, err := second.inv.Watch(ctx, &hanokv1.WatchRequest{ResumeToken: list.ResumeToken})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	added, err := first.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: clusterFile, IdempotencyKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	seenBy(t, stream, func(w *hanokv1.WatchResponse) bool { return w.GetCluster().GetName() == "seoul" })
	// The outcome of a key is the same at both; so is what is stale.
	again, err := second.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: clusterFile, IdempotencyKey: "k"})
	if err != nil || again.Task.GetId() != added.Task.GetId() {
		t.Fatalf("the same key at another server: %v, %v, first %v", again, err, added)
	}
	second.ends(added.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	set := func(c hanokv1connect.ConfigServiceClient, from uint64, value string) (*hanokv1.SetFieldsResponse, error) {
		return c.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: from, Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: value}}})
	}
	out, err := set(second.conf, 1, "7s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set(first.conf, 1, "8s"); connect.CodeOf(err) != connect.CodeAborted {
		t.Fatalf("a stale edit through the other server: %v", err)
	}
	second.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)

	// The worker is killed: the other one goes on with its task and its events.
	hosts.SetDown(true) // so that the task is under way when it dies
	stop, err := first.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.reap(t)
	id := hosts.Emit("host2", event.Event{Severity: event.Info, Kind: event.VMUp, Text: "while nobody worked"})
	hosts.SetDown(false)
	second.ends(stop.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	waitLeader(ctx, t, &victimServer{http: overSocket(second.Server)}, "s2")
	second.until("the event of the time without a worker", func() bool {
		p, err := second.events.ListEvents(ctx, &hanokv1.ListEventsRequest{Cluster: "seoul"})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Events {
			if e.Id == id {
				return true
			}
		}
		return false
	})
}

// seenBy reads a stream until a change is what is looked for.
func seenBy(t *testing.T, s *connect.ServerStreamForClient[hanokv1.WatchResponse], what func(*hanokv1.WatchResponse) bool) {
	t.Helper()
	for s.Receive() {
		if what(s.Msg()) {
			return
		}
	}
	t.Fatalf("the stream ended: %v", s.Err())
}

// waitLeader asks a server until somebody does the background work.
func waitLeader(ctx context.Context, t *testing.T, v *victimServer, want string) {
	t.Helper()
	c := hanokv1connect.NewSystemServiceClient(v.http, "http://server")
	for {
		r, err := c.GetServer(ctx, &hanokv1.GetServerRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Leader == want {
			return
		}
	}
}

// The network between the working server and etcd is cut, and nobody is told: it
// answers reads, refuses changes and is not ready; another one takes its work, and
// its own late writes are refused. When the network is back it follows again.
func TestAServerCutOffFromEtcd(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{}).Endpoints()[0]
	gate := etcdtest.NewGate(t, etcd)
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	serve := func(name, endpoint string) *rig {
		r := &rig{t: t, hosts: hosts}
		r.serve(start(t, Config{Name: name, Interval: 20 * time.Millisecond, Dial: fakeagent.Dial(func(string) *fakeagent.Cluster { return hosts }),
			Store: store.Config{Endpoints: []string{endpoint}, Timeout: time.Second}}))
		return r
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := serve("s1", gate.Endpoint())
	waitLeader(ctx, t, &victimServer{http: overSocket(first.Server)}, "s1")
	second := serve("s2", etcd)
	added, err := first.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
	if err != nil {
		t.Fatal(err)
	}
	first.ends(added.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	if ready(t, first) != http.StatusOK {
		t.Error("the first server is not ready")
	}

	gate.Cut()
	if s, err := first.inv.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: "seoul"}); err != nil || len(s.Vms) != 2 {
		t.Errorf("a read of a server that is cut off: %v, %v", s, err)
	}
	began := time.Now()
	_, err = first.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: "cut"})
	if connect.CodeOf(err) != connect.CodeUnavailable || time.Since(began) > 5*time.Second {
		t.Errorf("a change there, after %v: %v", time.Since(began), err)
	}
	if ready(t, first) != http.StatusServiceUnavailable {
		t.Error("a server that is cut off says that it is ready")
	}
	stop, err := second.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web"})
	if err != nil {
		t.Fatal(err)
	}
	second.ends(stop.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	waitLeader(ctx, t, &victimServer{http: overSocket(second.Server)}, "s2")

	gate.Mend()
	for ready(t, first) != http.StatusOK {
		if ctx.Err() != nil {
			t.Fatal("the first server does not come back")
		}
	}
	out := second.set(1, "7s")
	second.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	first.until("what was changed meanwhile", func() bool {
		w := first.cache.Wanted("seoul")
		return w.Cluster.Version == 2 && first.cache.VM("seoul", "web").State == string(model.VMStopped)
	})
	// Whether the change that was not answered was carried out, is known now, and
	// the same at both.
	for _, r := range []*rig{first, second} {
		again, err := r.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: "cut"})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(again.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	}
	n := 0
	for _, o := range hosts.Orders() {
		if o == "shutdown db" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("orders: %v", hosts.Orders())
	}
}

// ready is the answer of a server's question after readiness.
func ready(t *testing.T, r *rig) int {
	t.Helper()
	resp, err := http.Get("http://" + r.metricsAddr.String() + pathReady)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}
