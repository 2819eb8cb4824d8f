package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

func newAdmission(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "admission", Short: "Look whether the cluster can lose hosts and restart all VMs"}
	cmd.AddCommand(newAdmissionCheck(a))
	return cmd
}

func newAdmissionCheck(a *app) *cobra.Command {
	var file, start, maintenance string
	cmd := &cobra.Command{Use: "check [-f FILE]", Short: "Tell whether failover capacity is there, and what would help", Args: cobra.NoArgs,
		Long: `Tell whether the cluster, as it is, keeps what ha.admission asks for: room to
restart all VMs after the failures to tolerate. With --start or --maintenance tell
whether it still would after that, which is what admission control decides by.

Without -f the cluster in force is looked at, with each VM where it runs. With -f
VMs that are to be started are taken to run on their host of the file.

The exit status is 1 if the answer is no, or unknown, which counts as no.`}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the cluster file, - for standard input")
	f.StringVar(&start, "start", "", "what if this VM of the cluster file is started")
	f.StringVar(&maintenance, "maintenance", "", "what if this host goes into maintenance")
	cmd.MarkFlagsMutuallyExclusive("start", "maintenance")
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		cluster, err := a.clusterOf(c, file)
		if err != nil {
			return err
		}
		state := snapshot.State(cluster, snapshot.ForRestart(snapshot.Check(cluster, rules.Options{}).Active, cluster.HA.Options))
		var notes []string
		if file == "" {
			status, err := a.status(c.Context())
			if err != nil {
				return err
			}
			notes = overlay(state, status)
		}
		d, err := decide(state, cluster, start, model.HostID(maintenance))
		if err != nil {
			return err
		}
		d.Warnings = append(d.Warnings, notes...)
		if js {
			err = writeJSON(c.OutOrStdout(), d)
		} else {
			printDecision(c.OutOrStdout(), d)
		}
		if err == nil && !d.Allowed {
			err = Fail(ExitFailed, strings.Join(d.Help, "; or "), "the failover capacity that is asked for is not there: %s", d.Answer)
		}
		return err
	}
	return cmd
}

// decide asks admission control.
func decide(s *placement.State, c *config.Cluster, start string, maintenance model.HostID) (admission.Decision, error) {
	p := snapshot.Policy(c)
	switch {
	case start != "":
		v := c.VMByName(start)
		if v == nil {
			return admission.Decision{}, Fail(ExitNotFound, "", "the cluster file has no VM %q", start)
		}
		x := snapshot.VM(v)
		x.NoRestart = v.Restart.Priority == model.PriorityDisabled
		return admission.Decide(s, p, admission.Request{Action: admission.PowerOn, VM: x}), nil
	case maintenance != "":
		if c.HostByName(maintenance) == nil {
			return admission.Decision{}, Fail(ExitNotFound, "", "the cluster file has no host %q", maintenance)
		}
		return admission.Decide(s, p, admission.Request{Action: admission.Maintenance, Host: maintenance}), nil
	}
	r := admission.Check(s, p)
	return admission.Decision{Allowed: r.Verdict == placement.Yes, Report: r}, nil
}

// overlay puts what runs where, and what the hosts say of themselves, into a
// State made from the cluster file. It returns what limits the answer.
func overlay(s *placement.State, status *local.Status) []string {
	for _, name := range s.VMs() {
		s.Stop(name)
	}
	var unknown []string
	known := map[model.HostID]model.MiB{}
	for _, v := range status.VMs {
		if v.Host == "" || v.State != model.VMStarted && v.State != model.VMFrozen && v.State != model.VMStopping {
			continue
		}
		x, ok := s.VM(v.Name)
		if !ok {
			unknown = append(unknown, v.Name)
			continue
		}
		if s.Run(v.Name, v.Host) == nil {
			known[v.Host] += x.Reservation.Memory
		}
	}
	for _, h := range status.Hosts {
		x, _, ok := s.Host(h.Name)
		if !ok {
			continue
		}
		if h.Memory > 0 {
			x.Memory = h.Memory
		}
		x.Reserved.Memory += max(h.MemoryUsed-known[h.Name], 0)
		switch h.State {
		case model.HostPrimary, model.HostConnected, model.HostMaintenance, model.HostQuarantine, model.HostElection:
		default:
			x.Unfit = fmt.Sprintf("it is %s", h.State)
		}
		s.SetHost(x)
	}
	if len(unknown) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s not in the cluster file: the memory they use counts, but not that they have to be restarted: %s",
		plural(len(unknown), "VM")+map[bool]string{true: " is", false: " are"}[len(unknown) == 1], strings.Join(unknown, ", "))}
}

func printDecision(w io.Writer, d admission.Decision) {
	i18n.Fprintf(w, "policy %s: %s\n%s\n", d.Policy, d.Answer, d.Reason)
	if d.Host != "" && d.Allowed {
		i18n.Fprintf(w, "it would run on %s\n", d.Host)
	}
	for _, x := range d.Warnings {
		i18n.Fprintf(w, "warning: %s\n", x)
	}
	for _, x := range d.Help {
		i18n.Fprintf(w, "what would help: %s\n", x)
	}
}
