package server

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
)

// TestMain lets the test's binary be a server that dies at a failpoint.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HANOK_TEST_SERVER"); dir != "" {
		victim(dir)
		return
	}
	os.Exit(m.Run())
}

// victim runs a server in dir until it has passed as many failpoints as its
// environment says: then it dies at once, as by a loss of power.
func victim(dir string) {
	left, err := strconv.Atoi(os.Getenv("HANOK_TEST_FAILPOINTS"))
	if err != nil {
		panic(err)
	}
	passes := make(chan struct{}, 1)
	passes <- struct{}{}
	hosts := fakeagent.Over(http.DefaultClient, os.Getenv("HANOK_TEST_HOSTS"))
	state := store.Config{Dir: filepath.Join(dir, "data"), Failpoint: func(string) {
		<-passes
		if left--; left == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		passes <- struct{}{}
	}}
	if e := os.Getenv("HANOK_TEST_ENDPOINT"); e != "" {
		state.Dir, state.Endpoints = "", []string{e}
	}
	s, err := New(Config{Name: "victim", Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler), Interval: 10 * time.Millisecond, Dial: hosts, Store: state})
	if err != nil {
		panic(err)
	}
	if err := s.Start(context.Background()); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	select {}
}

// kills is how many times the server is killed; make test-long sets more.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("HANOK_KILLS")); err == nil {
		return n
	}
	return 6
}

// ledger is what the client was told, and so must be true.
type ledger struct {
	version uint64            // newest that was answered
	tasks   map[string]string // id by idempotency key
	events  map[string]bool   // that the hosts emitted
}

// The server is killed at random failpoints while configuration, power orders,
// tasks, reports and events are written. Whoever asks again with the same key
// gets one outcome; nothing is lost and nothing is there by half.
func TestKilledAtFailpoints(t *testing.T) {
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
	l := &ledger{tasks: map[string]string{}, events: map[string]bool{}}
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dead, step := 0, 0
	for dead < kills() {
		v := startVictim(t, dir, backend.URL, 5+rnd.IntN(60))
		for alive := true; alive; {
			key := fmt.Sprintf("k%d", step)
			if alive = v.act(t, step, key, l, hosts); alive {
				step++ // else the same again, of the next server
			}
		}
		v.reap(t)
		dead++
		audit := startVictim(t, dir, backend.URL, 1<<30)
		audit.check(t, l, hosts)
		_ = audit.cmd.Process.Kill()
		audit.reap(t)
	}
	t.Logf("%d kills, %d requests, %d events", dead, step, len(l.events))
	if step < dead {
		t.Errorf("only %d requests came through in %d lives: the test does not test", step, dead)
	}
}

type victimServer struct {
	cmd    *exec.Cmd
	conf   hanokv1connect.ConfigServiceClient
	ops    hanokv1connect.OperationServiceClient
	tasks  hanokv1connect.TaskServiceClient
	events hanokv1connect.EventServiceClient
	ha     hanokv1connect.HAServiceClient
	http   *http.Client
}

// startVictim starts a server in a process of its own; one that dies while it
// starts is a victim, too.
func startVictim(t *testing.T, dir, hosts string, failpoints int) *victimServer {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HANOK_TEST_SERVER="+dir, "HANOK_TEST_HOSTS="+hosts, "HANOK_TEST_FAILPOINTS="+strconv.Itoa(failpoints))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = bufio.NewReader(out).ReadString('\n')
	h := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(dir, "s"))
	}}}
	const at = "http://server"
	return &victimServer{cmd: cmd, http: h, conf: hanokv1connect.NewConfigServiceClient(h, at), ops: hanokv1connect.NewOperationServiceClient(h, at),
		tasks: hanokv1connect.NewTaskServiceClient(h, at), events: hanokv1connect.NewEventServiceClient(h, at), ha: hanokv1connect.NewHAServiceClient(h, at)}
}

func (v *victimServer) reap(t *testing.T) {
	t.Helper()
	_ = v.cmd.Wait()
	v.http.CloseIdleConnections()
	if s, ok := v.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("the server ended by itself: %v", v.cmd.ProcessState)
	}
}

