package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent"
	"hanok.dev/hanok/internal/firewall"
	"hanok.dev/hanok/internal/i18n"
)

func newFirewall(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "firewall", Short: "The rules of this host for the agents' port"}
	cmd.AddCommand(newFirewallCheck(a), &cobra.Command{Use: "remove", Short: "Remove Hanok's table and firewalld rules, when Hanok is uninstalled", Args: cobra.NoArgs,
		Long: "Remove the nftables table that admits only members to the agents' port. The agent\nremoves it when it ends, and makes it again while it runs.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(firewall.Remove(), firewall.Firewalld{}.Withdraw(c.Context())); err != nil {
				return err
			}
			i18n.Fprintf(c.OutOrStdout(), "the nftables table inet %s is not there any more\n", firewall.TableName)
			return nil
		}})
	return cmd
}

func newFirewallCheck(a *app) *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Find firewalls on this host that drop what members send", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			now, err := a.config(c.Context())
			if err != nil {
				return err
			}
			found, err := firewall.Check(agent.PortRules(now))
			if err != nil {
				return err
			}
			_, admits, err := firewall.Firewalld{}.Admits(c.Context(), agent.PortRules(now))
			if err != nil {
				return err
			}
			if admits {
				found = slices.DeleteFunc(found, firewall.Finding.OfFirewalld)
			}
			for _, f := range found {
				fmt.Fprintln(c.OutOrStdout(), f)
			}
			if len(found) > 0 {
				return Fail(ExitFailed, "run the commands above, and make them permanent in the firewall's own configuration",
					"%s of this host may keep members out", plural(len(found), "chain"))
			}
			i18n.Fprintln(c.OutOrStdout(), "no firewall of this host drops what members send")
			return nil
		}}
}
