package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
)

// Finding is a chain of another firewall that drops what a member sends.
type Finding struct {
	// Chain is "FAMILY TABLE CHAIN", as nft writes it.
	Chain string
	// Certain: a packet of Member was followed to its drop; otherwise a rule
	// that could not be understood may admit it.
	Certain bool
	Member  netip.Addr
	// Remedy is the command that admits the members there.
	Remedy string
}

// OfFirewalld tells whether the chain is firewalld's, whose rules are not
// understood all: what it answers itself counts for more.
func (f Finding) OfFirewalld() bool { return strings.Contains(f.Chain, " firewalld ") }

func (f Finding) String() string {
	verb := "may drop"
	if f.Certain {
		verb = "drops"
	}
	return fmt.Sprintf("the firewall chain %s %s what %s sends to this host's agent; Hanok's own rule cannot override that; run: %s",
		f.Chain, verb, f.Member, f.Remedy)
}

// Check follows a packet of each member through the other tables of this
// process's network namespace. At most one finding is returned for each chain.
func Check(r Rules) ([]Finding, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the firewall's chains: %w", err)
	}
	w := ruleset{rules: map[string][]*nftables.Rule{}, load: func(ch *nftables.Chain) ([]*nftables.Rule, error) {
		return c.GetRules(ch.Table, ch)
	}, elements: c.GetSetElements}
	var out []Finding
	for _, ch := range chains {
		if !hooksInput(ch) {
			continue
		}
		if f, found := w.judge(ch, r); found {
			out = append(out, f)
		}
	}
	if b, err := os.ReadFile("/proc/self/net/ip_tables_names"); err == nil && strings.Contains(string(b), "filter") {
		out = append(out, Finding{Chain: "of legacy iptables", Remedy: iptables(r)})
	}
	return out, nil
}

// hooksInput reports whether a chain of another table sees packets for this host.
func hooksInput(ch *nftables.Chain) bool {
	family := ch.Table.Family
	return ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookInput && ch.Type == nftables.ChainTypeFilter &&
		(family == nftables.TableFamilyINet || family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6) &&
		(ch.Table.Name != TableName || family != nftables.TableFamilyINet)
}

// judge follows each member's packets through a base chain.
func (w *ruleset) judge(ch *nftables.Chain, r Rules) (Finding, bool) {
	for _, m := range r.Members {
		m = m.Unmap()
		if m.Is6() && ch.Table.Family == nftables.TableFamilyIPv4 || m.Is4() && ch.Table.Family == nftables.TableFamilyIPv6 {
			continue
		}
		for _, s := range r.services() {
			switch v := w.follow(ch, packet{from: m, proto: s.proto, port: s.port}); v {
			case dropped, unsure:
				return Finding{Chain: chainName(ch), Certain: v == dropped, Member: m, Remedy: remedy(ch, r)}, true
			}
		}
	}
	return Finding{}, false
}

func chainName(ch *nftables.Chain) string {
	return familyName(ch.Table.Family) + " " + ch.Table.Name + " " + ch.Name
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// remedy is what admits the members in the firewall that owns the chain.
func remedy(ch *nftables.Chain, r Rules) string {
	switch {
	case ch.Table.Name == "firewalld":
		return firewalld(r)
	case ch.Name == "INPUT" && ch.Table.Name == "filter":
		return iptables(r)
	}
	v4, v6 := split(r.Members)
	var out []string
	for _, part := range []struct{ word, list string }{{"ip", v4}, {"ip6", v6}} {
		if part.list == "" || ch.Table.Family != nftables.TableFamilyINet && familyName(ch.Table.Family) != part.word {
			continue
		}
		for _, s := range r.services() {
			out = append(out, fmt.Sprintf("nft insert rule %s %s saddr '{ %s }' %s dport %d accept", chainName(ch), part.word, part.list, s.word(), s.port))
		}
	}
	return strings.Join(out, " && ")
}

func split(addrs []netip.Addr) (v4, v6 string) {
	var a, b []string
	for _, m := range addrs {
		if m = m.Unmap(); m.Is4() {
			a = append(a, m.String())
		} else {
			b = append(b, m.String())
		}
	}
	return strings.Join(a, ", "), strings.Join(b, ", ")
}

func iptables(r Rules) string {
	v4, v6 := split(r.Members)
	var out []string
	for _, part := range []struct{ program, list string }{{"iptables", v4}, {"ip6tables", v6}} {
		if part.list == "" {
			continue
		}
		for _, s := range r.services() {
			out = append(out, fmt.Sprintf("%s -I INPUT -s %s -p %s --dport %d -j ACCEPT",
				part.program, strings.ReplaceAll(part.list, " ", ""), s.word(), s.port))
		}
	}
	return strings.Join(out, " && ")
}

func firewalld(r Rules) string {
	var out []string
	for _, m := range r.Members {
		family := "ipv4"
		if m = m.Unmap(); m.Is6() {
			family = "ipv6"
		}
		for _, s := range r.services() {
			out = append(out, fmt.Sprintf(`firewall-cmd --permanent --add-rich-rule='rule family="%s" source address="%s" port port="%d" protocol="%s" accept'`,
				family, m, s.port, s.word()))
		}
	}
	return strings.Join(append(out, "firewall-cmd --reload"), " && ")
}
