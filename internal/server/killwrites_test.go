package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// killWrite is one kind of request that writes; do returns nil once it was
// answered.
type killWrite struct {
	name string
	// refuses: the hosts refuse what is asked for, and the version before is wanted
	// again.
	refuses bool
	do      func(ctx context.Context, l *ledger, v *victimServer, key string) error
}

// killWrites are all methods of the API that write, in the order in which they
// are called again and again. TestEveryWriteIsKilled compares them with the API.
var killWrites = []killWrite{
	{name: "ConfigService/ApplyConfig", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "ConfigService/SetFields", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		value := fmt.Sprintf("%ds", l.step%3000+6)
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) { return c.With("ha.isolationDelay", value) }, func() (uint64, *hanokv1.Task, error) {
			out, err := v.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key,
				Fields: []*hanokv1.FieldValue{{Field: "ha.isolationDelay", Value: value}}})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{name: "HAService/PutRule", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "HAService/PutResource", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "HAService/RemoveResource", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			c.VMs = slices.DeleteFunc(c.VMs, func(v config.VM) bool { return v.Name == "extra" })
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.RemoveResource(ctx, &hanokv1.RemoveResourceRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key, Resource: "extra"})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{name: "OperationService/SetMaintenance", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
			c.HostByName("host3").Maintenance = true
			return c, nil
		}, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ops.SetMaintenance(ctx, &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host3", On: true, IdempotencyKey: key})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{name: "OperationService/SetMaintenance", refuses: true, do: refused},
	{name: "OperationService/SetMaintenance", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.maintenance(ctx, v, key, true) // by force
	}},
	{name: "OperationService/SetMaintenance", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.maintenance(ctx, v, key, false)
	}},
	{name: "HAService/RemoveRule", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) { c.Rules = nil; return c, nil }, func() (uint64, *hanokv1.Task, error) {
			out, err := v.ha.RemoveRule(ctx, &hanokv1.RemoveRuleRequest{Cluster: "seoul", ExpectedVersion: l.version, IdempotencyKey: key, Rule: "r"})
			return out.GetVersion(), out.GetTask(), err
		})
	}},
	{name: "ConfigService/AdoptConfig", do: adopt},
	{name: "OperationService/StopVM", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{name: "OperationService/StartVM", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "web", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{name: "TaskService/CancelTask", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.StopVM(ctx, &hanokv1.StopVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: key})
		if err := l.ordered(key, out.GetTask(), err); err != nil {
			return err
		}
		if _, err = v.tasks.CancelTask(ctx, &hanokv1.CancelTaskRequest{Task: out.Task.Id}); connect.CodeOf(err) == connect.CodeFailedPrecondition {
			err = nil // it had ended
		}
		return err
	}},
	{name: "OperationService/UnprotectVM", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.ops.UnprotectVM(ctx, &hanokv1.UnprotectVMRequest{Cluster: "seoul", Vm: "db", IdempotencyKey: key})
		return l.ordered(key, out.GetTask(), err)
	}},
	{name: "TrustService/ReplaceAuthority", do: second},
	{name: "ConfigService/RemoveCluster", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		_, err := v.conf.RemoveCluster(ctx, &hanokv1.RemoveClusterRequest{Cluster: "busan", ExpectedVersion: 1, IdempotencyKey: key})
		return err
	}},
	{name: "TrustService/ImportAuthority", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		if l.used != "" || l.unsure[l.hostToken] {
			return errNothing // a host has a certificate: the authority is replaced from now on, not given
		}
		out, err := v.trust.ImportAuthority(ctx, &hanokv1.ImportAuthorityRequest{Cluster: "seoul", Certificate: l.ca.cert, Key: l.ca.key})
		if err == nil {
			l.authority = out.Fingerprint
		}
		return err
	}},
	{name: "TrustService/CreateHostToken", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.trust.CreateHostToken(ctx, &hanokv1.CreateHostTokenRequest{Cluster: "seoul", Host: "host1"})
		l.hostToken = out.GetToken()
		return err
	}},
	{name: "TrustService/EnrolHost", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		if l.count["TrustService/ImportAuthority"] < importRounds {
			return errNothing
		}
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
	{name: "UserService/AddUser", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "UserService/SetRoles", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.SetRoles(ctx, &hanokv1.SetRolesRequest{Name: name, Role: hanokv1.Role_ROLE_OPERATOR})
		return l.known(err, name, func() { l.users[name] = hanokv1.Role_ROLE_OPERATOR })
	}},
	{name: "UserService/SetPassword", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.SetPassword(ctx, &hanokv1.SetPasswordRequest{Name: name, Password: "second of " + key})
		return l.known(err, name, func() { l.secret[name] = "second of " + key })
	}},
	{name: "AuthService/CreateToken", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		out, err := v.auth.CreateToken(ctx, &hanokv1.CreateTokenRequest{User: l.user(), Note: key})
		if err == nil {
			l.tokens[out.Token.Id] = true
		}
		return err // one without an answer is a token that nobody has
	}},
	{name: "AuthService/RevokeToken", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "AuthService/Login", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		_, err := login(ctx, l, v)
		return err
	}},
	{name: "AuthService/ChangePassword", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
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
	{name: "AuthService/Logout", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		as, err := login(ctx, l, v)
		if err != nil {
			return err
		}
		_, err = as.Logout(ctx, &hanokv1.LogoutRequest{})
		return err
	}},
	{name: "UserService/RemoveUser", do: func(ctx context.Context, l *ledger, v *victimServer, key string) error {
		name := l.user()
		_, err := v.users.RemoveUser(ctx, &hanokv1.RemoveUserRequest{Name: name})
		if connect.CodeOf(err) == connect.CodeNotFound {
			err = nil
		}
		return l.known(err, name, func() { delete(l.users, name); l.tokens = map[string]bool{} })
	}},
}

// importRounds is how often an authority is given before the first host is enrolled
// under it.
const importRounds = 5

// keeper is an administrator that is never removed.
const keeper = "keeper"

// notKilled are methods that write, and why the kills are without them.
var notKilled = map[string]string{
	"AuthService/SetUp": "works once in the life of a server: see TestSetUpIsKilled",
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

// refused asks for what the hosts refuse only when they get it, and waits until it
// is taken back.
func refused(ctx context.Context, l *ledger, v *victimServer, key string) error {
	l.pending = l.want.Clone()
	l.pending.HostByName("host2").Maintenance = true
	out, err := v.ops.SetMaintenance(ctx, &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host2", On: true, IdempotencyKey: key})
	if err != nil {
		return err
	}
	for {
		got, err := v.tasks.GetTask(ctx, &hanokv1.GetTaskRequest{Task: out.Task.Id})
		if err != nil {
			return err
		}
		if got.Task.Finished == nil {
			continue
		}
		if got.Task.State != hanokv1.TaskState_TASK_STATE_FAILED || !strings.HasPrefix(got.Task.Message, "refused: ") {
			return connect.NewError(connect.CodeInternal, fmt.Errorf("what is refused ended as %v", got.Task))
		}
		l.tasks[key], l.pending = out.Task.Id, nil
		return nil
	}
}

// maintenance takes host2 away, by force, or lets it come back.
func (l *ledger) maintenance(ctx context.Context, v *victimServer, key string, on bool) error {
	return l.edit(key, func(c *config.Cluster) (*config.Cluster, error) {
		c.HostByName("host2").Maintenance = on
		return c, nil
	}, func() (uint64, *hanokv1.Task, error) {
		out, err := v.ops.SetMaintenance(ctx, &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host2", On: on, Force: on, IdempotencyKey: key})
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
