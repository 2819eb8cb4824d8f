package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// ledger is what the clients of a server that is killed were told, and so must
// be true, and what is under way.
type ledger struct {
	hosts   *fakeagent.Cluster
	step    int
	version uint64                     // of the cluster file, the newest that was answered
	want    *config.Cluster            // its content
	pending *config.Cluster            // what a request that was not answered makes of it
	tasks   map[string]string          // id by idempotency key
	events  map[string]bool            // that the hosts emitted
	ca      struct{ cert, key string } // an authority of one's own
	// authority is the fingerprint of the one that seoul has, hostToken the newest
	// token for a host, used the one that a host used.
	authority, hostToken, used string
	users                      map[string]hanokv1.Role
	secret                     map[string]string // passwords by user
	tokens                     map[string]bool   // by id: those that must work
	unsure                     map[string]bool   // users and tokens that a request was about that was not answered
	count                      map[string]int    // answers by kind
}

func newLedger(t *testing.T, hosts *fakeagent.Cluster) *ledger {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := pki.Init(dir, "seoul", pki.Options{}); err != nil {
		t.Fatal(err)
	}
	l := &ledger{hosts: hosts, tasks: map[string]string{}, events: map[string]bool{}, users: map[string]hanokv1.Role{}, secret: map[string]string{},
		tokens: map[string]bool{}, unsure: map[string]bool{}, count: map[string]int{}}
	for file, to := range map[string]*string{pki.CACert: &l.ca.cert, pki.CAKey: &l.ca.key} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		*to = string(b)
	}
	return l
}

// errNothing: there was nothing to ask for.
var errNothing = errors.New("nothing to do")

// killWrite is one kind of request that writes; do returns nil once it was
// answered.
type killWrite struct {
	name string
	do   func(ctx context.Context, l *ledger, v *victimServer, key string) error
}

