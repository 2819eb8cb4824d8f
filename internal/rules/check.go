package rules

import (
	"slices"
	"sort"

	"hanok.dev/hanok/internal/model"
)

// Host is a host as rules know it.
type Host struct {
	Name          model.HostID
	FailureDomain string
}

// VM is a VM as rules know it. Hosts, if not nil, are those that can run it at
// all: that reach its datastores and networks.
type VM struct {
	Name  string
	Hosts []model.HostID
}

// Universe is what the rules are about.
type Universe struct {
	Hosts []Host
	VMs   []VM
}

// DefaultWork bounds the search for one part of the rules, in values tried. No
// rules that people write come near it; what exceeds it is undecided, and said.
const DefaultWork = 5_000_000

// Options of a check.
type Options struct {
	// HostFailures also looks whether the rules can hold after the loss of any
	// so many hosts.
	HostFailures int
	// Work bounds the search; 0 is [DefaultWork].
	Work int
}

// Conflict is an irreducible set of rules that cannot all hold.
type Conflict struct {
	// Rules by name, oldest first: without any one of them the others can hold.
	Rules []string `json:"rules"`
	// Disabled is the newest of them, which is not in force; "" for one that
	// appears only when hosts are lost.
	Disabled string `json:"disabled,omitempty"`
	// Lost are the hosts without which the rules cannot hold.
	Lost []model.HostID `json:"lost,omitempty"`
	// VMs that the contradiction is about.
	VMs []string `json:"vms"`
	// Reason says it in words.
	Reason string `json:"reason"`
}

// Note is something about one rule or VM.
type Note struct {
	Rule   string   `json:"rule,omitempty"`
	VMs    []string `json:"vms,omitempty"`
	Reason string   `json:"reason"`
}

// Report is the outcome of a check.
type Report struct {
	// Active are the rules in force, oldest first: given to placement.
	Active []Rule `json:"-"`
	// Conflicts are contradictions among hard rules; each disables one.
	Conflicts []Conflict `json:"conflicts"`
	// Weak are the contradictions that the loss of HostFailures hosts brings.
	// Nothing is disabled for them.
	Weak []Conflict `json:"weak"`
	// Vain are rules that prefer what hard rules make impossible.
	Vain []Note `json:"vain"`
	// Homeless are VMs of rules that no host can run, whatever the rules say.
	Homeless []Note `json:"homeless"`
	// Undecided are parts of the rules that the search did not settle within
	// its bound. They are in force.
	Undecided []Note `json:"undecided"`
}

// Check finds out whether the hard rules of a list, oldest first, can all hold.
func Check(list []Rule, u Universe, o Options) Report {
	if o.Work <= 0 {
		o.Work = DefaultWork
	}
	w := newWorld(list, u)
	r := Report{Homeless: w.homeless}
	disabled := map[int]bool{}
	for _, part := range w.parts() {
		part = w.settle(part, o, &r, disabled)
		if o.HostFailures > 0 && len(part) > 0 {
			w.weaken(part, o, &r)
		}
	}
	for i := range list {
		if !disabled[i] {
			r.Active = append(r.Active, list[i])
		}
	}
	w.findVain(&r, disabled)
	order := func(c []Conflict) {
		sort.SliceStable(c, func(i, j int) bool { return w.age(c[i]) < w.age(c[j]) })
	}
	order(r.Conflicts)
	order(r.Weak)
	return r
}

// age is the index of the newest rule of a conflict.
func (w *world) age(c Conflict) int { return w.byName[c.Rules[len(c.Rules)-1]] }

// settle disables rules of the part until the rest can hold, and returns that.
func (w *world) settle(part []int, o Options, r *Report, disabled map[int]bool) []int {
	for {
		switch w.solve(part, nil, o.Work) {
		case yes:
			return part
		case unknown:
			r.Undecided = append(r.Undecided, Note{Rule: w.list[part[len(part)-1]].Name, VMs: w.vmNames(part),
				Reason: "the search for a placement that obeys all rules about these VMs ended at its bound"})
			return part
		}
		core := w.shrink(part, nil, o.Work)
		newest := core[len(core)-1]
		c := w.conflict(core, nil)
		c.Disabled = w.list[newest].Name
		r.Conflicts = append(r.Conflicts, c)
		disabled[newest] = true
		part = slices.DeleteFunc(slices.Clone(part), func(i int) bool { return i == newest })
	}
}

// shrink finds an irreducible contradiction in a part that cannot hold without
// the lost hosts: the oldest rule that contradicts its elders, and of those as
// few as possible.
func (w *world) shrink(part []int, lost []int, work int) []int {
	n := sort.Search(len(part), func(n int) bool { return w.solve(part[:n+1], lost, work) == no })
	n = min(n, len(part)-1)
	core := slices.Clone(part[:n+1])
	// Leave out chunks, then smaller chunks, then single rules, as long as the
	// rest still contradicts itself. The newest has to stay: without it its
	// elders can hold.
	for size := max(n/2, 1); ; size /= 2 {
		for at := len(core) - 1; at > 0; {
			from := max(at-size, 0)
			rest := slices.Concat(core[:from], core[at:])
			if w.solve(rest, lost, work) == no {
				core = rest
			}
			at = from
		}
		if size <= 1 {
			return core
		}
	}
}

// findVain notes the rules that prefer hosts which hard rules exclude for all
// their VMs.
func (w *world) findVain(r *Report, disabled map[int]bool) {
	var hard []int
	for i := range w.list {
		if w.list[i].Hard && !disabled[i] {
			hard = append(hard, i)
		}
	}
	p := w.build(hard, nil)
	for i := range w.list {
		x := &w.list[i]
		if x.Hard || x.Kind != OnHosts && x.Kind != OffHosts {
			continue
		}
		var never []string
		for _, v := range w.vms[i] {
			d := p.domainOf(v)
			d.Intersect(w.allowed(i))
			if d.Empty() && w.base[v] != nil {
				never = append(never, w.names[v])
			}
		}
		if len(never) > 0 {
			r.Vain = append(r.Vain, Note{Rule: x.Name, VMs: never, Reason: "hard rules, and where its disks are, leave none of its hosts to " + someOf(never)})
		}
	}
}
