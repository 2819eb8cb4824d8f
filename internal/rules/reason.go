package rules

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// conflict describes an irreducible contradiction.
func (w *world) conflict(core []int, lost []int) Conflict {
	c := Conflict{Lost: w.hostNames(lost)}
	for _, r := range core {
		c.Rules = append(c.Rules, w.list[r].Name)
	}
	p := w.build(core, lost)
	c.Reason, c.VMs = p.reason(core)
	if len(lost) > 0 {
		c.Reason = fmt.Sprintf("without %s: %s", someOf(c.Lost), c.Reason)
	}
	return c
}

// reason says why the rules of the problem cannot hold, and of which VMs.
func (p *problem) reason(core []int) (string, []string) {
	w := p.w
	if k := p.clash; k != nil && k.rule >= 0 {
		together := w.pick(core, func(r *Rule) bool { return r.Kind == Together })
		vms := []string{w.names[k.a], w.names[k.b]}
		sort.Strings(vms)
		return fmt.Sprintf("%s must be apart by %s and together by %s", someOf(vms), w.list[k.rule].Name, someOf(together)), vms
	}
	if k := p.clash; k != nil {
		vms := p.nodeNames(k.node)
		if len(vms) == 1 {
			return fmt.Sprintf("no host is left for %s", vms[0]), vms
		}
		return fmt.Sprintf("no host is left for %s, which must be together", someOf(vms)), vms
	}
	for _, c := range p.split() {
		c.work = DefaultWork
		c.merge()
		c.prepare()
		for _, s := range c.sets {
			if !c.matches(s) {
				return p.shortage(c, s)
			}
		}
	}
	vms := w.vmNames(core)
	return fmt.Sprintf("no choice of hosts for %s keeps them all: every one was tried", someOf(vms)), vms
}

// shortage describes VMs that have fewer hosts than they need.
func (p *problem) shortage(c *csp, s *allDiff) (string, []string) {
	vars, values := c.tooFew(s)
	var vms []string
	for _, v := range vars {
		vms = append(vms, p.nodeNames(c.node[v])...)
	}
	sort.Strings(vms)
	vms = slices.Compact(vms)
	what, names := "host", []string{}
	for _, v := range values {
		if s.domains {
			what, names = "failure domain", append(names, p.w.domains[v])
		} else {
			names = append(names, string(p.w.hosts[v]))
		}
	}
	group := fmt.Sprintf("%d VMs (%s)", len(vms), someOf(vms))
	if len(vms) > len(vars) {
		group = fmt.Sprintf("%d groups of VMs (%s)", len(vars), someOf(vms))
	}
	have := "no " + what
	if len(names) > 0 {
		have = fmt.Sprintf("%d %s (%s)", len(names), pluralOf(what, len(names)), someOf(names))
	}
	return fmt.Sprintf("%s must be apart and have only %s", group, have), vms
}

func (p *problem) nodeNames(n int) []string {
	var out []string
	for _, v := range p.members[n] {
		out = append(out, p.w.names[v])
	}
	sort.Strings(out)
	return out
}

func (w *world) pick(core []int, want func(*Rule) bool) []string {
	var out []string
	for _, r := range core {
		if want(&w.list[r]) {
			out = append(out, w.list[r].Name)
		}
	}
	return out
}

func pluralOf(what string, n int) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

// String is the conflict in one line for people.
func (c Conflict) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", someOf(c.Rules), c.Reason)
	if c.Disabled != "" {
		fmt.Fprintf(&b, "; %s, the newest, is disabled", c.Disabled)
	}
	return b.String()
}

// Lookup finds the conflict that disabled a rule.
func (r Report) Lookup(rule string) (Conflict, bool) {
	i := slices.IndexFunc(r.Conflicts, func(c Conflict) bool { return c.Disabled == rule })
	if i < 0 {
		return Conflict{}, false
	}
	return r.Conflicts[i], true
}
