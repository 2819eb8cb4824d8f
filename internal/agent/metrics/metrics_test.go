package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/model"
)

// full is a primary's status in which every metric has something to say.
func full() local.Status {
	return local.Status{Host: "host1", Software: "1.2", Role: model.RolePrimary, State: model.HostPrimary, HA: true, ConfigVersion: 7,
		Hosts: []local.Host{{Name: "host1", State: model.HostPrimary, Armed: true}, {Name: "host2", State: model.HostConnected, SilenceSeconds: 0.3,
			SlotAgeSeconds: map[model.DatastoreName]float64{"ds1": 0.5}}},
		VMs:        []local.VM{{Name: "web", State: model.VMStarted, Protected: true}, {Name: "db", State: model.VMQueued}},
		Datastores: []local.Datastore{{Name: "ds1", Owner: "host1"}, {Name: "ds2"}},
		Problems:   []local.Problem{{Text: "x"}},
		Local: local.Local{Guard: true, Hypervisor: true, Armed: true, HookSeen: true, LongestWriteSeconds: 0.25, CertificateExpires: 1e9,
			Leases:   []local.Lease{{Datastore: "ds1", OK: true, LeftSeconds: 4.5, ListTerm: 3}},
			Locks:    []local.Lock{{Name: "web", Phase: "running"}},
			Counters: map[string]uint64{"wire.refusedForged": 2, "operations-busy": 1}, Events: map[string]uint64{"info": 5}}}
}

func get(t *testing.T, s local.Status, err error, path string) (int, string) {
	t.Helper()
	srv := httptest.NewServer(Handler(func(context.Context) (local.Status, error) { return s, err }))
	defer srv.Close()
	r, gerr := http.Get(srv.URL + path)
	if gerr != nil {
		t.Fatal(gerr)
	}
	defer r.Body.Close()
	b, gerr := io.ReadAll(r.Body)
	if gerr != nil {
		t.Fatal(gerr)
	}
	return r.StatusCode, string(b)
}

func TestFigures(t *testing.T) {
	_, body := get(t, full(), nil, PathMetrics)
	for _, want := range []string{
		`hanok_agent_primary 1`, `hanok_host_state{state="primary"} 1`, `hanok_config_version 7`, `hanok_wire_total{what="refusedForged"} 2`,
		`hanok_agent_incidents_total{what="operations-busy"} 1`, `hanok_lease_left_seconds{datastore="ds1"} 4.5`, `hanok_locks{phase="running"} 1`,
		`hanok_cluster_hosts_armed 1`, `hanok_cluster_slot_age_seconds{datastore="ds1",host="host2"} 0.5`, `hanok_cluster_vms_protected 1`,
		`hanok_cluster_datastores_unowned 1`, `hanok_guard_longest_write_seconds 0.25`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	for _, m := range Tables {
		if !strings.Contains(body, "\n# TYPE "+m.Name+" ") {
			t.Errorf("%s is in the table and never shown", m.Name)
		}
	}
}

// The figures of a guard that is away must not look like those of a good one,
// and what only the primary knows is shown by nobody else.
func TestAbsence(t *testing.T) {
	s := full()
	s.Role, s.Local.Guard = model.RoleSecondary, false
	_, body := get(t, s, nil, PathMetrics)
	for _, want := range []string{"hanok_guard_up 0", "hanok_guard_armed 0", `hanok_lease_valid{datastore="ds1"} 0`} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	if strings.Contains(body, "\nhanok_cluster_vms") {
		t.Error("a secondary shows the cluster's VMs")
	}
	_, body = get(t, local.Status{}, errors.New("stuck"), PathMetrics)
	if !strings.Contains(body, "\nhanok_agent_loop_up 0\n") || strings.Contains(body, "hanok_agent_ready") {
		t.Errorf("of an agent that hangs:\n%s", body)
	}
}

func TestHealthAndReadiness(t *testing.T) {
	broken := full()
	broken.Local.Error = "no certificate"
	away := full()
	away.Local.Guard, away.Local.GuardProblem = false, "connection refused"
	for _, tt := range []struct {
		name          string
		s             local.Status
		err           error
		health, ready int
		why           string
	}{
		{"well", full(), nil, 200, 200, ""},
		{"misconfigured", broken, nil, 200, 503, "no certificate"},
		{"guard away", away, nil, 200, 503, "connection refused"},
		{"hangs", local.Status{}, errors.New("the main loop does not answer"), 503, 503, "main loop"},
	} {
		if code, _ := get(t, tt.s, tt.err, PathHealth); code != tt.health {
			t.Errorf("%s: health %d", tt.name, code)
		}
		if code, body := get(t, tt.s, tt.err, PathReady); code != tt.ready || !strings.Contains(body, tt.why) {
			t.Errorf("%s: ready %d %s", tt.name, code, body)
		}
	}
}

// Documentation is what Markdown makes of the table; the file must have it.
func TestDocumentedList(t *testing.T) {
	kinds := map[prometheus.ValueType]string{gauge: "gauge", counter: "counter"}
	var b strings.Builder
	for _, m := range Tables {
		name := "`" + m.Name + "`"
		if len(m.Labels) > 0 {
			name = "`" + m.Name + "{" + strings.Join(m.Labels, ",") + "}`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, kinds[m.Type], m.Help)
	}
	doc, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), "| metric | type | meaning |\n|---|---|---|\n"+b.String()+"\n") {
		t.Errorf("docs/metrics.md does not have this table:\n%s", b.String())
	}
}
