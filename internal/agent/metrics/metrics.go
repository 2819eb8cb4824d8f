package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/model"
)

// The paths of Handler.
const (
	PathMetrics = "/metrics"
	PathHealth  = "/healthz"
	PathReady   = "/readyz"
)

// statusLimit is how long a scrape waits for the agent's main loop.
const statusLimit = 3 * time.Second

// Source gives a host's status; it fails when the main loop does not answer.
type Source func(ctx context.Context) (local.Status, error)

// Handler serves the metrics, and two questions for supervisors: is the agent
// alive (200 when its main loop answers), and does it work (200 when agent,
// guard and libvirt do; otherwise 503 with the reasons as JSON).
func Handler(source Source) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{source: source, descs: describe()})
	mux := http.NewServeMux()
	mux.Handle("GET "+PathMetrics, promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET "+PathHealth, func(w http.ResponseWriter, r *http.Request) {
		_, err := status(r.Context(), source)
		answer(w, reasons(err))
	})
	mux.HandleFunc("GET "+PathReady, func(w http.ResponseWriter, r *http.Request) {
		s, err := status(r.Context(), source)
		answer(w, append(reasons(err), notReady(s, err == nil)...))
	})
	return mux
}

func status(ctx context.Context, source Source) (local.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	return source(ctx)
}

func reasons(err error) []string {
	if err != nil {
		return []string{err.Error()}
	}
	return nil
}

func notReady(s local.Status, known bool) (why []string) {
	l := s.Local
	switch {
	case !known:
	case l.Error != "":
		why = append(why, l.Error)
	default:
		if !l.Guard {
			why = append(why, "the guard is not reachable: "+l.GuardProblem)
		}
		if !l.Hypervisor {
			why = append(why, "libvirt is not reachable: "+l.HypervisorProblem)
		}
	}
	return why
}

func answer(w http.ResponseWriter, why []string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	ok := len(why) == 0
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(struct {
		OK      bool     `json:"ok"`
		Reasons []string `json:"reasons,omitempty"`
	}{ok, why}) // the client is gone if this fails
}

func describe() map[string]*prometheus.Desc {
	out := map[string]*prometheus.Desc{}
	for _, m := range Tables {
		out[m.Name] = prometheus.NewDesc(m.Name, m.Help, m.Labels, nil)
	}
	return out
}

// collector turns one status into metrics at each scrape.
type collector struct {
	source Source
	descs  map[string]*prometheus.Desc
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	types := map[string]prometheus.ValueType{}
	for _, m := range Tables {
		types[m.Name] = m.Type
	}
	put := func(name string, v float64, labels ...string) {
		d := c.descs[name]
		if d == nil {
			panic(fmt.Sprintf("metric %s is not in the table", name))
		}
		for i := range labels {
			labels[i] = strings.ToValidUTF8(labels[i], "?")
		}
		ch <- prometheus.MustNewConstMetric(d, types[name], v, labels...)
	}
	s, err := status(context.Background(), c.source)
	put("hanok_agent_loop_up", flag(err == nil))
	if err != nil {
		return
	}
	ofAgent(&s, put)
	if s.Local.Error != "" {
		return
	}
	ofGuard(&s, put)
	if s.Role == model.RolePrimary {
		ofCluster(&s, put)
	}
}

type putter func(name string, v float64, labels ...string)

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func ofAgent(s *local.Status, put putter) {
	put("hanok_build_info", 1, s.Software)
	put("hanok_agent_ready", flag(s.Local.Error == ""))
	put("hanok_agent_primary", flag(s.Role == model.RolePrimary))
	put("hanok_host_state", 1, string(s.State))
	put("hanok_config_version", float64(s.ConfigVersion))
	put("hanok_cluster_view_age_seconds", s.AgeSeconds)
	put("hanok_problems", float64(len(s.Problems)))
	put("hanok_hypervisor_up", flag(s.Local.Hypervisor))
	if s.Local.CertificateExpires != 0 {
		put("hanok_certificate_expiry_timestamp_seconds", float64(s.Local.CertificateExpires))
	}
	for severity, n := range s.Local.Events {
		put("hanok_events_total", float64(n), severity)
	}
	for name, n := range s.Local.Counters {
		if what, ok := strings.CutPrefix(name, "wire."); ok {
			put("hanok_wire_total", float64(n), what)
		} else {
			put("hanok_agent_incidents_total", float64(n), name)
		}
	}
}

func ofGuard(s *local.Status, put putter) {
	l := &s.Local
	put("hanok_guard_up", flag(l.Guard && l.GuardProblem == ""))
	put("hanok_guard_armed", flag(l.Guard && l.Armed))
	put("hanok_guard_hook_seen", flag(l.Guard && l.HookSeen))
	put("hanok_guard_warnings", float64(len(l.Warnings)))
	put("hanok_guard_longest_write_seconds", l.LongestWriteSeconds)
	for _, d := range l.Leases {
		ds := string(d.Datastore)
		put("hanok_lease_valid", flag(l.Guard && d.OK), ds)
		put("hanok_lease_left_seconds", d.LeftSeconds, ds)
		put("hanok_list_held", flag(l.Guard && d.ListTerm != 0), ds)
	}
	phases := map[string]int{}
	for _, k := range l.Locks {
		phases[k.Phase]++
	}
	for phase, n := range phases {
		put("hanok_locks", float64(n), phase)
	}
}

func ofCluster(s *local.Status, put putter) {
	put("hanok_cluster_ha_enabled", flag(s.HA))
	hosts, armed := map[string]int{}, 0
	for _, h := range s.Hosts {
		hosts[string(h.State)]++
		if h.Armed {
			armed++
		}
		put("hanok_cluster_host_silence_seconds", h.SilenceSeconds, string(h.Name))
		for ds, age := range h.SlotAgeSeconds {
			put("hanok_cluster_slot_age_seconds", age, string(h.Name), string(ds))
		}
	}
	for state, n := range hosts {
		put("hanok_cluster_hosts", float64(n), state)
	}
	put("hanok_cluster_hosts_armed", float64(armed))
	vms, protected := map[string]int{}, 0
	for _, v := range s.VMs {
		vms[string(v.State)]++
		if v.Protected {
			protected++
		}
	}
	for state, n := range vms {
		put("hanok_cluster_vms", float64(n), state)
	}
	put("hanok_cluster_vms_protected", float64(protected))
	unowned := 0
	for _, d := range s.Datastores {
		if d.Owner == "" {
			unowned++
		}
	}
	put("hanok_cluster_datastores_unowned", float64(unowned))
}
