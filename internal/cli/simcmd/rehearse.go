package simcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rehearsal"
	"hanok.dev/hanok/internal/sim"
)

// maxStatus bounds a status file.
const maxStatus = 64 << 20

var errNotAll = errors.New("some VMs would not restart")

func newRehearse(live Live, server Server) *cobra.Command {
	var statusFile, format string
	var hosts []string
	var two bool
	var seed uint64
	cmd := &cobra.Command{
		Use: "rehearse [CLUSTER.yaml]", Short: "If hosts failed now: where would their VMs go, and how soon?",
		Long: `Play the loss of hosts in virtual time and say where each of their VMs goes, how
long that takes, and what does not restart and why. Nothing is touched.

Without a file it is about the live cluster of this host, or of the server that
you are logged in to: VMs are where they run now, and hosts that are down are
down. With a cluster file VMs are on their host of the file, or, with --status, the
output of ` + "`hanok status -o json`" + `, where they ran when that was written.

Without --host every host fails once, alone; with --two also every two at once.
Exit status 0 if all VMs restart within two minutes, 1 if any would stay down, 2
if the question cannot be answered.`,
		Example: `  hanok sim rehearse                      # the live cluster, each host in turn
  hanok sim rehearse --host host1,host2   # both at once
  hanok sim rehearse plan.yaml --two -o json`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&statusFile, "status", "", "output of `hanok status -o json`: where VMs run")
	f.StringSliceVar(&hosts, "host", nil, "these hosts fail at once")
	f.BoolVar(&two, "two", false, "also every two hosts at once")
	f.Uint64Var(&seed, "seed", 1, "what is left to chance")
	f.StringVarP(&format, "output", "o", "", "json: the result for a program")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format != "" && format != "json" {
			return usage("-o %s: only json is known", format)
		}
		if err := checkHosts(cmd.Flags().Changed("host"), hosts, two); err != nil {
			return err
		}
		ask := Ask{Hosts: hosts, Two: two, Seed: seed}
		var all []sim.Rehearsal
		var absent []model.HostID
		var asked bool
		var err error
		if len(args) == 0 && statusFile == "" && server != nil {
			all, absent, asked, err = runThere(cmd.Context(), server, ask, cmd.ErrOrStderr())
		}
		if !asked && err == nil {
			all, absent, err = runHere(cmd.Context(), live, args, statusFile, ask, cmd.ErrOrStderr())
		}
		if err != nil {
			return err
		}
		if format == "json" {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			err = enc.Encode(all)
		} else {
			err = printRehearsals(cmd.OutOrStdout(), absent, all)
		}
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Down > 0 {
				return errNotAll
			}
		}
		return nil
	}
	return cmd
}

// checkHosts refuses a --host, if it was given, that asks nothing clear.
func checkHosts(given bool, hosts []string, two bool) error {
	if !given {
		return nil
	}
	if two {
		return usage("--host and --two: give one of them; several hosts after --host fail at once")
	}
	if len(hosts) == 0 {
		return usage("--host: it names no host; leave it out to lose each in turn")
	}
	for i, h := range hosts {
		if h == "" {
			return usage("--host: it has an empty name; leave --host out to lose each in turn")
		}
		if slices.Contains(hosts[:i], h) {
			return usage("--host: %s is named twice", h)
		}
	}
	return nil
}

// question reads the cluster and where its VMs run.
func question(ctx context.Context, live Live, args []string, statusFile string) (*rehearsal.Question, error) {
	if len(args) == 0 {
		if statusFile != "" {
			return nil, usage("--status needs the cluster file too")
		}
		c, s, err := live(ctx)
		if err != nil {
			return nil, err
		}
		q := &rehearsal.Question{Cluster: c}
		return q, q.Adopt(s)
	}
	c, err := config.ReadFile(args[0])
	if err != nil {
		return nil, usageError{err}
	}
	q := &rehearsal.Question{Cluster: c}
	if statusFile == "" {
		return q, nil
	}
	s, err := readStatus(statusFile)
	if err == nil {
		err = q.Adopt(s)
	}
	if err != nil {
		return nil, usage("%s: %w", statusFile, err)
	}
	return q, nil
}

func readStatus(file string) (*local.Status, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxStatus+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxStatus {
		return nil, fmt.Errorf("larger than %d MiB: not the output of `hanok status -o json`", maxStatus>>20)
	}
	var s local.Status
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("not the output of `hanok status -o json`: %w", err)
	}
	if len(s.Hosts) == 0 {
		return nil, errors.New("not the output of `hanok status -o json`: it names no hosts")
	}
	return &s, nil
}

