package placement

import (
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/model"
)

// search looks for places for all its units, or for as many as possible,
// exhaustively, within a bound of work.
type search struct {
	s     *State
	units []*unit
	at    []int
	work  int
	best  []int // the plan found
	// kind of each host: equal if no unit tells them apart but by room and by
	// the VMs of rules on them.
	kind   []int
	aparts []*spread
	groups []*group
	// Of a search for as many as possible: the class ranks of the units, how
	// many VMs are placed by rank, the most so far, and how many can still come.
	rank         []int
	placed, most []int
	open         []int
}

func newSearch(s *State, units []*unit, work int) *search {
	x := &search{s: s, units: units, work: work, at: make([]int, len(units))}
	for i := range x.at {
		x.at[i] = none
	}
	findTwins(units)
	x.findKinds()
	return x
}

// findKinds numbers the hosts by all that stays while the search places units.
func (x *search) findKinds() {
	masks := masksOf(x.units)
	named := map[model.HostID]bool{}
	rules := map[*spread]bool{}
	groups := map[*group]bool{}
	domains := false
	for _, u := range x.units {
		for i, v := range u.vms {
			named[u.wants[i].Only] = true
			named[x.s.nameOf(v.at[0].host)], named[x.s.nameOf(v.at[1].host)] = true, true
			for _, a := range v.aparts {
				if a.Hard && !rules[a] {
					rules[a] = true
					x.aparts = append(x.aparts, a)
					domains = domains || a.Domains
				}
			}
			if g := v.group; g != nil && !groups[g] {
				groups[g] = true
				x.groups = append(x.groups, g)
			}
		}
	}
	number := map[string]int{}
	x.kind = make([]int, len(x.s.hosts))
	for h, o := range x.s.hosts {
		key := fmt.Sprint(o.class, o.MaxVMs)
		for _, m := range masks {
			if m.fits.Has(h) {
				key += "1"
			} else {
				key += "0"
			}
		}
		if domains {
			key += fmt.Sprint("/", o.domain)
		}
		if named[o.Name] {
			key += "/" + string(o.Name)
		}
		n, ok := number[key]
		if !ok {
			n = len(number)
			number[key] = n
		}
		x.kind[h] = n
	}
}

// same tells whether hosts a < b are the same to the units from i on: whatever
// can be done with b can be done with a. The order that twins are tried in must
// not tell them apart either.
func (x *search) same(a, b, i int) bool {
	p, q := x.s.hosts[a], x.s.hosts[b]
	if x.kind[a] != x.kind[b] || p.freeMem != q.freeMem || p.freeCPU != q.freeCPU || p.MaxVMs > 0 && len(p.on) != len(q.on) {
		return false
	}
	for _, r := range x.aparts {
		if r.count[a] != r.count[b] {
			return false
		}
	}
	for _, g := range x.groups {
		if g.count[a] != g.count[b] {
			return false
		}
	}
	for _, u := range x.units[i:] {
		if u.twin != none && x.at[u.twin] != none && (a >= x.at[u.twin]) != (b >= x.at[u.twin]) {
			return false
		}
	}
	return true
}

// run places all units. False with work left is a proof that this cannot be.
func (x *search) run() bool { return x.all(0) }

func (x *search) all(i int) bool {
	if i == len(x.units) {
		x.best = slices.Clone(x.at)
		return true
	}
	u := x.units[i]
	for _, h := range x.candidates(i) {
		if x.work <= 0 {
			return false
		}
		x.s.put(u, h)
		x.at[i] = h
		ok := x.all(i + 1)
		x.s.take(u, h)
		x.at[i] = none
		if ok {
			return true
		}
	}
	return false
}

// candidates are the hosts to try for unit i, the tightest first. Of hosts that
// are the same one is tried, and of twins one order. Of hosts that
// are the same to every unit one is tried, and of twins one order.
func (x *search) candidates(i int) []int {
	u := x.units[i]
	from := 0
	if u.twin != none && x.at[u.twin] != none {
		from = x.at[u.twin]
	}
	x.work -= len(x.s.hosts)
	var out []int
	for h := from; h < len(x.s.hosts); h++ {
		if x.s.openTo(u, h) && !slices.ContainsFunc(out, func(o int) bool { return x.same(o, h, i) }) {
			out = append(out, h)
		}
	}
	room := func(h int) int64 { return x.s.hosts[h].room(u.cpu, u.mem) }
	slices.SortStableFunc(out, func(a, b int) int {
		switch ra, rb := room(a), room(b); {
		case ra < rb:
			return -1
		case ra > rb:
			return 1
		}
		return 0
	})
	return out
}

// optional makes it a search for as many as possible that beats most.
func (x *search) optional(rank map[int]int, most []int) {
	x.rank, x.placed, x.most, x.open = make([]int, len(x.units)), make([]int, len(most)), slices.Clone(most), make([]int, len(most))
	for i, u := range x.units {
		x.rank[i] = rank[u.class]
		x.open[x.rank[i]] += len(u.vms)
	}
}

// improve looks for a better plan than the most known; true means that the best
// there is is known now.
func (x *search) improve() bool {
	x.some(0)
	return x.work > 0
}

func (x *search) some(i int) {
	if x.work <= 0 || !x.promising() {
		return
	}
	if i == len(x.units) {
		x.best, x.most = slices.Clone(x.at), slices.Clone(x.placed)
		return
	}
	u, r := x.units[i], x.rank[i]
	n := len(u.vms)
	x.open[r] -= n
	for _, h := range x.candidates(i) {
		if x.work <= 0 {
			break
		}
		x.s.put(u, h)
		x.at[i] = h
		x.placed[r] += n
		x.some(i + 1)
		x.placed[r] -= n
		x.at[i] = none
		x.s.take(u, h)
	}
	x.some(i + 1)
	x.open[r] += n
}

// promising: if all units that are left were placed, it would beat the most.
func (x *search) promising() bool {
	for r := range x.most {
		if can := x.placed[r] + x.open[r]; can != x.most[r] {
			return can > x.most[r]
		}
	}
	return false
}

func (x *search) result() map[*unit]int {
	at := map[*unit]int{}
	if x.best == nil {
		return at
	}
	for i, h := range x.best {
		if h != none {
			at[x.units[i]] = h
		}
	}
	return at
}
