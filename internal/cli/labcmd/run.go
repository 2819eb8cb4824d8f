package labcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/replay"
	"hanok.dev/hanok/internal/scenario"
)

func newRun(name *string) *cobra.Command {
	r := runner{}
	cmd := &cobra.Command{
		Use: "run SCENARIO...", Short: "Run scenario files on a lab of their own, in real time",
		Long: `Bring up a lab from the scenario's cluster, run its script in real time, and
take the lab down. Files with the same hosts, networks, datastores and VMs share
one lab, one after the other. Fails if an expectation or an invariant does not
hold. A file with what only the simulator has is refused before anything starts.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			var list []*scenario.Scenario
			var problems []error
			for _, file := range args {
				s, err := scenario.Load(file)
				if err == nil {
					err = replay.Check(s)
				}
				if err != nil {
					problems = append(problems, fmt.Errorf("%s: %w", file, err))
				}
				list = append(list, s)
			}
			if len(problems) > 0 {
				return errors.Join(problems...)
			}
			r.lab.Name = *name
			r.say = func(line string) { i18n.Fprintln(cmd.ErrOrStderr(), line) }
			r.lab.Progress = r.say
			defer func() { err = errors.Join(err, r.close(cmd.Context())) }()
			for i, s := range list {
				if err := r.run(cmd, args[i], s); err != nil {
					return err
				}
			}
			if len(r.failed) > 0 {
				return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&r.keep, "keep", false, "leave the lab up afterwards")
	cmd.Flags().BoolVar(&r.lab.RebootOnReset, "reboot-on-reset", false, "a host that its watchdog reset boots again")
	r.out.flag(cmd)
	return cmd
}

// runner runs scenario files and keeps the lab of the last one for the next.
type runner struct {
	out    output
	lab    lab.Options
	keep   bool
	say    func(string)
	stage  *replay.Stage
	failed []string
}

func (r *runner) close(ctx context.Context) error {
	if r.stage == nil || r.keep {
		return nil
	}
	stage := r.stage
	r.stage = nil
	return stage.Close(context.WithoutCancel(ctx))
}

func (r *runner) run(cmd *cobra.Command, file string, s *scenario.Scenario) error {
	ctx := cmd.Context()
	if r.stage != nil && !r.stage.Fits(s) {
		if r.keep {
			return fmt.Errorf("%s needs another lab, and --keep keeps the one before", file)
		}
		if err := r.close(ctx); err != nil {
			return err
		}
	}
	if r.stage == nil {
		var err error
		if r.stage, err = replay.Open(ctx, s, r.lab); err != nil {
			return err
		}
	}
	r.say("--- " + file)
	result, err := r.stage.Play(ctx, s)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if result.Result != scenario.Pass {
		r.failed = append(r.failed, file)
	}
	return r.out.print(cmd.OutOrStdout(), result, func(w io.Writer) {
		i18n.Fprintf(w, "%s: ", file)
		printResult(w, result)
	})
}

func printResult(w io.Writer, r scenario.Result) {
	for _, x := range r.Recoveries {
		i18n.Fprintf(w, "%s: %s -> %s in %.1f s after %q\n", x.VM, x.From, x.To, x.Seconds, x.Fault)
	}
	for _, e := range r.Expectations {
		if !e.OK {
			i18n.Fprintf(w, "line %d FAILED: %s\n", e.Line, e.Detail)
		}
	}
	printViolations(w, lab.Status{Violations: violations(r)})
	i18n.Fprintf(w, "%s: %d expectations, %.0f s\n", r.Result, len(r.Expectations), r.VirtualSeconds)
}

func violations(r scenario.Result) []lab.Violation {
	var out []lab.Violation
	for _, v := range r.Violations {
		out = append(out, lab.Violation{Invariant: v.Invariant, Detail: fmt.Sprintf("at %.1fs: %s", v.At, v.Detail)})
	}
	return out
}
