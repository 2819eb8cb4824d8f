package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/trust"
)

func newHostToken(a *app) *cobra.Command {
	var life time.Duration
	var quiet bool
	cmd := &cobra.Command{Use: "token HOST", Short: "Make the one-time token of a host of the cluster file, and show the command that enrols it (through a server)", Args: cobra.ExactArgs(1),
		Long: "Make the one-time token with which a host of the cluster file gets its certificate,\nand show the command to run there. A token before it for the same host is void.\nA host whose certificate has ended is enrolled anew in the same way."}
	cmd.Flags().DurationVar(&life, "for", trust.TokenLife, "how long it works, at most 168h")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the token only")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		s, err := a.api()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), askLimit)
		defer cancel()
		cluster, err := s.clusterName(ctx)
		if err != nil {
			return err
		}
		r, err := s.trust.CreateHostToken(ctx, &hanokv1.CreateHostTokenRequest{Cluster: cluster, Host: args[0], Seconds: int64(life / time.Second)})
		if err != nil {
			return err
		}
		if quiet {
			_, err := fmt.Fprintln(c.OutOrStdout(), r.Token)
			return err
		}
		server, fingerprint := r.Server, r.Fingerprint
		if server == "" {
			server, fingerprint = "https://SERVER:8443", "FINGERPRINT"
		}
		i18n.Fprintf(c.OutOrStdout(), "on %s, as root, until %s:\n  hanok host enrol %s --fingerprint %s --token %s\n", args[0], r.Expires.AsTime().Local().Format("2006-01-02 15:04"), server, fingerprint, r.Token)
		if u, err := url.Parse(server); err == nil {
			if ip := net.ParseIP(u.Hostname()); r.Server == "" || ip != nil && ip.IsLoopback() {
				i18n.Fprintln(c.ErrOrStderr(), "note: the server listens on this machine only; start it with --listen ADDRESS:8443, and --tls-name for the name that hosts know it by")
			}
		}
		return nil
	}
	return cmd
}

// enrolment is what `host enrol` was told.
type enrolment struct {
	token, fingerprint, ca string
	force                  bool
	pkiDir, hostFile       string
}

func newEnrol(a *app) *cobra.Command {
	var e enrolment
	cmd := &cobra.Command{Use: "enrol SERVER", Short: "Make this machine a host of a cluster, with a one-time token", Args: cobra.ExactArgs(1),
		Long: "Make this machine a host of a cluster: `hanok host token HOST` on the server shows\nthe whole command. The key is made here and stays here. The certificate, whom to\ntrust, the host's name and the cluster file are written below /etc/hanok; running\ndaemons take them up by themselves."}
	f := cmd.Flags()
	f.StringVar(&e.token, "token", "", "the host's token; - reads it from standard input")
	f.StringVar(&e.fingerprint, "fingerprint", "", "sha256:... of the server's certificate or its CA")
	f.StringVar(&e.ca, "ca", "", "file with the CA certificate of the server, instead of a fingerprint")
	f.BoolVar(&e.force, "force", false, "although this machine is a host of another name or cluster")
	f.StringVar(&e.pkiDir, "pki-dir", paths.PKIDir, "where certificates are kept")
	f.StringVar(&e.hostFile, "host-file", paths.HostFile, "where the host's name is kept")
	_ = f.MarkHidden("pki-dir") // for tests
	_ = f.MarkHidden("host-file")
	_ = cmd.MarkFlagRequired("token")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if e.token == "-" {
			var err error
			if e.token, err = a.secret(c, "Token"); err != nil {
				return err
			}
		}
		return a.enrol(c, strings.TrimSuffix(args[0], "/"), e)
	}
	return cmd
}

