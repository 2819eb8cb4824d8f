package cli

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

func newRule(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "rule", Short: "Look at the rules that say which VMs run where, and change them"}
	cmd.AddCommand(newRuleList(a, "list"), newRulePut(a, false), newRulePut(a, true), newRuleRemove(a), newRuleCheck(a))
	return cmd
}

// newRulePut is `rule add`, and `rule set` of one that is there.
func newRulePut(a *app, there bool) *cobra.Command {
	var o changing
	cmd := &cobra.Command{Use: "add RULE FIELD=VALUE...", Short: "Add a rule, as the newest", Args: cobra.MinimumNArgs(2),
		Long: `Add a rule to the cluster file, as the newest, and bring that into force on all
hosts. The fields are those of rules[] in the cluster file (docs/placement.md):

  hanok rule add spread kind=resourceAffinity vms=db1,db2 policy=apart
  hanok rule add licence kind=vmHost vmGroups=oracle hostGroups=licensed must=true
  hanok rule add near kind=nodeAffinity vms=web hosts=host1:10,host2:5

A rule that contradicts older ones is kept and not in force: that is said, here,
in hanok status and by an event.`,
		ValidArgsFunction: a.completeSettings("rules", nil)}
	if there {
		cmd.Use, cmd.Short = "set RULE FIELD=VALUE...", "Change a rule; it keeps its age"
		cmd.Long = "Change fields of a rule, and bring that into force on all hosts. The rule keeps its\nage. Without a value a field gets its default back.\n\n  hanok rule set spread vms=db1,db2,db3"
		cmd.ValidArgsFunction = a.completeSettings("rules", a.completeRules)
	}
	out := o.flags(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) (err error) {
		if o.json, err = asJSON(*out); err != nil {
			return err
		}
		sets, err := settings("rules", args[0], args[1:])
		if err != nil {
			return err
		}
		return a.change(c, o, func(now *config.Cluster) (*config.Cluster, error) {
			switch i := ruleIndex(now, args[0]); {
			case there && i < 0:
				return nil, noRule(now, args[0])
			case !there && i >= 0:
				return nil, Fail(ExitRefused, "hanok rule set "+args[0]+" changes it", "there is a rule %s already", args[0])
			case !there:
				now.Rules = append(now.Rules, config.Rule{Name: args[0]})
			}
			return now.WithAll(sets...)
		})
	}
	return cmd
}

func newRuleRemove(a *app) *cobra.Command {
	var o changing
	cmd := &cobra.Command{Use: "remove RULE", Aliases: []string{"rm"}, Short: "Remove a rule", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRules}
	out := o.flags(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) (err error) {
		if o.json, err = asJSON(*out); err != nil {
			return err
		}
		return a.change(c, o, func(now *config.Cluster) (*config.Cluster, error) {
			i := ruleIndex(now, args[0])
			if i < 0 {
				return nil, noRule(now, args[0])
			}
			now.Rules = slices.Delete(now.Rules, i, i+1)
			return now, nil
		})
	}
	return cmd
}

func ruleIndex(c *config.Cluster, name string) int {
	return slices.IndexFunc(c.Rules, func(r config.Rule) bool { return r.Name == name })
}

func noRule(c *config.Cluster, name string) error {
	return Fail(ExitNotFound, dash(config.Suggest(name, ruleNames(c))), "the cluster file has no rule %q", name)
}

func ruleNames(c *config.Cluster) []string {
	out := make([]string, len(c.Rules))
	for i := range c.Rules {
		out[i] = c.Rules[i].Name
	}
	return out
}

// completeRules completes one argument with the names of rules.
func (a *app) completeRules(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := a.config(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return ruleNames(c), cobra.ShellCompDirectiveNoFileComp
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