// killWrites are all methods of the API that write, in the order in which they
// are called again and again. TestEveryWriteIsKilled compares them with the API.
var killWrites = []killWrite{
	{"ConfigService/ApplyConfig", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		// Without a cluster it is added, as its hosts have it; later this changes
		// it. A stale answer cannot come: nobody else edits.
		yaml := clusterFile
		if l.version > 0 {
			yaml = strings.Replace(clusterFile, "groups: [a]", fmt.Sprintf("groups: [a, g%d]", l.step), 1)
		}
		return l.edit(key, func(*config.Cluster) (*config.Cluster, error) { return config.Parse([]byte(yaml)) }, func() (uint64, *hanokv1.Task, error) {
			out, err := v.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: yaml, ExpectedVersion: l.version, IdempotencyKey: key})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"ConfigService/SetFields", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		value := fmt.Sprintf("%ds", l.step%3000+6)
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) { return c.With("ha.isolationDelay", value) }, func() (uint64, *hanokv1.Task, error) {
			out, err := v.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
				Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: value}}})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"HAService/PutRule", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		weight := l.step%1000 + 1
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			c.Rules = []config.Rule{{Name: "r", Kind: "nodeAffinity", VMs: []string{"web"}, Hosts: map[model.HostID]int{"host1": weight}}}
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.PutRule(ctx, &hanokv1.PutRuleRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
				Rule: &hanokv1.Rule{Name: "r", Kind: "nodeAffinity", Resources: []string{"web"}, Nodes: []*hanokv1.NodeWeight{{Node: "host1", Weight: proto.Int32(int32(weight))}}}})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"HAService/PutResource", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		n := l.step%9 + 1
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			extra := config.NewVM("extra")
			extra.Datastore, extra.Restart.MaxRestart, extra.Restart.MaxRelocate, extra.Restart.Failback = "ds1", n, 1, false
			c.VMs = append(c.VMs, extra)
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.PutResource(ctx, &hanokv1.PutResourceRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
				Resource: &hanokv1.Resource{Name: "extra", Type: "vm", Datastore: "ds1", MaxRestart: proto.Int32(int32(n)), MaxRelocate: proto.Int32(1)}})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"HAService/RemoveResource", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			c.VMs = slices.DeleteFunc(c.VMs, func(v config.VM) bool { return v.Name == "extra" })
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.RemoveResource(ctx, &hanokv1.RemoveResourceRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key, Resource: "extra"})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"OperationService/SetMaintenance", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			c.HostByName("host3").Maintenance = true
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ops.SetMaintenance(ctx, &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host3", On: true, IdempotencyKey: key})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"HAService/RemoveRule", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) { c.Rules = nil; return c, nil }, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.RemoveRule(ctx, &hanokv1.RemoveRuleRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key, Rule: "r"})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{"ConfigService/AdoptConfig", adopt},
	{"OperationService/StopVM", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{"OperationService/StartVM", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{"TaskService/CancelTask", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: key})
		if err := l.ordered(key, out.GetTask(), err); err != nil {
			return err
		}
		if _, err = v.tasks.CancelTask(ctx, &hanokv1.CancelTaskRequest{Task: out.Task.Id}); connect.CodeOf(err) == connect.CodeFailedPrecondition {
			err = nil // it had ended
		}
		return err
	}},
	{"OperationService/UnprotectVM", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.UnprotectVM(ctx, &hanokv1.UnprotectVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{"TrustService/ReplaceAuthority", second},
	{"ConfigService/RemoveCluster", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		_, err := v.conf.RemoveCluster(ctx, &hanokv1.RemoveClusterRequest{Cluster: "busan", ExpectedVersion: 1, IdempotencyKey: key})
		return err
	}},
	{"TrustService/ImportAuthority", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.trust.ImportAuthority(ctx, &hanokv1.ImportAuthorityRequest{Cluster: "seoul", Certificate: l.ca.cert, Key: l.ca.key})
		if err == nil {
			l.authority = out.Fingerprint
		}
		return err
	}},
	{"TrustService/CreateHostToken", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.trust.CreateHostToken(ctx, &hanokv1.CreateHostTokenRequest{Cluster: "seoul", Host: "host1"})
		l.hostToken = out.GetToken()
		return err
	}},
	{"TrustService/EnrolHost", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		_, request, err := pki.NewRequest(pki.Identity{Cluster: "seoul", Host: "host1"})
		if err != nil {
			return connect.NewError(connect.CodeInternal, err)
		}
		_, err = v.trust.EnrolHost(ctx, &hanokv1.EnrolHostRequest{Token: l.hostToken, Host: "host1", Request: string(request)})
		if l.unsure[l.hostToken] && connect.CodeOf(err) == connect.CodePermissionDenied {
			return errNothing // it was used, by the request that was not answered
		}
		return l.known(err, l.hostToken, func() { l.used = l.hostToken })
	}},
	{"UserService/AddUser", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := "u-" + key
		// The last administrator could not be removed: one stays.
		_, err := v.users.AddUser(ctx, &hanokv1.AddUserRequest{Name: keeper, Password: "the one that stays", Role: hanokv1.Role_ROLE_ADMINISTRATOR})
		if err != nil && connect.CodeOf(err) != connect.CodeAlreadyExists {
			return err
		}
		_, err = v.users.AddUser(ctx, &hanokv1.AddUserRequest{Name: name, Password: "first of " + key, Role: hanokv1.Role_ROLE_VIEWER})
		if connect.CodeOf(err) == connect.CodeAlreadyExists {
			err = nil // of the server before
		}
		return l.known(err, name, func() { l.users[name], l.secret[name] = hanokv1.Role_ROLE_VIEWER, "first of "+key })
	}},
	{"UserService/SetRoles", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.SetRoles(ctx, &hanokv1.SetRolesRequest{Name: name, Role: hanokv1.Role_ROLE_OPERATOR})
		return l.known(err, name, func() { l.users[name] = hanokv1.Role_ROLE_OPERATOR })
	}},
	{"UserService/SetPassword", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.SetPassword(ctx, &hanokv1.SetPasswordRequest{Name: name, Password: "second of " + key})
		return l.known(err, name, func() { l.secret[name] = "second of " + key })
	}},
	{"AuthService/CreateToken", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.auth.CreateToken(ctx, &hanokv1.CreateTokenRequest{User: l.user(), Note: key})
		if err == nil {
			l.tokens[out.Token.Id] = true
		}
		return err // one without an answer is a token that nobody has
	}},
	{"AuthService/RevokeToken", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		id := l.token()
		if id == "" {
			return errNothing
		}
		_, err := v.auth.RevokeToken(ctx, &hanokv1.RevokeTokenRequest{Id: id})
		if connect.CodeOf(err) == connect.CodeNotFound {
			err = nil
		}
		return l.known(err, id, func() { l.tokens[id] = false })
	}},
	{"AuthService/Login", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		_, err := login(ctx, l, v)
		return err
	}},
	{"AuthService/ChangePassword", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name, next := l.user(), "third of "+key
		if l.unsure[name] { // the request before may have been carried out: begin anew
			if _, err := v.users.SetPassword(ctx, &hanokv1.SetPasswordRequest{Name: name, Password: l.secret[name]}); err != nil {
				return err
			}
		}
		as, err := login(ctx, l, v)
		if err != nil {
			return err
		}
		_, err = as.ChangePassword(ctx, &hanokv1.ChangePasswordRequest{OldPassword: l.secret[name], NewPassword: next})
		return l.known(err, name, func() { l.secret[name] = next })
	}},
	{"AuthService/Logout", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		as, err := login(ctx, l, v)
		if err != nil {
			return err
		}
		_, err = as.Logout(ctx, &hanokv1.LogoutRequest{})
		return err
	}},
	{"UserService/RemoveUser", func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.RemoveUser(ctx, &hanokv1.RemoveUserRequest{Name: name})
		if connect.CodeOf(err) == connect.CodeNotFound {
			err = nil
		}
		return l.known(err, name, func() { delete(l.users, name); l.tokens = map[string]bool{} })
	}},
}

