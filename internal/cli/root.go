package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/cli/datastorecmd"
	"hanok.dev/hanok/internal/cli/labcmd"
	"hanok.dev/hanok/internal/cli/pkicmd"
	"hanok.dev/hanok/internal/cli/simcmd"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/version"
)

// app is what commands share.
type app struct {
	socket      string // of the agent
	guardSocket string
	clusterFile string
	in          io.Reader
}

func (a *app) agent() *local.Client { return local.NewClient(a.socket) }

// Main runs the command line of args, without the program's name, and returns
// the exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := New()
	root.SetArgs(args)
	root.SetOut(os.Stdout)
	root.SetErr(os.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return ExitOK
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return 128 + int(syscall.SIGINT)
	}
	return report(os.Stderr, err)
}

// New returns the root command.
func New() *cobra.Command {
	a := &app{in: os.Stdin}
	root := &cobra.Command{
		Use:           "hanok",
		Short:         "High availability for plain KVM hosts",
		Long:          "Hanok restarts the VMs of failed KVM hosts elsewhere, and never runs a VM twice.\n\nIt works on any host of the cluster, as root. Start with: hanok status",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Version,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	pf := root.PersistentFlags()
	pf.StringVar(&a.socket, "socket", paths.AgentSocket, "socket of the agent")
	pf.StringVar(&a.guardSocket, "guard-socket", paths.GuardSocket, "socket of the guard")
	pf.StringVar(&a.clusterFile, "cluster-file", paths.ClusterFile, "cluster file of this host")
	for _, hidden := range []string{"socket", "guard-socket", "cluster-file"} {
		_ = pf.MarkHidden(hidden) // for tests and hosts with their own layout
	}
	root.AddCommand(newStatus(a), newEvents(a), newVM(a), newCluster(a), newHA(a), newHost(a), newRule(a), newAdmission(a), newLock(a), newAgent(a), newVersion(),
		labcmd.New(), simcmd.New(), pkicmd.New(), datastorecmd.New())
	strict(root)
	return root
}

// strict turns cobra's errors about arguments into errors of usage, and makes a
// command with subcommands refuse unknown ones.
func strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("see `"+c.CommandPath()+" --help`", "%w", err)
	})
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usage("usage: "+c.UseLine(), "%w", err)
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.Run == nil && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			remedy := "see `" + c.CommandPath() + " --help`"
			var names []string
			for _, sub := range c.Commands() {
				if sub.IsAvailableCommand() {
					names = append(names, sub.Name())
				}
			}
			if near := config.Nearest(args[0], names); len(near) > 0 {
				remedy = "did you mean " + strings.Join(near, " or ") + "?"
			}
			return usage(remedy, "unknown command %q for %s", args[0], c.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Show the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), version.Version)
			return err
		}}
}
