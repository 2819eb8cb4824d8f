package network

import (
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
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

// Separate makes a host deaf to others, named by their numbers, on all
// networks, in addition to its cuts. An empty list ends it.
func (s *Switch) Separate(number int, from []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, n := range s.networks {
		var addresses []net.HardwareAddr
		for _, other := range from {
			addresses = append(addresses, mac(i, other))
		}
		port := portName(i, number)
		if err := s.faults.apply(port, s.faults.cut[port], addresses); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	return nil
}

// faults keeps one table per faulty port. A chain on its ingress drops what
// the host says; one on its egress drops what it would hear, all of it or what
// certain others send.
type faults struct {
	ns   int
	cut  map[string]Direction          // by port; absent means whole
	deaf map[string][]net.HardwareAddr // by port: senders it does not hear
}

// set changes the cut of a port. No direction ends its separation too.
func (f *faults) set(port string, d Direction) error {
	if f.cut[port] == d && (d != 0 || f.deaf[port] == nil) {
		return nil
	}
	if d == 0 {
		return f.apply(port, 0, nil)
	}
	return f.apply(port, d, f.deaf[port])
}

func (f *faults) apply(port string, d Direction, deaf []net.HardwareAddr) error {
	c, err := nftables.New(nftables.WithNetNSFd(f.ns))
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: port}
	// Made and deleted first, so that the whole change is one transaction.
	c.AddTable(table)
	c.DelTable(table)
	if d != 0 || len(deaf) > 0 {
		c.AddTable(table)
	}
	chain := func(name string, hook *nftables.ChainHook, policy nftables.ChainPolicy) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: port, Policy: &policy})
	}
	if d&Out != 0 {
		chain("out", nftables.ChainHookIngress, nftables.ChainPolicyDrop)
	}
	if d&In != 0 {
		chain("in", nftables.ChainHookEgress, nftables.ChainPolicyDrop)
	} else if len(deaf) > 0 {
		in := chain("in", nftables.ChainHookEgress, nftables.ChainPolicyAccept)
		for _, sender := range deaf {
			c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}, // source address
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: sender},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
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
	if len(deaf) == 0 {
		delete(f.deaf, port)
	} else {
		f.deaf[port] = deaf
	}
	return nil
}
