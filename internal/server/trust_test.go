package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/server/state"
)

// trustRig is a rig whose hosts keep real certificates.
type trustRig struct {
	*rig
	trust   hanokv1connect.TrustServiceClient
	keepers map[model.HostID]*pki.Keeper
	dirs    map[model.HostID]string // of keepers
	dir     string
	life    time.Duration // of hosts' certificates; 0: the default
}

func newTrustRig(t *testing.T) *trustRig { t.Helper(); return newTrustRigFor(t, 0) }

func newTrustRigFor(t *testing.T, life time.Duration) *trustRig {
	t.Helper()
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	r := &trustRig{keepers: map[model.HostID]*pki.Keeper{}, dir: t.TempDir(), life: life}
	r.open(t, hosts)
	out, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	for _, h := range []model.HostID{"host1", "host2", "host3"} {
		r.enrol(h)
	}
	return r
}

// open starts a server over the rig's directory.
func (r *trustRig) open(t *testing.T, hosts *fakeagent.Cluster) {
	t.Helper()
	r.openEvery(t, hosts, 20*time.Millisecond)
}

// openEvery is open, of a server that looks after the hosts' certificates at
// intervals.
func (r *trustRig) openEvery(t *testing.T, hosts *fakeagent.Cluster, interval time.Duration) {
	t.Helper()
	all := func(string) *fakeagent.Cluster { return hosts }
	cfg := Config{Name: "s1", Interval: 20 * time.Millisecond, TrustInterval: interval, HostLife: r.life,
		Dial: fakeagent.Dial(all), DialLapsed: fakeagent.DialLapsed(all)}
	cfg.Store.Dir = r.dir
	r.rig = &rig{t: t, hosts: hosts}
	r.serve(start(t, cfg))
	r.trust = hanokv1connect.NewTrustServiceClient(overSocket(r.Server), "http://server")
}

func (r *trustRig) token(host string) string {
	r.t.Helper()
	out, err := r.trust.CreateHostToken(r.t.Context(), &hanokv1.CreateHostTokenRequest{Cluster: "seoul", Host: host})
	if err != nil {
		r.t.Fatal(err)
	}
	return out.Token
}

// enrol gives a host its certificate, as `hanok host enrol` does.
func (r *trustRig) enrol(host model.HostID) {
	r.t.Helper()
	id := pki.Identity{Cluster: "seoul", Host: host}
	key, request, err := pki.NewRequest(id)
	if err != nil {
		r.t.Fatal(err)
	}
	out, err := r.trust.EnrolHost(r.t.Context(), &hanokv1.EnrolHostRequest{Token: r.token(string(host)), Host: string(host), Request: string(request)})
	if err != nil {
		r.t.Fatal(err)
	}
	dir := filepath.Join(r.t.TempDir(), string(host))
	if err := pki.Enrol(dir, []byte(out.Authorities), []byte(out.Certificate), key, id); err != nil {
		r.t.Fatal(err)
	}
	r.keepers[host] = pki.NewKeeper(dir)
	if r.dirs == nil {
		r.dirs = map[model.HostID]string{}
	}
	r.dirs[host] = dir
	r.hosts.SetTrust(host, r.keepers[host])
}

func (r *trustRig) state() *hanokv1.GetTrustResponse {
	r.t.Helper()
	out, err := r.trust.GetTrust(r.t.Context(), &hanokv1.GetTrustRequest{Cluster: "seoul"})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func TestWhoIsEnrolled(t *testing.T) {
	r := newTrustRig(t)
	ask := func(token, host, named string) error {
		_, request, err := pki.NewRequest(pki.Identity{Cluster: "seoul", Host: model.HostID(named)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.trust.EnrolHost(t.Context(), &hanokv1.EnrolHostRequest{Token: token, Host: host, Request: string(request)})
		return err
	}
	token := r.token("host1")
	for name, tt := range map[string]struct {
		err  error
		code connect.Code
	}{
		"no token":              {ask("", "host1", "host1"), connect.CodeUnauthenticated},
		"another's name":        {ask(token, "host2", "host2"), connect.CodePermissionDenied},
		"another's certificate": {ask(token, "host1", "host2"), connect.CodePermissionDenied},
		"what is no request": {func() error {
			_, err := r.trust.EnrolHost(t.Context(), &hanokv1.EnrolHostRequest{Token: token, Host: "host1", Request: "x"})
			return err
		}(), connect.CodeInvalidArgument},
	} {
		if connect.CodeOf(tt.err) != tt.code {
			t.Errorf("%s: %v", name, tt.err)
		}
	}
	if err := ask(token, "host1", "host1"); err != nil {
		t.Errorf("after attempts that were refused: %v", err)
	}
	if err := ask(token, "host1", "host1"); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "used already") {
		t.Errorf("a second time: %v", err)
	}
	for host, code := range map[string]connect.Code{"host9": connect.CodeInvalidArgument, "../host1": connect.CodeInvalidArgument} {
		if _, err := r.trust.CreateHostToken(t.Context(), &hanokv1.CreateHostTokenRequest{Cluster: "seoul", Host: host}); connect.CodeOf(err) != code {
			t.Errorf("a token for %s: %v", host, err)
		}
	}
	// Taken out of the cluster file, a host's token is worth nothing.
	token = r.token("host3")
	smaller := clusterFile[:strings.Index(clusterFile, "- {name: host3")] + clusterFile[strings.Index(clusterFile, "vms:"):]
	if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: smaller, ExpectedVersion: 1}); err != nil {
		t.Fatal(err)
	}
	if err := ask(token, "host3", "host3"); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a host that was removed: %v", err)
	}
	// Should one of that name come, it is another: neither the token nor what the
	// former said of its certificate counts.
	if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile, ExpectedVersion: 2}); err != nil {
		t.Fatal(err)
	}
	if err := ask(token, "host3", "host3"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a host that came back, with the token of the one before: %v", err)
	}
}

