// Failover measures the main job: from the power cut of a host until the last
// of its VMs runs elsewhere, for a secondary and for the primary, in a real
// lab, and where the time goes.
//
// The total is taken outside the cluster: from just before the power is cut
// until the processes show that every lost VM has one instance elsewhere whose
// virtual processors run. The phases are the cluster's own timeline, counted
// from the last heartbeat.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/journal"
)

// Run is one measured failover.
type Run struct {
	Lost string   `json:"lost"` // secondary or primary
	Host string   `json:"host"`
	VMs  []string `json:"vms"`
	// Running is the seconds from the power cut until the last VM runs
	// elsewhere; Alive until the last guest answers, by the timeline plus the
	// time from the cut to the last heartbeat.
	Running float64 `json:"running"`
	Alive   float64 `json:"alive"`
	// Phases are seconds since the last heartbeat, the latest VM's for phases
	// that each VM has.
	Phases map[event.Kind]float64 `json:"phases"`
}

// Figures sum up the runs of one kind.
type Figures struct {
	Runs          int                    `json:"runs"`
	MedianRunning float64                `json:"medianRunning"`
	WorstRunning  float64                `json:"worstRunning"`
	MedianAlive   float64                `json:"medianAlive"`
	WorstAlive    float64                `json:"worstAlive"`
	MedianPhases  map[event.Kind]float64 `json:"medianPhases"`
}

// Report is what is printed.
type Report struct {
	Machine string             `json:"machine"`
	At      time.Time          `json:"at"`
	Profile string             `json:"profile"`
	Summary map[string]Figures `json:"summary"`
	Runs    []Run              `json:"runs"`
}

func main() {
	runs := flag.Int("runs", 10, "failovers of each kind")
	flag.Parse()
	os.Exit(drill.Bench("bench-failover", nil, func(ctx context.Context, d drill.Drill) error { return bench(ctx, d, *runs) }))
}

func bench(ctx context.Context, d drill.Drill, runs int) error {
	r := Report{Machine: fmt.Sprintf("%s/%s, %d cores, VMs emulated", runtime.GOOS, runtime.GOARCH, runtime.NumCPU()), At: time.Now().UTC(), Profile: "fast"}
	for i := range runs {
		for _, kind := range []string{"secondary", "primary"} {
			run, err := once(ctx, d, kind)
			if err != nil {
				return fmt.Errorf("run %d, %s: %w", i+1, kind, err)
			}
			drill.Say(fmt.Sprintf("run %d/%d: %s %s, %d VMs: running %.2f s, alive %.2f s", i+1, runs, kind, run.Host, len(run.VMs), run.Running, run.Alive))
			r.Runs = append(r.Runs, run)
		}
	}
	if v, err := d.Violations(ctx); err != nil || len(v) > 0 {
		return fmt.Errorf("violations %v, %v", v, err)
	}
	r.summarise()
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(r)
}

// once loses a host of a kind and measures.
func once(ctx context.Context, d drill.Drill, kind string) (Run, error) {
	run := Run{Lost: kind}
	if err := d.Settle(ctx, 2*time.Minute); err != nil {
		return run, err
	}
	host, err := d.Primary(ctx)
	if err != nil {
		return run, err
	}
	if kind == "secondary" {
		if host, err = d.BusiestSecondary(ctx); err != nil {
			return run, err
		}
	}
	if err := d.EnsureVMs(ctx, host, 2); err != nil {
		return run, err
	}
	st, err := d.State(ctx)
	if err != nil {
		return run, err
	}
	run.Host, run.VMs = host, drill.On(st, host)
	if run.Running, err = loseAndWait(ctx, d, host, run.VMs); err != nil {
		return run, err
	}
	var t event.Timeline
	err = drill.Until(ctx, 2*time.Minute, "all guests answer", func() error {
		if t, err = d.Timeline(ctx, host); err != nil {
			return err
		}
		if t.LastAlive == nil || t.LastRunning == nil {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		return run, err
	}
	run.Phases = phases(t)
	run.Alive = run.Running + *t.LastAlive - *t.LastRunning
	return run, d.PowerOn(ctx, host, false)
}

// loseAndWait cuts the power and returns the seconds until the processes show
// the VMs elsewhere, looking at every event of the observer.
func loseAndWait(ctx context.Context, d drill.Drill, host string, vms []string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var cut time.Time
	var took float64
	var failed error
	err := d.Observe(ctx, func(journal.Event) bool {
		if cut.IsZero() { // the stream has begun: nothing is missed
			cut = time.Now()
			if failed = d.PowerOff(ctx, host); failed != nil {
				return false
			}
		}
		st, err := d.State(ctx)
		if err != nil {
			failed = err
			return false
		}
		for _, vm := range vms {
			if drill.Once(st, vm) != nil || drill.Instances(st, vm)[0].Host == host {
				return true
			}
		}
		took = time.Since(cut).Seconds()
		return false
	})
	return took, errors.Join(err, failed)
}

// phases are the latest instants of each phase in a timeline.
func phases(t event.Timeline) map[event.Kind]float64 {
	out := map[event.Kind]float64{}
	note := func(steps []event.Step) {
		for _, s := range steps {
			out[s.Kind] = max(out[s.Kind], s.Since)
		}
	}
	note(t.Steps)
	for _, v := range t.VMs {
		note(v.Steps)
	}
	return out
}

func (r *Report) summarise() {
	r.Summary = map[string]Figures{}
	for _, kind := range []string{"secondary", "primary"} {
		var running, alive []float64
		byPhase := map[event.Kind][]float64{}
		for _, run := range r.Runs {
			if run.Lost != kind {
				continue
			}
			running, alive = append(running, run.Running), append(alive, run.Alive)
			for k, v := range run.Phases {
				byPhase[k] = append(byPhase[k], v)
			}
		}
		f := Figures{Runs: len(running), MedianPhases: map[event.Kind]float64{}}
		f.MedianRunning, f.WorstRunning = median(running), slices.Max(running)
		f.MedianAlive, f.WorstAlive = median(alive), slices.Max(alive)
		for k, v := range byPhase {
			f.MedianPhases[k] = median(v)
		}
		r.Summary[kind] = f
	}
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