// act makes one request; false: the server died before it answered.
func (v *victimServer) act(t *testing.T, step int, key string, l *ledger, hosts *fakeagent.Cluster) bool {
	t.Helper()
	ctx := t.Context()
	by := model.HostID(fmt.Sprintf("host%d", step%3+1))
	l.events[hosts.Emit(by, event.Event{Severity: event.Info, Kind: event.VMUp, Text: key})] = true
	var task *hanokv1.Task
	var version uint64
	var err error
	switch step % 5 {
	case 0:
		// Without a cluster it is added, as its hosts have it; later this changes
		// it. A stale answer cannot come: nobody else edits.
		yaml := clusterFile
		if step > 0 {
			yaml = strings.Replace(clusterFile, "groups: [a]", fmt.Sprintf("groups: [a, g%d]", step), 1)
		}
		var out *hanokv1.ApplyConfigResponse
		if out, err = v.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: yaml, ExpectedVersion: l.version, IdempotencyKey: key}); err == nil {
			task, version = out.Task, out.Version
		}
	case 1:
		var out *hanokv1.SetFieldsResponse
		if out, err = v.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
			Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: fmt.Sprintf("%ds", step%3000+1)}}}); err == nil {
			task, version = out.Task, out.Version
		}
	case 2:
		var out *hanokv1.PutRuleResponse
		if out, err = v.ha.PutRule(ctx, &hanokv1.PutRuleRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
			Rule: &hanokv1.Rule{Name: "r", Kind: "nodeAffinity", Resources: []string{"web"}, Nodes: []*hanokv1.NodeWeight{{Node: "host1", Weight: int32(step%1000 + 1)}}}}); err == nil {
			task, version = out.Task, out.Version
		}
	case 3:
		var out *hanokv1.StopVMResponse
		if out, err = v.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key}); err == nil {
			task = out.Task
		} else if connect.CodeOf(err) == connect.CodeNotFound { // not reported yet
			return true
		}
	case 4:
		var out *hanokv1.StartVMResponse
		if out, err = v.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key}); err == nil {
			task = out.Task
		} else if connect.CodeOf(err) == connect.CodeNotFound {
			return true
		}
	}
	if err != nil {
		if c := connect.CodeOf(err); c != connect.CodeUnavailable && c != connect.CodeUnknown && c != connect.CodeCanceled {
			t.Fatalf("step %d: %v", step, err)
		}
		return false
	}
	if version > 0 {
		if version <= l.version {
			t.Fatalf("step %d: version %d after %d", step, version, l.version)
		}
		l.version = version
	}
	l.tasks[key] = task.GetId()
	return true
}

// check looks at a server that lives on: all that was answered is there, whole,
// and the hosts come to have it.
func (v *victimServer) check(t *testing.T, l *ledger, hosts *fakeagent.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if l.version == 0 {
		return // nothing was answered yet
	}
	// The version, its entry and its task are there together.
	c, err := v.conf.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: "seoul"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.Version < l.version || c.Config.Version > l.version+1 { // one more may have come in unanswered
		t.Fatalf("version %d is wanted, %d was answered", c.Config.Version, l.version)
	}
	list, err := v.conf.ListConfigVersions(ctx, &hanokv1.ListConfigVersionsRequest{Cluster: "seoul", PageSize: 5000})
	if err != nil || list.Versions[0].Version != c.Config.Version || list.Versions[0].Digest != c.Config.Digest {
		t.Fatalf("the newest entry is not the wanted version: %v", err)
	}
	tasks, err := v.tasks.ListTasks(ctx, &hanokv1.ListTasksRequest{PageSize: 5000})
	if err != nil {
		t.Fatal(err)
	}
	applied := map[uint64]int{}
	known := map[string]*hanokv1.Task{}
	for _, x := range tasks.Tasks {
		known[x.Id] = x
		if x.ConfigVersion > 0 {
			applied[x.ConfigVersion]++
		}
	}
	for _, e := range list.Versions {
		if applied[e.Version] != 1 {
			t.Errorf("version %d has %d tasks", e.Version, applied[e.Version])
		}
	}
	for key, id := range l.tasks {
		if id != "" && known[id] == nil {
			t.Errorf("%s was answered with task %s, which is not there", key, id)
		}
	}
	// Every task ends, and the hosts have the wanted version.
	for _, x := range tasks.Tasks {
		s, err := v.tasks.WatchTask(ctx, &hanokv1.WatchTaskRequest{Task: x.Id})
		if err != nil {
			t.Fatal(err)
		}
		for s.Receive() {
			x = s.Msg().Task
		}
		if s.Err() != nil {
			t.Fatalf("task %s (%s, %s) does not end: %v", x.Id, x.Kind, x.Message, s.Err())
		}
		_ = s.Close()
	}
	if hosts.Version() != c.Config.Version || hosts.Digest() != c.Config.Digest {
		t.Errorf("the hosts have version %d, %d is wanted", hosts.Version(), c.Config.Version)
	}
	v.checkEvents(ctx, t, l)
}

// checkEvents: each event of the hosts is there once, or comes within moments.
func (v *victimServer) checkEvents(ctx context.Context, t *testing.T, l *ledger) {
	t.Helper()
	s, err := v.events.WatchEvents(ctx, &hanokv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for {
		var got []string
		req := &hanokv1.ListEventsRequest{Cluster: "seoul", PageSize: 5000}
		for {
			p, err := v.events.ListEvents(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Events {
				if e.By != "server" {
					got = append(got, e.Id)
				}
			}
			if req.PageToken = p.NextPageToken; req.PageToken == "" {
				break
			}
		}
		slices.Sort(got)
		if n := len(slices.Compact(slices.Clone(got))); n != len(got) {
			t.Fatalf("%d of %d events are there twice", len(got)-n, len(got))
		}
		if len(got) == len(l.events) {
			for _, id := range got {
				if !l.events[id] {
					t.Fatalf("event %s was never emitted", id)
				}
			}
			return
		}
		if !s.Receive() {
			t.Fatalf("%d of %d events are there: %v", len(got), len(l.events), s.Err())
		}
	}
}
