package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// short makes a directory with a short path, as sockets need it.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hanok")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// The first administrator is made while the server is killed at each failpoint in
// turn: afterwards there is one with the password that was given, or a new link
// that works; never a server that nobody can enter, and no link works twice.
// Without HANOK_KILLS two of the failpoints are tried.
func TestSetUpIsKilled(t *testing.T) {
	begin, step := 1, 1
	if number("HANOK_KILLS", 6) < 200 {
		begin, step = 2+rand.IntN(4), 5
	}
	const password = "the first of all"
	enter := func(v *victimServer) error {
		_, err := hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at()).Login(t.Context(), &hanokv1.LoginRequest{User: "root", Password: password, WantToken: true})
		return err
	}
	for n := begin; ; n += step {
		dir := short(t)
		v := startVictim(t, dir, "", n)
		first, answered := v.setUpToken(), false
		setUp := func(v *victimServer, token string) error {
			_, err := hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at()).SetUp(t.Context(), &hanokv1.SetUpRequest{Token: token, User: "root", Password: password})
			return err
		}
		if v.alive() {
			answered = setUp(v, first) == nil
		}
		_ = v.cmd.Process.Kill()
		v.reap(t)
		next := startVictim(t, dir, "", 1<<30)
		if token := next.setUpToken(); token != "" {
			if answered {
				t.Errorf("killed at failpoint %d: it was answered, and nobody is there", n)
			}
			if first != "" && setUp(next, first) == nil {
				t.Errorf("killed at failpoint %d: the link of before works beside the new one", n)
			}
			if err := setUp(next, token); err != nil {
				t.Errorf("killed at failpoint %d: the new link: %v", n, err)
			}
		}
		if err := enter(next); err != nil {
			t.Errorf("killed at failpoint %d: nobody can enter: %v", n, err)
		}
		if first != "" && setUp(next, first) == nil {
			t.Errorf("killed at failpoint %d: the link works twice", n)
		}
		_ = next.cmd.Process.Kill()
		next.reap(t)
		if answered || t.Failed() {
			t.Logf("it was answered before failpoint %d", n)
			return
		}
	}
}

// The authority of a cluster is replaced again and again while the server is killed
// at random failpoints: each replacement ends, at every moment each host has a
// certificate that it can use, and in the end one authority alone is trusted.
func TestRotationIsKilled(t *testing.T) {
	kills := max(2, number("HANOK_KILLS", 6)/10)
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(hosts.Handler())
	defer backend.Close()
	defer backend.CloseClientConnections()
	r := &rotation{l: newLedger(t, hosts), keepers: map[model.HostID]*pki.Keeper{}}
	certs := t.TempDir()
	if err := os.Mkdir(filepath.Join(certs, "ca"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{pki.CACert: r.l.ca.cert, pki.CAKey: r.l.ca.key} {
		if err := os.WriteFile(filepath.Join(certs, "ca", file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 { // made by hand, before there was a server
		h := model.HostID(fmt.Sprintf("host%d", i+1))
		to := filepath.Join(certs, string(h))
		if err := pki.Issue(filepath.Join(certs, "ca"), to, h, nil, pki.Options{}); err != nil {
			t.Fatal(err)
		}
		r.keepers[h] = pki.NewKeeper(to)
		hosts.SetTrust(h, r.keepers[h])
	}
	dir := short(t)
	at := map[string]int{}
	life := func(failpoints int, act func(*victimServer) error) {
		v := startVictim(t, dir, backend.URL, failpoints, "HANOK_TEST_TRUST_INTERVAL=50ms")
		for v.alive() {
			if err := act(v); err != nil {
				if c := connect.CodeOf(err); c != connect.CodeUnavailable && c != connect.CodeUnknown && c != connect.CodeCanceled {
					t.Error(err)
				}
				break
			}
		}
		if t.Failed() || failpoints == 1<<30 {
			_ = v.cmd.Process.Kill()
		}
		v.reap(t)
		if failpoints < 1<<30 {
			at[v.diedAt()]++
		}
	}
	for k := 0; k < kills && !t.Failed(); k++ {
		life(5+rnd.IntN(150), func(v *victimServer) error { return r.act(t.Context(), v) })
		r.usable(t)
	}
	before := r.done
	life(1<<30, func(v *victimServer) error {
		if err := r.act(t.Context(), v); err != nil || r.done == before {
			return err
		}
		got, err := v.trust.GetTrust(t.Context(), &hanokv1.GetTrustRequest{Cluster: "seoul"})
		if err != nil || len(got.Authorities) != 1 || got.Authorities[0].Fingerprint != r.l.authority {
			t.Errorf("%v, %v, want %s alone", got, err, r.l.authority)
		}
		return connect.NewError(connect.CodeCanceled, context.Canceled) // enough
	})
	for h, k := range r.keepers {
		c, err := k.Load()
		if err != nil || len(c.Authorities) != 1 || pki.Fingerprint(c.Authorities[0]) != r.l.authority || pki.Fingerprint(c.Issuer) != r.l.authority {
			t.Errorf("%s: %v, %v, want %s alone", h, c, err, r.l.authority)
		}
	}
	t.Logf("%d kills (%v), %d replacements", kills, at, r.done)
}

// rotation replaces the authority of seoul again and again.
type rotation struct {
	l       *ledger
	keepers map[model.HostID]*pki.Keeper
	begun   bool // the cluster is known, with its authority
	done    int
}

// act does the next thing, again if it was not answered.
func (r *rotation) act(ctx context.Context, v *victimServer) error {
	if !r.begun {
		if _, err := v.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: clusterFile, IdempotencyKey: "add"}); err != nil {
			return err
		}
		_, err := v.trust.ImportAuthority(ctx, &hanokv1.ImportAuthorityRequest{Cluster: "seoul", Certificate: r.l.ca.cert, Key: r.l.ca.key})
		if err != nil && connect.CodeOf(err) != connect.CodeFailedPrecondition { // hosts are known to have it: it was imported
			return err
		}
		r.begun = true
	}
	out, err := v.trust.ReplaceAuthority(ctx, &hanokv1.ReplaceAuthorityRequest{Cluster: "seoul", IdempotencyKey: fmt.Sprint("r", r.done)})
	if err != nil {
		return err
	}
	for {
		got, err := v.tasks.GetTask(ctx, &hanokv1.GetTaskRequest{Task: out.Task.Id})
		if err != nil {
			return err
		}
		switch {
		case got.Task.Finished == nil:
			continue
		case got.Task.State != hanokv1.TaskState_TASK_STATE_SUCCEEDED:
			return connect.NewError(connect.CodeInternal, fmt.Errorf("a replacement ended as %v", got.Task))
		}
		r.done++
		r.l.authority = got.Task.Target
		return nil
	}
}

// usable: each host has a certificate that one of the authorities has signed that
// it trusts, and so do all others.
func (r *rotation) usable(t *testing.T) {
	t.Helper()
	trusted := map[string]int{}
	issuers := map[string]bool{}
	for h, k := range r.keepers {
		c, err := k.Load()
		if err != nil {
			t.Errorf("%s cannot use its certificate: %v", h, err)
			return
		}
		for _, a := range c.Authorities {
			trusted[pki.Fingerprint(a)]++
		}
		issuers[pki.Fingerprint(c.Issuer)] = true
	}
	for i := range issuers {
		if trusted[i] != len(r.keepers) {
			t.Errorf("a certificate of %s is in use, and %d of %d hosts trust it", i, trusted[i], len(r.keepers))
		}
	}
}
