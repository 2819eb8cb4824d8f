package labcmd

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/paths"
)

// ExitError asks main to end with this exit status without a message: a
// command inside a host has said what was wrong.
type ExitError int

// Error describes the status.
func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func newExec(open opener) *cobra.Command {
	return &cobra.Command{
		Use: "exec HOST -- COMMAND...", Short: "Run a command inside a host; its exit status is passed on",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd, open, args[0], args[1:]) },
	}
}

func newLogs(open opener) *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use: "logs HOST [guard|agent|libvirtd|init]", Short: "Show the logs of a host's daemons",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			names := []string{"guard", "agent", "libvirtd", "init"}
			if len(args) == 2 {
				names = args[1:]
			}
			c, err := open()
			if err != nil {
				return err
			}
			// Read from outside: a host that is off has logs too.
			argv := []string{"-n", fmt.Sprint(lines)}
			if follow {
				argv = append(argv, "-F")
			}
			for _, n := range names {
				argv = append(argv, filepath.Join(c.Layout().HostVar(args[0]), paths.LogDir[len("/var/"):], n+".log"))
			}
			tail := exec.CommandContext(cmd.Context(), "tail", argv...)
			tail.Stdout, tail.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return exitStatus(tail.Run())
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().IntVarP(&lines, "lines", "n", 50, "lines of each log")
	return cmd
}

func run(cmd *cobra.Command, open opener, host string, argv []string) error {
	c, err := open()
	if err != nil {
		return err
	}
	inside, release, err := c.Command(cmd.Context(), host, argv...)
	if err != nil {
		return err
	}
	defer release()
	inside.Stdin, inside.Stdout, inside.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	return exitStatus(inside.Run())
}

func exitStatus(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return ExitError(exit.ExitCode())
	}
	return err
}