// runHere plays each of the losses in this process, and tells a terminal how far
// it is.
func runHere(ctx context.Context, live Live, args []string, statusFile string, ask Ask, w io.Writer) ([]sim.Rehearsal, []model.HostID, error) {
	q, err := question(ctx, live, args, statusFile)
	if err != nil {
		return nil, nil, err
	}
	q.Seed = ask.Seed
	losses := q.Losses(hostIDs(ask.Hosts), ask.Two)
	if len(losses) == 0 {
		return nil, nil, usage("the cluster has no host that is up: there is nothing to rehearse")
	}
	out := make([]sim.Rehearsal, len(losses))
	p := progress{w: w, of: len(losses)}
	defer p.end()
	err = q.Run(ctx, losses, runtime.GOMAXPROCS(0), func(i int, r sim.Rehearsal) error {
		out[i] = r
		p.step()
		return nil
	})
	if err != nil {
		err = usageError{err}
	}
	return out, q.Absent, err
}

// runThere has the server play them, if the command line is about one.
func runThere(ctx context.Context, server Server, ask Ask, w io.Writer) (out []sim.Rehearsal, absent []model.HostID, asked bool, err error) {
	p := progress{w: w}
	defer p.end()
	asked, err = server(ctx, ask, func(a Answer) {
		for len(out) < a.Losses {
			out = append(out, sim.Rehearsal{})
		}
		out[a.Loss], absent, p.of = a.Rehearsal, a.Absent, a.Losses
		p.step()
	})
	return out, absent, asked, err
}

// progress tells a terminal how many losses were played.
type progress struct {
	w     io.Writer
	n, of int
}

func (p *progress) step() {
	if p.n++; p.of > 1 && screen.IsTerminal(p.w) {
		i18n.Fprintf(p.w, "\r\033[Krehearsing: %d of %d", p.n, p.of)
	}
}

func (p *progress) end() {
	if p.of > 1 && screen.IsTerminal(p.w) {
		fmt.Fprint(p.w, "\r\033[K")
	}
}

func hostIDs(list []string) []model.HostID {
	var out []model.HostID
	for _, h := range list {
		out = append(out, model.HostID(h))
	}
	return out
}

func printRehearsals(w io.Writer, absent []model.HostID, all []sim.Rehearsal) error {
	if len(absent) > 0 {
		i18n.Fprintf(w, "down already: %s\n", names(absent))
	}
	for _, r := range all {
		if r.Warning != "" {
			i18n.Fprintf(w, "warning: %s\n", r.Warning)
			break
		}
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	i18n.Fprintln(t, "FAILED\tVM\tFROM\tTO\tAFTER\tREASON")
	for _, r := range all {
		if len(r.VMs) == 0 {
			i18n.Fprintf(t, "%s\t-\t-\t-\t-\tno VM runs there\n", names(r.Failed))
		}
		for _, v := range r.VMs {
			if v.To == "" {
				i18n.Fprintf(t, "%s\t%s\t%s\tdown\t-\t%s\n", names(r.Failed), v.Name, v.From, v.Reason)
				continue
			}
			i18n.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f s\t\n", names(r.Failed), v.Name, v.From, v.To, v.Seconds)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return printSummary(w, all)
}

// printSummary says which of the losses is the worst.
func printSummary(w io.Writer, all []sim.Rehearsal) error {
	bad, vms, slowest := 0, 0, sim.Rehearsal{}
	for _, r := range all {
		vms += len(r.VMs)
		if r.Down > 0 {
			bad++
		}
		if r.Seconds > slowest.Seconds {
			slowest = r
		}
	}
	var parts []string
	if slowest.Seconds > 0 {
		parts = append(parts, fmt.Sprintf("the slowest restart takes %.1f s (loss of %s)", slowest.Seconds, names(slowest.Failed)))
	}
	if bad > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d losses leave VMs down", bad, len(all)))
	} else if vms > 0 {
		parts = append(parts, "every VM restarts")
	} else {
		parts = append(parts, "no VM runs on the hosts that fail: nothing has to restart")
	}
	_, err := i18n.Fprintln(w, strings.Join(parts, "; "))
	return err
}

func names(hosts []model.HostID) string {
	out := make([]string, len(hosts))
	for i, h := range hosts {
		out[i] = string(h)
	}
	return strings.Join(out, ",")
}
