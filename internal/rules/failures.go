package rules

import (
	"slices"

	"hanok.dev/hanok/internal/bitset"
)

// weaken looks whether rules that can hold still can when any n hosts are lost.
// Only hosts that the rules can use matter, and of hosts that the rules do not
// tell apart it does not matter which.
func (w *world) weaken(part []int, o Options, r *Report) {
	groups := w.interchangeable(part)
	total := 0
	for _, g := range groups {
		total += len(g)
	}
	n := min(o.HostFailures, total)
	work := o.Work
	unsure := false
	lost := make([]int, 0, n)
	var try func(from, left int) bool // whether to go on
	try = func(from, left int) bool {
		if left == 0 {
			work -= len(part)
			if work <= 0 {
				unsure = true
				return false
			}
			sorted := slices.Clone(lost)
			slices.Sort(sorted)
			switch w.solve(part, sorted, o.Work) {
			case no:
				r.Weak = append(r.Weak, w.conflict(w.shrink(part, sorted, o.Work), sorted))
				return false
			case unknown:
				unsure = true
			}
			return true
		}
		for g := from; g < len(groups); g++ {
			most := min(left, len(groups[g]))
			for k := most; k > 0; k-- {
				lost = append(lost, groups[g][:k]...)
				on := try(g+1, left-k)
				lost = lost[:len(lost)-k]
				if !on {
					return false
				}
			}
		}
		return true
	}
	before := len(r.Weak)
	try(0, n)
	if unsure && len(r.Weak) == before {
		r.Undecided = append(r.Undecided, Note{Rule: w.list[part[len(part)-1]].Name, VMs: w.vmNames(part),
			Reason: "whether the rules about these VMs can hold after the loss of hosts: the search ended at its bound"})
	}
}

// interchangeable groups the hosts that the rules of a part can use.
func (w *world) interchangeable(part []int) [][]int {
	p := w.build(part, nil)
	usable := bitset.New(len(w.hosts))
	byDomain := false
	for _, d := range p.dom {
		usable.Union(d)
	}
	for _, s := range p.sets {
		byDomain = byDomain || s.domains
	}
	class := w.classes(p.dom, byDomain)
	at := map[int]int{}
	var out [][]int
	for h := range usable.All() {
		k, ok := at[class[h]]
		if !ok {
			k = len(out)
			at[class[h]] = k
			out = append(out, nil)
		}
		out[k] = append(out[k], h)
	}
	return out
}
