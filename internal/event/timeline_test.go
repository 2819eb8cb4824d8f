package event

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Every host's boot clock starts elsewhere; host2's wall clock is 0.2 s ahead.
var (
	boot = map[model.HostID]float64{"host1": 1000, "host2": 50}
	skew = map[model.HostID]float64{"host2": 0.2}
)

func ev(by model.HostID, s float64, kind Kind, host model.HostID, vm, cause string) Event {
	dur := func(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }
	return Event{
		ID: fmt.Sprintf("%s-%v-%s-%s", by, s, kind, vm), By: by, Kind: kind, Failover: "host3-9",
		Host: host, VM: vm, Text: strings.TrimSpace(string(kind) + " " + vm), Cause: cause,
		At:   dur(boot[by] + s),
		Wall: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).Add(dur(s + skew[by])),
	}
}

func lost(by model.HostID) []Event {
	v := ev(by, 5.61, Verdict, "host3", "", "its slot is stale and it is silent")
	v.Evidence = map[string]string{"slot age on ds1": "5.61s", "ping": "no answer"}
	return []Event{
		ev(by, 0, LastHeartbeat, "host3", "", ""),
		ev(by, 1.5, Silence, "host3", "", ""),
		v,
	}
}

func restart(by model.HostID, from float64, vm string) []Event {
	return []Event{
		ev(by, from, StartIssued, "host1", vm, ""),
		ev(by, from+0.05, LockTaken, "host1", vm, ""),
		ev(by, from+0.72, DomainRunning, "host1", vm, ""),
		ev(by, from+9, GuestAlive, "host1", vm, ""),
	}
}

var scenarios = map[string][]Event{
	"host-lost": slices.Concat(lost("host1"), []Event{ev("host1", 5.615, VMDown, "host3", "db", "host3 failed")}, restart("host1", 5.62, "db"), restart("host1", 5.63, "web"),
		[]Event{ev("host1", 14.7, FailoverDone, "host3", "", "")}),
	"cluster-start": slices.Concat([]Event{ev("host1", 0, ClusterStart, "host1", "", ""), ev("host1", 3.4, VMDown, "host2", "db", "host2, which ran it, has rebooted")},
		restart("host1", 5.1, "db"), []Event{ev("host1", 16, FailoverDone, "", "", "")}),
	"retries": slices.Concat(lost("host1"),
		[]Event{
			ev("host1", 5.62, StartIssued, "host2", "web", ""),
			ev("host1", 6, RestartFailed, "host2", "web", "a disk is missing: /srv/ds1/web/disk0.raw"),
			ev("host1", 6, RestartPending, "", "web", "next attempt in 2s"),
		},
		restart("host1", 8, "web"),
		[]Event{ev("host1", 5.7, RestartPending, "", "big", "no host has 8192 MiB free")}),
	"told-by-another": slices.Concat(lost("host1"), []Event{
		ev("host1", 5.62, StartIssued, "host2", "web", ""),
		ev("host2", 5.70, LockTaken, "host2", "web", ""),
		ev("host2", 6.30, DomainRunning, "host2", "web", ""),
	}),
	"vm-crashed": slices.Concat([]Event{ev("host1", 100, VMDown, "host2", "web", "its process died")},
		restart("host1", 100.1, "web")),
}

func TestTimeline(t *testing.T) {
	for name, events := range scenarios {
		t.Run(name, func(t *testing.T) {
			forward, ok := Build(events, "host3-9")
			if !ok {
				t.Fatal("no timeline")
			}
			backward := slices.Clone(events)
			slices.Reverse(backward)
			again, _ := Build(append(backward, ev("host1", 3, StartIssued, "host1", "x", "")), "other")
			if len(again.VMs) != 0 {
				t.Errorf("events of another failover were taken: %+v", again)
			}
			if again, _ = Build(backward, "host3-9"); !cmp.Equal(forward, again) {
				t.Errorf("the order of events changes the timeline:\n%s", cmp.Diff(forward, again))
			}
			golden(t, name, render(t, forward))
		})
	}
}

func render(t *testing.T, tl Timeline) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintln(&b, tl.Heading())
	for _, l := range tl.Findings(func(s string) string { return s }) {
		fmt.Fprintln(&b, l)
	}
	header, rows := tl.Table()
	for _, r := range append([][]string{header}, rows...) {
		fmt.Fprintln(&b, strings.Join(r, " | "))
	}
	fmt.Fprintln(&b, tl.Conclusion())
	j, err := json.MarshalIndent(tl, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "%s\n", j)
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("timeline differs from %s (run with -update to accept):\n%s", path, diff)
	}
}

func TestFailovers(t *testing.T) {
	second := slices.Clone(scenarios["vm-crashed"])
	for i := range second {
		second[i].Failover = "later"
	}
	list := Failovers(slices.Concat(second, scenarios["host-lost"], []Event{{Kind: Election}}))
	if len(list) != 2 || list[0].Failover != "host3-9" || list[1].Failover != "later" {
		t.Fatalf("want host3-9, then later; got %+v", list)
	}
	if f := list[0]; f.VMs != 2 || f.Running != 2 || !f.Done || f.LastRunning == nil || *f.LastRunning != 6.35 {
		t.Errorf("summary of host3-9: %+v", f)
	}
	if f := list[1]; f.Done || f.Host != "" || *f.LastRunning != 0.82 {
		t.Errorf("summary of the crash: %+v", f)
	}
}
