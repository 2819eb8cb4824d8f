package placement

import "slices"

// planWork bounds the search of a plan, in candidates looked at: some
// milliseconds. Beyond it the best plan so far is the answer.
const planWork = 400_000

// PlaceAll says where many VMs should run at once. The order of the wants is the
// order of restart; VMs that a hard rule keeps together get one host. As many as
// possible are placed, those of lower Class first: if preferences leave some
// without a place that a tighter packing has room for, the packing wins.
func (s *State) PlaceAll(wants []Want) Plan {
	units := s.units(wants)
	p := &planner{s: s, units: units, work: planWork}
	p.plan()
	return p.answer(wants)
}

// planner looks for the best plan. at[i] is the host of units[i], or none.
type planner struct {
	s      *State
	units  []*unit
	at     []int
	placed []int // by class rank
	rank   map[int]int
	proven bool
	work   int
}

func (p *planner) plan() {
	p.rankClasses()
	p.keep(p.greedy(p.units, func(u *unit) int { return p.s.bestFor(u) }))
	open := p.placeable()
	if p.done(len(open)) {
		return
	}
	byClass := p.s.byHardness(open, true)
	p.keep(p.greedy(byClass, func(u *unit) int { return p.s.tightest(u, &p.work) }))
	if !p.done(len(open)) {
		p.keep(p.greedy(byClass, func(u *unit) int { return p.s.bestFor(u) }))
	}
	if p.done(len(open)) {
		return
	}
	all := p.s.byHardness(open, false)
	if p.s.impossible(all) == "" {
		x := newSearch(p.s, all, p.work/2)
		if x.run() {
			p.keep(x.result())
			p.proven = true
			return
		}
	}
	x := newSearch(p.s, byClass, p.work)
	x.optional(p.rank, p.placed)
	p.proven = x.improve()
	p.keep(x.result())
}

// rankClasses numbers the classes that occur.
func (p *planner) rankClasses() {
	var classes []int
	for _, u := range p.units {
		classes = append(classes, u.class)
	}
	slices.Sort(classes)
	classes = slices.Compact(classes)
	p.rank = make(map[int]int, len(classes))
	for i, c := range classes {
		p.rank[c] = i
	}
	p.placed = make([]int, len(classes))
	p.at = make([]int, len(p.units))
	for i := range p.at {
		p.at[i] = none
	}
}

// greedy places the units in order where choose says, and takes them off again.
func (p *planner) greedy(units []*unit, choose func(*unit) int) map[*unit]int {
	at := make(map[*unit]int, len(units))
	for _, u := range units {
		if h := choose(u); h != none {
			p.s.put(u, h)
			at[u] = h
		}
	}
	for _, u := range slices.Backward(units) {
		if h, ok := at[u]; ok {
			p.s.take(u, h)
		}
	}
	return at
}

// keep takes a plan over if it is better than that so far.
func (p *planner) keep(at map[*unit]int) {
	placed := make([]int, len(p.placed))
	for u := range at {
		placed[p.rank[u.class]] += len(u.vms)
	}
	if slices.Compare(placed, p.placed) <= 0 {
		return
	}
	p.placed = placed
	for i, u := range p.units {
		p.at[i] = none
		if h, ok := at[u]; ok {
			p.at[i] = h
		}
	}
}

// placeable are the units that some host would take if it had only them: what
// others get never opens a host.
func (p *planner) placeable() []*unit {
	var out []*unit
	for _, u := range p.units {
		if slices.ContainsFunc(p.s.hosts, func(x *host) bool { return p.s.openTo(u, x.index) }) {
			out = append(out, u)
		}
	}
	return out
}

// done tells whether that many units have a place.
func (p *planner) done(units int) bool {
	n := 0
	for _, h := range p.at {
		if h != none {
			n++
		}
	}
	p.proven = n == units
	return p.proven
}

// answer makes the Plan; reasons are those that hold once the others have their
// places.
func (p *planner) answer(wants []Want) Plan {
	out := Plan{Choices: make([]Choice, len(wants)), Proven: p.proven}
	for i, w := range wants {
		out.Choices[i].VM = w.VM
		if p.s.vms[w.VM] == nil {
			out.Choices[i] = stranger(w.VM)
		}
	}
	for i, u := range p.units {
		if h := p.at[i]; h != none {
			p.s.put(u, h)
		}
	}
	for i, u := range p.units {
		for k, v := range u.vms {
			c := &out.Choices[u.at[k]]
			if h := p.at[i]; h != none {
				c.Host, c.Broken = p.s.hosts[h].Name, p.s.broken(v, h)
				out.Placed++
				continue
			}
			c.Refusals = p.s.refusalsOf(u, k)
		}
	}
	for i, u := range slices.Backward(p.units) {
		if h := p.at[i]; h != none {
			p.s.take(u, h)
		}
	}
	return out
}

// refusalsOf has a reason for each host why the k-th VM of a unit, with the
// others of it, gets no place.
func (s *State) refusalsOf(u *unit, k int) []Refusal {
	if len(u.vms) == 1 {
		w, v := u.wants[0], u.vms[0]
		list := s.refusals(v, w)
		return slices.DeleteFunc(list, func(r Refusal) bool { return r.Busy })
	}
	out := make([]Refusal, 0, len(s.hosts))
	for h, x := range s.hosts {
		if why := s.refuseUnit(u, h); why != "" {
			out = append(out, Refusal{Host: x.Name, Reason: why})
		}
	}
	return out
}
