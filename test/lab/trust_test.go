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
	stop func()
}

// serve starts a server; hosts' certificates last for life.
func (c *controlled) serve(life time.Duration) {
	c.t.Helper()
	cmd, release, err := c.d.Command(c.ctx, c.host, "hanok", "server", "--listen", "0.0.0.0:8443", "--metrics-address", "", "--log", "stderr",
		"--cluster-pki", "/etc/hanok/server", "--host-certificate-life", life.String())
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

// Hosts with certificates that were made by hand get a server, which renews them
// without a restart of anything; a host whose certificate ended keeps its VMs and
// is enrolled anew with a token; the authority is replaced; no VM notices.
func TestCertificatesAreRenewedAndTheAuthorityReplaced(t *testing.T) {
	c := &controlled{cluster: settled(t)}
	c.host = c.primary()
	all := c.vmNames()
	old := c.d.Layout().PKIDir()
	c.must(pki.IssueServer(old, c.hostFile(c.host, "/etc/hanok/server"), "control", pki.Options{Force: true}))
	for _, f := range []string{pki.CACert, pki.CAKey} {
		b, err := os.ReadFile(filepath.Join(old, f))
		c.must(err)
		c.must(os.WriteFile(c.hostFile(c.host, "/etc/hanok/server/signs-"+f), b, 0o600))
	}
	const life = 30 * time.Second
	c.serve(life)
	c.ask("apply", "-f", paths.ClusterFile)
	c.ask("cluster", "trust", "import", "--cert", "/etc/hanok/server/signs-ca.crt", "--key", "/etc/hanok/server/signs-ca.key")
	began := time.Now()
	short := c.trust(20*time.Second, "long certificates are replaced by short ones", func(s *trusted) error {
		for _, h := range s.Hosts {
			if h.Expires.After(time.Now().Add(life + time.Minute)) {
				return fmt.Errorf("%s until %s", h.Host, h.Expires)
			}
		}
		return nil
	})
	c.trust(life, "they are renewed before they end", func(s *trusted) error {
		for i, h := range s.Hosts {
			if !h.Expires.After(short.Hosts[i].Expires) {
				return fmt.Errorf("%s until %s still", h.Host, h.Expires)
			}
		}
		return nil
	})
	t.Logf("renewed twice within %v", time.Since(began).Round(time.Second))
	c.untouched(all)

	// One host's certificate ends. Its VMs stay as they are; a token brings it back,
	// and its agent, which runs, takes the new one up by itself.
	lost := c.otherThan(c.host)
	dir := c.hostFile(lost, paths.PKIDir)
	c.must(pki.Issue(old, dir, model.HostID(lost), nil, pki.Options{Force: true, Expires: time.Now().Add(-time.Minute)}))
	c.kill(lost, "agent")
	c.eventually(20*time.Second, "the host's agent does not take part", func() error { return c.hostState(lost, "agentUnreachable") })
	c.untouched(all)
	token := strings.TrimSpace(c.ask("host", "token", lost, "-q"))
	fingerprint := strings.TrimSpace(c.ask("server", "fingerprint"))
	url := "https://" + c.clusterFile().HostByName(model.HostID(c.host)).Address["mgmt"].String() + ":8443"
	if out, err := c.exec(c.otherThan(lost), "hanok", "host", "enrol", url, "--fingerprint", fingerprint, "--token", token); err == nil || !strings.Contains(out, "the token is for "+lost) {
		t.Errorf("another host enrolled as %s: %s", lost, out)
	}
	c.mustExec(lost, "hanok", "host", "enrol", url, "--fingerprint", fingerprint, "--token", token)
	c.eventually(20*time.Second, "the host is connected", func() error { return c.connected(lost) })
	c.untouched(all)

	c.ask("cluster", "trust", "replace")
	c.stop()
	c.serve(24 * time.Hour)
	end := c.trust(20*time.Second, "the new authority alone, and long certificates again", func(s *trusted) error {
		for _, h := range s.Hosts {
			if len(s.Authorities) != 1 || h.Issuer != s.Authorities[0].Fingerprint || !slices.Equal(h.Authorities, []string{h.Issuer}) || h.Expires.Before(time.Now().Add(time.Hour)) {
				return fmt.Errorf("%+v", h)
			}
		}
		return nil
	})
	if end.Authorities[0].Fingerprint == short.Authorities[0].Fingerprint {
		t.Error("the authority is the one before")
	}
	c.stop()
	c.settle()
	c.untouched(all)
}
