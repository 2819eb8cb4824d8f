package placement

import (
	"cmp"
	"fmt"
	"slices"
)

// unit is what is placed as a whole: a VM, or all VMs of a group that want a
// place at the same time.
type unit struct {
	vms      []*vm
	wants    []Want
	at       []int // of the wants, in the caller's list
	class    int
	cpu, mem int64
	broken   string // why no host ever takes it
	// twin is the index of an earlier unit that is the same to every host, or
	// none: of twins only one order is tried.
	twin int
}

// units makes units of the wants, in their order. Unknown VMs are left out.
func (s *State) units(wants []Want) []*unit {
	out := make([]*unit, 0, len(wants))
	byGroup := map[*group]*unit{}
	seen := make(map[*vm]bool, len(wants))
	for i, w := range wants {
		v := s.vms[w.VM]
		if v == nil || seen[v] {
			continue
		}
		seen[v] = true
		u := byGroup[v.group]
		if u == nil || v.group == nil {
			u = &unit{class: w.Class, twin: none}
			out = append(out, u)
			if v.group != nil {
				byGroup[v.group] = u
			}
		}
		u.vms, u.wants, u.at = append(u.vms, v), append(u.wants, w), append(u.at, i)
		u.class = min(u.class, w.Class)
		u.cpu += v.cpu
		u.mem += v.mem
	}
	for _, u := range out {
		u.broken = u.contradiction()
	}
	return out
}

// contradiction is why the VMs of a unit can never share a host.
func (u *unit) contradiction() string {
	if len(u.vms) == 1 {
		return ""
	}
	for i, v := range u.vms {
		for _, o := range u.vms[:i] {
			for _, a := range v.aparts {
				if a.Hard && slices.Contains(o.aparts, a) {
					return fmt.Sprintf("rule %s keeps it apart from %s, rule %s together with it", a.Name, o.Name, v.group.rule)
				}
			}
		}
	}
	return ""
}

// openTo tells whether the whole unit gets a place on host h.
func (s *State) openTo(u *unit, h int) bool {
	if len(u.vms) == 1 {
		return s.open(u.vms[0], h, u.wants[0], false)
	}
	return s.refuseUnit(u, h) == ""
}

// refuseUnit is why the unit gets no place on h; "" if it does.
func (s *State) refuseUnit(u *unit, h int) string {
	x := s.hosts[h]
	if u.broken != "" {
		return u.broken
	}
	var placed int32
	for i, v := range u.vms {
		placed += v.placed()
		switch w := u.wants[i]; {
		case x.class[w.Purpose] == unusable || v.counts(h) > 0 || !v.mask.fits.Has(h):
			return s.refuse(v, h, w.Purpose)
		case w.Only != "" && w.Only != x.Name:
			return fmt.Sprintf("%s holds the lock of %s", w.Only, v.Name)
		}
		for _, a := range v.aparts {
			if a.Hard && a.conflict(v, x, s) > 0 {
				return fmt.Sprintf("rule %s keeps %s apart from %s", a.Name, v.Name, s.whoElse(a, v, x))
			}
		}
	}
	g := u.vms[0].group
	switch {
	case g != nil && g.total-placed > 0 && g.count[h] == 0:
		return fmt.Sprintf("rule %s keeps it together with VMs elsewhere", g.rule)
	case u.mem > 0 && u.mem > x.freeMem:
		return fmt.Sprintf("%d MiB free of %d MiB, %d MiB needed by it and the VMs that rule %s keeps together with it", max(x.freeMem, 0), x.Memory, u.mem, g.rule)
	case u.cpu > 0 && u.cpu > x.freeCPU:
		return fmt.Sprintf("%d MHz free of %d MHz, %d MHz needed by it and the VMs that rule %s keeps together with it", max(x.freeCPU, 0), x.CPU, u.cpu, g.rule)
	case x.MaxVMs > 0 && len(x.on)+len(u.vms) > x.MaxVMs:
		return fmt.Sprintf("it runs %d VMs, the limit is %d", len(x.on), x.MaxVMs)
	}
	return ""
}

// put places the unit on h; take takes it off again.
func (s *State) put(u *unit, h int) {
	for _, v := range u.vms {
		s.occupy(v, v.free(), h)
	}
}

func (s *State) take(u *unit, h int) {
	for i := len(u.vms) - 1; i >= 0; i-- {
		v := u.vms[i]
		if v.at[1].host == h {
			s.vacate(v, 1)
		} else {
			s.vacate(v, 0)
		}
	}
}

