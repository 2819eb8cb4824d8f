package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const port = 8182

var (
	server   = netip.MustParseAddr("10.77.0.1")
	member   = netip.MustParseAddr("10.77.0.2")
	stranger = netip.MustParseAddr("10.77.0.3")
	rules    = Rules{Port: port, Members: []netip.Addr{server, member, netip.MustParseAddr("fd00::2")}}
)

// inHost runs f in a network namespace of its own, which a peer with the
// addresses of member and stranger is connected to. ask sends a datagram from
// an address, or opens a connection, and returns whether it arrived.
func inHost(t *testing.T, f func(ask func(from netip.Addr, network string) bool)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes network namespaces")
	}
	jobs, done := make(chan func()), make(chan error, 1)
	go func() { // the peer; its thread ends with the goroutine, and its namespace with it
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_NEWNET)
		for job := range jobs {
			job()
		}
	}()
	if err := <-done; err != nil {
		t.Fatal("unshare:", err)
	}
	defer close(jobs)
	peer := func(job func() error) error {
		out := make(chan error, 1)
		jobs <- func() { out <- job() }
		return <-out
	}
	tid := 0
	_ = peer(func() error { tid = unix.Gettid(); return nil })
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		runtime.LockOSThread()
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), cable(tid), address("host0", server), address("lo", netip.Addr{})); err != nil {
			t.Error(err)
			return
		}
		if err := peer(func() error { return address("peer0", member, stranger) }); err != nil {
			t.Error(err)
			return
		}
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, port)))
		if err != nil {
			t.Error(err)
			return
		}
		defer u.Close()
		l, err := net.Listen("tcp4", netip.AddrPortFrom(server, port).String())
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		asked := 0
		f(func(from netip.Addr, network string) bool {
			asked++
			tag := fmt.Sprint(asked)
			err := peer(func() error {
				d := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
				if network == "udp4" {
					d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
				}
				c, err := d.Dial(network, netip.AddrPortFrom(server, port).String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte(tag))
				return err
			})
			if network == "udp4" && err == nil {
				_ = u.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				for buf := make([]byte, 8); ; {
					n, _, rerr := u.ReadFrom(buf)
					if err = rerr; err != nil || string(buf[:n]) == tag { // not a late one
						break
					}
				}
			}
			return err == nil
		})
	}()
	<-finished
}

func cable(peer int) error {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0"}, PeerName: "peer0"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	l, err := netlink.LinkByName("peer0")
	if err != nil {
		return err
	}
	return netlink.LinkSetNsPid(l, peer)
}

// arrives asks until a packet comes through, for the first may wait for ARP.
func arrives(ask func(netip.Addr, string) bool, from netip.Addr, network string) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if ask(from, network) {
			return true
		}
	}
	return false
}

func address(link string, addrs ...netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.IsValid() {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
				return err
			}
		}
	}
	return netlink.LinkSetUp(l)
}

func TestOnlyMembersGetThrough(t *testing.T) {
	inHost(t, func(ask func(netip.Addr, string) bool) {
		want := func(when string, from netip.Addr, ok bool) {
			t.Helper()
			for _, n := range []string{"udp4", "tcp4"} {
				if ok && !arrives(ask, from, n) || !ok && ask(from, n) {
					t.Errorf("%s: %s from %s arrives: %v", when, n, from, !ok)
				}
			}
		}
		want("without a table", stranger, true)
		for range 2 { // applying again changes nothing
			if err := Apply(rules); err != nil {
				t.Error(err)
				return
			}
		}
		want("with the table", member, true)
		want("with the table", stranger, false)
		if err := Apply(Rules{Port: port, Members: []netip.Addr{stranger}}); err != nil {
			t.Error(err)
		}
		want("after the members changed", member, false)
		want("after the members changed", stranger, true)
		if err := Apply(Rules{Port: port, Members: rules.Members, Closed: true}); err != nil {
			t.Error(err)
		}
		want("while it is closed", member, false)
		want("while it is closed", stranger, false)
		for range 2 { // removing what is not there is no error
			if err := Remove(); err != nil {
				t.Error(err)
			}
		}
		want("after it was removed", member, true)
	})
}

