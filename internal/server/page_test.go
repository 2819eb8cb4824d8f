package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// pageFile has hosts out of order, three datastores of which one has no VM, a
// container, and rules of all kinds; two of them contradict older ones.
const pageFile = `version: 1
name: seoul
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1}, {name: ds2}, {name: spare}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1}, memory: 16GiB, datastores: [ds1, ds2, spare], groups: [a]}
- {name: host3, address: {mgmt: 10.0.0.3}, memory: 16GiB, datastores: [ds1, ds2, spare], groups: [b]}
- {name: host2, address: {mgmt: 10.0.0.2}, memory: 16GiB, datastores: [ds1, ds2, spare], groups: [b]}
vms:
- {name: web, datastore: ds1, host: host1, memory: 1GiB, restart: {maxRestart: 2, maxRelocate: 0}}
- {name: db, datastore: ds2, host: host2, memory: 1GiB}
- {name: dns, type: ct, datastore: ds1, host: host1, memory: 512MiB}
rules:
- {name: spread, kind: resourceAffinity, vms: [web, db], policy: apart}
- {name: near, kind: nodeAffinity, vms: [web], hosts: {host1: 5, host2: 0, host3: 5}}
- {name: pinned, kind: nodeAffinity, vms: [db], hosts: {host2: 1}, strict: true}
- {name: pair, kind: resourceAffinity, vms: [web, db], policy: together}
- {name: elsewhere, kind: nodeAffinity, vms: [db], hosts: {host1: 1}, strict: true}
- {name: licence, kind: vmHost, vms: [dns], hostGroups: [a], must: true}
`

// pageRig is a server beside the hosts of a file, which report what a test says.
func pageRig(t *testing.T, file string) *rig {
	t.Helper()
	hosts, err := fakeagent.New(parsed(t, file))
	if err != nil {
		t.Fatal(err)
	}
	hosts.SetReports(homes)
	r := newRigAt(t, hosts, t.TempDir())
	out, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: file})
	if err != nil {
		t.Fatal(err)
	}
	r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	return r
}

// homes counts the VMs of each datastore, as hosts do.
func homes(s *local.Status) {
	for i := range s.Datastores {
		d := &s.Datastores[i]
		d.VMs = 0
		for _, v := range s.VMs {
			if v.Protected && v.Datastore == d.Name {
				d.VMs++
			}
		}
	}
}

