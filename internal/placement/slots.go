package placement

import (
	"slices"

	"hanok.dev/hanok/internal/bitset"
)

// movedWork is what taking a VM off its host and putting it back counts for, in
// candidates looked at.
const movedWork = 8

// large tells whether looking at every combination of n of the parts would
// exceed the bound.
func (c *survey) large(parts [][]int, n int) bool {
	vms, combinations := 0.0, 1.0
	for _, x := range c.s.hosts {
		vms += float64(len(x.on))
	}
	for i := range n {
		combinations *= float64(len(parts)-i) / float64(i+1)
	}
	return combinations*vms*float64(n)/float64(len(parts))*(movedWork+2) > float64(c.work)
}

// countsOut tells whether counting alone shows a witness for every combination: if
// each VM that may have to be restarted were as large as the largest in each
// resource, every combination would leave as many places as it takes VMs. Any of
// them can have any place, so that this holds only for VMs that no rule keeps
// apart or together, on hosts that can run them all.
func (c *survey) countsOut(parts [][]int, n int) bool {
	s := c.s
	hosts := bitset.Full(len(s.hosts))
	lost := make([]int64, len(s.hosts)) // VMs to restart if the host is lost
	var cpu, mem int64
	for h, x := range s.hosts {
		if x.class[Restart] == unusable {
			hosts.Remove(h)
		}
		for _, v := range x.on {
			if v.NoRestart || v.at[0].host != h {
				continue
			}
			if v.group != nil || slices.ContainsFunc(v.aparts, func(a *spread) bool { return a.Hard }) {
				return false
			}
			lost[h]++
			cpu, mem = max(cpu, v.cpu), max(mem, v.mem)
			hosts.Intersect(v.mask.fits)
		}
	}
	var places int64
	worst := make([]int64, len(parts)) // what each part takes away, and needs
	for i, part := range parts {
		for _, h := range part {
			worst[i] += lost[h]
			if hosts.Has(h) {
				k := s.hosts[h].places(cpu, mem, int64(len(s.vms)))
				places += k
				worst[i] += k
			}
		}
	}
	slices.Sort(worst)
	for _, w := range worst[len(worst)-n:] {
		places -= w
	}
	return places >= 0
}

// places is how many VMs of a size the host could take on, at most so many.
func (x *host) places(cpu, mem, most int64) int64 {
	n := most
	if mem > 0 {
		n = min(n, x.freeMem/mem)
	}
	if cpu > 0 {
		n = min(n, x.freeCPU/cpu)
	}
	if x.MaxVMs > 0 {
		n = min(n, int64(x.MaxVMs-len(x.on)))
	}
	return max(n, 0)
}
