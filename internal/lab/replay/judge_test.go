package replay

import (
	"errors"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

const cluster = `-- cluster.yaml --
version: 1
name: c
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1}]
hosts:
- {name: a, datastores: [ds1], address: {mgmt: 10.0.0.1}}
- {name: b, datastores: [ds1], address: {mgmt: 10.0.0.2}}
vms:
- {name: web, datastore: ds1}
- {name: idle, datastore: ds1, requested: stopped}
-- script --
`

func parse(t *testing.T, script string) *scenario.Scenario {
	t.Helper()
	s, err := scenario.Parse([]byte(cluster + script + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJudge(t *testing.T) {
	on := func(hosts ...string) []observer.Instance {
		var out []observer.Instance
		for _, h := range hosts {
			out = append(out, observer.Instance{Host: h})
		}
		return out
	}
	frozen := []observer.Instance{{Host: "a", Frozen: true}}
	paused := []observer.Instance{{Host: "a", Paused: true}}
	tests := []struct {
		expect string
		web    lab.VMStatus
		want   bool
	}{
		{"web on a", lab.VMStatus{Instances: on("a")}, true},
		{"web on a", lab.VMStatus{Instances: on("b")}, false},
		{"web on a", lab.VMStatus{Instances: on("a", "b")}, false},
		{"web on a", lab.VMStatus{Instances: frozen}, false},
		{"web not-on b", lab.VMStatus{Instances: on("a")}, true},
		{"web not-on a", lab.VMStatus{Instances: on("a")}, false},
		{"web not-on a", lab.VMStatus{}, false},
		{"web running", lab.VMStatus{Instances: paused}, false},
		{"web running", lab.VMStatus{Instances: on("b")}, true},
		{"web down", lab.VMStatus{}, true},
		{"web down", lab.VMStatus{Instances: frozen}, false},
		{`web down because "no host"`, lab.VMStatus{Reason: "there is no host for it"}, true},
		{`web down because "no host"`, lab.VMStatus{Reason: "other"}, false},
		{"web frozen", lab.VMStatus{Instances: frozen}, true},
		{"web frozen", lab.VMStatus{Instances: on("a")}, false},
		{"all protected", lab.VMStatus{Protected: true}, true}, // "idle" is not to run
		{"all protected", lab.VMStatus{}, false},
		{"primary a", lab.VMStatus{}, true},
		{"primary b", lab.VMStatus{}, false},
		{"host b connected", lab.VMStatus{}, true},
		{"host b failed", lab.VMStatus{}, false},
	}
	for _, tt := range tests {
		sc := parse(t, "at 0s expect "+tt.expect)
		tt.web.Name = "web"
		s := lab.Status{VMs: []lab.VMStatus{tt.web, {Name: "idle"}}, Hosts: []lab.HostStatus{
			{Host: supervisor.Host{Name: "a"}, Role: model.RolePrimary, State: model.HostPrimary, Seen: model.HostPrimary},
			{Host: supervisor.Host{Name: "b"}, Role: model.RoleSecondary, State: model.HostConnected, Seen: model.HostConnected}}}
		err := judge(s, sc.Steps[0].Action.(scenario.Expect), sc)
		if (err == nil) != tt.want {
			t.Errorf("expect %s with %+v: %v", tt.expect, tt.web, err)
		}
	}
}

func TestStepsForTheSimulatorAreRefusedBeforehand(t *testing.T) {
	if err := Check(parse(t, "at 0s vm crash web\nat 1s power-off a")); err != nil {
		t.Error(err)
	}
	if err := Check(parse(t, "at 0s vm fail-start web 3")); !errors.Is(err, ErrLacks) {
		t.Error("a step that the lab cannot do was accepted:", err)
	}
	if err := Check(parse(t, "at 0s power-off a\n-- lab --\nit takes an hour")); !errors.Is(err, ErrLacks) || !strings.Contains(err.Error(), "an hour") {
		t.Error("a file that is marked was accepted:", err)
	}
}