// free is the place of v that is to be taken: of a running one that to move to.
func (v *vm) free() int {
	if v.at[0].host == none {
		return 0
	}
	return 1
}

// bestFor is the best host for a unit by the score of its VMs together.
func (s *State) bestFor(u *unit) int {
	if len(u.vms) == 1 {
		return s.best(u.vms[0], u.wants[0], false)
	}
	best, top := none, score{}
	for h, x := range s.hosts {
		if !s.openTo(u, h) {
			continue
		}
		var sum score
		for i, v := range u.vms {
			sc := s.score(v, h, u.wants[i].Purpose)
			sum.class = max(sum.class, sc.class)
			sum.rank += sc.rank
			sum.broken += sc.broken
			sum.near += sc.near
			sum.failed += u.wants[i].Failed[x.Name]
			if u.wants[i].Prefer == x.Name {
				sum.failed--
			}
		}
		sum.room = -x.room(u.cpu, u.mem)
		if best == none || sum.less(top) {
			best, top = h, sum
		}
	}
	return best
}

// tightest is the open host that the unit leaves with the least room.
func (s *State) tightest(u *unit, spent *int) int {
	best, least := none, int64(0)
	*spent += len(s.hosts)
	for h, x := range s.hosts {
		if !s.openTo(u, h) {
			continue
		}
		if room := x.room(u.cpu, u.mem); best == none || room < least {
			best, least = h, room
		}
	}
	return best
}

// openHosts counts the hosts that take the unit now.
func (s *State) openHosts(u *unit) int {
	n := 0
	for h := range s.hosts {
		if s.openTo(u, h) {
			n++
		}
	}
	return n
}

// size is how much of the average host a unit takes, of the scarcer resource,
// in 2⁻²⁰.
func (u *unit) size(cpu, mem int64) int64 {
	const one = 1 << 20
	var n int64
	if mem > 0 {
		n = u.mem * one / mem
	}
	if cpu > 0 {
		n = max(n, u.cpu*one/cpu)
	}
	return n
}

// average is the mean free processor and memory of usable hosts.
func (s *State) average() (cpu, mem int64) {
	n := int64(0)
	for _, x := range s.hosts {
		if x.class[Restart] != unusable {
			n++
			cpu += max(x.freeCPU, 0)
			mem += max(x.freeMem, 0)
		}
	}
	if n == 0 {
		return 1, 1
	}
	return max(cpu/n, 1), max(mem/n, 1)
}

// byHardness orders units: those with the fewest open hosts first, then the
// largest, then by name; within it classes come first if asked for.
func (s *State) byHardness(units []*unit, classes bool) []*unit {
	type keyed struct {
		u           *unit
		class, open int
		size        int64
	}
	cpu, mem := s.average()
	list := make([]keyed, len(units))
	open := map[*mask]int{}
	for i, u := range units {
		k := keyed{u: u, size: u.size(cpu, mem)}
		if classes {
			k.class = u.class
		}
		n, known := open[u.vms[0].mask]
		if !known || !u.plain() {
			n = s.openHosts(u)
			if u.plain() {
				open[u.vms[0].mask] = n
			}
		}
		k.open = n
		list[i] = k
	}
	slices.SortFunc(list, func(a, b keyed) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.open, b.open), cmp.Compare(b.size, a.size), cmp.Compare(a.u.vms[0].Name, b.u.vms[0].Name))
	})
	out := make([]*unit, len(list))
	for i, k := range list {
		out[i] = k.u
	}
	return out
}

// plain: nothing but requirements and room decides where the unit may go.
func (u *unit) plain() bool {
	v := u.vms[0]
	return len(u.vms) == 1 && len(v.aparts) == 0 && v.group == nil && u.wants[0].Only == ""
}

// findTwins marks units that are the same to every host.
func findTwins(units []*unit) {
	type key struct {
		mask     *mask
		cpu, mem int64
		class    int
		purpose  Purpose
	}
	last := map[key]int{}
	for i, u := range units {
		u.twin = none
		if !u.plain() || u.vms[0].placed() > 0 {
			continue
		}
		k := key{u.vms[0].mask, u.cpu, u.mem, u.class, u.wants[0].Purpose}
		if j, ok := last[k]; ok {
			u.twin = j
		}
		last[k] = i
	}
}
