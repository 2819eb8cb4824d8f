package fuzz

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"hanok.dev/hanok/internal/scenario"
	"hanok.dev/hanok/internal/sim"
)

// Outcome is what became of one seed.
type Outcome struct {
	Seed     uint64
	Coverage sim.Coverage
	// Violation is the first invariant that did not hold, or nil.
	Violation *scenario.Violation
}

// Quiet tells whether nothing happened that could have gone wrong: such a seed
// proves nothing and does not count.
func (o *Outcome) Quiet() bool {
	c := &o.Coverage
	return c[sim.Failovers]+c[sim.Takeovers]+c[sim.ContendedClaims]+c[sim.Freezes]+c[sim.Resets]+c[sim.LateWrites] == 0
}

// Play runs a scenario for as long as cfg says.
func Play(seed uint64, sc *scenario.Scenario, length time.Duration) (*Outcome, error) {
	s, err := sim.New(sc.Cluster, sim.Options{Seed: seed})
	if err != nil {
		return nil, err
	}
	end := scenario.Step{At: length, Text: "expect all running", Action: scenario.Expect{All: true, Condition: scenario.Running}}
	run := *sc
	run.Steps = append(append([]scenario.Step(nil), sc.Steps...), end) // time goes on until then; the outcome does not matter
	o := &Outcome{Seed: seed}
	if _, err := s.Play(&run); err != nil && len(s.Violations()) == 0 {
		return nil, fmt.Errorf("seed %d: %w", seed, err)
	}
	o.Coverage = s.Coverage()
	if v := s.Violations(); len(v) > 0 {
		o.Violation = &v[0]
	}
	return o, nil
}

// Run plays the scenario of one seed.
func Run(seed uint64, cfg Config) (*Outcome, error) {
	sc, err := Generate(seed, cfg)
	if err != nil {
		return nil, err
	}
	return Play(seed, sc, cfg.Duration)
}

// GCPercent is what a program that runs many seeds gives debug.SetGCPercent: a
// seed's live memory is a few MiB, and collecting it as rarely as this costs
// some tens of MiB for each processor and saves a third of the time.
const GCPercent = 1000

// Summary is what a range of seeds came to.
type Summary struct {
	Seeds    int // that were run
	Quiet    int // of them, those that do not count
	Coverage sim.Coverage
	// Failed is the violation of the lowest seed that was found, or nil.
	Failed *Outcome
}

// RunMany runs the seeds from start on all processors until one breaks an
// invariant or ctx ends; progress is called now and then, from one goroutine at
// a time.
func RunMany(ctx context.Context, start, seeds uint64, cfg Config, progress func(Summary)) (Summary, error) {
	var mu sync.Mutex
	var sum Summary
	var failed error
	next, last := start, start+seeds
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next >= last || ctx.Err() != nil || failed != nil || sum.Failed != nil {
			return 0, false
		}
		next++
		return next - 1, true
	}
	done := func(o *Outcome, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = err
			return
		}
		sum.Seeds++
		sum.Coverage.Add(o.Coverage)
		if o.Quiet() {
			sum.Quiet++
		}
		if o.Violation != nil && (sum.Failed == nil || o.Seed < sum.Failed.Seed) {
			sum.Failed = o
		}
		if progress != nil {
			progress(sum)
		}
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed, ok := take(); ok; seed, ok = take() {
				done(Run(seed, cfg))
			}
		})
	}
	wg.Wait()
	return sum, failed
}

// Format writes a scenario as a file that `hanok sim run` reads.
func Format(sc *scenario.Scenario, comment string) ([]byte, error) {
	cluster, err := sc.Cluster.Marshal()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n-- cluster.yaml --\n%s-- script --\n", comment, cluster)
	for _, st := range sc.Steps {
		fmt.Fprintf(&b, "at %s %s\n", st.At, st.Text)
	}
	return b.Bytes(), nil
}
