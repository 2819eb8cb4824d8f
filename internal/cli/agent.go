package cli

import (
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/agent"
	"hanok.dev/hanok/internal/hypervisor/libvirt"
	"hanok.dev/hanok/internal/logging"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/version"
)

// Settings of the garbage collector: an idle agent holds a few MiB, so that a
// quarter more before the next collection costs nothing. The limit is soft.
const (
	gcPercent   = 25
	memoryLimit = 30 << 20
)

// DefaultAgentMetrics is where an agent shows its metrics unless told otherwise:
// to this host only.
const DefaultAgentMetrics = "127.0.0.1:9182"

func newAgent(a *app) *cobra.Command {
	var stateDir, pkiDir, libvirtSocket, metrics, logTarget string
	cmd := &cobra.Command{Use: "agent", Short: "Run this host's agent (a service starts it)", Args: cobra.NoArgs}
	f := cmd.Flags()
	f.StringVar(&stateDir, "state-dir", paths.StateDir, "directory of the events")
	f.StringVar(&pkiDir, "pki-dir", paths.PKIDir, "directory of the host's certificate")
	f.StringVar(&libvirtSocket, "libvirt-socket", "", "socket of libvirtd (default: libvirt's own)")
	f.StringVar(&metrics, "metrics-address", DefaultAgentMetrics, "address of metrics and health; empty for none")
	f.StringVar(&logTarget, "log", string(logging.Auto), "where the log goes: auto, journal, syslog or stderr")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		debug.SetGCPercent(gcPercent)
		debug.SetMemoryLimit(memoryLimit)
		log, flush, err := logging.New(logging.Target(logTarget), "fdm", c.ErrOrStderr())
		if err != nil {
			return usage("see `"+c.CommandPath()+" --help`", "%w", err)
		}
		defer flush()
		ag, err := agent.New(agent.Config{ClusterFile: a.clusterFile, StateDir: stateDir, Socket: a.socket, Metrics: metrics, Log: log,
			Hypervisor: libvirt.New(libvirt.Config{Socket: libvirtSocket}),
			Ports:      agent.HostPorts(pkiDir, a.guardSocket, log)})
		if err != nil {
			return err
		}
		log.Info("the agent starts", "version", version.Version, "pid", os.Getpid())
		err = ag.Run(c.Context())
		log.Info("the agent ends")
		return err
	}
	return cmd
}
