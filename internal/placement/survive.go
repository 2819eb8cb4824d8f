package placement

import (
	"cmp"
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/model"
)

// DefaultWork bounds [State.Survives], in candidates looked at: about a second.
const DefaultWork = 20_000_000

// Survives tells whether the VMs of failing hosts find places on the hosts that
// are left, for every combination of so many failures. VMs that run elsewhere
// stay where they are. Yes means that each combination has a witness, No that one
// has a proof. A host that takes no VM any more fails like others, for its VMs
// have to go somewhere.
func (s *State) Survives(f Failures) Survival {
	if f.Work <= 0 {
		f.Work = DefaultWork
	}
	c := s.newSurvey(f.Work)
	c.each(s.single(), f.Hosts)
	c.each(s.byDomain(), f.Domains)
	return c.out
}

// single are the hosts, each alone.
func (s *State) single() [][]int {
	out := make([][]int, len(s.hosts))
	for i := range s.hosts {
		out[i] = []int{i}
	}
	return out
}

// byDomain are the hosts by failure domain.
func (s *State) byDomain() [][]int {
	var out [][]int
	for i, x := range s.hosts {
		for x.domain >= len(out) {
			out = append(out, nil)
		}
		out[x.domain] = append(out[x.domain], i)
	}
	return out
}

// survey checks combination after combination.
type survey struct {
	s    *State
	work int
	out  Survival
	// What is the same for all combinations: the hosts, those with the most room
	// first, and the VMs as units of their own, in the order of packing.
	roomy []int
	rank  map[*vm]int
	units []*unit
}

func (s *State) newSurvey(work int) *survey {
	c := &survey{s: s, work: work, rank: make(map[*vm]int, len(s.vms))}
	c.out.Verdict = Yes
	for h := range s.hosts {
		c.roomy = append(c.roomy, h)
	}
	slices.SortStableFunc(c.roomy, func(a, b int) int { return cmp.Compare(s.hosts[b].room(0, 0), s.hosts[a].room(0, 0)) })
	var alone []*unit
	for _, v := range s.vms {
		if v.placed() > 0 && v.group == nil {
			alone = append(alone, &unit{vms: []*vm{v}, wants: []Want{{VM: v.Name}}, at: []int{0}, cpu: v.cpu, mem: v.mem, twin: none})
		}
	}
	// In one order: the first of a kind decides how hard its likes are to place.
	slices.SortFunc(alone, func(a, b *unit) int { return cmp.Compare(a.vms[0].Name, b.vms[0].Name) })
	c.units = s.byHardness(alone, false)
	for i, u := range c.units {
		c.rank[u.vms[0]] = i
	}
	return c
}

// place is where a VM was.
type place struct {
	v        *vm
	from, to int
}

// each checks all combinations of n of the parts, until one has a proof that it
// is not survived.
func (c *survey) each(parts [][]int, n int) {
	n = min(n, len(parts))
	if n <= 0 {
		return
	}
	if c.large(parts, n) && c.countsOut(parts, n) {
		c.out.Counted = true
		return
	}
	at := make([]int, n)
	for i := range at {
		at[i] = i
	}
	for c.out.Verdict != No {
		var lost []int
		for _, p := range at {
			lost = append(lost, parts[p]...)
		}
		c.check(lost)
		i := n - 1
		for i >= 0 && at[i] == len(parts)-n+i {
			i--
		}
		if i < 0 {
			return
		}
		at[i]++
		for j := i + 1; j < n; j++ {
			at[j] = at[j-1] + 1
		}
	}
}

// check looks for a witness, or a proof of none, for one combination.
func (c *survey) check(lost []int) {
	if c.work <= 0 {
		c.undecided(lost, "the search ended at its bound")
		return
	}
	classes, moved := c.fail(lost)
	c.work -= movedWork * len(moved)
	units := c.lostUnits(moved)
	verdict, why := c.settle(units)
	switch verdict {
	case Yes:
		c.out.Checked++
	case No:
		c.refuse(lost, units, why)
	case Unknown:
		c.undecided(lost, why)
	}
	c.repair(lost, classes, moved)
}