// keeper is an administrator that is never removed.
const keeper = "keeper"

// notKilled are methods that write, and why the kills are without them.
var notKilled = map[string]string{
	"AuthService/SetUp": "works once in the life of a server; package account has several at the same time",
}

// act makes one request; false: the server died before it answered.
func (l *ledger) act(t *testing.T, v *victimServer) bool {
	t.Helper()
	key := fmt.Sprintf("k%d", l.step)
	by := model.HostID(fmt.Sprintf("host%d", l.step%3+1))
	l.events[l.hosts.Emit(by, event.Event{Severity: event.Info, Kind: event.VMUp, Text: key})] = true
	w := killWrites[l.step%len(killWrites)]
	err := w.do(t.Context(), l, v, key)
	if errors.Is(err, errNothing) {
		l.step++
		return true
	}
	if err != nil {
		if c := connect.CodeOf(err); c != connect.CodeUnavailable && c != connect.CodeUnknown && c != connect.CodeCanceled {
			t.Errorf("step %d, %s: %v", l.step, w.name, err)
		}
		return false
	}
	l.count[w.name]++
	l.step++
	return true
}

// next is the kind of request that is made next, or was not answered.
func (l *ledger) next() string { return killWrites[l.step%len(killWrites)].name }

// busan: the second cluster may be there.
func (l *ledger) busan() bool {
	n := l.next()
	return n == "TrustService/ReplaceAuthority" || n == "ConfigService/RemoveCluster"
}

// edit makes a change of the cluster file, and notes what it makes of it.
func (l *ledger) edit(key string, next func(*config.Cluster) (*config.Cluster, error), do func() (uint64, *hanokv1.Task, error)) error {
	var before *config.Cluster
	if l.want != nil {
		before = l.want.Clone()
	}
	c, err := next(before)
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	l.pending = c
	version, task, err := do()
	if err != nil {
		return err
	}
	if version < l.version || version == l.version && l.want != nil && len(config.Diff(l.want, c)) > 0 {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("version %d after %d", version, l.version))
	}
	l.version, l.want, l.pending = version, c, nil
	l.tasks[key] = task.GetId()
	return nil
}

// ordered notes the task of an order.
func (l *ledger) ordered(key string, task *hanokv1.Task, err error) error {
	if connect.CodeOf(err) == connect.CodeNotFound {
		return errNothing // the VM was not reported yet
	}
	if err == nil {
		l.tasks[key] = task.GetId()
	}
	return err
}

// known notes an answer about a user or token, or that there was none.
func (l *ledger) known(err error, about string, then func()) error {
	l.unsure[about] = err != nil
	if err == nil {
		then()
	}
	return err
}

