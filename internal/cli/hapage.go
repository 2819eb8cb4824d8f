package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/server/api"
)

// newHAStatus is the agent status page.
func newHAStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the agent status page", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		r, js, err := a.haPage(c, *out)
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, []*hanokv1.GetHAStatusResponse{r})
		}
		t := &table{header: []string{"NODE", "ROLE", "SERVICE", "STATE", "REASON"}}
		t.add(dash(r.Control.Node), r.Control.Role, r.Control.Service, r.Control.State, dash(r.Control.Reason))
		colours := []string{r.Control.Colour}
		for _, n := range r.Agents {
			t.add(n.Node, n.Role, n.Service, n.State, dash(n.Reason))
			colours = append(colours, n.Colour)
		}
		t.colour = func(row, col int, _ string) string {
			if col != 3 {
				return plain
			}
			return map[string]string{"green": green, "amber": yellow, "red": red, "grey": grey}[colours[row]]
		}
		t.write(w, painterFor(w))
		if len(r.Agents) == 0 {
			i18n.Fprintln(w, "no nodes registered")
		}
		return nil
	}
	return cmd
}

// haPage is the agent status page: of the server where one is asked, else of the
// cluster file in force and of what the hosts report.
func (a *app) haPage(c *cobra.Command, out string) (*hanokv1.GetHAStatusResponse, bool, error) {
	js, err := asJSON(out)
	if err != nil {
		return nil, false, err
	}
	l, err := a.readLogin()
	if err != nil {
		return nil, false, err
	}
	if l == nil {
		cluster, s, err := a.live(c.Context())
		if err != nil {
			return nil, false, err
		}
		return api.Page(cluster, api.AccountOf(cluster, s)), js, nil
	}
	s, err := a.api()
	if err != nil {
		return nil, false, err
	}
	cluster, err := s.clusterName(c.Context())
	if err != nil {
		return nil, false, err
	}
	r, err := s.ha.GetHAStatus(c.Context(), &hanokv1.GetHAStatusRequest{Cluster: cluster})
	return r, js, err
}

func newHAResources(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "resources", Short: "List the resources with their settings", Args: cobra.NoArgs,
		Long: "List the resources: VMs with what is requested of them and how often they are\nrestarted and relocated. `hanok vm set` changes that."}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		r, js, err := a.haPage(c, *out)
		if err != nil {
			return err
		}
		list := r.Resources
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, list)
		}
		t := &table{header: []string{"ID", "NODE", "TYPE", "NAME", "STATE", "REQUESTED", "PRIORITY", "MAX RESTART", "MAX RELOCATE", "FAILBACK"}}
		for _, x := range list {
			t.add(x.Id, dash(x.Node), x.Type, x.Name, x.State, x.Requested, dash(x.Priority), limit(x.GetMaxRestart()), limit(x.GetMaxRelocate()), failback(x.GetFailback()))
		}
		t.write(w, painterFor(w))
		return nil
	}
	return cmd
}

// limit shows a limit of attempts; "-" is the cluster's.
func limit(n int32) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// failback shows whether a VM is to return to its first host, which waits for
// live migration.
func failback(wanted bool) string {
	if wanted {
		return "not yet"
	}
	return "no"
}

// newRuleList is `rule list`, and `ha rules`.
func newRuleList(a *app, use string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: "List the rules, with what contradicts what", Args: cobra.NoArgs,
		Long: "List the rules, and for each that is not in force the older ones that it\ncontradicts. `hanok rule add`, `set` and `remove` change them."}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		r, js, err := a.haPage(c, *out)
		if err != nil {
			return err
		}
		list := slices.Concat(r.NodeRules, r.ResourceRules, r.HostRules)
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, list)
		}
		t := &table{header: []string{"RULE", "KIND", "RESOURCES", "NODES", "HOW", "CONFLICT"}}
		for _, x := range list {
			vms, nodes := slices.Clone(x.Resources), []string{}
			for _, g := range x.VmGroups {
				vms = append(vms, "group "+g)
			}
			for _, n := range x.Nodes {
				nodes = append(nodes, fmt.Sprintf("%s:%d", n.Node, n.GetWeight()))
			}
			for _, g := range x.HostGroups {
				nodes = append(nodes, "group "+g)
			}
			t.add(x.Name, x.Kind, strings.Join(vms, ", "), dash(strings.Join(nodes, ", ")), ruleHow(x), ruleConflict(x))
		}
		t.write(w, painterFor(w))
		return nil
	}
	return cmd
}

// ruleHow is how binding a rule is, in the words of its vocabulary.
func ruleHow(x *hanokv1.Rule) string {
	hard := x.Must || x.Strict
	switch x.Kind {
	case config.RuleNodeAffinity:
		return map[bool]string{true: "strict", false: "preferred"}[hard]
	case config.RuleVMHost:
		how := map[bool]string{true: "must", false: "should"}[hard]
		if x.Avoid {
			how += " not"
		}
		return how
	}
	how := x.Policy
	if x.Scope == "failureDomain" {
		how += " by failure domain"
	}
	if x.Preferred {
		how += ", preferred"
	}
	return how
}

// ruleConflict is why a rule is not in force; "-" if it is.
func ruleConflict(x *hanokv1.Rule) string {
	if len(x.Conflicts) == 0 {
		return "-"
	}
	k := x.Conflicts[0]
	older := slices.DeleteFunc(slices.Clone(k.Rules), func(r string) bool { return r == x.Name })
	return fmt.Sprintf("not in force, contradicts %s: %s", strings.Join(older, ", "), k.Text)
}