// What a host said of its certificate is nothing to one of its name that joins
// later: the ended certificate of the first is not the second's.
func TestHostOfAFormerNameIsNew(t *testing.T) {
	r := newTrustRig(t)
	known := func() bool {
		_, err := r.store.Get(t.Context(), state.HostTrustKey("seoul", "host3"))
		return err == nil
	}
	r.until("it is known", known)
	r.hosts.SetAway("host3", true)
	smaller := clusterFile[:strings.Index(clusterFile, "- {name: host3")] + clusterFile[strings.Index(clusterFile, "vms:"):]
	for version, yaml := range []string{1: smaller, 2: clusterFile} {
		if version == 0 {
			continue
		}
		if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: yaml, ExpectedVersion: uint64(version)}); err != nil {
			t.Fatal(err)
		}
	}
	it, err := r.store.Get(t.Context(), state.HostTrustKey("seoul", "host3"))
	if err == nil {
		h, err := state.Decode[hanokv1.HostTrust](it.Key, it.Value)
		if err != nil || h.Expires != nil {
			t.Errorf("it is known still: %v, %v", h, err)
		}
	}
}

func TestEnrolmentIsInTheAuditLog(t *testing.T) {
	r := newTrustRig(t)
	_, _ = r.trust.EnrolHost(t.Context(), &hanokv1.EnrolHostRequest{Token: "hanok-host:seoul:host1:guess", Host: "host1"})
	out, err := hanokv1connect.NewAuditServiceClient(overSocket(r.Server), "http://server").ListAudit(t.Context(), &hanokv1.ListAuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, e := range out.Entries {
		seen[e.Method+" "+e.Target+" "+e.Result]++
		if strings.Contains(fmt.Sprint(e), "hanok-host:") {
			t.Errorf("the log has a token: %v", e)
		}
	}
	if seen["TrustService/CreateHostToken host1 ok"] != 1 || seen["TrustService/EnrolHost host1 ok"] != 1 || seen["TrustService/EnrolHost host1 unauthenticated"]+seen["TrustService/EnrolHost host1 permission_denied"]+seen["TrustService/EnrolHost host1 failed_precondition"] == 0 {
		t.Errorf("%v", seen)
	}
}

// Certificates are renewed by themselves when a third of their life is left, and
// a host that was away gets its own as soon as it is back.
func TestHostsAreRenewedInTime(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	r := &trustRig{keepers: map[model.HostID]*pki.Keeper{}, dir: t.TempDir()}
	cfg := Config{Name: "s1", Interval: 20 * time.Millisecond, TrustInterval: 20 * time.Millisecond, HostLife: 6 * time.Second,
		Dial: fakeagent.Dial(func(string) *fakeagent.Cluster { return hosts })}
	cfg.Store.Dir = r.dir
	r.rig = &rig{t: t, hosts: hosts}
	r.serve(start(t, cfg))
	r.trust = hanokv1connect.NewTrustServiceClient(overSocket(r.Server), "http://server")
	if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile}); err != nil {
		t.Fatal(err)
	}
	first := map[model.HostID]time.Time{}
	for _, h := range []model.HostID{"host1", "host2", "host3"} {
		r.enrol(h)
		first[h] = r.keepers[h].Current().Expires
	}
	hosts.SetAway("host3", true)
	r.until("two are renewed", func() bool {
		return r.keepers["host1"].Current().Expires.After(first["host1"]) && r.keepers["host2"].Current().Expires.After(first["host2"])
	})
	if !time.Now().Before(first["host1"]) || !r.keepers["host3"].Current().Expires.Equal(first["host3"]) {
		t.Error("renewed too late, or while away")
	}
	hosts.SetAway("host3", false)
	r.until("the third is renewed", func() bool { return r.keepers["host3"].Current().Expires.After(first["host3"]) })
}

