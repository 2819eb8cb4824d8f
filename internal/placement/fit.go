package placement

import (
	"fmt"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// fits tells whether v, as things are, can get a place on host h for a purpose.
// It costs O(rules that touch v). It says yes exactly where refuse has no reason.
func (s *State) fits(v *vm, h int, p Purpose) bool {
	x := s.hosts[h]
	if x.class[p] == unusable || !v.mask.fits.Has(h) {
		return false
	}
	if v.mem > 0 && v.mem > x.freeMem || v.cpu > 0 && v.cpu > x.freeCPU {
		return false
	}
	if x.MaxVMs > 0 && len(x.on) >= x.MaxVMs || v.counts(h) > 0 {
		return false
	}
	for _, a := range v.aparts {
		if a.Hard && a.conflict(v, x, s) > 0 {
			return false
		}
	}
	return v.group == nil || v.group.lets(v, h)
}

// conflict counts the other VMs of the rule that v would meet on host x.
func (a *spread) conflict(v *vm, x *host, s *State) int32 {
	if !a.Domains {
		return a.count[x.index] - v.counts(x.index)
	}
	return a.domains[x.domain] - v.inDomain(x.domain, s)
}

// inDomain counts the places of v in a failure domain.
func (v *vm) inDomain(d int, s *State) int32 {
	var n int32
	for _, sp := range v.at {
		if sp.host != none && s.hosts[sp.host].domain == d {
			n++
		}
	}
	return n
}

// lets tells whether the group's other VMs let v run on h.
func (g *group) lets(v *vm, h int) bool {
	return g.total-v.placed() == 0 || g.count[h]-v.counts(h) > 0
}

// refuse is why v cannot get a place on h; "" if it can.
func (s *State) refuse(v *vm, h int, p Purpose) string {
	x := s.hosts[h]
	switch {
	case x.Unfit != "":
		return x.Unfit
	case x.Maintenance:
		return "it is in maintenance"
	case x.class[p] == unusable:
		return "it is kept free for failover"
	case v.counts(h) > 0:
		return "the VM is there already"
	}
	if why := v.mask.why(x); why != "" {
		return why
	}
	switch {
	case v.mem > 0 && v.mem > x.freeMem:
		return fmt.Sprintf("%d MiB free of %d MiB, %d MiB needed", max(x.freeMem, 0), x.Memory, v.mem)
	case v.cpu > 0 && v.cpu > x.freeCPU:
		return fmt.Sprintf("%d MHz free of %d MHz, %d MHz needed", max(x.freeCPU, 0), x.CPU, v.cpu)
	case x.MaxVMs > 0 && len(x.on) >= x.MaxVMs:
		return fmt.Sprintf("it runs %d VMs, the limit is %d", len(x.on), x.MaxVMs)
	}
	for _, a := range v.aparts {
		if a.Hard && a.conflict(v, x, s) > 0 {
			return fmt.Sprintf("rule %s keeps it apart from %s", a.Name, s.whoElse(a, v, x))
		}
	}
	if v.group != nil && !v.group.lets(v, h) {
		return fmt.Sprintf("rule %s keeps it together with VMs on %s", v.group.rule, s.whereElse(v.group, v))
	}
	return ""
}

// whoElse names a VM of the rule that v would meet on x, the first by name.
func (s *State) whoElse(a *spread, v *vm, x *host) string {
	best := ""
	for _, name := range a.VMs {
		o := s.vms[name]
		if o == nil || o == v || best != "" && name >= best {
			continue
		}
		if a.Domains && o.inDomain(x.domain, s) > 0 || !a.Domains && o.counts(x.index) > 0 {
			best = name
		}
	}
	if a.Domains {
		best += " in the same failure domain"
	}
	return best
}

// whereElse names the hosts that other VMs of the group are on.
func (s *State) whereElse(g *group, v *vm) string {
	var names []string
	for h, n := range g.count {
		if n-v.counts(h) > 0 {
			names = append(names, string(s.hosts[h].Name))
		}
	}
	return strings.Join(names, " and ")
}

// score orders hosts for one VM; less is better.
type score struct {
	failed int   // earlier failures there
	class  int8  // dedicated failover hosts, others, hosts in quarantine
	rank   int32 // by rules that prefer hosts
	broken int32 // VMs that a rule that is not hard would miss or meet
	near   int32 // VMs of the same apart-rules in the same failure domain
	room   int64 // share of the host left free, negated
}

func (a score) less(b score) bool {
	switch {
	case a.failed != b.failed:
		return a.failed < b.failed
	case a.class != b.class:
		return a.class < b.class
	case a.rank != b.rank:
		return a.rank < b.rank
	case a.broken != b.broken:
		return a.broken < b.broken
	case a.near != b.near:
		return a.near < b.near
	}
	return a.room < b.room
}

// score rates host h, where v fits, but for earlier failures.
func (s *State) score(v *vm, h int, p Purpose) score {
	x := s.hosts[h]
	sc := score{class: x.class[p], room: -x.room(v.cpu, v.mem)}
	if v.mask.rank != nil {
		sc.rank = v.mask.rank[h]
	}
	for _, a := range v.aparts {
		if !a.Hard {
			sc.broken += a.conflict(v, x, s)
		}
		if !a.Domains {
			sc.near += a.domains[x.domain] - v.inDomain(x.domain, s)
		}
	}
	for _, a := range v.softs {
		sc.broken += a.total - v.placed() - (a.count[h] - v.counts(h))
	}
	return sc
}

// room is the share of the host's capacity that is free after taking on a load,
// of the scarcer of processor and memory, in 2⁻²⁰. A capacity that is not known
// does not count.
func (x *host) room(cpu, mem int64) int64 {
	least := int64(1 << 20)
	if x.perMem > 0 {
		least = (x.freeMem - mem) * x.perMem >> 20
	}
	if x.perCPU > 0 {
		least = min(least, (x.freeCPU-cpu)*x.perCPU>>20)
	}
	return least
}

// broken names the rules that are not hard and that v breaks on h.
func (s *State) broken(v *vm, h int) []string {
	var out []string
	x := s.hosts[h]
	for _, l := range v.mask.limits {
		if !l.Hard && !l.allows(h) {
			out = append(out, l.Name)
		}
	}
	for _, a := range v.aparts {
		if !a.Hard && a.conflict(v, x, s) > 0 {
			out = append(out, a.Name)
		}
	}
	for _, a := range v.softs {
		if a.total-v.placed() > a.count[h]-v.counts(h) {
			out = append(out, a.Name)
		}
	}
	return out
}

// refusals has a reason for each host that does not take w.
func (s *State) refusals(v *vm, w Want) []Refusal {
	var out []Refusal
	for h, x := range s.hosts {
		r := Refusal{Host: x.Name, Reason: s.refuse(v, h, w.Purpose)}
		switch {
		case r.Reason != "":
		case w.Only != "" && w.Only != x.Name:
			r.Reason = fmt.Sprintf("%s holds the lock", w.Only)
		case x.full():
			r.Reason, r.Busy = fmt.Sprintf("%d starts under way, the limit is %d", x.Starting, x.StartLimit), true
		default:
			continue
		}
		out = append(out, r)
	}
	return out
}

// full: the host has as many starts under way as it may.
func (x *host) full() bool { return x.StartLimit > 0 && x.Starting >= x.StartLimit }

// stranger is the answer about a VM that is not known.
func stranger(name string) Choice {
	return Choice{VM: name, Refusals: []Refusal{{Reason: fmt.Sprintf("no VM %q is known", name)}}}
}

// WhyNot tells, for each host that cannot take the VM, why; hosts that can are
// not listed.
func (s *State) WhyNot(w Want) []Refusal {
	v := s.vms[w.VM]
	if v == nil {
		return stranger(w.VM).Refusals
	}
	return s.refusals(v, w)
}

// Place says where one VM should run: of the hosts that can take it the best by
// earlier failures, the host's class, rules that prefer, and room, ties by name.
func (s *State) Place(w Want) Choice {
	v := s.vms[w.VM]
	if v == nil {
		return stranger(w.VM)
	}
	best := s.best(v, w, true)
	if best == none {
		c := Choice{VM: w.VM, Refusals: s.refusals(v, w)}
		for _, r := range c.Refusals {
			c.Busy = c.Busy || r.Busy
		}
		return c
	}
	return Choice{VM: w.VM, Host: s.hosts[best].Name, Broken: s.broken(v, best)}
}

// best is the best host for v, or none. With limits, hosts that have as many
// starts under way as they may are left out.
func (s *State) best(v *vm, w Want, limits bool) int {
	if w.Prefer != "" && w.Failed[w.Prefer] == 0 {
		if h, ok := s.hostAt[w.Prefer]; ok && s.open(v, h, w, limits) {
			return h
		}
	}
	best, top := none, score{}
	for h := range s.hosts {
		if !s.open(v, h, w, limits) {
			continue
		}
		sc := s.score(v, h, w.Purpose)
		if w.Failed != nil {
			sc.failed = w.Failed[s.hosts[h].Name]
		}
		if best == none || sc.less(top) {
			best, top = h, sc
		}
	}
	return best
}

func (s *State) open(v *vm, h int, w Want, limits bool) bool {
	x := s.hosts[h]
	return s.fits(v, h, w.Purpose) && (w.Only == "" || w.Only == x.Name) && !(limits && x.full())
}

// DescribeRefusals is the refusals in one line, hosts with the same reason taken
// together.
func DescribeRefusals(list []Refusal) string {
	var reasons []string
	hosts := map[string][]string{}
	for _, r := range list {
		if hosts[r.Reason] == nil {
			reasons = append(reasons, r.Reason)
		}
		hosts[r.Reason] = append(hosts[r.Reason], string(cmpHost(r.Host)))
	}
	parts := make([]string, 0, len(reasons))
	for _, why := range reasons {
		parts = append(parts, strings.Join(hosts[why], ", ")+": "+why)
	}
	return strings.Join(parts, "; ")
}

func cmpHost(h model.HostID) model.HostID {
	if h == "" {
		return "any host"
	}
	return h
}

// Able returns a function that tells which hosts have all that a VM requires and
// are allowed to it by hard rules. Room, other VMs, and whether a host takes VMs
// at the moment are left aside.
func (s *State) Able() func(vm string) []model.HostID {
	known := map[*mask][]model.HostID{}
	return func(name string) []model.HostID {
		v := s.vms[name]
		if v == nil {
			return nil
		}
		list, ok := known[v.mask]
		if !ok {
			list = []model.HostID{}
			for h := range v.mask.fits.All() {
				list = append(list, s.hosts[h].Name)
			}
			known[v.mask] = list
		}
		return list
	}
}
