package labcmd

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/journal"
)

// output is the -o flag.
type output string

func (o *output) flag(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "text", "text or json")
}

func (o output) print(w io.Writer, v any, text func(io.Writer)) error {
	switch o {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "text":
		text(w)
		return nil
	}
	return fmt.Errorf("--output %s: use text or json", string(o))
}

func newStatus(open opener) *cobra.Command {
	var out output
	var disks bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show hosts, VMs and where they really run", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context(), disks)
			if err != nil {
				return err
			}
			return out.print(cmd.OutOrStdout(), s, func(w io.Writer) { printStatus(w, s) })
		},
	}
	cmd.Flags().BoolVar(&disks, "disks", false, "check every data disk too")
	out.flag(cmd)
	return cmd
}

// newCheck is status with disks, whose exit status tells.
func newCheck(open opener) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use: "check", Short: "Check all disks and what the observer saw; fails on any violation", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context(), true)
			if err != nil {
				return err
			}
			if err := out.print(cmd.OutOrStdout(), s, func(w io.Writer) { printCheck(w, s) }); err != nil {
				return err
			}
			if n := len(s.Violations); n > 0 {
				return fmt.Errorf("%d violations", n)
			}
			return nil
		},
	}
	out.flag(cmd)
	return cmd
}

func printStatus(w io.Writer, s lab.Status) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	i18n.Fprintln(t, "HOST\tPOWER\tROLE\tSTATE\tWATCHDOG\tRESETS\tFAULTS")
	for _, h := range s.Hosts {
		power := h.Power
		if h.Frozen {
			power = "frozen"
		}
		i18n.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", h.Name, power, h.Role, h.State, h.Watchdog, h.Resets, faults(h))
	}
	t.Flush()
	fmt.Fprintln(w)
	i18n.Fprintln(t, "VM\tSTATE\tRUNNING ON\tPROTECTED\tDISK\tREASON")
	for _, v := range s.VMs {
		var on []string
		for _, i := range v.Instances {
			name := i.Host
			if i.Frozen {
				name += " (frozen)"
			}
			if i.Paused {
				name += " (paused)"
			}
			on = append(on, name)
		}
		i18n.Fprintf(t, "%s\t%s\t%s\t%v\t%s\t%s\n", v.Name, v.State, strings.Join(on, ", "), v.Protected, disk(v), v.Reason)
	}
	t.Flush()
	printViolations(w, s)
}

func faults(h lab.HostStatus) string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(h.Cuts)) {
		out = append(out, fmt.Sprintf("%s cut %s", n, h.Cuts[n]))
	}
	for _, d := range slices.Sorted(maps.Keys(h.Storage)) {
		out = append(out, d+" "+h.Storage[d])
	}
	if h.Error != "" {
		out = append(out, h.Error)
	}
	return strings.Join(out, ", ")
}

func disk(v lab.VMStatus) string {
	switch {
	case v.Disk == nil:
		return "-"
	case v.Disk.Intact():
		return fmt.Sprintf("intact, epoch %d, %d records", v.Disk.Epoch, v.Disk.Records)
	}
	return "DAMAGED"
}

func printCheck(w io.Writer, s lab.Status) {
	for _, v := range s.VMs {
		i18n.Fprintf(w, "%s: %s\n", v.Name, disk(v))
	}
	printViolations(w, s)
}

func printViolations(w io.Writer, s lab.Status) {
	if len(s.Violations) == 0 {
		i18n.Fprintln(w, "\nno violations: no VM could run twice")
	}
	for _, v := range s.Violations {
		i18n.Fprintf(w, "\nVIOLATION: %s: %s\n", v.Invariant, v.Detail)
	}
}

func newObserve(open opener) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use: "observe", Short: "Follow what the observer sees, until interrupted", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			lines := json.NewEncoder(w)
			return c.Observe(cmd.Context(), func(e journal.Event) bool {
				switch {
				case e.Kind == "":
				case out == "json":
					_ = lines.Encode(e)
				default:
					i18n.Fprintf(w, "%s  %-9s %-8s %-8s %s\n", e.Time.Format("15:04:05.000"), e.Kind, e.Host, e.Name, e.Detail)
				}
				return true
			})
		},
	}
	out.flag(cmd)
	return cmd
}
