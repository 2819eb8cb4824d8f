package cli

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/logging"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
	"hanok.dev/hanok/internal/version"
)

// storeFlags say where a server's state is.
type storeFlags struct {
	data      string
	endpoints []string
	tls       store.TLSFiles
}

func (f *storeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.data, "data", paths.ServerDir, "directory of the embedded etcd")
	fl.StringSliceVar(&f.endpoints, "etcd-endpoints", nil, "an external etcd instead, such as https://10.0.0.5:2379; may be repeated")
	fl.StringVar(&f.tls.CA, "etcd-ca", "", "CA certificate of the external etcd")
	fl.StringVar(&f.tls.Cert, "etcd-cert", "", "client certificate for it")
	fl.StringVar(&f.tls.Key, "etcd-key", "", "key of the client certificate")
}

func (f *storeFlags) config() store.Config {
	if len(f.endpoints) == 0 {
		return store.Config{Dir: f.data}
	}
	c := store.Config{Endpoints: f.endpoints}
	if f.tls != (store.TLSFiles{}) {
		c.TLS = &f.tls
	}
	return c
}

// DefaultServerMetrics is where a server shows its metrics unless told otherwise:
// to this machine only.
const DefaultServerMetrics = "127.0.0.1:9184"

func newServer(a *app) *cobra.Command {
	var st storeFlags
	var name, listen, metrics, logTarget string
	var certs []string
	var own server.TLS
	var hostLife time.Duration
	cmd := &cobra.Command{Use: "server", Short: "Run the server (a service starts it); back up and restore its state", Args: cobra.NoArgs,
		Long: "Run the server: inventory, configuration, tasks, events and the API over all\nclusters. Its state is in etcd: embedded in one directory by default, or an\nexternal cluster. Failover needs no server."}
	st.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "what this server is called (default: the machine's name)")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8443", "address for users, TLS always; loopback unless given, such as 0.0.0.0:8443; none: the socket only")
	cmd.Flags().StringVar(&own.Cert, "tls-cert", "", "certificate for that address, PEM with its chain (default: of the server's own CA)")
	cmd.Flags().StringVar(&own.Key, "tls-key", "", "key of that certificate")
	cmd.Flags().StringSliceVar(&own.Names, "tls-name", nil, "name or address that users reach the server under, besides this machine's own; may be repeated")
	cmd.Flags().StringSliceVar(&certs, "cluster-pki", nil, "directory with the server's certificate for a cluster whose authority it does not have (hanok pki issue --server); may be repeated")
	cmd.Flags().DurationVar(&hostLife, "host-certificate-life", trust.HostLife, "how long hosts' certificates last; they are renewed when a third is left, and failover works without a server as long")
	cmd.Flags().StringVar(&metrics, "metrics-address", DefaultServerMetrics, "address of metrics and health; empty for none")
	cmd.Flags().StringVar(&logTarget, "log", string(logging.Auto), "where the log goes: auto, journal, syslog or stderr")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		log, flush, err := logging.New(logging.Target(logTarget), "server", c.ErrOrStderr())
		if err != nil {
			return usage("see `"+c.CommandPath()+" --help`", "%w", err)
		}
		defer flush()
		if listen == "none" {
			listen = ""
		}
		if hostLife < 15*time.Second || hostLife > 2*365*24*time.Hour {
			return usage("weeks to months are sensible: as long as the server may be down", "--host-certificate-life %v: must be from 15s to two years", hostLife)
		}
		if (own.Cert == "") != (own.Key == "") {
			return usage("give both, or none", "--tls-cert and --tls-key belong together")
		}
		s, err := server.New(server.Config{Name: name, Store: st.config(), Socket: a.serverSocket, Metrics: metrics, Log: log, Listen: listen, TLS: own,
			FirstRun: func(link string) {
				i18n.Fprintf(c.OutOrStdout(), "No user exists yet. This link makes the first administrator; it works once, within 24 hours:\n  %s\nIn a browser, or: hanok login 'LINK' --user NAME\n", link)
			},
			AgentPort: local.RemotePort, Given: credentialsIn(certs, log), HostLife: hostLife, TrustInterval: min(time.Minute, hostLife/30)})
		if err != nil {
			return err
		}
		log.Info("the server starts", "version", version.Version, "pid", os.Getpid())
		err = s.Run(c.Context())
		log.Info("the server ends")
		return err
	}
	cmd.AddCommand(newBackup(a), newRestore(), newRecoverAdmin(a), newFingerprint(a))
	return cmd
}

// credentialsIn are the servers' certificates in directories, one for each cluster.
// They are read each time, so that a renewed one counts; what cannot be read is
// told once.
func credentialsIn(dirs []string, log *slog.Logger) func() []*pki.Credentials {
	var told sync.Map
	return func() (out []*pki.Credentials) {
		for _, d := range dirs {
			c, err := pki.Load(d)
			if err == nil && c.Identity.Server == "" {
				err = errors.New("it is a host's certificate; make a server's: hanok pki issue --server NAME")
			}
			if err == nil {
				out = append(out, c)
				continue
			}
			if _, again := told.LoadOrStore(d+err.Error(), true); !again {
				log.Warn("a directory of --cluster-pki cannot be used", "directory", d, "err", err)
			}
		}
		return out
	}
}

func newBackup(a *app) *cobra.Command {
	return &cobra.Command{Use: "backup FILE", Short: "Write all that a running server keeps to a file; it has secrets", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			in, err := api.system.Backup(c.Context(), &hanokv1.BackupRequest{})
			if err != nil {
				return err
			}
			defer in.Close()
			return writeWhole(args[0], func(w io.Writer) error {
				for in.Receive() {
					if _, err := w.Write(in.Msg().Chunk); err != nil {
						return err
					}
				}
				return in.Err()
			})
		}}
}

// writeWhole makes a file of mode 0600 that is there whole or not at all.
func writeWhole(path string, write func(io.Writer) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = write(tmp)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func newRestore() *cobra.Command {
	var st storeFlags
	cmd := &cobra.Command{Use: "restore FILE", Short: "Read a backup into an empty data directory or etcd", Args: cobra.ExactArgs(1),
		Long: "Read a backup into an empty data directory or etcd, while no server runs there.\nThe file is checked as a whole first."}
	st.add(cmd)
	cmd.RunE = func(c *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		s, err := store.Open(c.Context(), st.config())
		if err != nil {
			return err
		}
		defer s.Close()
		if err := s.Restore(c.Context(), f); err != nil {
			return Fail(ExitRefused, "give an empty directory as --data", "%w", err)
		}
		i18n.Fprintf(c.OutOrStdout(), "restored %s; start the server now\n", args[0])
		return nil
	}
	return cmd
}
