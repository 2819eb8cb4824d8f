package sim

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

const library = "../../test/scenarios"

func files(t *testing.T) []string {
	t.Helper()
	list, err := filepath.Glob(library + "/*.txtar")
	if err != nil || len(list) == 0 {
		t.Fatalf("no scenarios in %s: %v", library, err)
	}
	return list
}

// TestScenarios runs the whole library.
func TestScenarios(t *testing.T) {
	for _, file := range files(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			sc, err := scenario.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Seed: 1}
			if os.Getenv("SIM_TRACE") != "" {
				o.Trace = func(at time.Duration, h model.HostID, text string) {
					fmt.Printf("%9.3f %-6s %s\n", at.Seconds(), h, text)
				}
			}
			r, err := Play(sc, o)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range r.Expectations {
				if !e.OK {
					t.Errorf("line %d: %s", e.Line, e.Detail)
				}
			}
			for _, v := range r.Violations {
				t.Errorf("at %.1fs: %s: %s", v.At, v.Invariant, v.Detail)
			}
		})
	}
}

// rough is a script in which about everything happens.
const rough = `-- cluster.yaml --
version: 1
name: rough
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1, backing: a}, {name: ds2, backing: b}]
hosts:
- {name: host1, datastores: [ds1, ds2], memory: 8GiB}
- {name: host2, datastores: [ds1, ds2], memory: 8GiB}
- {name: host3, datastores: [ds1, ds2], memory: 8GiB}
- {name: host4, datastores: [ds1, ds2], memory: 8GiB}
vms:
- {name: a, datastore: ds1}
- {name: b, datastore: ds2}
- {name: c, datastore: ds1, disksOn: [ds2]}
- {name: d, datastore: ds2}
- {name: e, datastore: ds1}
- {name: f, datastore: ds2}
-- script --
at 1s   network loss 100
at 2s   network duplicate 100
at 5s   kill agent host2
at 9s   stop agent host4
at 20s  cont agent host4
at 25s  storage host1 ds1 hang
at 40s  storage host1 ds1 none
at 50s  power-off host3
at 70s  power-on host3
at 90s  kill guard host2
at 95s  freeze host1 for 20s
at 130s power-on host1
at 140s partition host1,host2 | host3,host4
at 160s heal host1
at 160s heal host2
at 160s heal host3
at 160s heal host4
at 170s vm crash a
at 180s vm stop b
at 190s vm start b
at 200s config ha.options.das.maxvmrestartcount=3
at 220s storage host2 ds2 flaky
at 240s storage host2 ds2 none
at 250s stall guard host4 after 5 for 3s
at 260s suspend host3 for 9s
at 270s power-on host3
at 300s slow host2 50ms
at 320s slow host2 off
`

func parse(t testing.TB, text string) *scenario.Scenario {
	t.Helper()
	sc, err := scenario.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// TestRepeats: the same seed is the same run, bit for bit; another is not.
func TestRepeats(t *testing.T) {
	run := func(seed uint64) uint64 {
		s, err := New(parse(t, rough).Cluster, Options{Seed: seed})
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Play(parse(t, rough))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range r.Violations {
			t.Errorf("seed %d at %.1fs: %s: %s", seed, v.At, v.Invariant, v.Detail)
		}
		return s.Hash()
	}
	seen := map[uint64]bool{}
	for seed := uint64(1); seed <= 5; seed++ {
		a := run(seed)
		for range 3 {
			if b := run(seed); a != b {
				t.Fatalf("seed %d: two runs differ: %x and %x", seed, a, b)
			}
		}
		seen[a] = true
	}
	if len(seen) != 5 {
		t.Errorf("five seeds gave %d different runs", len(seen))
	}
}

// TestClock: the inverse finds the first moment at which a time is shown.
func TestClock(t *testing.T) {
	r := random(7)
	for range 20_000 {
		c := clock{since: r.between(0, time.Hour), shown: r.between(0, 100*time.Hour), ppm: r.below(20_001) - 10_000}
		want := c.shown + r.between(0, time.Hour)
		at := c.when(want)
		if c.at(at) < want || at > c.since && c.at(at-1) >= want {
			t.Fatalf("%+v: %v is shown at %v (%v before)", c, c.at(at), at, c.at(at-1))
		}
	}
}
