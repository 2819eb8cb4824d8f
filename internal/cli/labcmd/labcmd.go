// Package labcmd is `hanok lab`: the command line of package lab.
package labcmd

import (
	"context"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/host"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/supervisor"
)

// New returns the command.
func New() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A real multi-host cluster on this machine, and its faults",
		Long: `A lab is a real cluster on one machine: hosts made of namespaces with their
own libvirtd, shared datastores, networks and watchdogs, and real virtual
machines. It needs root and the packages of scripts/install-deps.sh.`,
		Args: cobra.NoArgs,
	}
	cmd.PersistentFlags().StringVar(&name, "lab", lab.DefaultName, "name of the lab; several may be up")
	open := func() (*lab.Client, error) { return lab.Open(name) }
	cmd.AddCommand(newUp(&name), newDown(&name), newStatus(open), newCheck(open), newObserve(open))
	cmd.AddCommand(newPower(open)...)
	cmd.AddCommand(newCut(open), newHeal(open), newStorage(open), newExec(open), newLogs(open))
	cmd.AddCommand(newDemo(&name), newRun(&name), newSupervise(&name), newHostInit())
	return cmd
}

// opener returns a client of the lab that the flags name.
type opener func() (*lab.Client, error)

func newUp(name *string) *cobra.Command {
	o := lab.Options{}
	var file string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up; returns when its VMs run and are protected",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Name = *name
			if file != "" {
				data, err := readFile(cmd.InOrStdin(), file)
				if err != nil {
					return err
				}
				o.Cluster = data
			}
			if o.VMs == 0 {
				o.VMs = -1
			}
			o.Progress = func(line string) { i18n.Fprintln(cmd.ErrOrStderr(), line) }
			_, err := lab.Up(cmd.Context(), o)
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Hosts, "hosts", 3, "number of hosts")
	f.IntVar(&o.VMs, "vms", 6, "number of VMs")
	f.StringVarP(&file, "file", "f", "", "cluster file instead of --hosts and --vms; - reads standard input")
	f.BoolVar(&o.Bare, "bare", false, "libvirtd only: without guard and agent, VMs started by virsh")
	f.BoolVar(&o.NoWatchdog, "no-watchdog", false, "hosts have no watchdog")
	f.BoolVar(&o.RebootOnReset, "reboot-on-reset", false, "a host that its watchdog reset boots again")
	f.BoolVar(&o.SyncDisk, "sync-disk", false, "datastores pass fsync on to this machine's disk instead of acknowledging from memory")
	cmd.MarkFlagsMutuallyExclusive("file", "hosts")
	cmd.MarkFlagsMutuallyExclusive("file", "vms")
	return cmd
}

// readFile reads a file, or in for the name "-".
func readFile(in io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(in, 8<<20))
	}
	return os.ReadFile(name)
}

func newDown(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove a lab, whatever state it is in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Down(cmd.Context(), *name, func(line string) { i18n.Fprintln(cmd.ErrOrStderr(), line) })
		},
	}
}

func newSupervise(name *string) *cobra.Command {
	return &cobra.Command{
		Use: "supervise", Short: "Own a lab (started by up)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := layout.New(*name)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), unix.SIGTERM)
			defer stop()
			return supervisor.Run(ctx, l)
		},
	}
}

func newHostInit() *cobra.Command {
	return &cobra.Command{
		Use: "host-init", Short: "Be PID 1 of a lab host (started by supervise)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return host.Init() },
	}
}
