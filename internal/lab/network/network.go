package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const carrierTimeout = 5 * time.Second

// Network is one of the lab's networks.
type Network struct {
	Name string
	// Gateway is the address of the bridge itself, with the network's length.
	// It answers pings, as a router would; that of the first network is the
	// hosts' default route.
	Gateway netip.Prefix
}

// Switch holds the networks. Its methods may be called from several
// goroutines.
type Switch struct {
	mu       sync.Mutex
	ns       netns.NsHandle
	links    *netlink.Handle
	networks []Network
	faults   faults
}

// NewSwitch makes the namespace with one bridge per network.
func NewSwitch(networks []Network) (*Switch, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("make the switch's network namespace: %w", err)
	}
	links, err := netlink.NewHandleAt(ns)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open the switch's network namespace: %w", err)
	}
	s := &Switch{ns: ns, links: links, networks: slices.Clone(networks), faults: faults{ns: int(ns), cut: map[string]Direction{}, deaf: map[string][]net.HardwareAddr{}}}
	if lo, err := links.LinkByName("lo"); err == nil {
		_ = links.LinkSetUp(lo)
	}
	for i, n := range networks {
		if err := s.addBridge(i, n); err != nil {
			s.Close()
			return nil, fmt.Errorf("make bridge of network %s: %w", n.Name, err)
		}
	}
	return s, nil
}

// newNamespace makes a network namespace without entering it.
func newNamespace() (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		// The thread is in the new namespace: it must not serve others. It is
		// never unlocked, so it ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{netns.None(), err}
			return
		}
		ns, err := netns.Get()
		made <- result{ns, err}
	}()
	r := <-made
	return r.ns, r.err
}

func (s *Switch) addBridge(i int, n Network) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName(i)
	attrs.HardwareAddr = mac(i, 0xff)
	if err := s.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	link, err := s.links.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if n.Gateway.IsValid() {
		if err := s.links.AddrAdd(link, address(n.Gateway)); err != nil {
			return err
		}
	}
	return s.links.LinkSetUp(link)
}

func bridgeName(network int) string { return fmt.Sprintf("br%d", network) }

// portName names the switch's end of the cable of a host. Host numbers and
// networks are small, so it fits a link name.
func portName(network, host int) string { return fmt.Sprintf("p%d-%d", host, network) }

// InterfaceName is the name of a network's interface in a host: the network's
// own name where it fits.
func InterfaceName(i int, n Network) string {
	if len(n.Name) < unix.IFNAMSIZ {
		return n.Name
	}
	return fmt.Sprintf("net%d", i)
}

// mac gives every port a fixed address: a rebooted host would otherwise be
// unreachable until its neighbours' ARP entries expire.
func mac(network, host int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x48, byte(network), 0, byte(host >> 8), byte(host)}
}

func address(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
}

// Plug connects the network namespace of process pid: one cable per network of
// addresses, which maps the network's name to the host's address there. number
// is the host's number, 1 to 60000, distinct for each host.
func (s *Switch) Plug(number, pid int, addresses map[string]netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	if lo, err := inside.LinkByName("lo"); err == nil {
		if err := inside.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo: %w", err)
		}
	}
	for i, n := range s.networks {
		a, ok := addresses[n.Name]
		if !ok {
			continue
		}
		if err := s.plugOne(inside, i, number, pid, netip.PrefixFrom(a, n.Gateway.Bits())); err != nil {
			return fmt.Errorf("plug network %s: %w", n.Name, err)
		}
	}
	return nil
}

func (s *Switch) plugOne(inside *netlink.Handle, i, number, pid int, a netip.Prefix) error {
	bridge, err := s.links.LinkByName(bridgeName(i))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portName(i, number)
	attrs.MasterIndex = bridge.Attrs().Index
	name := InterfaceName(i, s.networks[i])
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerHardwareAddr: mac(i, number), PeerNamespace: netlink.NsPid(pid)}
	if err := s.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("add port: %w", err)
	}
	port, err := s.links.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	if err := s.links.LinkSetUp(port); err != nil {
		return err
	}
	link, err := inside.LinkByName(name)
	if err != nil {
		return err
	}
	if err := inside.AddrAdd(link, address(a)); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return err
	}
	if gateway := s.networks[i].Gateway; i == 0 && gateway.IsValid() {
		if err := inside.RouteAdd(&netlink.Route{Gw: gateway.Addr().AsSlice()}); err != nil {
			return fmt.Errorf("default route via %s: %w", gateway.Addr(), err)
		}
	}
	return s.waitCarrier(attrs.Name)
}

// waitCarrier returns when the bridge forwards for a port: the kernel sees the
// carrier a moment after both ends are up.
func (s *Switch) waitCarrier(port string) error {
	for end := time.Now().Add(carrierTimeout); ; time.Sleep(time.Millisecond) {
		link, err := s.links.LinkByName(port)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("port %s has no carrier after %v", port, carrierTimeout)
		}
	}
}

// Unplug removes a host's cables; both ends vanish. Missing ones are no error.
func (s *Switch) Unplug(number int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i := range s.networks {
		name := portName(i, number)
		if err := s.faults.set(name, 0); err != nil {
			errs = append(errs, err)
		}
		link, err := s.links.LinkByName(name)
		if err != nil {
			continue
		}
		if err := s.links.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove port %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// Close removes the switch with everything plugged into it.
func (s *Switch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.networks {
		if link, err := s.links.LinkByName(bridgeName(i)); err == nil {
			_ = s.links.LinkDel(link)
		}
	}
	s.links.Close()
	s.ns.Close()
}
