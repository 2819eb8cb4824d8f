// Package simcmd holds the commands of `hanok sim`: clusters in virtual time.
package simcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
	"hanok.dev/hanok/internal/sim"
)

// Live returns the cluster file in force and the state of the cluster that the
// command line is about.
type Live func(ctx context.Context) (*config.Cluster, *local.Status, error)

// Ask is a rehearsal of the live cluster.
type Ask struct {
	Hosts []string
	Two   bool
	Seed  uint64
}

// Answer is one loss of a rehearsal.
type Answer struct {
	// Losses is how many are played in all, Loss which of them this is.
	Losses, Loss int
	// Absent are hosts that were down before.
	Absent []model.HostID
	sim.Rehearsal
}

// Server has the server that the command line is about play a rehearsal, and
// tells each answer; false: it is about the agent of this host.
type Server func(ctx context.Context, ask Ask, told func(Answer)) (bool, error)

// New returns the command with its subcommands.
func New(live Live, server Server) *cobra.Command {
	cmd := &cobra.Command{
		Use: "sim", Short: "Simulate whole clusters in virtual time",
		Long: `Simulate clusters in virtual time: the very code that decides on real hosts,
over simulated hosts, networks, datastores and guests. Needs no root.`,
		// Simulations need little memory and make much garbage.
		PersistentPreRun: func(*cobra.Command, []string) { debug.SetGCPercent(400) },
	}
	cmd.AddCommand(newRun(), newFuzz(), newRehearse(live, server))
	return cmd
}

func newRun() *cobra.Command {
	var seed int64
	var trace bool
	var format string
	cmd := &cobra.Command{
		Use: "run FILE…", Short: "Run scenario files in virtual time",
		Long: `Run scenario files (docs/scenarios.md) in virtual time. Fails if an expectation
or an invariant does not hold in any of them. The same seed gives the same run.
Exit status 1 then, 2 if a file is not a scenario.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return usage("-o %s: only json is known", format)
			}
			var results []scenario.Result
			failed := 0
			for _, file := range args {
				sc, err := scenario.Load(file)
				if err != nil {
					return usage("%w", err)
				}
				o := sim.Options{Seed: uint64(seed)}
				if trace {
					o.Trace = printTo(cmd.ErrOrStderr())
				}
				began := time.Now()
				r, err := sim.Play(sc, o)
				if err != nil {
					return usage("%s: %w", file, err)
				}
				r.Seed = seed
				results = append(results, r)
				if r.Result != scenario.Pass {
					failed++
				}
				if format == "" {
					print(cmd.OutOrStdout(), file, r, time.Since(began))
				}
			}
			if format == "json" {
				if err := printJSON(cmd.OutOrStdout(), results); err != nil {
					return err
				}
			}
			if failed > 0 {
				return fmt.Errorf("%w: %d of %d", errFailed, failed, len(args))
			}
			return nil
		},
	}
	cmd.Flags().Int64Var(&seed, "seed", 1, "what is left to chance")
	cmd.Flags().BoolVar(&trace, "trace", false, "print everything that happens to standard error")
	cmd.Flags().StringVarP(&format, "output", "o", "", "json: a result for a program; a list of them for several files")
	return cmd
}

var errFailed = errors.New("scenarios failed")

// usageError is an error of the arguments or of what they name: exit status 2,
// so that 1 is the answer of a run that was made.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// ExitCode is the exit status of the command.
func (usageError) ExitCode() int { return 2 }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func printTo(w io.Writer) func(time.Duration, model.HostID, string) {
	return func(at time.Duration, host model.HostID, text string) {
		i18n.Fprintf(w, "%10.3f  %-10s %s\n", at.Seconds(), host, text)
	}
}

// printJSON prints one result as an object, several as a list.
func printJSON(w io.Writer, results []scenario.Result) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if len(results) == 1 {
		return enc.Encode(results[0])
	}
	return enc.Encode(results)
}

func print(w io.Writer, file string, r scenario.Result, took time.Duration) {
	name := strings.TrimSuffix(filepath.Base(file), ".txtar")
	i18n.Fprintf(w, "%-4s %s: %d expectations, %.0f s in %v\n", r.Result, name, len(r.Expectations), r.VirtualSeconds, took.Round(time.Millisecond))
	for _, x := range r.Recoveries {
		i18n.Fprintf(w, "     %s: %s -> %s in %.1f s after %q\n", x.VM, x.From, x.To, x.Seconds, x.Fault)
	}
	for _, e := range r.Expectations {
		if !e.OK {
			i18n.Fprintf(w, "     line %d FAILED: %s\n", e.Line, e.Detail)
		}
	}
	for _, v := range r.Violations {
		i18n.Fprintf(w, "     VIOLATION at %.3f s: %s: %s\n", v.At, v.Invariant, v.Detail)
	}
}