// The sentences about the control row and the nodes of the agent status page, one
// by one, as the API tells them.
func TestRowsOfTheStatusPage(t *testing.T) {
	r := pageRig(t, pageFile)
	store := func(s *local.Status, name string) *local.Datastore {
		i := slices.IndexFunc(s.Datastores, func(d local.Datastore) bool { return string(d.Name) == name })
		return &s.Datastores[i]
	}
	const (
		active1 = "host1 LRM active active active green"
		active2 = "host2 LRM active active active green"
		idle3   = "host3 LRM active wait_for_agent_lock idle grey"
	)
	host := func(name string, change func(*local.Host)) func(*local.Status) {
		return func(s *local.Status) { change(s.HostByName(model.HostID(name))) }
	}
	state := func(name string, st model.HostState) func(*local.Status) {
		return host(name, func(h *local.Host) { h.State = st })
	}
	for _, tt := range []struct {
		name    string
		report  func(*local.Status)
		control string // node state colour
		reason  string // part of the control row's
		agents  [3]string
		why     string // part of a node's reason
	}{
		{name: "every datastore with protected VMs has a current primary", control: "host1 quorum OK green", agents: [3]string{active1, active2, idle3}},
		{name: "one without VMs may have none", report: func(s *local.Status) { store(s, "spare").Owner = "" }, control: "host1 quorum OK green", agents: [3]string{active1, active2, idle3}},
		{name: "one without VMs may have another", report: func(s *local.Status) { store(s, "spare").Owner = "host2" }, control: "host1 quorum OK green", agents: [3]string{active1, active2, idle3}},
		{name: "some", report: func(s *local.Status) { store(s, "ds2").Owner = "" }, control: "host1 partial amber", reason: "list of ds2", agents: [3]string{active1, active2, idle3}},
		{name: "some: it is another's", report: func(s *local.Status) { store(s, "ds1").Owner = "host3" }, control: "host1 partial amber", reason: "list of ds1", agents: [3]string{active1, active2, idle3}},
		{name: "some: nobody has counted its VMs", report: func(s *local.Status) { store(s, "ds2").Owner, store(s, "ds2").VMs = "", 0 }, control: "host1 partial amber", reason: "list of ds2", agents: [3]string{active1, active2, idle3}},
		{name: "none", report: func(s *local.Status) { store(s, "ds1").Owner, store(s, "ds2").Owner = "", "" }, control: "host1 No Quorum red", reason: "HA cannot act", agents: [3]string{active1, active2, idle3}},
		{name: "no primary", report: func(s *local.Status) { s.Primary = ""; s.HostByName("host1").State = model.HostElection }, control: " No Quorum red", reason: "HA cannot act",
			agents: [3]string{"host1 LRM active wait_for_agent_lock idle grey", active2, idle3}},
		{name: "HA is off", report: func(s *local.Status) { s.HA = false }, control: "host1 partial amber", reason: "HA is off",
			agents: [3]string{"host1 LRM HA off wait_for_agent_lock idle grey", "host2 LRM HA off wait_for_agent_lock idle grey", "host3 LRM HA off wait_for_agent_lock idle grey"}},
		{name: "a lost lease", report: host("host2", func(h *local.Host) { h.Leases[1].OK = false }), control: "host1 quorum OK green",
			agents: [3]string{active1, "host2 LRM active lost_agent_lock lost lock red", idle3}, why: "no lease on every datastore"},
		{name: "no guard", report: host("host3", func(h *local.Host) { h.Guard = false }), control: "host1 quorum OK green",
			agents: [3]string{active1, active2, "host3 LRM active lost_agent_lock lost lock red"}, why: "no lease on every datastore"},
		{name: "failed", report: host("host2", func(h *local.Host) { h.State, h.Reason = model.HostFailed, "silent" }), control: "host1 quorum OK green",
			agents: [3]string{active1, "host2 LRM active lost_agent_lock lost lock red", idle3}, why: "silent"},
		{name: "isolated", report: state("host2", model.HostIsolated), control: "host1 quorum OK green", agents: [3]string{active1, "host2 LRM active lost_agent_lock lost lock red", idle3}},
		{name: "partitioned", report: state("host2", model.HostPartitioned), control: "host1 quorum OK green", agents: [3]string{active1, "host2 LRM active lost_agent_lock lost lock red", idle3}},
		{name: "standby", report: state("host3", model.HostStandby), control: "host1 quorum OK green", agents: [3]string{active1, active2, idle3}},
		{name: "election", report: state("host2", model.HostElection), control: "host1 quorum OK green", agents: [3]string{active1, "host2 LRM active wait_for_agent_lock idle grey", idle3}},
		{name: "the agent does not answer", report: state("host2", model.HostAgentUnreachable), control: "host1 quorum OK green", agents: [3]string{active1, "host2 LRM active error error red", idle3}},
		{name: "the agent cannot work", report: state("host3", model.HostInitError), control: "host1 quorum OK green", agents: [3]string{active1, active2, "host3 LRM active error error red"}},
		{name: "quarantine", report: state("host3", model.HostQuarantine), control: "host1 quorum OK green", agents: [3]string{active1, active2, "host3 LRM active error error red"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			r.hosts.SetReports(func(s *local.Status) {
				homes(s)
				if tt.report != nil {
					tt.report(s)
				}
			})
			var got string
			want := fmt.Sprintf("%s CRM (master node) Control\n%s", tt.control, strings.Join(tt.agents[:], "\n"))
			var p *hanokv1.GetHAStatusResponse
			r.untilElse(tt.name, func() string { return "got\n" + got + "\nwant\n" + want }, func() bool {
				var err error
				if p, err = r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "seoul"}); err != nil {
					t.Fatal(err)
				}
				c := p.Control
				got = fmt.Sprintf("%s %s %s %s %s", c.Node, c.State, c.Colour, c.Role, c.Service)
				reasons := ""
				for _, a := range p.Agents {
					got += fmt.Sprintf("\n%s %s %s %s %s %s", a.Node, a.Role, a.Service, a.State, a.Name, a.Colour)
					reasons += a.Reason
				}
				// What the server shows is what a host shows of itself.
				own, err := r.ownPage()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(own, p, protocmp.Transform(), protocmp.IgnoreFields(p, "resume_token")); diff != "" {
					got += "\nthe hosts' own (-), and the server's (+):\n" + diff
				}
				return got == want && strings.Contains(c.Reason, tt.reason) && (c.Reason == "") == (tt.reason == "") && strings.Contains(reasons, tt.why)
			})
		})
	}
	t.Run("maintenance", func(t *testing.T) {
		r.t = t
		r.hosts.SetReports(homes)
		out, err := r.ops.SetMaintenance(t.Context(), &hanokv1.SetMaintenanceRequest{Cluster: "seoul", Host: "host3", On: true})
		if err != nil {
			t.Fatal(err)
		}
		r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		p, err := r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
		if err != nil || p.Agents[2].Service != "maintenance" || p.Agents[2].Colour != "grey" {
			t.Errorf("%v, %v", p.GetAgents(), err)
		}
	})
	t.Run("no host can be asked", func(t *testing.T) {
		r.t = t
		r.hosts.SetDown(true)
		r.until("no quorum", func() bool {
			p, err := r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
			return err == nil && p.Control.State == "No Quorum" && p.Control.Colour == "red" && p.Control.Reason != "" && len(p.Agents) == 3 &&
				strings.HasPrefix(p.Agents[0].Reason, "as last reported: ")
		})
	})
	if _, err := r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "soul"}); connect.CodeOf(err) != connect.CodeNotFound || detailOf[hanokv1.Remedy](err) == nil {
		t.Errorf("an unknown cluster: %v", err) // the message beside the retry button
	}
}

