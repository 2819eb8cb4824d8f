package lab_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/paths"
)

// A corrupt cluster file does not take a host out: it starts from the copy
// before, says so, and catches up with the others.
func TestCorruptClusterFile(t *testing.T) {
	c := settled(t)
	host := c.otherThan(c.primary())
	running := c.vmsOn(host)
	c.corruptClusterFile(host)
	c.kill(host, "agent")
	c.eventually(20*time.Second, "the host is connected and its file is whole", func() error {
		if err := c.connected(host); err != nil {
			return err
		}
		return c.clusterFileIsWhole(host)
	})
	c.untouched(running)
	c.settle()
}

// A host whose cluster file was replaced by an older version goes on with the
// version that it has seen, says so, and puts the file right.
func TestOlderClusterFileIsRefused(t *testing.T) {
	c := settled(t)
	host := c.otherThan(c.primary())
	running := c.vmsOn(host)
	old, err := os.ReadFile(c.hostFile(host, paths.ClusterFile))
	c.must(err)
	f := c.clusterFile()
	c.must(f.HA.Options.Set("das.maxvmrestartcount", "4"))
	if out, err := c.apply(c.primary(), f); err != nil {
		t.Fatalf("apply: %v: %s", err, out)
	}
	version := c.clusterFile().Version
	c.must(os.WriteFile(c.hostFile(host, paths.ClusterFile), old, 0o600))
	c.kill(host, "agent")
	c.eventually(20*time.Second, "the host is connected and keeps the newer version", func() error {
		if err := c.connected(host); err != nil {
			return err
		}
		file, err := config.ReadFile(c.hostFile(host, paths.ClusterFile))
		if err == nil && file.Version != version {
			err = fmt.Errorf("the file has version %d, want %d", file.Version, version)
		}
		return err
	})
	st, err := c.d.StatusOf(c.ctx, host)
	c.must(err)
	if st.ConfigVersion != version || len(st.Local.Notices) == 0 {
		t.Errorf("version %d with notices %q, want %d and a notice", st.ConfigVersion, st.Local.Notices, version)
	}
	c.untouched(running)
	c.settle()
}

// A host with a certificate of another CA is refused by all others, counted,
// and its VMs run on under its guard.
func TestForeignCertificate(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	running := c.vmsOn(host)
	restore := c.replaceCertificate(host)
	c.kill(host, "agent")
	c.eventually(20*time.Second, "the host counts as agent unreachable", func() error { return c.hostState(host, "agentUnreachable") })
	c.eventually(20*time.Second, "the refusals are counted", func() error { return c.counted(c.primary(), "foreign") })
	c.untouched(running)
	restore()
	c.kill(host, "agent")
	c.settle()
}

// Ten thousand random datagrams a second from a member's own address have no
// effect but to be counted.
func TestRandomDatagrams(t *testing.T) {
	c := settled(t)
	primary := c.primary()
	from := c.otherThan(primary)
	all := c.vmNames()
	sent := c.flood(from, primary, 5*time.Second, 10000)
	if sent < 40000 {
		t.Fatalf("only %d datagrams left in 5 s: no flood", sent)
	}
	if got := c.primary(); got != primary {
		t.Errorf("primary changed from %s to %s", primary, got)
	}
	c.eventually(5*time.Second, "they are counted", func() error { return c.counted(primary, "datagram") })
	c.runCheck(c.allProtected())
	c.untouched(all)
}
