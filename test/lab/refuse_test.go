package lab_test

import (
	"strings"
	"testing"
	"time"
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

// An older version of the cluster file is refused, and changes nothing.
func TestOlderClusterFileIsRefused(t *testing.T) {
	c := settled(t)
	before := c.mustExec(c.primary(), "hanok", "cluster", "show")
	out, err := c.applyVersion(c.primary(), 0)
	if err == nil || !strings.Contains(out, "version") {
		t.Errorf("apply of an older file: %v, %q; want a refusal that speaks of the version", err, out)
	}
	if after := c.mustExec(c.primary(), "hanok", "cluster", "show"); after != before {
		t.Error("the cluster file changed")
	}
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