// The sentences about resources: what is shown, added, edited and removed.
func TestResourcesOfTheStatusPage(t *testing.T) {
	r := pageRig(t, pageFile)
	ctx := t.Context()
	show := func() (out []string) {
		p, err := r.ha.GetHAStatus(ctx, &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range p.Resources {
			out = append(out, fmt.Sprintf("%s %s %s %s %s %d %d %v", x.Id, x.Node, x.Type, x.Name, x.State, x.GetMaxRestart(), x.GetMaxRelocate(), x.GetFailback()))
		}
		return out
	}
	want := func(lines ...string) {
		t.Helper()
		r.untilElse("the resources", func() string { return strings.Join(show(), "\n") }, func() bool { return slices.Equal(show(), lines) })
	}
	put := func(x *hanokv1.Resource) error {
		out, err := r.ha.PutResource(ctx, &hanokv1.PutResourceRequest{Cluster: "seoul", Resource: x})
		if err == nil {
			r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
		}
		return err
	}
	const db, dns, web = "vm:db host2 vm db started -1 -1 false", "ct:dns host1 ct dns started -1 -1 false", "vm:web host1 vm web started 2 0 false"
	want(db, dns, web)
	// Add: one that no host runs yet, of the other type.
	if err := put(&hanokv1.Resource{Id: "ct:log", Type: "ct", Name: "log", Datastore: "ds2", MaxRestart: proto.Int32(1), Failback: proto.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	want(db, dns, "ct:log  ct log started 1 -1 true", web)
	// Edit: the id stays.
	if err := put(&hanokv1.Resource{Id: "vm:db", Name: "db", MaxRelocate: proto.Int32(4)}); err != nil {
		t.Fatal(err)
	}
	want("vm:db host2 vm db started -1 4 false", dns, "ct:log  ct log started 1 -1 true", web)
	for _, x := range []*hanokv1.Resource{{Id: "ct:db", Type: "ct", Name: "db"}, {Id: "vm:other", Name: "db"}} {
		if err := put(x); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("the id became %s: %v", x.Id, err)
		}
	}
	// Where it runs, and how, is what the hosts report.
	r.hosts.SetVM(0, func(v *local.VM) { v.Host, v.State = "host3", model.VMStopped })
	want("vm:db host2 vm db started -1 4 false", dns, "ct:log  ct log started 1 -1 true", "vm:web host3 vm web stopped 2 0 false")
	// Remove: its settings go, what hosts report of it stays.
	for _, name := range []string{"log", "web"} {
		out, err := r.ha.RemoveResource(ctx, &hanokv1.RemoveResourceRequest{Cluster: "seoul", Resource: name})
		if name == "web" { // rules name it
			if f := detailOf[hanokv1.FieldErrors](err); connect.CodeOf(err) != connect.CodeInvalidArgument || f == nil {
				t.Errorf("a resource of rules was removed: %v, %v", out, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		r.ends(out.Task, hanokv1.TaskState_TASK_STATE_SUCCEEDED)
	}
	want("vm:db host2 vm db started -1 4 false", dns, "vm:web host3 vm web stopped 2 0 false")
	if _, err := r.ha.RemoveResource(ctx, &hanokv1.RemoveResourceRequest{Cluster: "seoul", Resource: "log"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("removed twice: %v", err)
	}
}

// The sentences about affinity: both kinds of rules, with what contradicts what.
func TestRulesOfTheStatusPage(t *testing.T) {
	r := pageRig(t, pageFile)
	p, err := r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
	if err != nil {
		t.Fatal(err)
	}
	line := func(x *hanokv1.Rule) string {
		out := x.Name + " " + strings.Join(x.Resources, ",")
		for _, n := range x.Nodes {
			if n.Weight == nil {
				t.Errorf("%s: the weight of %s is not shown", x.Name, n.Node)
			}
			out += fmt.Sprintf(" %s:%d", n.Node, n.GetWeight())
		}
		out += fmt.Sprintf(" strict=%v %s", x.Strict, x.Policy)
		for _, k := range x.Conflicts {
			out += " disabled by " + strings.Join(k.Rules, ",")
		}
		return out
	}
	var got []string
	for _, list := range [][]*hanokv1.Rule{p.NodeRules, p.ResourceRules, p.HostRules} {
		for _, x := range list {
			got = append(got, line(x))
		}
	}
	want := []string{
		"near web host1:5 host3:5 host2:0 strict=false ",
		"pinned db host2:1 strict=true ",
		"elsewhere db host1:1 strict=true  disabled by pinned,elsewhere",
		"spread web,db strict=false apart",
		"pair web,db strict=false together disabled by spread,pair",
		"licence dns strict=false ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// A weight of 0 is there in JSON, too.
	if _, body := r.asked(methodOf("HAService", "ListRules"), map[string]any{"cluster": "seoul", "kind": "nodeAffinity"}); !strings.Contains(strings.ReplaceAll(string(body["rules"]), " ", ""), `{"node":"host2","weight":0}`) {
		t.Errorf("%s", body["rules"])
	}
	// A rule that is put keeps its age, and says what it contradicts; one that is
	// removed sets free what it disabled.
	out, err := r.ha.PutRule(t.Context(), &hanokv1.PutRuleRequest{Cluster: "seoul", Rule: &hanokv1.Rule{Name: "pinned", Kind: "nodeAffinity", Resources: []string{"db"}, Strict: true,
		Nodes: []*hanokv1.NodeWeight{{Node: "host3"}}}})
	if err != nil || len(out.Conflicts) != 2 {
		t.Fatalf("%v, %v", out, err)
	}
	for _, rule := range []string{"pinned", "spread"} {
		if _, err := r.ha.RemoveRule(t.Context(), &hanokv1.RemoveRuleRequest{Cluster: "seoul", Rule: rule}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := r.ha.ListRules(t.Context(), &hanokv1.ListRulesRequest{Cluster: "seoul"})
	if err != nil || len(list.Rules) != 4 || slices.ContainsFunc(list.Rules, func(x *hanokv1.Rule) bool { return (x.Name == "elsewhere") && len(x.Conflicts) > 0 }) {
		t.Errorf("%v, %v", list, err)
	}
}

// A cluster that no host has reported on yet still has its nodes.
func TestPageBeforeAnyReport(t *testing.T) {
	hosts, err := fakeagent.New(parsed(t, pageFile))
	if err != nil {
		t.Fatal(err)
	}
	hosts.SetDown(true)
	r := newRigAt(t, hosts, t.TempDir())
	if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: pageFile}); err != nil {
		t.Fatal(err)
	}
	p, err := r.ha.GetHAStatus(t.Context(), &hanokv1.GetHAStatusRequest{Cluster: "seoul"})
	if err != nil || p.Control.State != "No Quorum" || len(p.Agents) != 3 || len(p.Resources) != 3 || p.Resources[0].Node != "host2" {
		t.Errorf("%v, %v", p, err)
	}
}

// ownPage is the page as the primary itself makes it from what it knows.
func (r *rig) ownPage() (*hanokv1.GetHAStatusResponse, error) {
	dial := fakeagent.Dial(func(string) *fakeagent.Cluster { return r.hosts })
	file := r.cache.Wanted("seoul").Cluster
	a, err := dial(file, "host1")
	if err != nil {
		return nil, err
	}
	defer a.Close()
	s, err := a.Status(r.t.Context())
	if err != nil {
		return nil, err
	}
	return api.Page(file, api.AccountOf(file, s)), nil
}
