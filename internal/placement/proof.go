package placement

import (
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/bitset"
)

// impossible is a proof, in words, that not all units can be placed; "" if none
// is at hand. It is quick and incomplete: the search behind it is neither.
func (s *State) impossible(units []*unit) string {
	for _, u := range units {
		if s.openHosts(u) == 0 {
			return fmt.Sprintf("%s finds no place", u.vms[0].Name)
		}
	}
	for _, m := range masksOf(units) {
		hosts := m.fits.Clone()
		for h, x := range s.hosts {
			if x.class[Restart] == unusable {
				hosts.Remove(h)
			}
		}
		var inside []*unit
		for _, u := range units {
			if slices.ContainsFunc(u.vms, func(v *vm) bool { return v.mask.fits.Within(m.fits) }) {
				inside = append(inside, u)
			}
		}
		if why := s.tooMuch(inside, hosts); why != "" {
			return why
		}
	}
	return s.crowded(units)
}

// masksOf are the distinct masks of the units.
func masksOf(units []*unit) []*mask {
	var out []*mask
	seen := map[*mask]bool{}
	for _, u := range units {
		for _, v := range u.vms {
			if !seen[v.mask] {
				seen[v.mask] = true
				out = append(out, v.mask)
			}
		}
	}
	return out
}

// tooMuch tells why some hosts cannot take all of some units that no other host
// takes: by sum, or by the number of large ones.
func (s *State) tooMuch(units []*unit, hosts bitset.Set) string {
	resources := []struct {
		what, unit string
		need       func(*unit) int64
		free       func(*host) int64
	}{
		{"memory", "MiB", func(u *unit) int64 { return u.mem }, func(x *host) int64 { return x.freeMem }},
		{"processor", "MHz", func(u *unit) int64 { return u.cpu }, func(x *host) int64 { return x.freeCPU }},
	}
	for _, r := range resources {
		var sizes []int64
		var sum, free int64
		for _, u := range units {
			if n := r.need(u); n > 0 {
				sizes = append(sizes, n)
				sum += n
			}
		}
		for h := range hosts.All() {
			free += max(r.free(s.hosts[h]), 0)
		}
		if sum > free {
			return fmt.Sprintf("%d VMs need %d %s of %s, the hosts that can take them have %d free in all", len(sizes), sum, r.unit, r.what, free)
		}
		slices.Sort(sizes)
		slices.Reverse(sizes)
		for i, size := range sizes {
			if i+1 < len(sizes) && sizes[i+1] == size {
				continue
			}
			var fit int64
			for h := range hosts.All() {
				fit += max(r.free(s.hosts[h]), 0) / size
			}
			if fit < int64(i+1) {
				return fmt.Sprintf("%d VMs need %d %s of %s or more each, the hosts that can take them have room for %d of that size", i+1, size, r.unit, r.what, fit)
			}
		}
	}
	return ""
}

// crowded finds a hard apart-rule with more units than hosts for them, by a
// matching.
func (s *State) crowded(units []*unit) string {
	byRule := map[*spread][]*unit{}
	var order []*spread
	for _, u := range units {
		for _, v := range u.vms {
			for _, a := range v.aparts {
				if !a.Hard {
					continue
				}
				if byRule[a] == nil {
					order = append(order, a)
				}
				byRule[a] = append(byRule[a], u)
			}
		}
	}
	for _, a := range order {
		if len(byRule[a]) > 1 && !s.distinct(byRule[a], a) {
			what := "hosts"
			if a.Domains {
				what = "failure domains"
			}
			return fmt.Sprintf("rule %s keeps %d of these VMs apart, and the %s that have room for one are fewer", a.Name, len(byRule[a]), what)
		}
	}
	return ""
}

// distinct tells whether the units can have different hosts, or domains, by
// what each finds open alone.
func (s *State) distinct(units []*unit, a *spread) bool {
	owner := map[int]int{}
	open := make([][]int, len(units))
	for i, u := range units {
		for h, x := range s.hosts {
			if !s.openTo(u, h) {
				continue
			}
			value := h
			if a.Domains {
				value = x.domain
			}
			if !slices.Contains(open[i], value) {
				open[i] = append(open[i], value)
			}
		}
	}
	var augment func(i int, seen map[int]bool) bool
	augment = func(i int, seen map[int]bool) bool {
		for _, value := range open[i] {
			if seen[value] {
				continue
			}
			seen[value] = true
			if o, taken := owner[value]; !taken || augment(o, seen) {
				owner[value] = i
				return true
			}
		}
		return false
	}
	for i := range units {
		if !augment(i, map[int]bool{}) {
			return false
		}
	}
	return true
}
