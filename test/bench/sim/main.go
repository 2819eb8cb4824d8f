// Command sim measures how fast the simulator is: virtual seconds for each
// second of one core, by cluster size, with one fault in 60 virtual seconds; and
// what a seed of `hanok sim fuzz` costs. It prints medians as JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/scenario"
	"hanok.dev/hanok/internal/sim"
)

// size is a cluster to measure.
type size struct {
	name       string
	hosts, vms int
	virtual    time.Duration
	seeds      int // each a run of its own, from its beginning
	gc         int // GOGC: memory, of which small clusters need next to none, for time
}

var sizes = []size{
	{"5x20", 5, 20, 30 * time.Minute, 5, 800},
	{"29x1000", 29, 1000, 600 * time.Second, 1, 400},
	{"1000x20000", 1000, 20000, 120 * time.Second, 1, 50},
}

// row is what one size came to; rates are medians.
type row struct {
	Name           string  `json:"name"`
	Hosts          int     `json:"hosts"`
	VMs            int     `json:"vms"`
	VirtualSeconds float64 `json:"virtualSeconds"`
	Runs           int     `json:"runs"`
	Speed          float64 `json:"virtualSecondsPerSecond"`
	Worst          float64 `json:"worst"`
	Steps          float64 `json:"machineStepsPerSecond"`
	Events         float64 `json:"eventsPerSecond"`
	// PeakMiB is what the process had from the system by then, smaller sizes
	// before it included.
	PeakMiB   uint64 `json:"peakMiB"`
	Failovers int    `json:"failovers"`
}

// results is what is printed.
type results struct {
	Sizes []row    `json:"sizes,omitempty"`
	Fuzz  *fuzzRow `json:"fuzz,omitempty"`
}

func main() {
	runs := flag.Int("runs", 3, "runs of each size")
	only := flag.String("only", "", "measure only this: 5x20, 29x1000, 1000x20000 or fuzz")
	seeds := flag.Int("seeds", 300, "seeds of random disasters; 10000 measures what is otherwise extrapolated")
	start := flag.Uint64("start", 1, "the first of them")
	profile := flag.String("cpuprofile", "", "write a profile of the processor")
	flag.Parse()
	runtime.GOMAXPROCS(1)
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			fail(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			fail(err)
		}
		defer pprof.StopCPUProfile()
	}
	var out results
	for _, z := range sizes {
		if *only != "" && z.name != *only {
			continue
		}
		r, err := measure(z, *runs)
		if err != nil {
			fail(err)
		}
		out.Sizes = append(out.Sizes, r)
		fmt.Fprintf(os.Stderr, "%-12s %9.0f virtual s/s  %9.0f events/s  %9.0f steps/s  %5d MiB\n", r.Name, r.Speed, r.Events, r.Steps, r.PeakMiB)
	}
	if *only == "" || *only == "fuzz" {
		f, err := measureFuzz(*start, *seeds, *runs)
		if err != nil {
			fail(err)
		}
		out.Fuzz = f
		fmt.Fprintln(os.Stderr, f)
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(out); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench-sim:", err)
	os.Exit(1)
}

func measure(z size, runs int) (row, error) {
	debug.SetGCPercent(z.gc)
	c, err := cluster(z)
	if err != nil {
		return row{}, err
	}
	out := row{Name: z.name, Hosts: z.hosts, VMs: z.vms, VirtualSeconds: z.virtual.Seconds(), Runs: runs}
	var speeds, events, steps []float64
	for run := range runs {
		var took time.Duration
		var ne, ns uint64
		for seed := range z.seeds {
			t, e, st, fo, err := one(c, z, uint64(run*z.seeds+seed+1))
			if err != nil {
				return row{}, err
			}
			took, ne, ns, out.Failovers = took+t, ne+e, ns+st, out.Failovers+fo
		}
		speeds = append(speeds, z.virtual.Seconds()*float64(z.seeds)/took.Seconds())
		events = append(events, float64(ne)/took.Seconds())
		steps = append(steps, float64(ns)/took.Seconds())
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		out.PeakMiB = max(out.PeakMiB, m.Sys>>20)
	}
	out.Speed, out.Events, out.Steps, out.Worst = median(speeds), median(events), median(steps), slices.Min(speeds)
	return out, nil
}

// cpu is the processor time of this process, its garbage collector included:
// what one core would have taken, whatever else runs on the machine.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		fail(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(x []float64) float64 {
	x = slices.Clone(x)
	slices.Sort(x)
	return x[len(x)/2]
}

// one runs a cluster for the time asked for. Of a large cluster only the time
// after its start counts; of many small ones the start counts too.
func one(c *config.Cluster, z size, seed uint64) (took time.Duration, events, steps uint64, failovers int, err error) {
	began := cpu()
	s, err := sim.New(c, sim.Options{Seed: seed, RebootOnReset: true})
	if err != nil {
		return 0, 0, 0, 0, err
	}
	if !s.Settle(3 * time.Minute) {
		return 0, 0, 0, 0, fmt.Errorf("%s: the cluster did not settle: %v", z.name, s.Violations())
	}
	if z.seeds == 1 {
		began = cpu()
	}
	steps0, events0 := s.Steps()
	s.At(30*time.Second, func() { fault(s, c, 0) })
	s.Run(z.virtual)
	if v := s.Violations(); len(v) > 0 {
		return 0, 0, 0, 0, fmt.Errorf("%s, seed %d: %+v", z.name, seed, v)
	}
	steps, events = s.Steps()
	return cpu() - began, events - events0, steps - steps0, s.Coverage()[sim.Failovers], nil
}

// fault breaks something each minute, and mends it half a minute later.
func fault(s *sim.Sim, c *config.Cluster, n int) {
	h := c.Hosts[n*7%len(c.Hosts)].Name
	var do, undo scenario.Action
	switch n % 3 {
	case 0:
		do, undo = scenario.Power{Op: scenario.PowerOff, Host: h}, scenario.Power{Op: scenario.PowerOn, Host: h}
	case 1:
		do, undo = scenario.Cut{Host: h, Direction: scenario.Both}, scenario.Heal{Host: h}
	case 2:
		ds := c.Datastores[n%len(c.Datastores)].Name
		do = scenario.StorageFault{Host: h, Datastore: ds, Fault: scenario.FaultHang}
		undo = scenario.StorageFault{Host: h, Datastore: ds, Fault: scenario.FaultNone}
	}
	act := func(a scenario.Action) {
		if err := s.Do(a, fmt.Sprintf("fault %d", n)); err != nil {
			fail(err)
		}
	}
	act(do)
	s.At(s.Now()+30*time.Second, func() { act(undo) })
	s.At(s.Now()+60*time.Second, func() { fault(s, c, n+1) })
}

func cluster(z size) (*config.Cluster, error) {
	var b strings.Builder
	b.WriteString("version: 1\nname: bench\nnetworks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]\n")
	b.WriteString("datastores: [{name: ds1, backing: a}, {name: ds2, backing: b}]\nhosts:\n")
	memory := 3*z.vms/z.hosts + 8
	for h := 1; h <= z.hosts; h++ {
		fmt.Fprintf(&b, "- {name: host%04d, cpu: {cores: 32, mhz: 2000}, memory: %dGiB, datastores: [ds1, ds2]}\n", h, memory)
	}
	b.WriteString("vms:\n")
	for v := range z.vms {
		fmt.Fprintf(&b, "- {name: vm%05d, host: host%04d, datastore: ds%d, memory: 1GiB}\n", v+1, v%z.hosts+1, v/z.hosts%2+1)
	}
	return config.Parse([]byte(b.String()))
}
