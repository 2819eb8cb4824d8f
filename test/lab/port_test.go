package lab_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hanok.dev/hanok/internal/model"
)

// probeFlag makes the test binary, run inside a host, ask whether a TCP port of
// another answers.
const probeFlag = "probe-port"

// strangerAddress is of the lab's first network and of no host.
const strangerAddress = "10.99.0.250"

// probeMain is that other life: ADDRESS:PORT, and the address to ask from, which
// the host gets for as long as that takes, or "own". It prints open or closed.
func probeMain(to, from string) error {
	d := net.Dialer{Timeout: time.Second}
	if from != "own" {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		routes, err := netlink.RouteGet(at.Addr().AsSlice())
		if err != nil {
			return err
		}
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(from), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return err
		}
		defer func() { _ = netlink.AddrDel(link, addr) }()
		d.LocalAddr = &net.TCPAddr{IP: addr.IP}
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		fmt.Println("closed")
		return nil
	}
	fmt.Println("open")
	return c.Close()
}

// insideTest runs this test binary's other life inside a host.
func (c *cluster) insideTest(host string, args ...string) string {
	c.t.Helper()
	self, err := os.Executable()
	c.must(err)
	// The host sees the lab's own directory of binaries; the test binary is
	// handed in beside its configuration.
	inside := filepath.Join(c.d.Layout().HostEtc(host), "hanok", "lab-test")
	data, err := os.ReadFile(self)
	c.must(err)
	c.must(os.WriteFile(inside, data, 0o700))
	defer os.Remove(inside)
	return strings.TrimSpace(c.mustExec(host, append([]string{"/etc/hanok/lab-test"}, args...)...))
}

// portIs: port 8182 at an address is open or closed to a host, asked from its own
// address or from a stranger's.
func (c *cluster) portIs(want string, at netip.Addr, from, address string) error {
	to := netip.AddrPortFrom(at, 8182).String()
	if got := c.insideTest(from, probeFlag, to, address); got != want {
		return fmt.Errorf("%s is %s to %s by the address %s, want %s", to, got, from, address, want)
	}
	return nil
}

// While HA is on port 8182 is open to members and to nobody else; while it is off
// it is closed to members too, and HA can be switched on again from any host.
func TestPortIsForMembersWhileHAIsOn(t *testing.T) {
	c := settled(t)
	all := c.vmNames()
	primary := c.primary()
	from := c.otherThan(primary)
	at := c.clusterFile().HostByName(model.HostID(primary)).Address["mgmt"]
	t.Cleanup(func() {
		if t.Failed() {
			_, _ = c.exec(from, "hanok", "ha", "on")
		}
	})
	c.runCheck(c.portIs("open", at, from, "own"))
	c.runCheck(c.portIs("closed", at, from, strangerAddress))
	c.mustExec(primary, "hanok", "ha", "off")
	c.eventually(15*time.Second, "HA is off everywhere", func() error { return c.switched("HA", false) })
	c.eventually(10*time.Second, "the port is closed to members", func() error { return c.portIs("closed", at, from, "own") })
	c.runCheck(c.portIs("closed", at, from, strangerAddress))
	c.mustExec(from, "hanok", "ha", "on")
	c.eventually(15*time.Second, "all is protected again", func() error {
		if err := c.switched("HA", true); err != nil {
			return err
		}
		return c.allProtected()
	})
	c.runCheck(c.portIs("open", at, from, "own"))
	c.untouched(all)
}