// fail takes the hosts away. It returns what repair needs: the hosts' classes,
// and where VMs were; those that only moved there run on.
func (c *survey) fail(lost []int) (classes [][2]int8, moved []place) {
	s := c.s
	classes = make([][2]int8, len(lost))
	for i, h := range lost {
		x := s.hosts[h]
		classes[i], x.class = x.class, [2]int8{unusable, unusable}
		for len(x.on) > 0 {
			v := x.on[len(x.on)-1]
			from, to := v.at[0].host, v.at[1].host
			moved = append(moved, place{v, from, to})
			if slices.Contains(lost, from) {
				s.leave(v)
			} else {
				s.vacate(v, 1)
			}
		}
	}
	return classes, moved
}

func (c *survey) repair(lost []int, classes [][2]int8, moved []place) {
	for i, h := range lost {
		c.s.hosts[h].class = classes[i]
	}
	for _, p := range slices.Backward(moved) {
		c.s.leave(p.v)
		c.s.occupy(p.v, 0, p.from)
		if p.to != none {
			c.s.occupy(p.v, 1, p.to)
		}
	}
}

// lostUnits are the VMs to be restarted, in the order of packing.
func (c *survey) lostUnits(moved []place) []*unit {
	var ranks []int
	var wants []Want
	for _, p := range moved {
		switch {
		case p.v.NoRestart || p.v.at[0].host != none:
		case p.v.group != nil:
			wants = append(wants, Want{VM: p.v.Name})
		default:
			ranks = append(ranks, c.rank[p.v])
		}
	}
	slices.Sort(ranks)
	slices.SortFunc(wants, func(a, b Want) int { return cmp.Compare(a.VM, b.VM) })
	units := c.s.units(wants) // groups first: they are the largest
	for _, r := range ranks {
		units = append(units, c.units[r])
	}
	return units
}

// settle decides whether all units find places.
func (c *survey) settle(units []*unit) (Verdict, string) {
	s := c.s
	if s.packs(units, c.first) {
		return Yes, ""
	}
	order := s.byHardness(units, false)
	for _, choose := range []func(*unit) int{
		func(u *unit) int { return s.tightest(u, &c.work) },
		func(u *unit) int { c.work -= len(s.hosts); return s.bestFor(u) },
	} {
		if s.packs(order, choose) {
			return Yes, ""
		}
	}
	if why := s.impossible(order); why != "" {
		return No, why
	}
	budget := min(c.work, planWork*4)
	x := newSearch(s, order, budget)
	found := x.run()
	c.work -= budget - x.work
	switch {
	case found:
		return Yes, ""
	case x.work > 0:
		return No, "no combination of places fits: all were tried"
	}
	return Unknown, "the search ended at its bound"
}

// first is the first open host of those with the most room at the start: quick,
// and mostly enough.
func (c *survey) first(u *unit) int {
	for _, h := range c.roomy {
		c.work--
		if c.s.openTo(u, h) {
			return h
		}
	}
	return none
}

// packs tells whether a greedy choice places all.
func (s *State) packs(units []*unit, choose func(*unit) int) bool {
	done := make([]int, 0, len(units))
	for _, u := range units {
		h := choose(u)
		if h == none {
			break
		}
		s.put(u, h)
		done = append(done, h)
	}
	for i, h := range slices.Backward(done) {
		s.take(units[i], h)
	}
	return len(done) == len(units)
}

func (c *survey) refuse(lost []int, units []*unit, why string) {
	c.out.Verdict, c.out.Lost, c.out.Reason = No, c.names(lost), why
	for _, u := range units {
		if c.s.openHosts(u) > 0 {
			continue
		}
		c.out.VM = u.vms[0].Name
		c.out.Refusals = slices.DeleteFunc(c.s.refusalsOf(u, 0), func(r Refusal) bool { return slices.Contains(c.out.Lost, r.Host) })
		c.out.Reason = fmt.Sprintf("%s finds no place", c.out.VM)
		return
	}
}

func (c *survey) undecided(lost []int, why string) {
	if c.out.Verdict == Yes {
		c.out.Verdict, c.out.Lost, c.out.Reason = Unknown, c.names(lost), why
	}
}

func (c *survey) names(lost []int) []model.HostID {
	out := make([]model.HostID, 0, len(lost))
	for _, h := range lost {
		out = append(out, c.s.hosts[h].Name)
	}
	slices.Sort(out)
	return out
}
