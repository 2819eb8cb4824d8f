package server

import (
	"context"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/api"
)

// check looks at a server that lives on: all that was answered is there, whole,
// and the hosts come to have it.
func (l *ledger) check(t *testing.T, v *victimServer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if l.version == 0 {
		return // nothing was answered yet
	}
	c := l.checkConfig(ctx, t, v)
	if l.busan() {
		// No request about it was answered: it is there as a whole, or not at all.
		_, err := v.conf.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: "busan"})
		_, terr := v.inv.GetCluster(ctx, &hanokv1.GetClusterRequest{Cluster: "busan"})
		if connect.CodeOf(err) != connect.CodeOf(terr) {
			t.Errorf("half of busan is there: %v, %v", err, terr)
		}
	}
	l.checkTasks(ctx, t, v)
	// What was changed on a host is drift until its adoption is answered.
	if drifts := l.next() == "ConfigService/AdoptConfig" || l.refuses(); !drifts && (l.hosts.Version() != c.Version || l.hosts.Digest() != c.Digest) {
		t.Errorf("the hosts have version %d, %d is wanted", l.hosts.Version(), c.Version)
	}
	l.checkEvents(ctx, t, v)
	l.checkPeople(ctx, t, v)
	l.checkTrust(ctx, t, v)
}

// checkConfig: the wanted version is what was answered, or what the request
// that was not answered makes of it; its entry, task and event are there.
func (l *ledger) checkConfig(ctx context.Context, t *testing.T, v *victimServer) *hanokv1.ConfigVersion {
	t.Helper()
	got, err := v.conf.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: "seoul"})
	if err != nil {
		t.Fatal(err)
	}
	c, want := parsed(t, got.Config.Yaml), l.want
	if got.Config.Version != l.version {
		if want = l.pending; want == nil || got.Config.Version < l.version {
			t.Fatalf("version %d is wanted, %d was answered", got.Config.Version, l.version)
		}
	}
	if d := config.Diff(want, c); len(d) > 0 {
		t.Errorf("the wanted version %d is not what was asked for: %v", got.Config.Version, d)
	}
	// Versions have one entry, one task and one event each: the newest 400 are
	// looked at; older ones were, in their turn, and the server keeps 500.
	list, err := v.conf.ListConfigVersions(ctx, &hanokv1.ListConfigVersionsRequest{Cluster: "seoul", PageSize: 400})
	if err != nil {
		t.Fatal(err)
	}
	newest := slices.IndexFunc(list.Versions, func(e *hanokv1.ConfigVersion) bool { return e.Refused == "" })
	if e := list.Versions[newest]; e.Version != got.Config.Version || e.Digest != got.Config.Digest {
		t.Fatalf("the newest entry that was not refused is version %d, %d is wanted", e.Version, got.Config.Version)
	}
	applied := map[uint64][]string{}
	for _, x := range l.listTasks(ctx, t, v) {
		if x.ConfigVersion > 0 && x.Cluster == "seoul" {
			applied[x.ConfigVersion] = append(applied[x.ConfigVersion], x.Id)
		}
	}
	for _, e := range list.Versions {
		if len(applied[e.Version]) != 1 {
			t.Errorf("version %d has tasks %v", e.Version, applied[e.Version])
		}
	}
	return got.Config
}

func (l *ledger) listTasks(ctx context.Context, t *testing.T, v *victimServer) []*hanokv1.Task {
	t.Helper()
	list, err := v.tasks.ListTasks(ctx, &hanokv1.ListTasksRequest{PageSize: 5000})
	if err != nil {
		t.Fatal(err)
	}
	return list.Tasks
}

// checkTasks: those that were answered are there, and every one ends.
func (l *ledger) checkTasks(ctx context.Context, t *testing.T, v *victimServer) {
	t.Helper()
	busan := l.busan()
	known := map[string]bool{}
	for _, x := range l.listTasks(ctx, t, v) {
		known[x.Id] = true
		if x.Finished != nil || x.Cluster == "busan" && busan {
			continue
		}
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
	for key, id := range l.tasks {
		if id != "" && !known[id] {
			t.Errorf("%s was answered with task %s, which is not there", key, id)
		}
	}
}

// checkPeople: users, their roles, passwords and tokens are as was answered, and
// the log has each call.
func (l *ledger) checkPeople(ctx context.Context, t *testing.T, v *victimServer) {
	t.Helper()
	list, err := v.users.ListUsers(ctx, &hanokv1.ListUsersRequest{PageSize: api.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]hanokv1.Role{}
	for _, u := range list.Users {
		there[u.Name] = u.Role
		if _, ok := l.users[u.Name]; !ok && !l.unsure[u.Name] && u.Name != keeper {
			t.Errorf("user %s was removed and is there", u.Name)
		}
	}
	for name, role := range l.users {
		if l.unsure[name] {
			continue
		}
		if there[name] != role {
			t.Errorf("user %s has role %v, %v was answered", name, there[name], role)
		}
		if _, err := login(ctx, l, v); err != nil {
			t.Errorf("%s cannot log in: %v", name, err)
		}
	}
	tokens, err := v.auth.ListTokens(ctx, &hanokv1.ListTokensRequest{All: true, PageSize: api.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, k := range tokens.Tokens {
		ids[k.Id] = true
	}
	for id, ok := range l.tokens {
		if ok != ids[id] && !l.unsure[id] && !l.unsure[l.user()] {
			t.Errorf("token %s is there: %v, want %v", id, ids[id], ok)
		}
	}
	recorded := l.recorded(ctx, t, v)
	for name, n := range l.count {
		if got := recorded[name]; got < n {
			t.Errorf("the log has %d successful calls of %s, %d were answered", got, name, n)
		}
	}
}

// checkTrust: the authority that was given is there, and a token that was used
// is used.
func (l *ledger) checkTrust(ctx context.Context, t *testing.T, v *victimServer) {
	t.Helper()
	if l.authority == "" {
		return
	}
	got, err := v.trust.GetTrust(ctx, &hanokv1.GetTrustRequest{Cluster: "seoul"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Authorities) != 1 || got.Authorities[0].Fingerprint != l.authority {
		t.Errorf("the authorities are %v, %s was given", got.Authorities, l.authority)
	}
	if l.used == "" {
		return
	}
	_, request, err := pki.NewRequest(pki.Identity{Cluster: "seoul", Host: "host1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.trust.EnrolHost(ctx, &hanokv1.EnrolHostRequest{Token: l.used, Host: "host1", Request: string(request)}); err == nil {
		t.Error("a host's token works twice")
	}
}

// recorded counts the entries of the audit log by method: one that begun and says
// no outcome counts, its server died.
func (l *ledger) recorded(ctx context.Context, t *testing.T, v *victimServer) map[string]int {
	t.Helper()
	n := map[string]int{}
	req := &hanokv1.ListAuditRequest{PageSize: 1000}
	for {
		p, err := v.audit.ListAudit(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			n[e.Method]++
		}
		if req.PageToken = p.NextPageToken; req.PageToken == "" {
			return n
		}
	}
}

// checkEvents: each event of the hosts is there once, or comes within moments.
func (l *ledger) checkEvents(ctx context.Context, t *testing.T, v *victimServer) {
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