// TestOtherFirewalls: what nft writes and the kernel lists is understood, the
// packets tell the truth, and the remedy helps.
func TestOtherFirewalls(t *testing.T) {
	for name, c := range map[string]struct {
		ruleset string
		finding string // part of it, "" for none
		blocks  bool
	}{
		"none":    {"", "", false},
		"accepts": {"table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept; meta l4proto { tcp, udp } th dport 8182 accept; tcp dport 22 accept; } }", "", false},
		"policy":  {"table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; iifname lo accept; tcp dport 22 accept; } }", "chain inet filter input drops", true},
		"udp":     {"table ip filter { chain input { type filter hook input priority 0; policy drop; tcp dport { 22, 8182 } accept; } }", "chain ip filter input drops", true},
		"source":  {"table inet f { chain in { type filter hook input priority 0; policy drop; ip saddr 10.77.0.0/24 accept; } }", "chain inet f in drops what fd00::2", false},
		"reject":  {"table inet f { chain own { udp dport 8182 reject; }\n chain in { type filter hook input priority 0; jump own; } }", "chain inet f in drops", true},
		"unknown": {"table inet f { chain in { type filter hook input priority 0; policy drop; meta mark 0 accept; } }", "chain inet f in may drop", false},
	} {
		t.Run(name, func(t *testing.T) {
			inHost(t, func(ask func(netip.Addr, string) bool) {
				if !arrives(ask, member, "udp4") || !arrives(ask, stranger, "udp4") {
					t.Error("the network of the test does not work")
				}
				if err := errors.Join(Apply(rules), nft(c.ruleset)); err != nil {
					t.Error(err)
					return
				}
				found, err := Check(rules)
				if err != nil {
					t.Error(err)
					return
				}
				text := fmt.Sprint(found)
				if c.finding == "" && len(found) > 0 || !strings.Contains(text, c.finding) {
					t.Errorf("found %s, want %q", text, c.finding)
				}
				if c.blocks && ask(member, "udp4") || !c.blocks && !arrives(ask, member, "udp4") {
					t.Errorf("a member's datagram is blocked: %v", !c.blocks)
				}
				for _, f := range found {
					if err := sh(f.Remedy); err != nil {
						t.Error(err)
					}
				}
				if again, err := Check(rules); err != nil || len(again) > 0 {
					t.Errorf("after the remedy: %v %v", again, err)
				}
				if !arrives(ask, member, "udp4") || !arrives(ask, member, "tcp4") {
					t.Error("a member does not get through after the remedy")
				}
				if ask(stranger, "udp4") {
					t.Error("the remedy lets strangers in")
				}
			})
		})
	}
}

// sh runs a command on this thread, so that it is in its network namespace.
func sh(command string) error {
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func nft(ruleset string) error {
	if ruleset == "" {
		return nil
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.NewReplacer("; }", ";\n}\n", "} chain", "}\nchain").Replace(ruleset))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// While the port is closed nobody is missed there; the control port is looked
// after in either case.
func TestServices(t *testing.T) {
	closed := Rules{Port: port, Members: rules.Members, Closed: true, Control: 8183}
	if got := iptables(closed); strings.Contains(got, "8182") || !strings.Contains(got, "-p tcp --dport 8183 -j ACCEPT") || strings.Contains(got, "udp") {
		t.Error(got)
	}
	open := closed
	open.Closed = false
	if got := iptables(open); strings.Count(got, "--dport 8182") != 4 || strings.Count(got, "-p tcp --dport 8183") != 2 {
		t.Error(got)
	}
	if got := strings.Join(richRules(closed), "\n"); strings.Contains(got, `port="8182"`) || !strings.Contains(got, `port="8183" protocol="tcp"`) {
		t.Error(got)
	}
}

func TestRemedies(t *testing.T) {
	if got := iptables(rules); !strings.Contains(got, "iptables -I INPUT -s 10.77.0.1,10.77.0.2 -p tcp --dport 8182 -j ACCEPT") ||
		!strings.Contains(got, "ip6tables -I INPUT -s fd00::2 -p udp --dport 8182 -j ACCEPT") {
		t.Error(got)
	}
	if got := firewalld(rules); !strings.Contains(got, `family="ipv6" source address="fd00::2" port port="8182" protocol="udp"`) ||
		!strings.HasSuffix(got, "firewall-cmd --reload") {
		t.Error(got)
	}
}
