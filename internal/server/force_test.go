package server

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// Whatever admission control may refuse can be forced, and is not stored before.
func TestForce(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	version := func() uint64 { return r.cache.Wanted("seoul").Cluster.Version }
	for _, tt := range []struct {
		name string
		do   func(force bool) (*hanokv1.Task, error)
	}{
		{"PutResource", func(force bool) (*hanokv1.Task, error) {
			out, err := r.ha.PutResource(ctx, &hanokv1.PutResourceRequest{Cluster: "seoul", ExpectedVersion: version(), Force: force, Resource: &hanokv1.Resource{Name: "web", MaxRestart: proto.Int32(3)}})
			return out.GetTask(), err
		}},
		{"RemoveResource", func(force bool) (*hanokv1.Task, error) {
			out, err := r.ha.RemoveResource(ctx, &hanokv1.RemoveResourceRequest{Cluster: "seoul", ExpectedVersion: version(), Force: force, Resource: "web"})
			return out.GetTask(), err
		}},
		{"PutRule", func(force bool) (*hanokv1.Task, error) {
			out, err := r.ha.PutRule(ctx, &hanokv1.PutRuleRequest{Cluster: "seoul", ExpectedVersion: version(), Force: force,
				Rule: &hanokv1.Rule{Name: "near", Kind: "nodeAffinity", Resources: []string{"db"}, Nodes: []*hanokv1.NodeWeight{{Node: "host1", Weight: proto.Int32(1)}}}})
			return out.GetTask(), err
		}},
		{"RemoveRule", func(force bool) (*hanokv1.Task, error) {
			out, err := r.ha.RemoveRule(ctx, &hanokv1.RemoveRuleRequest{Cluster: "seoul", ExpectedVersion: version(), Force: force, Rule: "near"})
			return out.GetTask(), err
		}},
		{"SetFields", func(force bool) (*hanokv1.Task, error) {
			out, err := r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", ExpectedVersion: version(), Force: force,
				Fields: []*hanokv1.FieldValue{{Field: "ha.isolationResponse", Value: "powerOff"}}})
			return out.GetTask(), err
		}},
		{"ApplyConfig", func(force bool) (*hanokv1.Task, error) {
			out, err := r.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{ExpectedVersion: version(), Force: force, Yaml: clusterFile})
			return out.GetTask(), err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, forced := version(), len(r.hosts.Forced())
			r.hosts.SetRefuse(func(*config.Cluster, bool) string { return "no room" })
			_, err := tt.do(false)
			if connect.CodeOf(err) != connect.CodeFailedPrecondition || detailOf[hanokv1.FieldErrors](err) == nil || version() != before {
				t.Fatalf("%v; version %d, was %d", err, version(), before)
			}
			if m := detailOf[hanokv1.Remedy](err); m == nil || !strings.Contains(m.Text, "by force") {
				t.Errorf("remedy %v", m)
			}
			task, err := tt.do(true)
			if err != nil {
				t.Fatal(err)
			}
			r.ends(task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
			if version() != before+1 || len(r.hosts.Forced()) != forced+1 {
				t.Errorf("version %d, was %d; forced by %q", version(), before, r.hosts.Forced())
			}
		})
	}
	t.Run("StartVM", func(t *testing.T) {
		out, err := r.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "db"})
		if err != nil {
			t.Fatal(err)
		}
		if end := r.ends(out.Task, hanokv1.TaskState_TASK_STATE_FAILED); !end.Refused || !strings.Contains(end.Message, "refused: no room; what would help: add a host") {
			t.Errorf("%v", end)
		}
		if out, err = r.ops.StartVM(ctx, &hanokv1.StartVMRequest{Cluster: "seoul", Vm: "db", Force: true}); err != nil {
			t.Fatal(err)
		}
		if end := r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED); end.Refused {
			t.Errorf("%v", end)
		}
	})
	t.Run("AdoptConfig", func(t *testing.T) {
		theirs := parsed(t, strings.Replace(strings.Replace(clusterFile, "version: 1", "version: 50", 1), "groups: [a]", "groups: [c]", 1))
		if err := r.hosts.Apply(theirs); err != nil {
			t.Fatal(err)
		}
		r.until("drift", func() bool { return r.cache.Foreign("seoul") != nil })
		before := version()
		req := &hanokv1.AdoptConfigRequest{Cluster: "seoul", ExpectedVersion: before}
		if _, err := r.conf.AdoptConfig(ctx, req); connect.CodeOf(err) != connect.CodeFailedPrecondition || version() != before {
			t.Fatalf("%v; version %d, was %d", err, version(), before)
		}
		req.Force = true
		out, err := r.conf.AdoptConfig(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	})
}

