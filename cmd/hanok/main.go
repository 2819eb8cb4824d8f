// Command hanok is everything of Hanok but the guard: the agent, the command
// line, the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/cli/labcmd"
	"hanok.dev/hanok/internal/cli/pkicmd"
	"hanok.dev/hanok/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := root().ExecuteContext(ctx)
	stop()
	var exit labcmd.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(int(exit))
	case err != nil:
		fmt.Fprintln(os.Stderr, "hanok:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "hanok",
		Short:         "High availability for virtual machines on plain KVM hosts",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(labcmd.New(), pkicmd.New())
	return cmd
}
