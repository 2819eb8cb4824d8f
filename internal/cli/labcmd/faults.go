package labcmd

import (
	"strings"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lab/supervisor"
)

func newPower(open opener) []*cobra.Command {
	var noWatchdog bool
	on := &cobra.Command{
		Use: "power-on HOST", Short: "Boot a host afresh, with a new boot id", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			return c.PowerOn(cmd.Context(), args[0], noWatchdog)
		},
	}
	on.Flags().BoolVar(&noWatchdog, "no-watchdog", false, "without a watchdog device")
	out := []*cobra.Command{on}
	for _, a := range []struct{ action, short string }{
		{supervisor.PowerOff, "Take a host's power away: silence at once, then nothing is left of it"},
		{supervisor.Freeze, "Stop all processes of a host; it still answers ping"},
		{supervisor.Thaw, "Let a frozen host go on"},
		{supervisor.Reboot, "Take a host's power away and boot it again"},
		{supervisor.Shutdown, "Shut a host down in order"},
	} {
		out = append(out, &cobra.Command{
			Use: a.action + " HOST", Short: a.short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := open()
				if err != nil {
					return err
				}
				return c.Power(cmd.Context(), args[0], a.action)
			},
		})
	}
	return out
}

func newCut(open opener) *cobra.Command {
	return &cobra.Command{
		Use: "cut HOST [NETWORK] [in|out|both]", Short: "Cut a host off a network, or off all",
		Long: `Cut a host off a network, or off all when none is named. Packets are dropped
silently; "in" makes the host deaf, "out" makes it mute.`,
		Args: cobra.RangeArgs(1, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			network, direction := "", "both"
			for _, a := range args[1:] {
				if a == "in" || a == "out" || a == "both" {
					direction = a
				} else {
					network = a
				}
			}
			return c.Cut(cmd.Context(), args[0], network, direction)
		},
	}
}

func newHeal(open opener) *cobra.Command {
	return &cobra.Command{
		Use: "heal HOST", Short: "End all network and storage faults of a host", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			return c.Heal(cmd.Context(), args[0])
		},
	}
}

func newStorage(open opener) *cobra.Command {
	var names []string
	for _, f := range fusefs.Faults() {
		names = append(names, string(f))
	}
	return &cobra.Command{
		Use: "storage HOST DATASTORE " + strings.Join(names, "|"), Short: "Break or mend a host's path to a datastore",
		Long: `Break or mend a host's path to a datastore, at once:
  none       the path is healthy
  hang       nothing answers until it heals; what a killed process had asked for is dropped
  hang-hard  as hang, but killed processes stay and their writes arrive after healing
  lost       every operation fails: input/output error
  slow       every operation takes 0.7 s longer
  full       what needs new blocks fails: no space left
  readonly   every change fails: read-only file system`,
		Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			return c.Storage(cmd.Context(), args[0], args[1], args[2])
		},
	}
}