// user is the user of this round: added at its beginning, removed at its end.
func (l *ledger) user() string {
	for name := range l.users {
		return name
	}
	return ""
}

func (l *ledger) token() string {
	for id, ok := range l.tokens {
		if ok {
			return id
		}
	}
	return ""
}

// login logs the user of this round in over the network.
func login(ctx context.Context, l *ledger, v *victimServer) (hanokv1connect.AuthServiceClient, error) {
	c := hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at())
	name := l.user()
	out, err := c.Login(ctx, &hanokv1.LoginRequest{User: name, Password: l.secret[name], WantToken: true})
	if err != nil {
		return nil, err
	}
	return hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at(), connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set("Authorization", "Bearer "+out.Token)
			return next(ctx, r)
		}
	}))), nil
}

// adopt has a host's change of the cluster file taken over.
func adopt(ctx context.Context, l *ledger, v *victimServer, key string) error {
	theirs := l.want.Clone()
	theirs.HostByName("host2").Groups = []string{"b", fmt.Sprintf("h%d", l.step)}
	if l.pending == nil {
		theirs.Version = max(l.hosts.Version(), l.version) + 1
		if err := l.hosts.Apply(theirs); err != nil {
			return connect.NewError(connect.CodeInternal, err)
		}
	}
	for { // the server notices
		c, err := v.inv.GetCluster(ctx, &hanokv1.GetClusterRequest{Cluster: "seoul"})
		if err != nil {
			return err
		}
		got, err := v.conf.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: "seoul"})
		if err != nil {
			return err
		}
		if c.Cluster.Drift.GetForeign() || got.Config.Version > l.version { // or has adopted it before its death
			break
		}
	}
	return l.edit(key, func(*config.Cluster) (*config.Cluster, error) { return theirs, nil }, func() (uint64, *hanokv1.Task, error) {
		out, err := v.conf.AdoptConfig(ctx, &hanokv1.AdoptConfigRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key})
		return out.GetVersion(), out.GetTask(), err
	})
}

// second adds another cluster, whose hosts answer nobody, and begins to replace
// its authority, until it is removed.
func second(ctx context.Context, l *ledger, v *victimServer, key string) error {
	yaml := strings.Replace(clusterFile, "name: seoul", "name: busan", 1)
	if _, err := v.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: yaml, IdempotencyKey: key + "-add"}); err != nil {
		return err
	}
	// It has an authority as soon as a host is to be enrolled.
	if _, err := v.trust.CreateHostToken(ctx, &hanokv1.CreateHostTokenRequest{Cluster: "busan", Host: "host1"}); err != nil {
		return err
	}
	_, err := v.trust.ReplaceAuthority(ctx, &hanokv1.ReplaceAuthorityRequest{Cluster: "busan", IdempotencyKey: key})
	return err
}

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
	if drifts := l.next() == "ConfigService/AdoptConfig"; !drifts && (l.hosts.Version() != c.Version || l.hosts.Digest() != c.Digest) {
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
	if err != nil || list.Versions[0].Version != got.Config.Version || list.Versions[0].Digest != got.Config.Digest {
		t.Fatalf("the newest entry is not the wanted version: %v", err)
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
	for name, n := range l.count {
		if got := l.recorded(ctx, t, v, name); got < n {
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

// recorded counts the entries of the audit log that say that a method was
// carried out.
func (l *ledger) recorded(ctx context.Context, t *testing.T, v *victimServer, method string) int {
	t.Helper()
	n := 0
	req := &hanokv1.ListAuditRequest{Method: method, PageSize: 1000}
	for {
		p, err := v.audit.ListAudit(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		n += len(p.Entries) // one that begun and says no outcome counts: its server died
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

// Every method that writes is among those during which the server is killed.
func TestEveryWriteIsKilled(t *testing.T) {
	covered := map[string]bool{}
	for _, w := range killWrites {
		covered[w.name] = true
	}
	for _, m := range methods() {
		name := string(m.Parent().Name()) + "/" + string(m.Name())
		if _, without := notKilled[name]; writes(m) && covered[name] == without {
			t.Errorf("%s writes: it belongs into killWrites, or into notKilled with the reason", name)
		}
		if !writes(m) && covered[name] {
			t.Errorf("%s writes nothing", name)
		}
	}
}
