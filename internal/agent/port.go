package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/firewall"
	"hanok.dev/hanok/internal/wire"
)

// portCheck is how often the rules for the agents' port are made again: a
// firewall that is reloaded may have removed them, or drop members now.
const portCheck = 30 * time.Second

// Firewall closes the agents' port to strangers; the functions of package
// firewall, or what a test puts in their place.
type Firewall struct {
	// Admit has firewalld let members through, where it runs; Withdraw takes that
	// back, Watch tells when firewalld was reloaded or started.
	Admit    func(context.Context, firewall.Rules) (bool, error)
	Withdraw func(context.Context) error
	Watch    func(context.Context, func()) error
	Apply    func(firewall.Rules) error
	Check    func(firewall.Rules) ([]firewall.Finding, error)
	Remove   func() error
}

// HostFirewall is that of the network namespace this process is in.
var HostFirewall = Firewall{Apply: firewall.Apply, Check: firewall.Check, Remove: firewall.Remove,
	Admit: firewall.Firewalld{}.Admit, Withdraw: firewall.Firewalld{}.Withdraw, Watch: firewall.Firewalld{}.Watch}

// firewalldLimit is how long firewalld may take to answer; a reload takes
// seconds.
const firewalldLimit = 10 * time.Second

// PortRules are the members of a cluster file, by all their addresses. While HA
// is off nobody may reach the port: what hosts must know goes by the control port.
func PortRules(c *config.Cluster) firewall.Rules {
	r := firewall.Rules{Port: wire.DefaultPort, Closed: !c.HA.Enabled, Control: local.RemotePort}
	for i := range c.Hosts {
		for _, n := range c.Networks {
			if a := c.Hosts[i].AddressOf(n.Name); a.IsValid() && !slices.Contains(r.Members, a) {
				r.Members = append(r.Members, a)
			}
		}
	}
	return r
}

// portRules are those of now. Where nothing else carries what hosts tell each
// other the port stays open to members.
func (a *Agent) portRules() firewall.Rules {
	r := PortRules(a.setup.Load().cluster)
	if a.control == nil {
		r.Closed, r.Control = false, 0
	}
	return r
}

// guardPort keeps the rules in force until ctx ends, and takes them away then:
// nobody listens any more.
func (a *Agent) guardPort(ctx context.Context) {
	f := a.cfg.Ports.Firewall
	if f == nil {
		return
	}
	a.goes(func() {
		if err := f.Watch(ctx, a.portMembersChanged); err != nil {
			a.log.Warn("a reload of firewalld is noticed late", "err", err)
		}
	})
	tick := time.NewTicker(portCheck)
	defer tick.Stop()
	for {
		a.notePort(ctx, closePort(ctx, f, a.portRules()))
		select {
		case <-tick.C:
		case <-a.portChanged:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), firewalldLimit)
			defer cancel()
			if err := errors.Join(f.Remove(), f.Withdraw(last)); err != nil {
				a.log.Warn("the rules for the agents' port stay", "err", err, "remedy", "hanok ha firewall remove")
			}
			return
		}
	}
}

// closePort returns what an administrator must know.
func closePort(ctx context.Context, f *Firewall, r firewall.Rules) []string {
	ctx, cancel := context.WithTimeout(ctx, firewalldLimit)
	defer cancel()
	var out []string
	if err := f.Apply(r); err != nil {
		out = append(out, fmt.Sprintf("port %d is not closed to strangers, who are refused by certificate alone: %v; is the kernel module nf_tables there?", r.Port, err))
	}
	asked, err := f.Admit(ctx, r)
	if err != nil {
		out = append(out, fmt.Sprintf("firewalld was not made to admit the members: %v; see `hanok ha firewall check`", err))
	}
	admitted := asked && err == nil
	found, err := f.Check(r)
	if err != nil {
		out = append(out, fmt.Sprintf("whether another firewall drops what members send is not known: %v", err))
	}
	for _, x := range found {
		if admitted && x.OfFirewalld() {
			continue // it says itself that they get through
		}
		out = append(out, x.String())
	}
	return out
}

// notePort shows the notices in the status, and tells of new ones once.
func (a *Agent) notePort(ctx context.Context, notices []string) {
	a.mu.Lock()
	changed := !slices.Equal(a.portNotices, notices)
	a.portNotices = notices
	a.mu.Unlock()
	if changed && len(notices) > 0 {
		a.tell(ctx, event.Event{Severity: event.Warning, Kind: event.Network, Host: a.host,
			Text: fmt.Sprintf("the firewall of %s needs attention", a.host), Cause: strings.Join(notices, "; ")})
	}
}

// portMembersChanged makes the rules anew.
func (a *Agent) portMembersChanged() {
	select {
	case a.portChanged <- struct{}{}:
	default: // it will be done anyway
	}
}
