package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
	"hanok.dev/hanok/internal/pki"
)

// trusted is what `hanok cluster trust` says.
type trusted struct {
	Authorities []struct{ Fingerprint string }
	Phase       string
	Hosts       []struct {
		Host, Issuer, Problem string
		Expires               time.Time
		Authorities           []string
	}
}

// controlled is a server in one of the lab's hosts.
type controlled struct {
	*cluster
	host string
	data string // directory of the server's state in the host
	stop func()
}

// serve starts a server; hosts' certificates last for life.
func (c *controlled) serve(life time.Duration) {
	c.t.Helper()
	cmd, release, err := c.d.Command(c.ctx, c.host, "hanok", "server", "--listen", "0.0.0.0:8443", "--metrics-address", "", "--log", "stderr",
		"--data", c.data, "--cluster-pki", "/etc/hanok/server", "--host-certificate-life", life.String())
	c.must(err)
	log, err := os.Create(filepath.Join(c.t.TempDir(), "server.log"))
	c.must(err)
	cmd.Stdout, cmd.Stderr = log, log
	c.must(cmd.Start())
	done := false
	c.stop = func() {
		if done {
			return
		}
		done = true
		_, _ = c.exec(c.host, "pkill", "-TERM", "-f", "^hanok server") // of that host's processes
		_ = cmd.Wait()
		release()
		log.Close()
		if b, err := os.ReadFile(log.Name()); err == nil && c.t.Failed() {
			c.t.Logf("the server says:\n%s", b)
		}
	}
	c.t.Cleanup(c.stop)
	c.eventually(20*time.Second, "the server answers", func() error {
		out, err := c.exec(c.host, "hanok", "--server", paths.ServerSocket, "server", "fingerprint")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (c *controlled) ask(args ...string) string {
	c.t.Helper()
	return c.mustExec(c.host, append([]string{"hanok", "--server", paths.ServerSocket}, args...)...)
}

// trust waits until what the server says of every host is right.
func (c *controlled) trust(limit time.Duration, what string, right func(*trusted) error) *trusted {
	c.t.Helper()
	var last trusted
	c.eventually(limit, what, func() error {
		var list []trusted
		out, err := c.exec(c.host, "hanok", "--server", paths.ServerSocket, "cluster", "trust", "-o", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &list)
		}
		if err != nil || len(list) != 1 {
			return fmt.Errorf("%s: %w", out, err)
		}
		last = list[0]
		for _, h := range last.Hosts {
			if h.Problem != "" || h.Issuer == "" {
				return fmt.Errorf("%+v", h)
			}
		}
		return right(&last)
	})
	return &last
}

// keepCertificates puts the hosts' present certificates back at the end, so that
// the lab is what it was.
func (c *controlled) keepCertificates() {
	c.t.Helper()
	type file struct {
		path    string
		content []byte
	}
	var kept []file
	for _, h := range c.hosts() {
		for _, name := range []string{pki.CACert, pki.HostCert, pki.HostKey} {
			path := filepath.Join(c.hostFile(h, paths.PKIDir), name)
			b, err := os.ReadFile(path)
			c.must(err)
			kept = append(kept, file{path, b})
		}
	}
	c.t.Cleanup(func() {
		for _, f := range kept {
			c.must(os.WriteFile(f.path+".kept", f.content, 0o600))
			c.must(os.Rename(f.path+".kept", f.path))
		}
	})
}

// controlledBy makes ready a server that takes over hosts whose certificates were
// made by hand, and says where their authority is.
func controlledBy(c *cluster) (s *controlled, authority string) {
	c.t.Helper()
	s = &controlled{cluster: c, host: c.primary(), data: fmt.Sprintf("/var/lib/hanok-server-%d", time.Now().UnixNano())}
	s.keepCertificates()
	authority = c.d.Layout().PKIDir()
	c.must(pki.IssueServer(authority, c.hostFile(s.host, "/etc/hanok/server"), "control", pki.Options{Force: true}))
	for _, f := range []string{pki.CACert, pki.CAKey} {
		b, err := os.ReadFile(filepath.Join(authority, f))
		c.must(err)
		c.must(os.WriteFile(c.hostFile(s.host, "/etc/hanok/server/signs-"+f), b, 0o600))
	}
	return s, authority
}

// Hosts with certificates that were made by hand get a server, which replaces them
// by short ones. It is down until these have ended: nothing happens to a VM, an
// agent that is killed then cannot take part, and the server that is back puts all
// right by itself. A host is enrolled anew with its token, the authority is
// replaced, and the server restarted right after reaches every host. No VM notices.
func TestCertificatesAreRenewedAndTheAuthorityReplaced(t *testing.T) {
	c, _ := controlledBy(settled(t))
	all := c.vmNames()
	const life = 15 * time.Second
	c.serve(life)
	c.ask("apply", "-f", paths.ClusterFile)
	c.ask("cluster", "trust", "import", "--cert", "/etc/hanok/server/signs-ca.crt", "--key", "/etc/hanok/server/signs-ca.key")
	short := c.trust(20*time.Second, "long certificates are replaced by short ones", func(s *trusted) error {
		for _, h := range s.Hosts {
			if h.Expires.After(time.Now().Add(life + time.Second)) {
				return fmt.Errorf("%s until %s", h.Host, h.Expires)
			}
		}
		return nil
	})
	c.stop()
	lost := c.otherThan(c.host)
	c.eventually(life+5*time.Second, "the certificates end", func() error {
		for _, h := range short.Hosts {
			if time.Now().Before(h.Expires) {
				return fmt.Errorf("%s until %s", h.Host, h.Expires)
			}
		}
		return c.connected(lost)
	})
	c.kill(lost, "agent")
	c.eventually(10*time.Second, "the host's agent does not take part", func() error { return c.hostState(lost, "agentUnreachable") })
	c.untouched(all)
	c.serve(24 * time.Hour)
	c.trust(20*time.Second, "ended certificates are replaced", func(s *trusted) error {
		for i, h := range s.Hosts {
			if !h.Expires.After(short.Hosts[i].Expires) {
				return fmt.Errorf("%s until %s still", h.Host, h.Expires)
			}
		}
		return nil
	})
	c.eventually(10*time.Second, "the host is connected", func() error { return c.connected(lost) })
	c.untouched(all)

	token := strings.TrimSpace(c.ask("host", "token", lost, "-q"))
	fingerprint := strings.TrimSpace(c.ask("server", "fingerprint"))
	url := "https://" + c.clusterFile().HostByName(model.HostID(c.host)).Address["mgmt"].String() + ":8443"
	if out, err := c.exec(c.otherThan(lost), "hanok", "host", "enrol", url, "--fingerprint", fingerprint, "--token", token); err == nil || !strings.Contains(out, "the token is for "+lost) {
		t.Errorf("another host enrolled as %s: %s", lost, out)
	}
	c.mustExec(lost, "hanok", "host", "enrol", url, "--fingerprint", fingerprint, "--token", token)

	c.ask("cluster", "trust", "replace")
	c.stop()
	c.serve(24 * time.Hour)
	c.replaced(short.Authorities[0].Fingerprint)
	c.stop() // nothing is under way: the next one must reach all hosts for its own sake
	c.serve(24 * time.Hour)
	c.replaced(short.Authorities[0].Fingerprint)
	c.stop()
	c.settle()
	c.untouched(all)
}

// replaced waits until all hosts trust one authority alone, another than before.
func (c *controlled) replaced(before string) {
	c.t.Helper()
	c.trust(20*time.Second, "the new authority alone", func(s *trusted) error {
		for _, h := range s.Hosts {
			if s.Phase != "" || len(s.Authorities) != 1 || s.Authorities[0].Fingerprint == before || h.Issuer != s.Authorities[0].Fingerprint || !slices.Equal(h.Authorities, []string{h.Issuer}) {
				return fmt.Errorf("%q %+v", s.Phase, h)
			}
		}
		return nil
	})
}
