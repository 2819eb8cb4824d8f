package server

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.etcd.io/etcd/server/v3/embed"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
)

// externalEtcd runs an etcd that servers reach over the network, with the
// limits that etcd has by default.
func externalEtcd(t *testing.T) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.ListenClientUrls, c.ListenPeerUrls, c.AdvertiseClientUrls, c.AdvertisePeerUrls = local, local, local, local
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.LogLevel = "panic"
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return e.Clients[0].Addr().String()
}

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
	endpoint := externalEtcd(t)
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

func TestExternalEtcdWithItsOwnTLS(t *testing.T) {
	_, err := store.Open(t.Context(), store.Config{Endpoints: []string{"https://127.0.0.1:1"}, TLS: &store.TLSFiles{CA: filepath.Join(t.TempDir(), "none")}})
	if err == nil {
		t.Error("a CA file that is not there was taken")
	}
}
