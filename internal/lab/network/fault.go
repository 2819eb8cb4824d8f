package network

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// Direction says which way a cut works, as the host sees it.
type Direction uint8

// The directions of a cut; they may be combined.
const (
	// In: the host hears nothing.
	In Direction = 1 << iota
	// Out: nothing that the host says arrives.
	Out
	// Both ways.
	Both = In | Out
)

// ParseDirection reads in, out or both.
func ParseDirection(s string) (Direction, error) {
	for d := In; d <= Both; d++ {
		if s == d.String() {
			return d, nil
		}
	}
	return 0, fmt.Errorf("direction %q: use in, out or both", s)
}

// String returns the direction's name; "none" for no cut.
func (d Direction) String() string {
	return [...]string{"none", "in", "out", "both"}[d&Both]
}

// Cut cuts a host off a network, or off all when network is empty, in addition
// to what is cut already. Packets are dropped silently; no link goes down.
func (s *Switch) Cut(number int, network string, d Direction) error {
	return s.each(number, network, func(port string) error {
		return s.faults.set(port, s.faults.cut[port]|d)
	})
}

// Heal ends all cuts of a host.
func (s *Switch) Heal(number int) error {
	return s.each(number, "", func(port string) error { return s.faults.set(port, 0) })
}

// Cuts returns the cuts of a host by the networks' names.
func (s *Switch) Cuts(number int) map[string]Direction {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]Direction{}
	for i, n := range s.networks {
		if d := s.faults.cut[portName(i, number)]; d != 0 {
			out[n.Name] = d
		}
	}
	return out
}

func (s *Switch) each(number int, network string, do func(port string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if network != "" && !slices.ContainsFunc(s.networks, func(n Network) bool { return n.Name == network }) {
		return fmt.Errorf("no network %q in this lab", network)
	}
	for i, n := range s.networks {
		if network != "" && n.Name != network {
			continue
		}
		if err := do(portName(i, number)); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	return nil
}

// faults keeps one table per cut port, with a chain that drops everything on
// the port's ingress (what the host says) or egress (what it would hear).
type faults struct {
	ns  int
	cut map[string]Direction // by port; absent means whole
}

func (f *faults) set(port string, d Direction) error {
	if f.cut[port] == d {
		return nil
	}
	c, err := nftables.New(nftables.WithNetNSFd(f.ns))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: port}
	// Made and deleted first, so that the whole change is one transaction.
	c.AddTable(table)
	c.DelTable(table)
	if d != 0 {
		c.AddTable(table)
		drop := nftables.ChainPolicyDrop
		for hook, on := range map[*nftables.ChainHook]bool{
			nftables.ChainHookIngress: d&Out != 0,
			nftables.ChainHookEgress:  d&In != 0,
		} {
			if on {
				c.AddChain(&nftables.Chain{Table: table, Name: fmt.Sprintf("hook%d", *hook), Type: nftables.ChainTypeFilter,
					Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: port, Policy: &drop})
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("cut %s of port %s: %w", d, port, err)
	}
	if d == 0 {
		delete(f.cut, port)
	} else {
		f.cut[port] = d
	}
	return nil
}
