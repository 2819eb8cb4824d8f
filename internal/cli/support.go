package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/support"
	"hanok.dev/hanok/internal/version"
)

// bundleEvents is how many events a bundle has, of each source.
const bundleEvents = 5000

// bundleFlags are what `hanok support bundle` is told.
type bundleFlags struct {
	file, since, logDir, pkiDir string
	agentMetrics, serverMetrics string
	output                      *string
}

func newSupport(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "support", Short: "Collect what others need to see in order to help", Args: cobra.NoArgs}
	var f bundleFlags
	one := &cobra.Command{Use: "bundle", Short: "Write status, configuration, versions, events, logs and metrics into one file, without secrets", Args: cobra.NoArgs,
		Long: "Write an archive (tar.gz, 0600) of what this machine knows: status, cluster file,\nversions, events, logs and metrics of agent, guard and server. Keys and passwords\nare no part of it, and what looks like a secret is taken out. At most 32 MiB before\ncompression. manifest.json in it says how each part went."}
	f.output = outputFlag(one)
	fl := one.Flags()
	fl.StringVar(&f.file, "file", "", "where to write it (default: hanok-support-MACHINE-TIME.tar.gz here)")
	fl.StringVar(&f.since, "since", "-24h", "how far back logs of the journal go, as journalctl takes it")
	fl.StringVar(&f.logDir, "log-dir", paths.LogDir, "logs where there is no journal")
	fl.StringVar(&f.pkiDir, "pki-dir", paths.PKIDir, "directory of the host's certificate, of which its public part is shown")
	fl.StringVar(&f.agentMetrics, "agent-metrics", DefaultAgentMetrics, "address of the agent's metrics")
	fl.StringVar(&f.serverMetrics, "server-metrics", DefaultServerMetrics, "address of the server's metrics")
	one.RunE = func(c *cobra.Command, _ []string) error { return a.bundle(c, f) }
	cmd.AddCommand(one)
	return cmd
}

// bundled is the outcome as JSON.
type bundled struct {
	File  string          `json:"file"`
	Bytes int64           `json:"bytes"`
	Parts []support.Entry `json:"parts"`
}

func (a *app) bundle(c *cobra.Command, f bundleFlags) error {
	js, err := asJSON(*f.output)
	if err != nil {
		return err
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "machine"
	}
	now := time.Now()
	dir := "hanok-support-" + machine + "-" + now.UTC().Format("20060102T150405Z")
	if f.file == "" {
		f.file = dir + ".tar.gz"
	}
	p := &progress{w: c.ErrOrStderr()}
	var parts []support.Entry
	err = writeWhole(f.file, func(w io.Writer) (err error) {
		parts, err = support.Make(c.Context(), w, dir, a.parts(f), now, func(i, of int, name string) { p.say("%d of %d: %s", i, of, name) })
		return err
	})
	if err != nil {
		return err
	}
	out := bundled{File: f.file, Parts: parts}
	if s, err := os.Stat(f.file); err == nil {
		out.Bytes = s.Size()
	}
	w := c.OutOrStdout()
	if js {
		return writeJSON(w, out)
	}
	t := &table{header: []string{"PART", "BYTES", "PROBLEM"}}
	for _, e := range parts {
		t.add(e.Name, fmt.Sprint(e.Bytes), dash(e.Error))
	}
	t.write(w, painterFor(w))
	i18n.Fprintf(w, "written to %s (%d bytes); look into it before you pass it on\n", f.file, out.Bytes)
	return nil
}

// parts are all that a bundle has. On a machine that is no host, or has no
// server, the parts of those say so.
func (a *app) parts(f bundleFlags) []support.Part {
	text := func(name string, get func(context.Context) (any, error)) support.Part {
		return support.Part{Name: name, Write: func(ctx context.Context, w io.Writer) error {
			v, err := get(ctx)
			if err != nil {
				return err
			}
			return writeJSON(w, v)
		}}
	}
	host := local.NewClient(a.socket)
	out := []support.Part{
		text("versions.json", func(ctx context.Context) (any, error) { return versions(ctx), nil }),
		text("host/status.json", func(ctx context.Context) (any, error) { return host.Status(ctx) }),
		file("host/cluster.yaml", a.clusterFile),
		text("host/certificate.json", func(context.Context) (any, error) { return publicPart(f.pkiDir) }),
		{Name: "host/events.jsonl", Newest: true, Write: func(ctx context.Context, w io.Writer) error {
			enc := json.NewEncoder(w)
			return host.Events(ctx, local.EventQuery{Limit: bundleEvents}, func(e event.Event) error { return enc.Encode(e) })
		}},
		command("host/guard.json", "hanok-guard", "status"),
		get("host/metrics.txt", f.agentMetrics, "/metrics"),
		get("host/ready.json", f.agentMetrics, "/readyz"),
		command("host/libvirt.txt", "virsh", "--readonly", "list", "--all"),
		command("host/watchdog.txt", "sh", "-c", "ls -l /dev/watchdog*"),
		file("system/mounts.txt", "/proc/mounts"),
		file("system/memory.txt", "/proc/meminfo"),
		command("system/addresses.txt", "ip", "-brief", "address"),
		command("system/kernel.txt", "uname", "-a"),
	}
	out = append(out, a.serverParts()...)
	out = append(out, get("server/metrics.txt", f.serverMetrics, "/metrics"), get("server/ready.json", f.serverMetrics, "/readyz"))
	if _, err := exec.LookPath("journalctl"); err == nil {
		for _, unit := range []string{"hanok-guard", "hanok-agent", "hanok-host-shutdown", "hanok-server", "libvirtd"} {
			p := command("logs/"+unit+".txt", "journalctl", "--no-pager", "-o", "short-iso", "-u", unit, "--since", f.since)
			p.Newest = true
			out = append(out, p)
		}
	}
	logs, _ := filepath.Glob(filepath.Join(f.logDir, "*.log"))
	for _, l := range logs {
		p := file("logs/"+filepath.Base(l), l)
		p.Newest = true
		out = append(out, p)
	}
	return out
}