func (a *app) enrol(c *cobra.Command, server string, e enrolment) error {
	cluster, host, err := trust.SplitToken(e.token)
	if err != nil {
		return usage("`hanok host token HOST` shows the whole command", "--token: %w", err)
	}
	if !e.force {
		if err := a.otherHost(e, cluster, host); err != nil {
			return err
		}
	}
	l := &login{Server: server}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	switch address, ok := strings.CutPrefix(server, "https://"); {
	case !ok && !strings.HasPrefix(server, "/"):
		return usage("give https://HOST:PORT", "server %q", server)
	case e.ca != "":
		b, err := os.ReadFile(e.ca)
		if err != nil {
			return err
		}
		l.CA = string(b)
	case ok && e.fingerprint != "":
		if l.CA, err = pinned(ctx, address, e.fingerprint); err != nil {
			return err
		}
	}
	s, err := dialServer(l)
	if err != nil {
		return err
	}
	id := pki.Identity{Cluster: cluster, Host: host}
	key, request, err := pki.NewRequest(id)
	if err != nil {
		return err
	}
	r, err := s.trust.EnrolHost(ctx, &hanokv1.EnrolHostRequest{Token: e.token, Host: string(host), Request: string(request)})
	if err != nil {
		return unknownCA(err)
	}
	file, err := config.Parse([]byte(r.Yaml))
	if err != nil {
		return fmt.Errorf("the cluster file of the server: %w", err)
	}
	if err := pki.Enrol(e.pkiDir, []byte(r.Authorities), []byte(r.Certificate), key, id); err != nil {
		return err
	}
	if err := os.WriteFile(e.hostFile, []byte(string(host)+"\n"), 0o600); err != nil {
		return err
	}
	if err := keepNewest(config.Store{Path: a.clusterFile}, file, e.force); err != nil {
		return err
	}
	i18n.Fprintf(c.OutOrStdout(), "this machine is %s of cluster %s now; its certificate lasts until %s and is renewed by itself\nnext: systemctl start hanok-guard && systemctl restart libvirtd && systemctl start hanok-agent (running VMs run on)\n",
		host, file.Name, r.Expires.AsTime().Local().Format("2006-01-02 15:04"))
	return nil
}

// otherHost refuses to make another host of this machine.
func (a *app) otherHost(e enrolment, cluster string, host model.HostID) error {
	const remedy = "--force if you mean it; its VMs must be gone from here first"
	if b, err := os.ReadFile(e.hostFile); err == nil {
		if now := strings.TrimSpace(string(b)); now != "" && now != string(host) {
			return Fail(ExitRefused, remedy, "this machine is %s, and the token is for %s", now, host)
		}
	}
	if l, err := (config.Store{Path: a.clusterFile}).Load(); err == nil && l.Cluster.ID != cluster {
		return Fail(ExitRefused, remedy, "this machine belongs to cluster %q, and the token is for %q", l.Cluster.ID, cluster)
	}
	return nil
}

// keepNewest writes a cluster file unless this host has a newer one.
func keepNewest(s config.Store, c *config.Cluster, force bool) error {
	if l, err := s.Load(); err == nil {
		switch {
		case l.Cluster.ID == c.ID && l.Cluster.Version >= c.Version:
			return nil
		case l.Cluster.ID != c.ID && force:
			files, _ := filepath.Glob(s.Path + "*")
			for _, f := range files {
				if err := os.Remove(f); err != nil {
					return err
				}
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cluster file of this host: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
		return err
	}
	return s.Save(c)
}

func newClusterTrust(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "trust", Short: "Show whom the hosts trust and how long their certificates last; replace the authority (through a server)", Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		s, cluster, err := a.apiCluster(c.Context())
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), askLimit)
		defer cancel()
		r, err := s.trust.GetTrust(ctx, &hanokv1.GetTrustRequest{Cluster: cluster})
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, []*hanokv1.GetTrustResponse{r})
		}
		date := func(t *timestamppb.Timestamp) string {
			if t == nil {
				return "-"
			}
			return t.AsTime().Local().Format("2006-01-02 15:04")
		}
		names := map[string]string{"": "-"}
		for i, x := range r.Authorities {
			names[x.Fingerprint] = fmt.Sprint(i + 1)
			use := "is trusted"
			if x.Signs {
				use = "signs"
			}
			i18n.Fprintf(w, "authority %d  %s  %s, until %s, %s\n", i+1, x.Fingerprint, x.Subject, date(x.Expires), use)
		}
		if len(r.Authorities) == 0 {
			i18n.Fprintln(w, "the server has no authority of this cluster")
		}
		if r.Phase != "" {
			i18n.Fprintf(w, "a replacement is under way (%s): hanok task list\n", r.Phase)
		}
		name := func(fingerprint string) string {
			if n, ok := names[fingerprint]; ok {
				return n
			}
			return fingerprint[:min(len(fingerprint), 15)]
		}
		t := &table{header: []string{"HOST", "CERTIFICATE UNTIL", "OF", "TRUSTS", "PROBLEM"}}
		for _, h := range r.Hosts {
			var trusts []string
			for _, x := range h.Authorities {
				trusts = append(trusts, name(x))
			}
			t.add(h.Host, date(h.Expires), name(h.Issuer), dash(strings.Join(trusts, " ")), dash(h.Problem))
		}
		t.write(w, painterFor(w))
		return nil
	}
	cmd.AddCommand(newTrustReplace(a), newTrustImport(a))
	return cmd
}

