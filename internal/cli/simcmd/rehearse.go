package simcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/sim"
)

// maxStatus bounds a status file.
const maxStatus = 64 << 20

var errNotAll = errors.New("some VMs would not restart")

// rehearsing is what the command was asked.
type rehearsing struct {
	cluster *config.Cluster
	absent  []model.HostID // hosts that are down already
	seed    uint64
}

func newRehearse(live Live) *cobra.Command {
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
	cmd.MarkFlagsMutuallyExclusive("host", "two")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if format != "" && format != "json" {
			return usage("-o %s: only json is known", format)
		}
		q, err := question(cmd.Context(), live, args, statusFile)
		if err != nil {
			return err
		}
		q.seed = seed
		all, err := q.run(cmd.Context(), losses(q, hosts, two), cmd.ErrOrStderr())
		if err != nil {
			return usageError{err}
		}
		if format == "json" {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			err = enc.Encode(all)
		} else {
			err = printRehearsals(cmd.OutOrStdout(), q, all)
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

// question reads the cluster and where its VMs run.
func question(ctx context.Context, live Live, args []string, statusFile string) (*rehearsing, error) {
	if len(args) == 0 {
		if statusFile != "" {
			return nil, usage("--status needs the cluster file too")
		}
		c, s, err := live(ctx)
		if err != nil {
			return nil, err
		}
		q := &rehearsing{cluster: c}
		return q, q.adopt(s)
	}
	c, err := config.ReadFile(args[0])
	if err != nil {
		return nil, usageError{err}
	}
	q := &rehearsing{cluster: c}
	if statusFile == "" {
		return q, nil
	}
	s, err := readStatus(statusFile)
	if err == nil {
		err = q.adopt(s)
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

// adopt puts each VM where a status says it runs, and notes what is down.
func (q *rehearsing) adopt(s *local.Status) error {
	for i := range s.Hosts {
		h := &s.Hosts[i]
		have := q.cluster.HostByName(h.Name)
		if have == nil {
			return fmt.Errorf("hosts: %s is not in the cluster file", h.Name)
		}
		if h.Memory > 0 {
			have.Memory = h.Memory
		}
		switch h.State {
		case model.HostFailed, model.HostStandby, model.HostDisconnected:
			q.absent = append(q.absent, h.Name)
		}
	}
	runs := map[string]model.HostID{}
	for _, v := range s.VMs {
		if q.cluster.VMByName(v.Name) == nil {
			return fmt.Errorf("vms: %s is not in the cluster file", v.Name)
		}
		if v.Host != "" && v.State != model.VMStopped && v.State != model.VMDisabled {
			runs[v.Name] = v.Host
		}
	}
	for i := range q.cluster.VMs {
		v := &q.cluster.VMs[i]
		if host, ok := runs[v.Name]; ok {
			v.Host = host
		} else if v.Requested == model.RequestedStarted {
			v.Requested = model.RequestedStopped
		}
	}
	return nil
}

// losses are the sets of hosts that fail.
func losses(q *rehearsing, hosts []string, two bool) [][]model.HostID {
	if len(hosts) > 0 {
		var set []model.HostID
		for _, h := range hosts {
			set = append(set, model.HostID(h))
		}
		return [][]model.HostID{set}
	}
	var up []model.HostID
	for i := range q.cluster.Hosts {
		h := q.cluster.Hosts[i].Name
		if !q.down(h) {
			up = append(up, h)
		}
	}
	var out [][]model.HostID
	for _, h := range up {
		out = append(out, []model.HostID{h})
	}
	for i := range up {
		for j := i + 1; two && j < len(up); j++ {
			out = append(out, []model.HostID{up[i], up[j]})
		}
	}
	return out
}

func (q *rehearsing) down(h model.HostID) bool {
	for _, x := range q.absent {
		if x == h {
			return true
		}
	}
	return false
}

// run rehearses each of the losses, several at once, and tells a terminal how
// far it is.
func (q *rehearsing) run(ctx context.Context, losses [][]model.HostID, w io.Writer) ([]sim.Rehearsal, error) {
	out := make([]sim.Rehearsal, len(losses))
	done := make(chan struct{}, len(losses))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	told := make(chan struct{})
	go func() {
		defer close(told)
		show, n := len(losses) > 1 && isTerminal(w), 0
		for range done {
			if n++; show {
				i18n.Fprintf(w, "\r\033[Krehearsing: %d of %d", n, len(losses))
			}
		}
		if show {
			fmt.Fprint(w, "\r\033[K")
		}
	}()
	for i, failed := range losses {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := sim.Rehearse(q.cluster, q.absent, failed, q.seed)
			out[i] = r
			done <- struct{}{}
			return err
		})
	}
	err := g.Wait()
	close(done)
	<-told
	return out, err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func printRehearsals(w io.Writer, q *rehearsing, all []sim.Rehearsal) error {
	if len(q.absent) > 0 {
		i18n.Fprintf(w, "down already: %s\n", names(q.absent))
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
	bad, slowest := 0, sim.Rehearsal{}
	for _, r := range all {
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
	} else {
		parts = append(parts, "every VM restarts")
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