// PutResource changes what it has: the rest stays, or gets its default by name.
func TestPutResourceKeepsWhatIsLeftOut(t *testing.T) {
	r := newRig(t)
	put := func(x *hanokv1.Resource, defaults ...string) error {
		t.Helper()
		_, err := r.ha.PutResource(t.Context(), &hanokv1.PutResourceRequest{Cluster: "seoul", Resource: x, Defaults: defaults})
		return err
	}
	now := func(name string) string {
		v := r.cache.Wanted("seoul").Cluster.VMByName(name)
		return fmt.Sprintf("%s:%s %s %s %d %d %v", v.Type, v.Name, v.Requested, v.Restart.Priority, v.Restart.MaxRestart, v.Restart.MaxRelocate, v.Restart.Failback)
	}
	for _, tt := range []struct {
		name     string
		x        *hanokv1.Resource
		defaults []string
		want     string // of web, or the error
	}{
		{"all", &hanokv1.Resource{Name: "web", Requested: "stopped", Priority: "high", MaxRestart: proto.Int32(3), MaxRelocate: proto.Int32(2), Failback: proto.Bool(true)}, nil, "vm:web stopped high 3 2 true"},
		{"one", &hanokv1.Resource{Name: "web", Priority: "low"}, nil, "vm:web stopped low 3 2 true"},
		{"zero is a value", &hanokv1.Resource{Name: "web", MaxRestart: proto.Int32(0), Failback: proto.Bool(false)}, nil, "vm:web stopped low 0 2 false"},
		{"no limit is a value", &hanokv1.Resource{Name: "web", MaxRestart: proto.Int32(-1)}, nil, "vm:web stopped low -1 2 false"},
		{"by its id", &hanokv1.Resource{Name: "web", Id: "vm:web", MaxRestart: proto.Int32(4), Failback: proto.Bool(true)}, nil, "vm:web stopped low 4 2 true"},
		{"one default", &hanokv1.Resource{Name: "web", MaxRelocate: proto.Int32(1)}, []string{"maxRestart"}, "vm:web stopped low -1 1 true"},
		{"all defaults", &hanokv1.Resource{Name: "web"}, []string{"requested", "priority", "maxRestart", "maxRelocate", "failback"}, "vm:web started medium -1 -1 false"},
		{"an unknown default", &hanokv1.Resource{Name: "web"}, []string{"priority", "colour"}, `defaults[1]: "colour" is unknown`},
		{"set and default", &hanokv1.Resource{Name: "web", Priority: "low"}, []string{"priority"}, "defaults[0]: priority is set besides"},
		{"another id", &hanokv1.Resource{Name: "web", Id: "vm:db"}, nil, `resource.id: "vm:db" does not belong`},
		{"another type", &hanokv1.Resource{Name: "web", Type: "ct"}, nil, "resource.type: web is vm, not ct"},
		{"a negative limit", &hanokv1.Resource{Name: "web", MaxRestart: proto.Int32(-2)}, nil, "maxRestart"},
		{"without a name", &hanokv1.Resource{}, nil, "resource.name: is required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := put(tt.x, tt.defaults...)
			switch got := now("web"); {
			case err != nil && (connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), tt.want) || detailOf[hanokv1.FieldErrors](err) == nil):
				t.Errorf("%v, want %s", err, tt.want)
			case err == nil && got != tt.want:
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	if err := put(&hanokv1.Resource{Name: "new", Datastore: "ds1", MaxRelocate: proto.Int32(0)}); err != nil || now("new") != "vm:new started medium -1 0 false" {
		t.Errorf("a new one: %s, %v", now("new"), err)
	}
}

const manyOfAll = `version: 1
name: seoul
networks: [{name: mgmt, heartbeat: true}, {name: net2, heartbeat: true}, {name: net3}]
datastores: [{name: ds1}, {name: ds2}, {name: ds3}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1}, memory: 16GiB, datastores: [ds1, ds2, ds3]}
- {name: host2, address: {mgmt: 10.0.0.2}, memory: 16GiB, datastores: [ds1, ds2, ds3]}
- {name: host3, address: {mgmt: 10.0.0.3}, memory: 16GiB, datastores: [ds1, ds2, ds3]}
vms:
- {name: a, datastore: ds1, host: host1, memory: 1GiB}
- {name: b, datastore: ds2, host: host2, memory: 1GiB}
- {name: c, datastore: ds3, host: host3, memory: 1GiB}
rules:
- {name: r3, kind: nodeAffinity, vms: [a], hosts: {host1: 1}}
- {name: r2, kind: nodeAffinity, vms: [b], hosts: {host2: 1}}
- {name: r1, kind: resourceAffinity, vms: [a, c], policy: apart}
`

// asked is a JSON call through the socket.
func (r *rig) asked(m protoreflect.MethodDescriptor, body map[string]any) (int, map[string]json.RawMessage) {
	r.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := overSocket(r.Server).Post("http://server/"+string(m.Parent().FullName())+"/"+string(m.Name()), "application/json", strings.NewReader(string(b)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(text, &out); err != nil {
		r.t.Fatalf("%s: %s", m.Name(), text)
	}
	return resp.StatusCode, out
}

// Every list comes in pages, bounded, whole and in one order.
func TestEveryListHasPages(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, manyOfAll))
	if err != nil {
		t.Fatal(err)
	}
	r := newRigAt(t, hosts, t.TempDir())
	ctx := t.Context()
	out, err := r.conf.ApplyConfig(ctx, &hanokv1.ApplyConfigRequest{Yaml: manyOfAll})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	for i, name := range []string{"kim", "lee", "park"} {
		if _, err := r.book.Add(ctx, name, "correct horse battery", hanokv1.Role_ROLE_VIEWER, nil); err != nil {
			t.Fatal(err)
		}
		_, body := r.asked(methodOf("AuthService", "CreateToken"), map[string]any{"user": name})
		if body["secret"] == nil {
			t.Fatalf("%s", body)
		}
		set, err := r.conf.SetFields(ctx, &hanokv1.SetFieldsRequest{Cluster: "seoul", Fields: []*hanokv1.FieldValue{{Field: "vms[a].restart.maxRestart", Value: fmt.Sprint(i + 1)}}})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(set.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		hosts.Emit("host1", event.Event{Severity: event.Info, Kind: event.Verdict, Host: "host3", Failover: name, Text: "x"})
	}
	filter := map[string]map[string]any{"ListTokens": {"all": true}, "ListConfigVersions": {"cluster": "seoul"}, "ListResources": {"cluster": "seoul"}, "ListRules": {"cluster": "seoul"}, "ListFailovers": {"cluster": "seoul"}}
	fewer := map[string]int{"ListClusters": 1}
	seen := 0
	for _, m := range methods() {
		name := string(m.Name())
		if !strings.HasPrefix(name, "List") {
			continue
		}
		seen++
		t.Run(name, func(t *testing.T) {
			r.t = t
			ask := func(size int, token string) (int, []string, string) {
				body := map[string]any{"pageSize": size, "pageToken": token}
				for k, v := range filter[name] {
					body[k] = v
				}
				status, got := r.asked(m, body)
				var next string
				_ = json.Unmarshal(got["nextPageToken"], &next)
				var list []json.RawMessage
				_ = json.Unmarshal(got[listField(m)], &list)
				var out []string
				for _, x := range list {
					out = append(out, string(x))
				}
				return status, out, next
			}
			for _, bad := range []int{-1, api.MaxPage + 1} {
				if status, _, _ := ask(bad, ""); status != 400 {
					t.Errorf("a page of %d: %d", bad, status)
				}
			}
			if status, _, _ := ask(1, "../"); status != 400 {
				t.Errorf("a token of nothing: %d", status)
			}
			want := 3
			if n, ok := fewer[name]; ok {
				want = n
			}
			r.until("a list at rest, in pages", func() bool {
				_, all, next := ask(api.MaxPage, "")
				if len(all) < want {
					return false
				}
				if next != "" {
					t.Fatalf("a next page after %d", len(all))
				}
				var paged []string
				token := ""
				for {
					_, page, next := ask(2, token)
					if len(page) > 2 || len(page) == 0 {
						t.Fatalf("a page of %d", len(page))
					}
					paged = append(paged, page...)
					if token = next; token == "" {
						break
					}
				}
				_, after, _ := ask(api.MaxPage, "")
				if !slices.Equal(all, after) {
					return false // it moved meanwhile
				}
				if !slices.Equal(all, paged) {
					t.Fatalf("in pages:\n%s\nas a whole:\n%s", strings.Join(paged, "\n"), strings.Join(all, "\n"))
				}
				return true
			})
		})
	}
	if seen < 14 {
		t.Errorf("only %d lists", seen)
	}
}

func methodOf(service, name string) protoreflect.MethodDescriptor {
	for _, m := range methods() {
		if string(m.Parent().Name()) == service && string(m.Name()) == name {
			return m
		}
	}
	panic(service + "/" + name)
}

// listField is the name of the list in an answer.
func listField(m protoreflect.MethodDescriptor) string {
	fields := m.Output().Fields()
	for i := range fields.Len() {
		if fields.Get(i).IsList() {
			return fields.Get(i).JSONName()
		}
	}
	return ""
}
