package labcmd

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/replay"
	"hanok.dev/hanok/internal/scenario"
)

func newRun(name *string) *cobra.Command {
	var out output
	o := replay.Options{}
	cmd := &cobra.Command{
		Use: "run SCENARIO", Short: "Run a scenario file on a lab of its own, in real time",
		Long: `Bring up a lab from the scenario's cluster, run its script in real time, and
take the lab down. Fails if an expectation or an invariant does not hold.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Scenario, err = scenario.Load(args[0]); err != nil {
				return err
			}
			o.Lab.Name = *name
			o.Lab.Progress = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) }
			result, err := replay.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), result, func(w io.Writer) { printResult(w, result) }); err != nil {
				return err
			}
			if result.Result != scenario.Pass {
				return errors.New("the scenario failed")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab up afterwards")
	cmd.Flags().BoolVar(&o.Lab.RebootOnReset, "reboot-on-reset", false, "a host that its watchdog reset boots again")
	out.flag(cmd)
	return cmd
}

func printResult(w io.Writer, r scenario.Result) {
	for _, x := range r.Recoveries {
		fmt.Fprintf(w, "%s: %s -> %s in %.1f s after %q\n", x.VM, x.From, x.To, x.Seconds, x.Fault)
	}
	for _, e := range r.Expectations {
		if !e.OK {
			fmt.Fprintf(w, "line %d FAILED: %s\n", e.Line, e.Detail)
		}
	}
	printViolations(w, lab.Status{Violations: violations(r)})
	fmt.Fprintf(w, "%s: %d expectations, %.0f s\n", r.Result, len(r.Expectations), r.VirtualSeconds)
}

func violations(r scenario.Result) []lab.Violation {
	var out []lab.Violation
	for _, v := range r.Violations {
		out = append(out, lab.Violation{Invariant: v.Invariant, Detail: fmt.Sprintf("at %.1fs: %s", v.At, v.Detail)})
	}
	return out
}
