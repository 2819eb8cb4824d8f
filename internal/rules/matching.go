package rules

import (
	"slices"

	"hanok.dev/hanok/internal/bitset"
)

// values are what the variable at a position of the set may take: hosts, or
// failure domains.
func (c *csp) values(s *allDiff, pos int) bitset.Set {
	d := c.dom[s.vars[pos]]
	if !s.domains {
		return d
	}
	out := bitset.New(len(c.world.domains))
	for h := range d.All() {
		out.Add(c.world.domain[h])
	}
	return out
}

// matches tells whether the variables of a set can have different values, and
// repairs its matching.
func (c *csp) matches(s *allDiff) bool {
	var open []int
	for pos, val := range s.match {
		if val >= 0 && !c.values(s, pos).Has(val) {
			s.owner[val], s.match[pos] = -1, -1
		}
	}
	for pos, val := range s.match {
		if val < 0 {
			open = append(open, pos)
		}
	}
	for _, pos := range open {
		if !c.augment(s, pos, bitset.New(len(s.owner))) {
			return false
		}
	}
	return true
}

// augment finds a value for a position, moving others if need be. Values already
// looked at on the way are in seen.
func (c *csp) augment(s *allDiff, pos int, seen bitset.Set) bool {
	values := c.values(s, pos)
	for val := range values.All() {
		if s.owner[val] < 0 {
			s.owner[val], s.match[pos] = pos, val
			return true
		}
	}
	for val := range values.All() {
		if seen.Has(val) {
			continue
		}
		seen.Add(val)
		c.work--
		if c.augment(s, s.owner[val], seen) {
			s.owner[val], s.match[pos] = pos, val
			return true
		}
	}
	return false
}

// tooFew finds, in a set without a matching, variables that have fewer values
// than they are.
func (c *csp) tooFew(s *allDiff) (vars, values []int) {
	pos := slices.Index(s.match, -1)
	seen := bitset.New(len(s.owner))
	queue := []int{pos}
	for len(queue) > 0 {
		pos := queue[0]
		queue = queue[1:]
		vars = append(vars, s.vars[pos])
		for val := range c.values(s, pos).All() {
			if seen.Has(val) {
				continue
			}
			seen.Add(val)
			values = append(values, val)
			if o := s.owner[val]; o >= 0 {
				queue = append(queue, o)
			}
		}
	}
	slices.Sort(vars)
	slices.Sort(values)
	return vars, values
}

// mergeLimit is the most variables for which sets are merged.
const mergeLimit = 2048

// merge extends each set of different hosts by variables that other sets keep
// apart from all of it, and drops sets inside others: {a,b}, {b,c}, {a,c} become
// {a,b,c}.
func (c *csp) merge() {
	if len(c.dom) > mergeLimit || len(c.sets) == 1 {
		return
	}
	next := make([]bitset.Set, len(c.dom))
	for v := range next {
		next[v] = bitset.New(len(c.dom))
	}
	for _, s := range c.sets {
		for _, a := range s.vars {
			for _, b := range s.vars {
				if a != b {
					next[a].Add(b)
				}
			}
		}
	}
	var cliques []bitset.Set
	var kept []*allDiff
	slices.SortStableFunc(c.sets, func(a, b *allDiff) int { return len(b.vars) - len(a.vars) })
	for _, s := range c.sets {
		if s.domains {
			kept = append(kept, s)
			continue
		}
		set, common := bitset.New(len(c.dom)), bitset.Full(len(c.dom))
		for _, v := range s.vars {
			set.Add(v)
			common.Intersect(next[v])
		}
		if slices.ContainsFunc(cliques, func(o bitset.Set) bool { return set.Within(o) }) {
			continue
		}
		for v := common.First(); v >= 0; v = common.First() {
			set.Add(v)
			common.Intersect(next[v])
		}
		cliques = append(cliques, set)
		kept = append(kept, &allDiff{vars: slices.Collect(set.All()), weight: 1})
	}
	c.sets = kept
}
