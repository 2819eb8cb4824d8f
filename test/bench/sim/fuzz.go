package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"hanok.dev/hanok/internal/sim"
	"hanok.dev/hanok/internal/sim/fuzz"
)

// fuzzSize is a seed of `hanok sim fuzz` without flags.
var fuzzSize = fuzz.Config{Hosts: 5, VMs: 20, Duration: 30 * time.Minute}

// The target: so many seeds in ten minutes on two cores.
const (
	targetSeeds = 10_000
	targetCores = 2
)

// fuzzRow is what random disasters cost.
type fuzzRow struct {
	Seeds     int    `json:"seeds"`
	Start     uint64 `json:"start"`
	Quiet     int    `json:"quietSeeds"` // in which nothing happened: they do not count
	Failovers int    `json:"failovers"`
	// Seed is what one costs, in seconds of a processor: the median of the runs.
	Seed  float64 `json:"processorSecondsPerSeed"`
	Worst float64 `json:"worst"`
	Rate  float64 `json:"seedsPerProcessorSecond"`
	// Minutes are what targetSeeds would take on targetCores that do nothing else.
	Minutes float64 `json:"minutesFor10000On2Cores"`
	// Wall is how long the seeds really took, on so many cores.
	Wall  float64 `json:"wallSeconds"`
	Cores int     `json:"cores"`
}

// String says whether the figure for all seeds is measured or extrapolated.
func (f *fuzzRow) String() string {
	how := fmt.Sprintf("%d seeds would take %.1f min on %d cores, from %d seeds measured", targetSeeds, f.Minutes, targetCores, f.Seeds)
	if f.Seeds >= targetSeeds {
		how = fmt.Sprintf("%d seeds took %.1f min of real time on %d cores", f.Seeds, f.Wall/60, f.Cores)
	}
	return fmt.Sprintf("fuzz         %9.2f seeds per processor second  %.3f s a seed (worst run %.3f)  %d quiet  %s",
		f.Rate, f.Seed, f.Worst, f.Quiet, how)
}

// measureFuzz runs seeds on all cores, as the command does, in so many runs of
// about the same length.
func measureFuzz(start uint64, seeds, runs int) (*fuzzRow, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(fuzz.GCPercent))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU()))
	out := &fuzzRow{Seeds: seeds, Start: start, Cores: runtime.NumCPU()}
	if seeds < 1 {
		return nil, fmt.Errorf("seeds: %d, at least one is needed", seeds)
	}
	runs = max(1, min(runs, seeds))
	var cost []float64
	began := time.Now()
	for run, done := 0, 0; run < runs; run++ {
		n := seeds*(run+1)/runs - done
		before := cpu()
		sum, err := fuzz.RunMany(context.Background(), start+uint64(done), uint64(n), fuzzSize, nil)
		if err != nil {
			return nil, err
		}
		if sum.Failed != nil {
			return nil, fmt.Errorf("fuzz, seed %d: %+v", sum.Failed.Seed, *sum.Failed.Violation)
		}
		cost = append(cost, (cpu()-before).Seconds()/float64(n))
		out.Quiet += sum.Quiet
		out.Failovers += sum.Coverage[sim.Failovers]
		done += n
	}
	out.Wall = time.Since(began).Seconds()
	out.Seed, out.Worst = median(cost), slices.Max(cost)
	out.Rate = 1 / out.Seed
	out.Minutes = out.Seed * targetSeeds / targetCores / 60
	return out, nil
}