// apiCluster is the server, and the cluster that is meant.
func (a *app) apiCluster(ctx context.Context) (*apiClient, string, error) {
	s, err := a.api()
	if err != nil {
		return nil, "", err
	}
	name, err := s.clusterName(ctx)
	return s, name, err
}

// authorityFiles are the files of an authority of one's own.
type authorityFiles struct{ cert, key string }

func (f *authorityFiles) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.cert, "cert", "", "certificate of the authority, PEM: the one that signs, without those above it")
	cmd.Flags().StringVar(&f.key, "key", "", "its key, PEM, without a passphrase")
}

func (f *authorityFiles) read() (cert, key string, err error) {
	if (f.cert == "") != (f.key == "") {
		return "", "", usage("give both", "--cert and --key belong together")
	}
	if f.cert == "" {
		return "", "", nil
	}
	var out [2]string
	for i, name := range []string{f.cert, f.key} {
		b, err := readFile(name, 64<<10)
		if err != nil {
			return "", "", err
		}
		out[i] = string(bytes.TrimSpace(b))
	}
	return out[0], out[1], nil
}

func newTrustReplace(a *app) *cobra.Command {
	var files authorityFiles
	var detach bool
	cmd := &cobra.Command{Use: "replace", Short: "Replace the cluster's authority, step by step, and wait", Args: cobra.NoArgs,
		Long: "Replace the cluster's authority by a new one, or by your own (--cert, --key).\n\nEvery host gets to trust the new one, then every host gets a certificate of it, then\nevery host forgets the old one. Each step waits for all hosts of the cluster file:\none that does not come back must be taken out of it. VMs are not touched. Until the\nfirst step is over `hanok task cancel` takes it back. What was interrupted goes on\nwhen this is called again."}
	files.add(cmd)
	cmd.Flags().BoolVar(&detach, "no-wait", false, "do not wait; hanok task list shows it")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		cert, key, err := files.read()
		if err != nil {
			return err
		}
		s, cluster, err := a.apiCluster(c.Context())
		if err != nil {
			return err
		}
		r, err := s.trust.ReplaceAuthority(c.Context(), &hanokv1.ReplaceAuthorityRequest{Cluster: cluster, Certificate: cert, Key: key})
		if err != nil {
			return err
		}
		if detach {
			i18n.Fprintf(c.OutOrStdout(), "task %s\n", r.Task.Id)
			return nil
		}
		return s.wait(c, r.Task)
	}
	return cmd
}

func newTrustImport(a *app) *cobra.Command {
	var files authorityFiles
	cmd := &cobra.Command{Use: "import --cert FILE --key FILE", Short: "Give the server the authority that the hosts trust already, or your own before the first host", Args: cobra.NoArgs,
		Long: "Give the server the authority that signs the cluster's certificates: the files\nca.crt and ca.key that `hanok pki init` made and that the hosts trust already, or,\nbefore the first host is enrolled, an intermediate of your organisation's. Hosts\ntrust that very certificate and nothing above it. From then on the server renews\nthe hosts' certificates."}
	files.add(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		cert, key, err := files.read()
		if err != nil {
			return err
		}
		if cert == "" {
			return usage("give --cert FILE and --key FILE", "which authority?")
		}
		s, cluster, err := a.apiCluster(c.Context())
		if err != nil {
			return err
		}
		r, err := s.trust.ImportAuthority(c.Context(), &hanokv1.ImportAuthorityRequest{Cluster: cluster, Certificate: cert, Key: key})
		if err != nil {
			return err
		}
		i18n.Fprintf(c.OutOrStdout(), "the server signs with %s now\n", r.Fingerprint)
		return nil
	}
	return cmd
}
