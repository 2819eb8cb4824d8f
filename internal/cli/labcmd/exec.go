package labcmd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/paths"
)

func newExec(open opener) *cobra.Command {
	return &cobra.Command{
		Use: "exec HOST -- COMMAND...", Short: "Run a command inside a host; its exit status is passed on",
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open()
			if err != nil {
				return err
			}
			inside, release, err := c.Command(cmd.Context(), args[0], args[1:]...)
			if err != nil {
				return err
			}
			defer release()
			// As a process of the host it ends with the host.
			group, err := cgroup.At(c.Layout().HostCgroup(args[0]))
			if err != nil {
				return err
			}
			if err := group.Add(os.Getpid()); err != nil {
				return fmt.Errorf("enter host %s: %w", args[0], err)
			}
			return become(inside)
		},
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
			found := false
			for _, n := range names {
				path := filepath.Join(c.Layout().HostVar(args[0]), strings.TrimPrefix(paths.LogDir, "/var/"), n+".log")
				if _, err := os.Stat(path); err == nil {
					found = true
					argv = append(argv, path)
				}
			}
			if !found {
				return fmt.Errorf("lab %s has no logs %s of a host %q", c.Layout().Name(), strings.Join(names, ", "), args[0])
			}
			return become(exec.Command("tail", argv...))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is added")
	cmd.Flags().IntVarP(&lines, "lines", "n", 50, "lines of each log")
	return cmd
}

// become replaces this process by the command, so that its terminal, signals
// and exit status are the command's own.
func become(cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	if err := unix.Exec(cmd.Path, cmd.Args, env); err != nil {
		return fmt.Errorf("execute %s: %w", cmd.Path, err)
	}
	return nil
}
