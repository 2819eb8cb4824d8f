package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
)

func printChanges(w io.Writer, list []*hanokv1.Change) {
	for _, x := range list {
		fmt.Fprintln(w, config.Change{Field: x.Field, Old: x.Old, New: x.New, Op: x.Op})
	}
}

func newDiff(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "diff [-f FILE]", Short: "Show how a file, or what the hosts have, differs from what is wanted (through a server)", Args: cobra.NoArgs,
		Long: "Show how a file differs from the wanted configuration; without one, how what the\nhosts work with differs from it (drift). Exit code 1 when something differs."}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the cluster file, - for standard input")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		w := c.OutOrStdout()
		differs := Fail(ExitFailed, "", "there are differences")
		if file != "" {
			_, r, _, err := a.check(c, file)
			if err != nil {
				return err
			}
			if printCheck(w, r); len(r.Changes) > 0 {
				return differs
			}
			return nil
		}
		s, err := a.api()
		if err != nil {
			return err
		}
		cluster, err := s.clusterName(c.Context())
		if err != nil {
			return err
		}
		r, err := s.inventory.GetCluster(c.Context(), &hanokv1.GetClusterRequest{Cluster: cluster})
		if err != nil || r.Cluster.Drift == nil {
			return err
		}
		i18n.Fprintln(w, r.Cluster.Drift.Text)
		printChanges(w, r.Cluster.Drift.Changes)
		return differs
	}
	return cmd
}

// newAdopt takes over what was changed on a host.
func newAdopt(a *app) *cobra.Command {
	var how applying
	cmd := &cobra.Command{Use: "adopt", Short: "Take over what was changed on a host as what is wanted (through a server)", Args: cobra.NoArgs,
		Long: "Take over the cluster file that was changed on a host, and with which the hosts\nwork (drift), as the wanted configuration. `hanok diff` shows what differs; `hanok\napply` with the wanted one takes it back instead."}
	cmd.Flags().BoolVar(&how.dryRun, "dry-run", false, "only check and show")
	cmd.Flags().BoolVarP(&how.yes, "yes", "y", false, "do not ask")
	forceFlag(cmd, &how.force)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		s, err := a.api()
		if err != nil {
			return err
		}
		cluster, err := s.clusterName(c.Context())
		if err != nil {
			return err
		}
		r, err := s.inventory.GetCluster(c.Context(), &hanokv1.GetClusterRequest{Cluster: cluster})
		if err != nil {
			return err
		}
		d, w := r.Cluster.Drift, c.OutOrStdout()
		if !d.GetForeign() {
			i18n.Fprintln(w, "nothing changes")
			return nil
		}
		printChanges(w, d.Changes)
		if how.dryRun {
			return nil
		}
		if !how.yes {
			if err := a.confirm(c, "Take this over as what is wanted? [y/N] ", "y", "yes"); err != nil {
				return err
			}
		}
		out, err := s.config.AdoptConfig(c.Context(), &hanokv1.AdoptConfigRequest{Cluster: cluster, ExpectedVersion: r.Cluster.DesiredVersion, Force: how.force})
		if err != nil {
			return err
		}
		return s.wait(c, out.Task)
	}
	return cmd
}
