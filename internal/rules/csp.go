package rules

import (
	"slices"
	"strings"

	"hanok.dev/hanok/internal/bitset"
)

// csp asks for a host for each variable so that within each set of variables all
// differ. The search is exhaustive: it ends with a solution, a proof that there is
// none, or at its bound.
//
// What makes it quick on rules that people write: a set is refuted as a whole as
// soon as no matching of its variables to hosts exists (Hall's theorem), so that
// ten VMs apart on nine hosts cost no search; pairs that add up to a larger set
// are made one; and of hosts that no rule tells apart only one is tried.
type csp struct {
	world *world
	dom   []bitset.Set
	node  []int // of the problem, for each variable
	sets  []*allDiff
	of    [][]*allDiff // sets of each variable
	// class of each host: equal if no domain tells them apart. used counts the
	// variables fixed to a host.
	class []int
	used  []int
	fixed []bool
	work  int
}

// allDiff is variables that must differ in host or in failure domain, with a
// matching of them to different values. The matching outlives backtracking: what
// is possible after a step was possible before it.
type allDiff struct {
	vars    []int
	domains bool
	weight  int // how often it failed
	match   []int
	owner   []int // value → position in vars, or -1
}

func (c *csp) add(vars []int, domains bool) {
	c.sets = append(c.sets, &allDiff{vars: vars, domains: domains, weight: 1})
}

func (c *csp) solve(work int) answer {
	c.work = work
	c.merge()
	c.prepare()
	for _, s := range c.sets {
		if !c.matches(s) {
			return no
		}
	}
	if len(c.sets) == 1 {
		return yes // the matching is the solution
	}
	var trail []change
	for v := range c.dom {
		if !c.fixed[v] && c.dom[v].Count() == 1 && !c.fix(v, c.dom[v].First(), &trail) {
			return no
		}
	}
	switch {
	case c.search():
		return yes
	case c.work > 0:
		return no
	}
	return unknown
}

// prepare finds what the search needs.
func (c *csp) prepare() {
	hosts := len(c.world.hosts)
	c.of = make([][]*allDiff, len(c.dom))
	byDomain := false
	for _, s := range c.sets {
		byDomain = byDomain || s.domains
		values := hosts
		if s.domains {
			values = len(c.world.domains)
		}
		s.match, s.owner = make([]int, len(s.vars)), make([]int, values)
		for i := range s.match {
			s.match[i] = -1
		}
		for i := range s.owner {
			s.owner[i] = -1
		}
		for _, v := range s.vars {
			c.of[v] = append(c.of[v], s)
		}
	}
	c.used, c.fixed = make([]int, hosts), make([]bool, len(c.dom))
	c.class = c.world.classes(c.dom, byDomain)
}

// classes numbers hosts so that those that no set tells apart have one number;
// with domains, only inside a failure domain.
func (w *world) classes(sets []bitset.Set, domains bool) []int {
	keys := make([]strings.Builder, len(w.hosts))
	seen := map[string]bool{}
	for i, s := range sets {
		k := setKey(s)
		if seen[k] {
			continue
		}
		seen[k] = true
		for h := range s.All() {
			keys[h].WriteByte(byte(i))
			keys[h].WriteByte(byte(i >> 8))
			keys[h].WriteByte(byte(i >> 16))
		}
	}
	number := map[string]int{}
	out := make([]int, len(w.hosts))
	for h := range w.hosts {
		k := keys[h].String()
		if domains {
			k += "/" + w.domains[w.domain[h]]
		}
		n, ok := number[k]
		if !ok {
			n = len(number)
			number[k] = n
		}
		out[h] = n
	}
	return out
}

func setKey(s bitset.Set) string {
	var b strings.Builder
	for _, w := range s {
		for i := range 8 {
			b.WriteByte(byte(w >> (8 * i)))
		}
	}
	return b.String()
}

// change remembers the domain of a variable for backtracking.
type change struct {
	v    int
	dom  bitset.Set
	host int // that it was fixed to, or -1
}

func (c *csp) undo(trail []change) {
	for _, t := range slices.Backward(trail) {
		c.dom[t.v] = t.dom
		if t.host >= 0 {
			c.fixed[t.v] = false
			c.used[t.host]--
		}
	}
}

// fix gives a variable its host and follows what that forces. False is a
// contradiction; the trail has all that changed.
func (c *csp) fix(v, host int, trail *[]change) bool {
	queue := []int{v}
	*trail = append(*trail, change{v, c.dom[v], -1})
	only := bitset.New(len(c.world.hosts))
	only.Add(host)
	c.dom[v] = only
	touched := map[*allDiff]bool{}
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if c.fixed[v] {
			continue
		}
		h := c.dom[v].First()
		*trail = append(*trail, change{v, c.dom[v], h})
		c.fixed[v] = true
		c.used[h]++
		for _, s := range c.of[v] {
			touched[s] = true
			if !c.exclude(s, v, h, &queue, trail) {
				s.weight++
				return false
			}
		}
	}
	for _, s := range c.sets {
		if touched[s] && !c.matches(s) {
			s.weight++
			return false
		}
	}
	return true
}

// exclude takes the value of v from the others of the set.
func (c *csp) exclude(s *allDiff, v, host int, queue *[]int, trail *[]change) bool {
	for _, o := range s.vars {
		if o == v {
			continue
		}
		if !s.domains && !c.dom[o].Has(host) {
			continue
		}
		c.work--
		d := c.dom[o].Clone()
		if s.domains {
			for h := range c.dom[o].All() {
				if c.world.domain[h] == c.world.domain[host] {
					d.Remove(h)
				}
			}
		} else {
			d.Remove(host)
		}
		if d.Empty() {
			return false
		}
		*trail = append(*trail, change{o, c.dom[o], -1})
		c.dom[o] = d
		if !c.fixed[o] && d.Count() == 1 {
			*queue = append(*queue, o)
		}
	}
	return true
}

// search gives hosts to the variables that have none.
func (c *csp) search() bool {
	v := c.next()
	if v < 0 {
		return true
	}
	tried := map[int]bool{}
	for h := range c.dom[v].All() {
		if c.work <= 0 {
			return false
		}
		c.work--
		if c.used[h] == 0 {
			if tried[c.class[h]] {
				continue
			}
			tried[c.class[h]] = true
		}
		var trail []change
		if c.fix(v, h, &trail) && c.search() {
			return true
		}
		c.undo(trail)
	}
	return false
}

// next is the variable with the fewest hosts for the trouble that its sets made,
// or -1.
func (c *csp) next() int {
	best, bestCount, bestWeight := -1, 0, 1
	for v := range c.dom {
		if c.fixed[v] {
			continue
		}
		n, w := c.dom[v].Count(), 0
		for _, s := range c.of[v] {
			w += s.weight
		}
		if best < 0 || n*bestWeight < bestCount*w {
			best, bestCount, bestWeight = v, n, w
		}
	}
	return best
}
