package placement

import (
	"fmt"
	"slices"
	"sort"

	"hanok.dev/hanok/internal/model"
)

// DefaultWork bounds [State.Survives], in candidates looked at: a second or two.
const DefaultWork = 100_000_000

// Survives tells whether the VMs of failing hosts find places on the hosts that
// are left, for every combination of so many failures. VMs that run elsewhere
// stay where they are. Yes means that each combination has a witness, No that one
// has a proof. A host that takes no VM any more fails like others, for its VMs
// have to go somewhere.
func (s *State) Survives(f Failures) Survival {
	if f.Work <= 0 {
		f.Work = DefaultWork
	}
	c := &survey{s: s, work: f.Work}
	c.out.Verdict = Yes
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
}

// each checks all combinations of n of the parts, until one has a proof that it
// is not survived.
func (c *survey) each(parts [][]int, n int) {
	n = min(n, len(parts))
	if n <= 0 {
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
	undo, units := c.fail(lost)
	verdict, why := c.settle(units)
	switch verdict {
	case Yes:
		c.out.Checked++
	case No:
		c.refuse(lost, units, why)
	case Unknown:
		c.undecided(lost, why)
	}
	undo()
}

// fail takes the hosts away, and gives the VMs that are to be restarted.
func (c *survey) fail(lost []int) (undo func(), units []*unit) {
	s := c.s
	type place struct {
		v        *vm
		from, to int
	}
	var moved []place
	var wants []Want
	classes := make([][2]int8, len(lost))
	for i, h := range lost {
		x := s.hosts[h]
		classes[i], x.class = x.class, [2]int8{unusable, unusable}
		for _, v := range slices.Clone(x.on) {
			from, to := v.at[0].host, v.at[1].host
			if from == none || from != h && !slices.Contains(lost, from) {
				// It only moves here: its move fails, it runs on.
				moved = append(moved, place{v, from, to})
				s.vacate(v, 1)
				continue
			}
			moved = append(moved, place{v, from, to})
			s.leave(v)
			if !v.NoRestart {
				wants = append(wants, Want{VM: v.Name})
			}
		}
	}
	sort.Slice(wants, func(i, j int) bool { return wants[i].VM < wants[j].VM })
	return func() {
		for i, h := range lost {
			s.hosts[h].class = classes[i]
		}
		for _, p := range slices.Backward(moved) {
			s.leave(p.v)
			if p.from != none {
				s.occupy(p.v, 0, p.from)
			}
			if p.to != none {
				s.occupy(p.v, 1, p.to)
			}
		}
	}, s.units(wants)
}

// settle decides whether all units find places.
func (c *survey) settle(units []*unit) (Verdict, string) {
	s := c.s
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
