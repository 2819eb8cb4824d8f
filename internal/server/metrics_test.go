package server

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
)

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestServerMetrics(t *testing.T) {
	r := newRig(t)
	at := "http://" + r.metricsAddr.String()
	r.until("a leader", func() bool {
		_, body := fetch(t, at+pathMetrics)
		return strings.Contains(body, "\nhanok_server_leader 1\n")
	})
	if _, err := r.tasks.GetTask(t.Context(), &hanokv1.GetTaskRequest{Task: "none"}); err == nil {
		t.Fatal("a task that is not there was found")
	}
	_, body := fetch(t, at+pathMetrics)
	for _, want := range []string{"hanok_server_store_up 1", "hanok_server_leaderless 0", "hanok_server_clusters 1",
		`hanok_server_cluster_reachable{cluster="seoul"} 1`, `hanok_server_cluster_drift{cluster="seoul"} 0`,
		`hanok_server_cluster_hosts{cluster="seoul",state="connected"} 2`, `hanok_server_cluster_vms{cluster="seoul",kind="all"} 2`,
		`hanok_server_tasks{state="running"} 0`, `hanok_server_requests_total{method="hanok.v1.ConfigService/ApplyConfig",outcome="ok"} 1`,
		`hanok_server_requests_total{method="hanok.v1.TaskService/GetTask",outcome="not_found"} 1`,
		`hanok_server_request_seconds_count{method="hanok.v1.ConfigService/ApplyConfig"} 1`, `hanok_server_streams{method="hanok.v1.TaskService/WatchTask"} 0`} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
	for _, base := range []string{at, "http://" + r.Address()} { // for balancers also where the API is, without a login
		for _, p := range []string{pathHealth, pathReady} {
			if code, body := fetch(t, base+p); code != 200 || body != "{\"ok\":true}\n" {
				t.Errorf("%s%s: %d %s", base, p, code, body)
			}
		}
	}
	if code, _ := fetch(t, "http://"+r.Address()+pathMetrics); code != 404 {
		t.Errorf("metrics without a login beside the API: %d", code)
	}
	// Without its state the server lives, but is not ready.
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	if code, body := fetch(t, at+pathReady); code != 503 || !strings.Contains(body, "etcd does not answer") {
		t.Errorf("without etcd: %d %s", code, body)
	}
	if code, _ := fetch(t, at+pathHealth); code != 200 {
		t.Errorf("without etcd it is not alive: %d", code)
	}
	if _, body := fetch(t, at+pathMetrics); !strings.Contains(body, "\nhanok_server_store_up 0\n") {
		t.Error("metrics do not say that etcd is away")
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	all := append(append([]metric(nil), gauges...), metric{requestsName, []string{"method", "outcome"}, requestsHelp}, metric{secondsName, []string{"method"}, secondsHelp}, metric{streamsName, []string{"method"}, streamsHelp})
	for _, m := range all {
		name := m.name
		if len(m.labels) > 0 {
			name += "{" + strings.Join(m.labels, ",") + "}"
		}
		if row := "| `" + name + "` | " + m.help + " |"; !strings.Contains(string(b), "\n"+row+"\n") {
			t.Errorf("docs/metrics.md lacks %s", row)
		}
	}
	if n := strings.Count(string(b), "\n| `hanok_server_"); n != len(all) {
		t.Errorf("docs/metrics.md lists %d metrics of the server, there are %d", n, len(all))
	}
}
