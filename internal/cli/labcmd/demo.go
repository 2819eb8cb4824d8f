package labcmd

import (
	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/lab/drill"
)

func newDemo(name *string) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Lose a secondary and then the primary, and watch their VMs come back",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return drill.Demo(cmd.Context(), drill.DemoOptions{Lab: *name, Keep: keep, Out: cmd.OutOrStdout()})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the lab up afterwards")
	return cmd
}