// serverParts ask the server of this machine, or the one that one is logged in to.
func (a *app) serverParts() []support.Part {
	ask := func(name string, do func(context.Context, *apiClient) ([]proto.Message, error)) support.Part {
		return support.Part{Name: "server/" + name, Write: func(ctx context.Context, w io.Writer) error {
			s, err := a.api()
			if err != nil {
				return err
			}
			list, err := do(ctx, s)
			for _, m := range list {
				b, merr := protojson.MarshalOptions{Indent: "  "}.Marshal(m)
				if merr != nil {
					return merr
				}
				if _, werr := w.Write(append(b, '\n')); werr != nil {
					return werr
				}
			}
			return err
		}}
	}
	each := func(do func(ctx context.Context, s *apiClient, cluster string) (proto.Message, error)) func(context.Context, *apiClient) ([]proto.Message, error) {
		return func(ctx context.Context, s *apiClient) ([]proto.Message, error) {
			r, err := s.inventory.ListClusters(ctx, &hanokv1.ListClustersRequest{PageSize: 100})
			if err != nil {
				return nil, err
			}
			var out []proto.Message
			for _, c := range r.Clusters {
				m, err := do(ctx, s, c.Name)
				if err != nil {
					return out, err
				}
				out = append(out, m)
			}
			return out, nil
		}
	}
	return []support.Part{
		ask("server.json", func(ctx context.Context, s *apiClient) ([]proto.Message, error) {
			r, err := s.system.GetServer(ctx, &hanokv1.GetServerRequest{})
			return []proto.Message{r}, err
		}),
		ask("status.json", each(func(ctx context.Context, s *apiClient, cluster string) (proto.Message, error) {
			return s.inventory.GetStatus(ctx, &hanokv1.GetStatusRequest{Cluster: cluster})
		})),
		ask("config.json", each(func(ctx context.Context, s *apiClient, cluster string) (proto.Message, error) {
			return s.config.GetConfig(ctx, &hanokv1.GetConfigRequest{Cluster: cluster})
		})),
		ask("events.json", each(func(ctx context.Context, s *apiClient, cluster string) (proto.Message, error) {
			return s.event.ListEvents(ctx, &hanokv1.ListEventsRequest{Cluster: cluster, PageSize: bundleEvents})
		})),
		ask("tasks.json", func(ctx context.Context, s *apiClient) ([]proto.Message, error) {
			r, err := s.task.ListTasks(ctx, &hanokv1.ListTasksRequest{PageSize: 500})
			return []proto.Message{r}, err
		}),
	}
}

// versions are those of Hanok and of what it works with.
func versions(ctx context.Context) map[string]string {
	out := map[string]string{"hanok": version.Version}
	for name, argv := range map[string][]string{"libvirt": {"virsh", "--version"}, "qemu": {"qemu-system-x86_64", "--version"}, "kernel": {"uname", "-r"}, "systemd": {"systemctl", "--version"}} {
		b, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err != nil {
			b = []byte(err.Error())
		}
		out[name] = string(b)
	}
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		out["os-release"] = string(b)
	}
	return out
}

// publicPart is what a host's certificate says; its key is not touched.
func publicPart(dir string) (any, error) {
	cert, err := os.ReadFile(filepath.Join(dir, pki.HostCert))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, pki.CACert))
	return map[string]string{"certificate": string(cert), "authorities": string(ca)}, err
}

// file is a part that is a file.
func file(name, path string) support.Part {
	return support.Part{Name: name, Write: func(_ context.Context, w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}}
}

// command is a part that is what a command prints.
func command(name string, argv ...string) support.Part {
	return support.Part{Name: name, Write: func(ctx context.Context, w io.Writer) error {
		c := exec.CommandContext(ctx, argv[0], argv[1:]...)
		c.Stdout, c.Stderr, c.WaitDelay = w, w, time.Second
		return c.Run()
	}}
}

// get is a part that a daemon serves on this machine.
func get(name, address, path string) support.Part {
	return support.Part{Name: name, Write: func(ctx context.Context, w io.Writer) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return err
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(w, r.Body)
		return err
	}}
}
