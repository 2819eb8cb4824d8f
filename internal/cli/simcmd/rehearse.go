package simcmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/sim"
)

// maxStatus bounds a status file.
const maxStatus = 64 << 20

var errNotAll = errors.New("some VMs would not restart")

func newRehearse() *cobra.Command {
	var statusFile, format string
	var hosts []string
	var two bool
	var seed uint64
	cmd := &cobra.Command{
		Use: "rehearse CLUSTER.yaml", Short: "If hosts failed now: where would their VMs go, and how soon?",
		Long: `Play the loss of hosts in virtual time and say where each of their VMs goes, how
long that takes, and what does not restart and why. CLUSTER.yaml is the cluster
file; with --status, the output of ` + "`hanok status -o json`" + ` on a live host, VMs are
where they really run. Without --host every host fails once, alone; with --two
also every two at once. Exit status 1 if any VM would stay down.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("-o %s: only json is known", format)
			}
			c, err := config.ReadFile(args[0])
			if err != nil {
				return err
			}
			if statusFile != "" {
				if err := placeAsRunning(c, statusFile); err != nil {
					return fmt.Errorf("%s: %w", statusFile, err)
				}
			}
			var out []sim.Rehearsal
			down := 0
			for _, failed := range losses(c, hosts, two) {
				r, err := sim.Rehearse(c, failed, seed)
				if err != nil {
					return err
				}
				out = append(out, r)
				down += r.Down
			}
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(out)
			} else {
				err = printRehearsals(cmd.OutOrStdout(), out)
			}
			if err == nil && down > 0 {
				err = errNotAll
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&statusFile, "status", "", "output of `hanok status -o json`: where VMs run now")
	f.StringSliceVar(&hosts, "host", nil, "these hosts fail at once")
	f.BoolVar(&two, "two", false, "also every two hosts at once")
	f.Uint64Var(&seed, "seed", 1, "what is left to chance")
	f.StringVarP(&format, "output", "o", "", "json: the result for a program")
	return cmd
}

// losses are the sets of hosts that fail.
func losses(c *config.Cluster, hosts []string, two bool) [][]model.HostID {
	if len(hosts) > 0 {
		var set []model.HostID
		for _, h := range hosts {
			set = append(set, model.HostID(h))
		}
		return [][]model.HostID{set}
	}
	var out [][]model.HostID
	for i := range c.Hosts {
		out = append(out, []model.HostID{c.Hosts[i].Name})
	}
	for i := range c.Hosts {
		for j := i + 1; two && j < len(c.Hosts); j++ {
			out = append(out, []model.HostID{c.Hosts[i].Name, c.Hosts[j].Name})
		}
	}
	return out
}

// placeAsRunning puts each VM of the cluster file where a status says it runs.
func placeAsRunning(c *config.Cluster, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxStatus))
	if err != nil {
		return err
	}
	var s local.Status
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("not the output of `hanok status -o json`: %w", err)
	}
	for _, v := range s.VMs {
		have := c.VMByName(v.Name)
		if have == nil {
			return fmt.Errorf("vms: %s is not in the cluster file", v.Name)
		}
		if v.Host != "" {
			have.Host = v.Host
		}
		if v.State == model.VMStopped || v.State == model.VMDisabled {
			have.Requested = model.RequestedStopped
		}
	}
	return nil
}

func printRehearsals(w io.Writer, all []sim.Rehearsal) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "FAILED\tVM\tFROM\tTO\tAFTER\tREASON")
	for _, r := range all {
		name := ""
		for i, h := range r.Failed {
			if i > 0 {
				name += ","
			}
			name += string(h)
		}
		if len(r.VMs) == 0 {
			fmt.Fprintf(t, "%s\t-\t-\t-\t-\tit runs no VM\n", name)
		}
		for _, v := range r.VMs {
			if v.To == "" {
				fmt.Fprintf(t, "%s\t%s\t%s\tdown\t-\t%s\n", name, v.Name, v.From, v.Reason)
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f s\t\n", name, v.Name, v.From, v.To, v.Seconds)
		}
	}
	return t.Flush()
}
