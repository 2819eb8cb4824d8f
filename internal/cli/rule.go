package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

func newRule(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "rule", Short: "Look at the rules that say which VMs run where"}
	cmd.AddCommand(newRuleCheck(a))
	return cmd
}

// ruleReport is the output of `rule check -o json`.
type ruleReport struct {
	Rules        int `json:"rules"`
	InForce      int `json:"inForce"`
	HostFailures int `json:"hostFailures"`
	rules.Report
}

func newRuleCheck(a *app) *cobra.Command {
	var file string
	var failures int
	cmd := &cobra.Command{Use: "check [-f FILE]", Short: "Find rules that cannot all hold", Args: cobra.NoArgs,
		Long: `Find rules that cannot all hold: whatever follows from all hard rules together is
found, with every host and after the loss of any --host-failures of them (those of
ha.admission, if not given). Of each contradiction it names as few rules as
possible, and the newest, which is not in force.

The exit status is 1 on a contradiction, or if the search was not finished; with
--host-failures also if hard rules cannot hold after such a loss.

Without -f the cluster file in force is checked.`}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "the cluster file, - for standard input")
	f.IntVar(&failures, "host-failures", 0, "look at the loss of any so many hosts, too")
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		if failures < 0 || failures > 8 {
			return usage("use 0 to 8", "--host-failures %d is out of range", failures)
		}
		cluster, err := a.clusterOf(c, file)
		if err != nil {
			return err
		}
		asked := f.Changed("host-failures")
		if !asked {
			failures = cluster.HA.Admission.HostFailures
		}
		r := snapshot.Check(cluster, rules.Options{HostFailures: failures})
		if js {
			err = writeJSON(c.OutOrStdout(), ruleReport{len(cluster.Rules), len(r.Active), failures, r})
		} else {
			printRules(c.OutOrStdout(), len(cluster.Rules), failures, r)
		}
		switch {
		case err != nil:
			return err
		case len(r.Conflicts) > 0:
			return Fail(ExitFailed, "change or remove one rule of each contradiction", "%s among the rules", plural(len(r.Conflicts), "contradiction"))
		case len(r.Undecided) > 0:
			return Fail(ExitFailed, "make the rules about these VMs simpler", "%s of the rules not decided", plural(len(r.Undecided), "part"))
		case asked && len(r.Weak) > 0:
			return Fail(ExitFailed, "allow more hosts, or put fewer VMs under these rules", "the rules cannot hold after the loss of %s", plural(failures, "host"))
		}
		return nil
	}
	return cmd
}

// clusterOf reads a cluster file, or asks the agent for the one in force.
func (a *app) clusterOf(c *cobra.Command, file string) (*config.Cluster, error) {
	if file == "" {
		return a.config(c.Context())
	}
	data, err := a.clusterData(file)
	if err != nil {
		return nil, err
	}
	cluster, err := config.Parse(data)
	if err != nil {
		return nil, Fail(ExitUsage, "correct the file", "%s: %w", file, err)
	}
	return cluster, nil
}

func printRules(w io.Writer, total, failures int, r rules.Report) {
	i18n.Fprintf(w, "%s, %d in force\n", plural(total, "rule"), len(r.Active))
	for _, x := range r.Conflicts {
		i18n.Fprintf(w, "contradiction: %s\n", x)
	}
	for _, x := range r.Weak {
		i18n.Fprintf(w, "after the loss of %s: %s\n", plural(failures, "host"), x)
	}
	for _, x := range r.Vain {
		i18n.Fprintf(w, "in vain: %s: %s\n", x.Rule, x.Reason)
	}
	for _, x := range r.Homeless {
		i18n.Fprintf(w, "no host: %s: %s\n", strings.Join(x.VMs, ", "), x.Reason)
	}
	for _, x := range r.Undecided {
		i18n.Fprintf(w, "not decided: %s: %s\n", strings.Join(x.VMs, ", "), x.Reason)
	}
	if len(r.Conflicts)+len(r.Weak)+len(r.Undecided) == 0 {
		i18n.Fprintf(w, "all hard rules can hold%s\n", map[bool]string{true: ", also after the loss of any " + plural(failures, "host")}[failures > 0])
	}
}
