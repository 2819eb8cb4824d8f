package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
)

// newHAStatus is the agent status page.
func newHAStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the agent status page (through a server)", Args: cobra.NoArgs}
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
		return nil
	}
	return cmd
}

func (a *app) haPage(c *cobra.Command, out string) (*hanokv1.GetHAStatusResponse, bool, error) {
	js, err := asJSON(out)
	if err != nil {
		return nil, false, err
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
	cmd := &cobra.Command{Use: "resources", Short: "List the resources (through a server)", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		r, js, err := a.haPage(c, *out)
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, r.Resources)
		}
		t := &table{header: []string{"ID", "NODE", "TYPE", "NAME", "STATE", "MAX RESTART", "MAX RELOCATE", "FAILBACK"}}
		for _, x := range r.Resources {
			t.add(x.Id, dash(x.Node), x.Type, x.Name, x.State, limit(x.MaxRestart), limit(x.MaxRelocate), failback(x.Failback))
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

func newHARules(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "rules", Short: "List the affinity rules, with what contradicts what (through a server)", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		r, js, err := a.haPage(c, *out)
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		list := append(append(r.NodeRules, r.ResourceRules...), r.HostRules...)
		if js {
			return writeMessages(w, list)
		}
		t := &table{header: []string{"RULE", "KIND", "RESOURCES", "NODES", "HOW", "CONFLICT"}}
		for _, x := range list {
			var nodes []string
			for _, n := range x.Nodes {
				nodes = append(nodes, fmt.Sprintf("%s:%d", n.Node, n.Weight))
			}
			nodes = append(nodes, x.HostGroups...)
			how := x.Policy
			switch {
			case x.Kind == config.RuleNodeAffinity && x.Strict:
				how = "strict"
			case x.Kind == config.RuleNodeAffinity:
				how = "preferred"
			case x.Kind == config.RuleVMHost && x.Must:
				how = "must"
			case x.Kind == config.RuleVMHost:
				how = "should"
			}
			conflict := "-"
			if len(x.Conflicts) > 0 {
				conflict = x.Conflicts[0].Text
			}
			t.add(x.Name, x.Kind, strings.Join(x.Resources, " "), dash(strings.Join(nodes, " ")), how, conflict)
		}
		t.write(w, painterFor(w))
		return nil
	}
	return cmd
}
