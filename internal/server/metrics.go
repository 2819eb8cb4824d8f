package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/work"
	"hanok.dev/hanok/internal/version"
)

// Paths of metrics and health.
const (
	pathMetrics = "/metrics"
	pathHealth  = "/healthz"
	pathReady   = "/readyz"
)

// askLimit is how long a scrape and a question after health wait for the state.
const askLimit = 3 * time.Second

// metric describes one metric.
type metric struct {
	name   string
	labels []string
	help   string
}

// gauges are read from the state at each scrape.
var gauges = []metric{
	{"hanok_server_build_info", []string{"version", "name"}, "1; version and name of the server"},
	{"hanok_server_store_up", nil, "1 when etcd answers; 0 is an alarm"},
	{"hanok_server_leader", nil, "1 on the server that does the background work"},
	{"hanok_server_leaderless", nil, "1 when no server does the background work; for a minute it is an alarm"},
	{"hanok_server_clusters", nil, "clusters that the server knows"},
	{"hanok_server_cluster_reachable", []string{"cluster"}, "1 when the hosts of the cluster answer the server"},
	{"hanok_server_cluster_report_age_seconds", []string{"cluster"}, "age of the hosts' last report that was written down; up to 10 when nothing changes"},
	{"hanok_server_cluster_drift", []string{"cluster"}, "1 when the hosts work with another configuration than the wanted one"},
	{"hanok_server_cluster_hosts", []string{"cluster", "state"}, "hosts by state"},
	{"hanok_server_cluster_vms", []string{"cluster", "kind"}, "VMs: all, running, protected"},
	{"hanok_server_tasks", []string{"state"}, "tasks that are queued or running"},
}

// Counters of requests.
const (
	requestsName = "hanok_server_requests_total"
	requestsHelp = "requests answered, by method and outcome (ok, or a code of docs/api.md)"
	secondsName  = "hanok_server_request_seconds"
	secondsHelp  = "how long unary requests took, a histogram"
	streamsName  = "hanok_server_streams"
	streamsHelp  = "streams that are open, by method"
)

// meter counts requests. It is the outermost interceptor, so that refusals count.
type meter struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	streams  *prometheus.GaugeVec
}

func newMeter() *meter {
	m := &meter{registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: requestsName, Help: requestsHelp}, []string{"method", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: secondsName, Help: secondsHelp,
			Buckets: []float64{0.001, 0.005, 0.02, 0.1, 0.5, 2, 10}}, []string{"method"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: streamsName, Help: streamsHelp}, []string{"method"})}
	m.registry.MustRegister(m.requests, m.seconds, m.streams)
	return m
}

func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

// method is a procedure as a label: hanok.v1.TaskService/GetTask.
func method(s connect.Spec) string { return strings.TrimPrefix(s.Procedure, "/") }

func (m *meter) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		began := time.Now()
		resp, err := next(ctx, req)
		m.seconds.WithLabelValues(method(req.Spec())).Observe(time.Since(began).Seconds())
		m.requests.WithLabelValues(method(req.Spec()), outcome(err)).Inc()
		return resp, err
	}
}

func (m *meter) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (m *meter) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		open := m.streams.WithLabelValues(method(c.Spec()))
		open.Inc()
		defer open.Dec()
		err := next(ctx, c)
		m.requests.WithLabelValues(method(c.Spec()), outcome(err)).Inc()
		return err
	}
}

// stateOf reads the gauges at each scrape.
type stateOf struct{ s *Server }

// Describe says nothing: which labels there are depends on the state.
func (stateOf) Describe(chan<- *prometheus.Desc) {}

func (x stateOf) Collect(ch chan<- prometheus.Metric) {
	descs := map[string]*prometheus.Desc{}
	for _, g := range gauges {
		descs[g.name] = prometheus.NewDesc(g.name, g.help, g.labels, nil)
	}
	put := func(name string, v float64, labels ...string) {
		d := descs[name]
		if d == nil {
			panic(fmt.Sprintf("metric %s is not in the table", name))
		}
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	x.ofServer(put)
	for _, name := range x.s.cache.Names() {
		x.ofCluster(name, put)
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (x stateOf) ofServer(put func(string, float64, ...string)) {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	put("hanok_server_build_info", 1, version.Version, x.s.cfg.Name)
	leader, err := x.s.store.Leader(ctx, work.Leadership)
	put("hanok_server_store_up", flag(err == nil))
	if err == nil {
		put("hanok_server_leader", flag(leader == x.s.cfg.Name))
		put("hanok_server_leaderless", flag(leader == ""))
	}
	put("hanok_server_clusters", float64(len(x.s.cache.Names())))
	active := map[hanokv1.TaskState]int{hanokv1.TaskState_TASK_STATE_QUEUED: 0, hanokv1.TaskState_TASK_STATE_RUNNING: 0}
	for _, t := range x.s.cache.Tasks() {
		if _, ok := active[t.State]; ok {
			active[t.State]++
		}
	}
	put("hanok_server_tasks", float64(active[hanokv1.TaskState_TASK_STATE_QUEUED]), "queued")
	put("hanok_server_tasks", float64(active[hanokv1.TaskState_TASK_STATE_RUNNING]), "running")
}

func (x stateOf) ofCluster(name string, put func(string, float64, ...string)) {
	acc := x.s.cache.Account(name)
	put("hanok_server_cluster_reachable", flag(acc != nil && acc.Unreachable == ""), name)
	put("hanok_server_cluster_drift", flag(x.s.api.Drifts(name)), name)
	if acc == nil {
		return
	}
	if acc.Reported != nil {
		put("hanok_server_cluster_report_age_seconds", time.Since(acc.Reported.AsTime()).Seconds(), name)
	}
	states := map[string]int{}
	for _, h := range x.s.cache.Hosts(name) {
		states[h.State]++
	}
	for s, n := range states {
		put("hanok_server_cluster_hosts", float64(n), name, s)
	}
	put("hanok_server_cluster_vms", float64(acc.Vms), name, "all")
	put("hanok_server_cluster_vms", float64(acc.VmsRunning), name, "running")
	put("hanok_server_cluster_vms", float64(acc.VmsProtected), name, "protected")
}

// health adds two questions for supervisors and balancers, without a login: is
// the server alive, and can it answer the API from its state.
func (s *Server) health(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathHealth, func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, nil) })
	mux.HandleFunc("GET "+pathReady, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), askLimit)
		defer cancel()
		rev, err := s.store.Revision(ctx)
		if err != nil {
			s.log.Warn("the state does not answer", "err", err)
			answerHealth(w, []string{"etcd does not answer"}) // who asks is nobody in particular
			return
		}
		if s.cache.Wait(ctx, rev) != nil {
			answerHealth(w, []string{"this server's copy of the state is behind"})
			return
		}
		answerHealth(w, nil)
	})
}

func answerHealth(w http.ResponseWriter, why []string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if len(why) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(struct {
		OK      bool     `json:"ok"`
		Reasons []string `json:"reasons,omitempty"`
	}{len(why) == 0, why}) // the client is gone if this fails
}

// observe serves metrics and health at Config.Metrics.
func (s *Server) observe() error {
	if s.cfg.Metrics == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("metrics on %s: %w", s.cfg.Metrics, err)
	}
	s.metricsAddr = ln.Addr()
	s.meter.registry.MustRegister(stateOf{s})
	mux := http.NewServeMux()
	mux.Handle("GET "+pathMetrics, promhttp.HandlerFor(s.meter.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	s.health(mux)
	s.serve("metrics", ln, mux)
	return nil
}
