package server

import (
	"bufio"
	"cmp"
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/server/work"
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

// cheapPasswords make logins as quick as the rest of a test.
var cheapPasswords = account.Cost{Memory: 64, Passes: 1}

// victim runs a server in dir until it has passed as many failpoints as its
// environment says: then it dies at once, as by a loss of power, and its last
// line names the failpoint.
func victim(dir string) {
	left, err := strconv.Atoi(os.Getenv("HANOK_TEST_FAILPOINTS"))
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	state := store.Config{Dir: filepath.Join(dir, "data"), Failpoint: func(name string) {
		mu.Lock()
		if left--; left == 0 {
			fmt.Println("dies at", name)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		mu.Unlock()
	}}
	if e := os.Getenv("HANOK_TEST_ENDPOINT"); e != "" {
		state.Dir, state.Endpoints = "", []string{e}
	}
	trustInterval, err := time.ParseDuration(cmp.Or(os.Getenv("HANOK_TEST_TRUST_INTERVAL"), "1m"))
	if err != nil {
		panic(err)
	}
	s, err := New(Config{Name: "victim", TrustInterval: trustInterval, Socket: filepath.Join(dir, "s"), Listen: "127.0.0.1:0", Plain: true, PasswordCost: cheapPasswords,
		Log: slog.New(slog.DiscardHandler), Interval: 10 * time.Millisecond, Dial: victimDial(os.Getenv("HANOK_TEST_HOSTS")), Store: state})
	if err != nil {
		panic(err)
	}
	if err := s.Start(context.Background()); err != nil {
		panic(err)
	}
	token, err := s.book.SetUpToken(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println("ready", s.Address(), token)
	select {}
}

// victimDial reaches the hosts of seoul; those of other clusters answer nobody.
func victimDial(base string) work.Dial {
	hosts := fakeagent.Over(http.DefaultClient, base)
	return func(c *config.Cluster, host model.HostID) (work.Agent, error) {
		if c.Name != "seoul" {
			return nil, fmt.Errorf("%s has no hosts", c.Name)
		}
		return hosts(c, host)
	}
}

// number reads a whole number from the environment.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// The server is killed at random failpoints while everything that it writes is
// written: configuration, orders, tasks, reports, events, users, tokens, audit.
// Whoever asks again gets one outcome; nothing is lost and nothing is there by
// half. HANOK_KILLS says how many times in all, HANOK_KILL_LANES how many
// servers are killed beside each other.
func TestKilledAtFailpoints(t *testing.T) {
	total, lanes := number("HANOK_KILLS", 6), number("HANOK_KILL_LANES", 1)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	var mu sync.Mutex
	all := tally{at: map[string]int{}, writes: map[string]int{}}
	t.Run("lanes", func(t *testing.T) {
		for i := range lanes {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				one := killLane(t, rand.New(rand.NewPCG(seed, uint64(i))), (total+lanes-1)/lanes)
				mu.Lock()
				defer mu.Unlock()
				all.add(one)
			})
		}
	})
	t.Logf("%d kills (%v), %d requests answered (%v), %d events", all.kills, all.at, all.requests, all.writes, all.events)
	if all.requests < all.kills {
		t.Errorf("only %d requests came through in %d lives: the test does not test", all.requests, all.kills)
	}
	if all.kills >= 200 { // enough for each to have had its turn
		for _, k := range killWrites {
			if all.writes[k.name] == 0 {
				t.Errorf("no %s came through", k.name)
			}
		}
	}
}

// tally is what a test of kills did.
type tally struct {
	kills, requests, events int
	at                      map[string]int // kills by failpoint
	writes                  map[string]int // requests answered by kind
}

func (a *tally) add(b tally) {
	a.kills, a.requests, a.events = a.kills+b.kills, a.requests+b.requests, a.events+b.events
	for k, n := range b.at {
		a.at[k] += n
	}
	for k, n := range b.writes {
		a.writes[k] += n
	}
}

// auditEvery is how many kills there are between two looks at everything; what
// is lost is missing at the next look, too.
const auditEvery = 5

// killLane kills one server after another over one directory.
func killLane(t *testing.T, rnd *rand.Rand, kills int) tally {
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
	l := newLedger(t, hosts)
	sum := tally{at: map[string]int{}, writes: l.count}
	for sum.kills < kills {
		v := startVictim(t, dir, backend.URL, 5+rnd.IntN(120))
		for v.alive() && l.act(t, v) {
			sum.requests++
		}
		if t.Failed() {
			_ = v.cmd.Process.Kill()
		}
		v.reap(t)
		sum.kills++
		sum.at[v.diedAt()]++
		if sum.kills%auditEvery == 0 || sum.kills == kills {
			audit := startVictim(t, dir, backend.URL, 1<<30)
			l.check(t, audit)
			_ = audit.cmd.Process.Kill()
			audit.reap(t)
		}
		if t.Failed() {
			break
		}
	}
	sum.events = len(l.events)
	return sum
}

// victimServer is a server in a process of its own.
type victimServer struct {
	cmd     *exec.Cmd
	out     *bufio.Reader
	address string
	http    *http.Client
	conf    hanokv1connect.ConfigServiceClient
	ops     hanokv1connect.OperationServiceClient
	tasks   hanokv1connect.TaskServiceClient
	events  hanokv1connect.EventServiceClient
	ha      hanokv1connect.HAServiceClient
	inv     hanokv1connect.InventoryServiceClient
	users   hanokv1connect.UserServiceClient
	auth    hanokv1connect.AuthServiceClient
	audit   hanokv1connect.AuditServiceClient
	trust   hanokv1connect.TrustServiceClient
}

// startVictim starts a server in a process of its own; one that dies while it
// starts is a victim, too.
func startVictim(t *testing.T, dir, hosts string, failpoints int, env ...string) *victimServer {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "HANOK_TEST_SERVER="+dir, "HANOK_TEST_HOSTS="+hosts, "HANOK_TEST_FAILPOINTS="+strconv.Itoa(failpoints)), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(dir, "s"))
	}}}
	const at = "http://server"
	v := &victimServer{cmd: cmd, out: bufio.NewReader(out), http: h, conf: hanokv1connect.NewConfigServiceClient(h, at), ops: hanokv1connect.NewOperationServiceClient(h, at),
		tasks: hanokv1connect.NewTaskServiceClient(h, at), events: hanokv1connect.NewEventServiceClient(h, at), ha: hanokv1connect.NewHAServiceClient(h, at),
		inv: hanokv1connect.NewInventoryServiceClient(h, at), users: hanokv1connect.NewUserServiceClient(h, at), auth: hanokv1connect.NewAuthServiceClient(h, at),
		audit: hanokv1connect.NewAuditServiceClient(h, at), trust: hanokv1connect.NewTrustServiceClient(h, at)}
	line, _ := v.out.ReadString('\n') // of one that died, the failpoint
	v.address = strings.TrimSpace(line)
	return v
}

// alive: it started.
func (v *victimServer) alive() bool { return strings.HasPrefix(v.address, "ready ") }

// at is the address for people with a login.
func (v *victimServer) at() string { return "http://" + strings.Fields(v.address)[1] }

// setUpToken is what makes the first administrator; empty when there is a user.
func (v *victimServer) setUpToken() string {
	if f := strings.Fields(v.address); len(f) > 2 {
		return f[2]
	}
	return ""
}

// diedAt is the failpoint of its death, once it was reaped.
func (v *victimServer) diedAt() string {
	line := v.address
	if v.alive() {
		line, _ = v.out.ReadString('\n')
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "dies at "))
}

func (v *victimServer) reap(t *testing.T) {
	t.Helper()
	s, err := v.cmd.Process.Wait()
	v.http.CloseIdleConnections()
	if err != nil {
		t.Fatal(err)
	}
	if w, ok := s.Sys().(syscall.WaitStatus); !ok || w.Signal() != syscall.SIGKILL {
		t.Fatalf("the server ended by itself: %v", s)
	}
}
