package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/i18n"
)

// leavePause is how often `host stop-vms` looks what is left.
const leavePause = time.Second

func newHost(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "host", Short: "List and enrol hosts, put them into maintenance mode, prepare this one for its shutdown"}
	cmd.AddCommand(hostsOfServer(a)...)
	cmd.AddCommand(newHostToken(a), newEnrol(a))
	cmd.AddCommand(newStopVMs(a), &cobra.Command{Use: "resume", Short: "Call the shutdown of this host off: it takes VMs again", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			text, err := a.order(c.Context(), fdm.AdminRequest{Leave: &fdm.LeaveRequest{Cancel: true}})
			if err == nil {
				i18n.Fprintln(c.OutOrStdout(), text)
			}
			return err
		}})
	return cmd
}

func newStopVMs(a *app) *cobra.Command {
	var guest, limit time.Duration
	var force bool
	cmd := &cobra.Command{Use: "stop-vms", Short: "Stop this host's protected VMs in order, before it shuts down (a service does it)", Args: cobra.NoArgs,
		Long: `Announce that this host goes down on purpose and stop its protected VMs: those
of low restart priority first, each before the VMs that it depends on. A guest
that does not shut down in time is powered off. As ha.hostShutdown says, they
start elsewhere at once, or stay down until this host is back. The host takes no
VM until it has rebooted, its agent is restarted, or ` + "`hanok host resume`" + `.

Admission control refuses it where VMs would find no place, or no further failure
would be survived. A shutdown cannot wait for that: its service gives --force.`}
	forceFlag(cmd, &force)
	cmd.Flags().DurationVar(&guest, "guest-timeout", 90*time.Second, "how long a guest may take to shut down")
	cmd.Flags().DurationVar(&limit, "timeout", 10*time.Minute, "how long to wait for all of them")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if guest < time.Second || limit < guest {
			return usage("give at least a second, and no more to a guest than to all", "--guest-timeout %v, --timeout %v", guest, limit)
		}
		ctx, cancel := context.WithTimeout(c.Context(), limit)
		defer cancel()
		say := progress{w: c.ErrOrStderr()}
		left := ""
		for {
			text, err := a.order(ctx, fdm.AdminRequest{Leave: &fdm.LeaveRequest{GuestLimit: guest}, Force: force})
			switch {
			case err != nil && ctx.Err() == nil:
				return err
			case err == nil && text == "":
				i18n.Fprintln(c.OutOrStdout(), "no protected VM runs on this host any more")
				return nil
			case err == nil:
				left = text
				say.say("waiting for %s", left)
			}
			select {
			case <-time.After(leavePause):
			case <-ctx.Done():
				return Fail(ExitFailed, "see hanok status; the host may be shut down all the same: what still runs is restarted elsewhere as after a failure",
					"still running after %v: %s", limit, left)
			}
		}
	}
	return cmd
}
