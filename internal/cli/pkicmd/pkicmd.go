// Package pkicmd is the command `hanok pki`: the cluster's certificates.
package pkicmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
)

// expiryWarning is how long before the end `pki show` begins to warn.
const expiryWarning = 21 * 24 * time.Hour

// New returns the command.
func New() *cobra.Command {
	cmd := &cobra.Command{Use: "pki", Short: "Make and show the cluster's certificates", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(newInit(), newIssue(), newShow())
	return cmd
}

func newInit() *cobra.Command {
	var dir string
	var force bool
	cmd := &cobra.Command{Use: "init CLUSTER-ID", Short: "Make the cluster's certificate authority", Args: cobra.ExactArgs(1),
		Long: "Make the cluster's certificate authority: ca.crt and ca.key.\n\nCLUSTER-ID is the id of the cluster file (its name, if it has no id). Keep ca.key\non one machine: whoever has it can pass for any host.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := pki.Init(dir, args[0], pki.Options{Force: force}); err != nil {
				return err
			}
			i18n.Fprintf(c.OutOrStdout(), "made the CA of cluster %s in %s, valid for 20 years\nnext: hanok pki issue HOST --address ADDRESS\n", args[0], dir)
			return nil
		}}
	cmd.Flags().StringVar(&dir, "dir", pki.DefaultCADir, "directory of the CA")
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing CA: all certificates of hosts become void")
	return cmd
}

func newIssue() *cobra.Command {
	var dir, out, file string
	var force, server bool
	var addresses []string
	cmd := &cobra.Command{Use: "issue HOST...", Short: "Issue certificates for hosts", Args: cobra.MinimumNArgs(1),
		Long: "Issue certificates for hosts. For each host a directory with ca.crt, host.crt and\nhost.key is made, to be copied to " + paths.PKIDir + " there.\n\nAddresses are those that libvirt reaches the host under for migration; -f takes\nthem from the cluster file.",
		RunE: func(c *cobra.Command, args []string) error {
			var cluster *config.Cluster
			if file != "" {
				var err error
				if cluster, err = config.ReadFile(file); err != nil {
					return err
				}
				id, err := pki.ClusterID(dir)
				if err != nil {
					return err
				}
				if id != cluster.ID {
					return fmt.Errorf("the CA in %s is for cluster %q, and %s for %q", dir, id, file, cluster.ID)
				}
			}
			if len(args) > 1 && (out != "" || len(addresses) > 0) {
				return errors.New("--out and --address are for one host; use -f for several")
			}
			for _, arg := range args {
				host, to := model.HostID(arg), out
				if to == "" {
					to = pki.HostDir(dir, host)
				}
				if server {
					if err := pki.IssueServer(dir, to, arg, pki.Options{Force: force}); err != nil {
						return err
					}
					i18n.Fprintf(c.OutOrStdout(), "issued %s; give the directory %s to hanok server --cluster-pki\n", arg, to)
					continue
				}
				addrs, err := addressesOf(cluster, host, addresses)
				if err != nil {
					return err
				}
				if err := pki.Issue(dir, to, host, addrs, pki.Options{Force: force}); err != nil {
					return err
				}
				i18n.Fprintf(c.OutOrStdout(), "issued %s, valid for 5 years; copy the files of %s to %s of the host\n", host, to, paths.PKIDir)
			}
			return nil
		}}
	cmd.Flags().StringVar(&dir, "dir", pki.DefaultCADir, "directory of the CA")
	cmd.Flags().StringVar(&out, "out", "", "directory for the files (default DIR/hosts/HOST)")
	cmd.Flags().StringVarP(&file, "file", "f", "", "cluster file to take addresses from")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "IP address of the host; may be repeated")
	cmd.Flags().BoolVar(&force, "force", false, "replace existing files")
	cmd.Flags().BoolVar(&server, "server", false, "the certificate is for a server (hanok server), not for a host")
	return cmd
}

func addressesOf(cluster *config.Cluster, host model.HostID, more []string) ([]netip.Addr, error) {
	var out []netip.Addr
	if cluster != nil {
		h := cluster.HostByName(host)
		if h == nil {
			return nil, fmt.Errorf("the cluster file has no host %q", string(host))
		}
		for _, n := range cluster.Networks {
			if a := h.AddressOf(n.Name); a.IsValid() {
				out = append(out, a)
			}
		}
	}
	for _, s := range more {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--address %q: write an IPv4 or IPv6 address", s)
		}
		out = append(out, a)
	}
	return out, nil
}

// shown is the JSON of `pki show`.
type shown struct {
	Cluster string       `json:"cluster"`
	Host    model.HostID `json:"host"`
	URI     string       `json:"uri"`
	Expires time.Time    `json:"expires"`
	Expired bool         `json:"expired"`
}

func newShow() *cobra.Command {
	var dir, output string
	cmd := &cobra.Command{Use: "show", Short: "Check and show a host's certificate", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: only json is known", output)
			}
			cred, err := pki.Load(filepath.Clean(dir))
			if err != nil {
				return err
			}
			now := time.Now()
			expired := cred.Check(now)
			if output == "json" {
				err := json.NewEncoder(c.OutOrStdout()).Encode(shown{cred.Identity.Cluster, cred.Identity.Host, cred.Identity.URI(), cred.Expires, expired != nil})
				return errors.Join(err, expired)
			}
			i18n.Fprintf(c.OutOrStdout(), "host     %s\ncluster  %s\nexpires  %s\n", cred.Identity.Host, cred.Identity.Cluster, cred.Expires.UTC().Format(time.RFC3339))
			if left := cred.Expires.Sub(now); expired == nil && left < expiryWarning {
				i18n.Fprintf(c.OutOrStdout(), "warning: expires in %d days; issue a new one with `hanok pki issue --force`\n", int(left.Hours()/24))
			}
			return expired
		}}
	cmd.Flags().StringVar(&dir, "dir", paths.PKIDir, "directory with ca.crt, host.crt and host.key")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json for machine-readable output")
	return cmd
}
