package simcmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/scenario"
	"hanok.dev/hanok/internal/sim"
	"hanok.dev/hanok/internal/sim/fuzz"
)

// shrinkTries bounds the runs that shorten a failing scenario.
const shrinkTries = 400

var errViolation = errors.New("an invariant was broken")

// fuzzReport is the result for programs.
type fuzzReport struct {
	Result         scenario.Outcome    `json:"result"`
	Start          uint64              `json:"start"`
	Seeds          int                 `json:"seeds"`
	QuietSeeds     int                 `json:"quietSeeds"`
	VirtualSeconds float64             `json:"virtualSeconds"`
	RealSeconds    float64             `json:"realSeconds"`
	Coverage       map[string]int      `json:"coverage"`
	FailedSeed     uint64              `json:"failedSeed,omitempty"`
	Violation      *scenario.Violation `json:"violation,omitempty"`
	Scenario       string              `json:"scenario,omitempty"`
	Steps          int                 `json:"steps,omitempty"`
}

func newFuzz() *cobra.Command {
	cfg := fuzz.Config{}
	var start, seeds uint64
	var format, out, duration string
	cmd := &cobra.Command{
		Use: "fuzz", Short: "Run random disasters until an invariant breaks",
		Long: `Run random disasters, one cluster for each seed, on all processors. Faults and
operations are drawn from the seed; the last 150 s of each run are quiet, and what
can run must run again by their end. Seeds in which nothing happened are counted
apart: they prove nothing.

When an invariant breaks, the scenario is shortened and written to a file that
` + "`hanok sim run --seed SEED FILE`" + ` plays again exactly. Exit status 1 then, 2 if it was ended before all seeds had run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Duration, err = config.ParseDuration(duration); err != nil {
				return usage("--duration %w", err)
			}
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			if format != "" && format != "json" {
				return usage("-o %s: only json is known", format)
			}
			defer debug.SetGCPercent(debug.SetGCPercent(fuzz.GCPercent))
			began := time.Now()
			sum, err := fuzz.RunMany(cmd.Context(), start, seeds, cfg, fuzzProgress(cmd.ErrOrStderr(), seeds))
			if err != nil {
				return err
			}
			r := fuzzReport{Result: scenario.Pass, Start: start, Seeds: sum.Seeds, QuietSeeds: sum.Quiet, Coverage: sum.Coverage.Map(),
				VirtualSeconds: float64(sum.Seeds) * cfg.Duration.Seconds(), RealSeconds: time.Since(began).Seconds()}
			if sum.Failed == nil && uint64(sum.Seeds) < seeds {
				r.Result = "ended"
			}
			if sum.Failed != nil {
				if err := explainFailure(cmd.ErrOrStderr(), sum.Failed, cfg, out, &r); err != nil {
					return err
				}
			}
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(r)
			} else {
				err = printFuzz(cmd.OutOrStdout(), &r)
			}
			switch {
			case err == nil && sum.Failed != nil:
				err = errViolation
			case err == nil && uint64(sum.Seeds) < seeds:
				err = usage("ended after %d of %d seeds, without a violation", sum.Seeds, seeds)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&seeds, "seeds", 100, "how many seeds")
	f.Uint64Var(&start, "start", 1, "the first seed")
	f.IntVar(&cfg.Hosts, "hosts", 5, "hosts of each cluster")
	f.IntVar(&cfg.VMs, "vms", 20, "VMs of each cluster")
	f.StringVar(&duration, "duration", "30m", "virtual time of each run")
	f.StringVar(&cfg.Theme, "disasters", "", "only those of one kind: "+strings.Join(fuzz.Themes(), ", ")+" (default all)")
	f.StringVar(&out, "out", "", "where the shortened scenario goes (default fuzz-SEED.txtar)")
	f.StringVarP(&format, "output", "o", "", "json: the result for a program")
	return cmd
}

// fuzzProgress prints a line every ten seconds.
func fuzzProgress(w io.Writer, seeds uint64) func(fuzz.Summary) {
	last := time.Now()
	return func(s fuzz.Summary) {
		if time.Since(last) >= 10*time.Second {
			last = time.Now()
			i18n.Fprintf(w, "%d of %d seeds, %d quiet, %d failovers\n", s.Seeds, seeds, s.Quiet, s.Coverage[sim.Failovers])
		}
	}
}

// explainFailure shortens the failing scenario and writes it.
func explainFailure(w io.Writer, o *fuzz.Outcome, cfg fuzz.Config, out string, r *fuzzReport) error {
	sc, err := fuzz.Generate(o.Seed, cfg)
	if err != nil {
		return err
	}
	i18n.Fprintf(w, "seed %d breaks %s at %.3f s; shortening its %d steps\n", o.Seed, o.Violation.Invariant, o.Violation.At, len(sc.Steps))
	short, found := fuzz.Shrink(o.Seed, sc, cfg.Duration, o, shrinkTries)
	if out == "" {
		out = fmt.Sprintf("fuzz-%d.txtar", o.Seed)
	}
	data, err := fuzz.Format(short, fmt.Sprintf("Seed %d breaks the invariant %q at %.3f s: %s\nReplay: hanok sim run --seed %d %s",
		o.Seed, found.Violation.Invariant, found.Violation.At, found.Violation.Detail, o.Seed, out))
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, data, 0o644); err != nil {
		return err
	}
	r.Result, r.FailedSeed, r.Violation, r.Scenario, r.Steps = scenario.Fail, o.Seed, found.Violation, out, len(short.Steps)
	return nil
}

func printFuzz(w io.Writer, r *fuzzReport) error {
	kinds := make([]string, 0, len(r.Coverage))
	for k, n := range r.Coverage {
		kinds = append(kinds, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(kinds)
	_, err := i18n.Fprintf(w, "%d seeds from %d, %d of them quiet and not counted; %.0f virtual seconds in %.1f s\n%s\n",
		r.Seeds, r.Start, r.QuietSeeds, r.VirtualSeconds, r.RealSeconds, strings.Join(kinds, ", "))
	if err == nil && r.Violation != nil {
		_, err = i18n.Fprintf(w, "seed %d: VIOLATION of %s at %.3f s: %s\nshortened to %d steps in %s; replay: hanok sim run --seed %d %s\n",
			r.FailedSeed, r.Violation.Invariant, r.Violation.At, r.Violation.Detail, r.Steps, r.Scenario, r.FailedSeed, r.Scenario)
	}
	return err
}
