package network_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/network"
)

var networks = []network.Network{
	{Name: "mgmt", Gateway: netip.MustParsePrefix("10.99.0.1/24")},
	{Name: "hb2", Gateway: netip.MustParsePrefix("10.99.1.1/24")},
}

// host is a process in a network namespace of its own.
type host struct {
	t       *testing.T
	number  int
	process *exec.Cmd
}

func newHost(t *testing.T, s *network.Switch, number int) *host {
	t.Helper()
	h := &host{t: t, number: number, process: exec.Command("sleep", "infinity")}
	h.process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := h.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.process.Process.Kill()
		_ = h.process.Wait()
	})
	if err := s.Plug(number, h.process.Process.Pid, map[string]netip.Addr{"mgmt": h.addr(0), "hb2": h.addr(1)}); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) addr(net int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 99, byte(net), byte(10 + h.number)})
}

// socket returns a UDP socket inside the host.
func (h *host) socket(port int) int {
	h.t.Helper()
	type result struct {
		fd  int
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in the host's namespace
		ns, err := netns.GetFromPid(h.process.Process.Pid)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			made <- result{-1, err}
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
		}
		if err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})
		}
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		h.t.Fatal(r.err)
	}
	h.t.Cleanup(func() { unix.Close(r.fd) })
	return r.fd
}

// hears tells whether a datagram from one host reaches another.
func hears(t *testing.T, from, to *host, net int) bool {
	t.Helper()
	const port = 8182
	in, out := to.socket(port), from.socket(0)
	defer unix.Shutdown(in, unix.SHUT_RDWR)
	if err := unix.Sendto(out, []byte("x"), 0, &unix.SockaddrInet4{Port: port, Addr: to.addr(net).As4()}); err != nil {
		t.Fatal(err)
	}
	_, _, err := unix.Recvfrom(in, make([]byte, 8), 0)
	unix.Close(in)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return err == nil
}

func TestCutsAreOneSidedAndHealAtOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root: run the tests of internal/lab as root")
	}
	s, err := network.NewSwitch(networks)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	if !hears(t, a, b, 0) || !hears(t, b, a, 0) { // also fills the ARP tables
		t.Fatal("hosts do not hear each other")
	}
	tests := []struct {
		network      string
		direction    network.Direction
		aToB, bToA   bool
		otherNetwork bool
	}{
		{"mgmt", network.Out, false, true, true},
		{"mgmt", network.In, true, false, true},
		{"mgmt", network.Both, false, false, true},
		{"", network.Both, false, false, false},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %s", tt.network, tt.direction), func(t *testing.T) {
			if err := s.Cut(1, tt.network, tt.direction); err != nil {
				t.Fatal(err)
			}
			if got := hears(t, a, b, 0); got != tt.aToB {
				t.Errorf("from the cut host: %v", got)
			}
			if got := hears(t, b, a, 0); got != tt.bToA {
				t.Errorf("to the cut host: %v", got)
			}
			if got := hears(t, a, b, 1); got != tt.otherNetwork {
				t.Errorf("on the other network: %v", got)
			}
			if err := s.Heal(1); err != nil {
				t.Fatal(err)
			}
			if !hears(t, a, b, 0) || !hears(t, b, a, 0) || len(s.Cuts(1)) != 0 {
				t.Error("not healed")
			}
		})
	}
	if err := s.Cut(1, "nowhere", network.Both); err == nil {
		t.Error("a network that does not exist was cut")
	}
}

func TestPartitionSeparatesOnlyTheGroups(t *testing.T) {
	s, err := network.NewSwitch(networks)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, b, c := newHost(t, s, 1), newHost(t, s, 2), newHost(t, s, 3)
	for _, x := range [][2]*host{{a, b}, {b, a}, {a, c}, {c, a}, {b, c}, {c, b}} {
		if !hears(t, x[0], x[1], 1) {
			t.Fatal("hosts do not hear each other")
		}
	}
	for number, from := range map[int][]int{1: {3}, 2: {3}, 3: {1, 2}} {
		if err := s.Separate(number, from); err != nil {
			t.Fatal(err)
		}
	}
	if !hears(t, a, b, 1) || hears(t, a, c, 1) || hears(t, c, a, 1) || hears(t, b, c, 1) {
		t.Error("the groups are not as asked")
	}
	for number := 1; number <= 3; number++ {
		if err := s.Heal(number); err != nil {
			t.Fatal(err)
		}
	}
	if !hears(t, a, c, 1) || !hears(t, c, b, 1) {
		t.Error("not healed")
	}
}

func TestReplacedHostIsReachableAtOnce(t *testing.T) {
	s, err := network.NewSwitch(networks)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, b := newHost(t, s, 1), newHost(t, s, 2)
	if !hears(t, b, a, 0) {
		t.Fatal("hosts do not hear each other")
	}
	if err := s.Cut(1, "", network.Both); err != nil {
		t.Fatal(err)
	}
	if err := s.Unplug(1); err != nil {
		t.Fatal(err)
	}
	again := newHost(t, s, 1)
	begin := time.Now()
	if !hears(t, b, again, 0) {
		t.Fatalf("the rebooted host is deaf after %v", time.Since(begin))
	}
}
