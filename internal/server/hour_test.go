package server

import (
	"testing"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/sim"
)

// The server is down for a virtual hour in which a host is lost and comes back:
// the hosts' own code restarts its VM as quickly as ever, and when the server is
// back it has every event of that hour, once, and the timeline of the failover.
func TestAnHourWithoutServer(t *testing.T) {
	c := parsed(t, clusterFile)
	hosts, err := fakeagent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Run("before", func(t *testing.T) {
		r := newRigAt(t, hosts, dir)
		if _, err := r.conf.ApplyConfig(t.Context(), &hanokv1.ApplyConfigRequest{Yaml: clusterFile}); err != nil {
			t.Fatal(err)
		}
	})
	want, began := map[string]bool{}, time.Now().UTC()
	s, err := sim.New(c, sim.Options{Seed: 1, Events: func(by model.HostID, e event.Event) {
		e.Wall = began.Add(e.At)
		want[hosts.Keep(by, e)] = true
	}})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Settle(3 * time.Minute) {
		t.Fatal("the cluster does not settle")
	}
	from := s.Now()
	for _, step := range []struct {
		at time.Duration
		op scenario.Power
	}{{20 * time.Minute, scenario.Power{Op: scenario.PowerOff, Host: "host2"}}, {40 * time.Minute, scenario.Power{Op: scenario.PowerOn, Host: "host2"}}} {
		s.Run(from + step.at)
		if err := s.Do(step.op, "of the hour"); err != nil {
			t.Fatal(err)
		}
	}
	s.Run(from + time.Hour)
	result := s.Result()
	if len(result.Violations) > 0 || len(result.Recoveries) != 1 || result.Recoveries[0].VM != "db" || result.Recoveries[0].Seconds > 9 {
		t.Errorf("failover without a server: %+v, violations %v", result.Recoveries, result.Violations)
	}
	t.Run("after", func(t *testing.T) {
		r := newRigAt(t, hosts, dir)
		r.until("all events of the hour", func() bool { return r.hasOnce(want) })
		f, err := r.events.GetFailover(t.Context(), &hanokv1.GetFailoverRequest{Cluster: "seoul", Failover: "last"})
		if err != nil || f.Summary.Host != "host2" || len(f.Vms) != 1 || f.Vms[0].Vm != "db" || f.Vms[0].To == "" || f.Vms[0].To == "host2" {
			t.Errorf("the failover of the hour: %v, %v", f, err)
		}
	})
	t.Logf("%d events of an hour; db ran elsewhere after %.1f s", len(want), result.Recoveries[0].Seconds)
}

// hasOnce reports whether the server has all events of the hosts; one twice, or a
// gap, fails the test.
func (r *rig) hasOnce(want map[string]bool) bool {
	r.t.Helper()
	got := map[string]int{}
	req := &hanokv1.ListEventsRequest{Cluster: "seoul", PageSize: 500}
	for {
		p, err := r.events.ListEvents(r.t.Context(), req)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range p.Events {
			if e.Kind == "server.gap" {
				r.t.Fatalf("a gap: %v", e)
			}
			if got[e.Id]++; got[e.Id] > 1 {
				r.t.Fatalf("%s is there twice", e.Id)
			}
		}
		if req.PageToken = p.NextPageToken; req.PageToken == "" {
			break
		}
	}
	for id := range want {
		if got[id] == 0 {
			return false
		}
	}
	return true
}