func (r *trustRig) until(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not in time: %s; trust: %v", what, r.state())
		}
	}
}

func (r *trustRig) replace(req *hanokv1.ReplaceAuthorityRequest) *hanokv1.Task {
	r.t.Helper()
	req.Cluster = "seoul"
	out, err := r.trust.ReplaceAuthority(r.t.Context(), req)
	if err != nil {
		r.t.Fatal(err)
	}
	return out.Task
}

// The server was down for longer than the certificates last. When it is back each
// host gets another by itself, on the ground of the one that it had last; with an
// older one it needs a token.
func TestEndedCertificatesAreRenewed(t *testing.T) {
	r := newTrustRigFor(t, 2*time.Second)
	hosts := r.hosts
	older := t.TempDir() // host3's first certificate, which a thief might have
	if err := os.CopyFS(older, os.DirFS(r.dirs["host3"])); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(older, pki.HostKey), 0o600); err != nil {
		t.Fatal(err)
	}
	stolen := pki.NewKeeper(older)
	first := stolen.Current().Expires
	r.until("host3 has another", func() bool {
		s := r.state().Hosts[2]
		return r.keepers["host3"].Current().Expires.After(first) && s.Expires.AsTime().Equal(r.keepers["host3"].Current().Expires)
	})
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := map[model.HostID]time.Time{}
	for h, k := range r.keepers {
		ended[h] = k.Current().Expires
		time.Sleep(time.Until(ended[h])) // the clock of certificates is the real one
	}
	hosts.SetTrust("host3", stolen)
	r.life = 0
	r.open(t, hosts)
	r.until("two have others", func() bool {
		return r.keepers["host1"].Current().Expires.After(ended["host1"]) && r.keepers["host2"].Current().Expires.After(ended["host2"])
	})
	r.until("the older one is refused", func() bool { return strings.Contains(r.state().Hosts[2].Problem, "ended") })
	if !stolen.Current().Expires.Equal(first) {
		t.Error("a certificate before the last was renewed")
	}
	hosts.SetTrust("host3", r.keepers["host3"])
	r.until("the third has another", func() bool { return r.keepers["host3"].Current().Expires.After(ended["host3"]) })
	for _, h := range []string{"host1", "host2", "host3"} {
		r.until("an event says so of "+h, func() bool {
			out, err := r.events.ListEvents(t.Context(), &hanokv1.ListEventsRequest{Cluster: "seoul", Host: h, Severity: "warning"})
			return err == nil && slices.ContainsFunc(out.Events, func(e *hanokv1.Event) bool {
				return e.Kind == "security" && strings.Contains(e.Text, "its last one had ended")
			})
		})
	}
}

