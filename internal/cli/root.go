package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"sigs.k8s.io/yaml"

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
	socket       string // of the agent
	guardSocket  string
	clusterFile  string
	serverSocket string
	server       string // to ask instead of this host's agent
	cluster      string
	in           io.Reader
}

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
	pf.StringVar(&a.serverSocket, "server-socket", paths.ServerSocket, "socket of the server on this machine")
	pf.StringVar(&a.server, "server", "", "server to ask: https://HOST:PORT, the path of its socket, or none (default: that of hanok login, else this host)")
	pf.StringVar(&a.cluster, "cluster", "", "cluster, when the server knows several")
	for _, hidden := range []string{"socket", "guard-socket", "cluster-file", "server-socket"} {
		_ = pf.MarkHidden(hidden) // for tests and hosts with their own layout
	}
	root.AddCommand(newStatus(a), newEvents(a), newVM(a), newCluster(a), newHA(a), newHost(a), newRule(a), newAdmission(a), newLock(a), newAgent(a), newVersion(),
		newServer(a), newLogin(a), newLogout(a), newUser(a), newToken(a), newAudit(a), newTask(a), newApplyTop(a), newGet(a), newDiff(a), newWatch(a), newSupport(a), newMan(),
		labcmd.New(), simcmd.New(a.live, a.rehearse), pkicmd.New(), datastorecmd.New(newDatastoreList(a)))
	strict(root)
	localise(root)
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
	asYAML(cmd)
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// asYAML lets every command that knows -o json know -o yaml, too.
func asYAML(cmd *cobra.Command) {
	f := cmd.Flags().Lookup("output")
	run := cmd.RunE
	if f == nil || run == nil || f.DefValue == "yaml" {
		return
	}
	f.Usage = strings.Replace(f.Usage, "table or json", "table, json or yaml", 1)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if f.Value.String() != "yaml" {
			return run(c, args)
		}
		if err := f.Value.Set("json"); err != nil {
			return err
		}
		out := c.OutOrStdout()
		var b bytes.Buffer
		c.SetOut(&b)
		defer c.SetOut(out)
		err := run(c, args)
		for dec := json.NewDecoder(&b); ; {
			var one json.RawMessage
			if dec.Decode(&one) != nil {
				return err
			}
			y, yerr := yaml.JSONToYAML(one)
			if yerr != nil {
				return errors.Join(err, yerr)
			}
			if _, werr := out.Write(append([]byte("---\n"), y...)); werr != nil {
				return errors.Join(err, werr)
			}
		}
	}
}

// newMan writes manual pages.
func newMan() *cobra.Command {
	return &cobra.Command{Use: "man DIR", Short: "Write manual pages into a directory", Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			when := time.Unix(0, 0).UTC() // the same pages from the same program
			return doc.GenManTree(c.Root(), &doc.GenManHeader{Title: "HANOK", Section: "8", Source: "Hanok", Date: &when}, args[0])
		}}
}

func newVersion() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Show the version", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), version.Version)
			return err
		}}
}
