package rules

import (
	"slices"

	"hanok.dev/hanok/internal/bitset"
)

// answer of a search.
type answer int

const (
	unknown answer = iota // the search ended at its bound
	yes
	no
)

// problem is some hard rules as a question: which host for each node? A node is
// VMs that chains of together-rules make one.
type problem struct {
	w       *world
	local   map[int]int // VM → its number here
	uf      union       // over these numbers
	nodeOf  []int       // number → node
	members [][]int     // VMs of each node
	dom     []bitset.Set
	sets    []*apart
	clash   *clash
}

// apart is an apart-rule over nodes.
type apart struct {
	rule    int
	nodes   []int
	domains bool // different failure domains
}

// clash is a contradiction that needs no search.
type clash struct {
	rule int // the apart-rule whose VMs a and b are one node; -1 if none
	a, b int
	node int // without a host; -1 if none
}

// build makes the problem of some rules, without the lost hosts.
func (w *world) build(rules []int, lost []int) *problem {
	p := &problem{w: w, local: map[int]int{}}
	var vms []int
	for _, r := range rules {
		for _, v := range w.vms[r] {
			if _, seen := p.local[v]; !seen && w.base[v] != nil {
				p.local[v] = len(vms)
				vms = append(vms, v)
			}
		}
	}
	p.uf = newUnion(len(vms))
	for _, r := range rules {
		if w.list[r].Kind == Together {
			known := p.known(r)
			for _, i := range known {
				p.uf.join(known[0], i)
			}
		}
	}
	p.makeNodes(vms, lost)
	for _, r := range rules {
		switch w.list[r].Kind {
		case OnHosts, OffHosts:
			allowed := w.allowed(r)
			for _, i := range p.known(r) {
				p.dom[p.nodeOf[i]].Intersect(allowed)
			}
		case Apart:
			p.addApart(r)
		}
	}
	for n, d := range p.dom {
		if p.clash == nil && d.Empty() {
			p.clash = &clash{rule: -1, node: n}
		}
	}
	return p
}

// known are the VMs of a rule that some host can run, by their numbers here.
func (p *problem) known(rule int) []int {
	out := make([]int, 0, len(p.w.vms[rule]))
	for _, v := range p.w.vms[rule] {
		if i, ok := p.local[v]; ok {
			out = append(out, i)
		}
	}
	return out
}

func (p *problem) makeNodes(vms []int, lost []int) {
	p.nodeOf = make([]int, len(vms))
	for i, v := range vms {
		root := p.uf.find(i)
		if root == i {
			p.nodeOf[i] = len(p.dom)
			d := p.w.base[v].Clone()
			for _, h := range lost {
				d.Remove(h)
			}
			p.dom, p.members = append(p.dom, d), append(p.members, []int{v})
			continue
		}
		n := p.nodeOf[root] // roots come first
		p.nodeOf[i] = n
		p.dom[n].Intersect(p.w.base[v])
		p.members[n] = append(p.members[n], v)
	}
}

func (p *problem) addApart(r int) {
	a := &apart{rule: r, domains: p.w.list[r].Domains}
	at := map[int]int{}
	for _, i := range p.known(r) {
		n := p.nodeOf[i]
		if other, twice := at[n]; twice {
			if p.clash == nil {
				p.clash = &clash{rule: r, a: other, b: p.vmOf(i), node: -1}
			}
			continue
		}
		at[n] = p.vmOf(i)
		a.nodes = append(a.nodes, n)
	}
	if len(a.nodes) > 1 {
		p.sets = append(p.sets, a)
	}
}

func (p *problem) vmOf(local int) int {
	for _, v := range p.members[p.nodeOf[local]] {
		if p.local[v] == local {
			return v
		}
	}
	return -1
}

// domainOf are the hosts that the rules leave to a VM, taken for itself.
func (p *problem) domainOf(v int) bitset.Set {
	if i, ok := p.local[v]; ok {
		return p.dom[p.nodeOf[i]].Clone()
	}
	if p.w.base[v] == nil {
		return bitset.New(len(p.w.hosts))
	}
	return p.w.base[v].Clone()
}

// solve decides whether some rules can hold without the lost hosts.
func (w *world) solve(rules []int, lost []int, work int) answer {
	p := w.build(rules, lost)
	if p.clash != nil {
		return no
	}
	out := yes
	for _, c := range p.split() {
		switch c.solve(work) {
		case no:
			return no
		case unknown:
			out = unknown
		}
	}
	return out
}

// split makes a search of each part of the problem that apart-rules connect.
func (p *problem) split() []*csp {
	uf := newUnion(len(p.dom))
	for _, a := range p.sets {
		for _, n := range a.nodes {
			uf.join(a.nodes[0], n)
		}
	}
	at := map[int]*csp{}
	number := make([]int, len(p.dom))
	var out []*csp
	for _, a := range p.sets {
		root := uf.find(a.nodes[0])
		if at[root] == nil {
			at[root] = &csp{world: p.w}
			out = append(out, at[root])
		}
	}
	for n, d := range p.dom {
		if c := at[uf.find(n)]; c != nil {
			number[n] = len(c.dom)
			c.dom, c.node = append(c.dom, d), append(c.node, n)
		}
	}
	for _, a := range p.sets {
		c := at[uf.find(a.nodes[0])]
		vars := make([]int, len(a.nodes))
		for i, n := range a.nodes {
			vars[i] = number[n]
		}
		slices.Sort(vars)
		c.add(vars, a.domains)
	}
	return out
}