// A replacement waits for a host that is away, survives the server, and ends with
// hosts that trust the new authority alone.
func TestAuthorityIsReplaced(t *testing.T) {
	hosts := (*fakeagent.Cluster)(nil)
	r := newTrustRig(t)
	hosts = r.hosts
	old := r.state().Authorities[0].Fingerprint
	hosts.SetAway("host2", true)
	var task *hanokv1.Task
	t.Run("first server", func(t *testing.T) {
		task = r.replace(&hanokv1.ReplaceAuthorityRequest{IdempotencyKey: "k"})
		if again := r.replace(&hanokv1.ReplaceAuthorityRequest{IdempotencyKey: "k"}); again.Id != task.Id {
			t.Error("the same request made two")
		}
		if _, err := r.trust.ReplaceAuthority(t.Context(), &hanokv1.ReplaceAuthorityRequest{Cluster: "seoul"}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("a second replacement: %v", err)
		}
		r.until("the others trust both", func() bool {
			return len(r.keepers["host1"].Current().Authorities) == 2 && len(r.keepers["host3"].Current().Authorities) == 2
		})
		r.until("the task names who is missing", func() bool {
			x, err := r.tasks.GetTask(t.Context(), &hanokv1.GetTaskRequest{Task: task.Id})
			return err == nil && strings.Contains(x.Task.Message, "2 of 3") && strings.Contains(x.Task.Message, "waiting for host2")
		})
		if s := r.state(); s.Phase != "distribute" || pki.Fingerprint(r.keepers["host1"].Current().Issuer) != old {
			t.Errorf("went on without host2: %v", s)
		}
	})
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.open(t, hosts)
	hosts.SetAway("host2", false)
	done := r.ends(task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	s := r.state()
	if len(s.Authorities) != 1 || s.Authorities[0].Fingerprint == old || s.Authorities[0].Fingerprint != done.Target || s.Phase != "" {
		t.Errorf("afterwards: %v", s)
	}
	for h, k := range r.keepers {
		if c := k.Current(); len(c.Authorities) != 1 || pki.Fingerprint(c.Issuer) != done.Target {
			t.Errorf("%s: of %s, trusts %d", h, pki.Fingerprint(c.Issuer), len(c.Authorities))
		}
	}
	for _, h := range s.Hosts {
		if h.Problem != "" || h.Issuer != done.Target {
			t.Errorf("%v", h)
		}
	}
}

// A server that has just started, and one whose host was away, do not wait for
// the next interval: whoever has a problem is looked after again soon.
func TestHostsAreLookedAfterSoon(t *testing.T) {
	r := newTrustRig(t)
	hosts := r.hosts
	fine := func() bool {
		s := r.state()
		for _, h := range s.Hosts {
			if h.Problem != "" || h.Issuer != s.Authorities[0].Fingerprint {
				return false
			}
		}
		return true
	}
	r.until("all are known", fine)
	for range 2 {
		if err := r.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts.SetAway("host2", true)
		r.openEvery(t, hosts, time.Hour)
		r.until("the one that is away is told, and it alone", func() bool {
			s := r.state()
			return s.Hosts[0].Problem == "" && s.Hosts[1].Problem != "" && s.Hosts[2].Problem == ""
		})
	}
	hosts.SetAway("host2", false)
	r.until("it is back", fine)
}

func TestReplacementIsGivenUp(t *testing.T) {
	r := newTrustRig(t)
	old := r.state().Authorities[0].Fingerprint
	r.hosts.SetAway("host2", true)
	task := r.replace(&hanokv1.ReplaceAuthorityRequest{})
	r.until("host1 trusts both", func() bool { return len(r.keepers["host1"].Current().Authorities) == 2 })
	if _, err := r.tasks.CancelTask(t.Context(), &hanokv1.CancelTaskRequest{Task: task.Id}); err != nil {
		t.Fatal(err)
	}
	r.ends(task, hanokv1.TaskState_TASK_STATE_CANCELLED)
	r.until("host1 trusts the old one alone", func() bool {
		c := r.keepers["host1"].Current()
		return len(c.Authorities) == 1 && pki.Fingerprint(c.Authorities[0]) == old
	})
}

// An authority of one's own, before the first host and later.
func TestOwnAuthority(t *testing.T) {
	r := newTrustRig(t)
	pem := func() (string, string) {
		a, err := pki.NewAuthority("seoul", time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		c, k, err := a.PEM()
		if err != nil {
			t.Fatal(err)
		}
		return string(c), string(k)
	}
	cert, key := pem()
	_, other := pem()
	r.until("hosts are known", func() bool { return r.state().Hosts[0].Issuer != "" })
	if _, err := r.trust.ImportAuthority(t.Context(), &hanokv1.ImportAuthorityRequest{Cluster: "seoul", Certificate: cert, Key: key}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("imported beside hosts that trust another: %v", err)
	}
	if _, err := r.trust.ReplaceAuthority(t.Context(), &hanokv1.ReplaceAuthorityRequest{Cluster: "seoul", Certificate: cert, Key: other}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a key of another: %v", err)
	}
	done := r.ends(r.replace(&hanokv1.ReplaceAuthorityRequest{Certificate: cert, Key: key}), hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	mine, err := pki.ParseCerts([]byte(cert))
	if err != nil || done.Target != pki.Fingerprint(mine[0]) || pki.Fingerprint(r.keepers["host3"].Current().Issuer) != done.Target {
		t.Errorf("%v: %v", err, done)
	}
	fresh := newRigWithoutCluster(t)
	if _, err := fresh.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile}); err != nil {
		t.Fatal(err)
	}
	client := hanokv1connect.NewTrustServiceClient(overSocket(fresh.Server), "http://server")
	if _, err := client.ImportAuthority(t.Context(), &hanokv1.ImportAuthorityRequest{Cluster: "seoul", Certificate: cert, Key: key}); err != nil {
		t.Error(err)
	}
	s, err := client.GetTrust(t.Context(), &hanokv1.GetTrustRequest{Cluster: "seoul"})
	if err != nil || len(s.Authorities) != 1 || s.Authorities[0].Fingerprint != pki.Fingerprint(mine[0]) {
		t.Error(errors.Join(err, fmt.Errorf("%v", s)))
	}
}
