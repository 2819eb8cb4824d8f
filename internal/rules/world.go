package rules

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"hanok.dev/hanok/internal/bitset"
	"hanok.dev/hanok/internal/model"
)

// world is rules and universe with numbers for names.
type world struct {
	list    []Rule
	byName  map[string]int
	hosts   []model.HostID
	hostAt  map[model.HostID]int
	domain  []int // of each host
	domains []string
	names   []string     // of the VMs that rules name and that exist
	vms     [][]int      // of each rule, sorted, each once
	named   []bitset.Set // hosts of each rule
	// base are the hosts that can run each VM at all; nil if there is none, and
	// then rules about it are about nothing.
	base     []bitset.Set
	homeless []Note
}

func newWorld(list []Rule, u Universe) *world {
	w := &world{list: list, byName: map[string]int{}, hostAt: map[model.HostID]int{}}
	for i := range list {
		w.byName[list[i].Name] = i
	}
	w.addHosts(u.Hosts)
	exists := make(map[string]*VM, len(u.VMs))
	for i := range u.VMs {
		exists[u.VMs[i].Name] = &u.VMs[i]
	}
	at := map[string]int{}
	for i := range list {
		var vms []int
		for _, name := range list[i].VMs {
			v := exists[name]
			if v == nil {
				continue
			}
			k, seen := at[name]
			if !seen {
				k = len(w.names)
				at[name] = k
				w.names = append(w.names, name)
				w.base = append(w.base, w.baseOf(v))
			}
			vms = append(vms, k)
		}
		slices.Sort(vms)
		w.vms = append(w.vms, slices.Compact(vms))
		set := bitset.New(len(w.hosts))
		for _, h := range list[i].Hosts {
			if k, ok := w.hostAt[h.Host]; ok {
				set.Add(k)
			}
		}
		w.named = append(w.named, set)
	}
	return w
}

func (w *world) addHosts(hosts []Host) {
	sorted := slices.Clone(hosts)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	at := map[string]int{}
	for _, h := range sorted {
		if _, dup := w.hostAt[h.Name]; dup {
			continue
		}
		w.hostAt[h.Name] = len(w.hosts)
		w.hosts = append(w.hosts, h.Name)
		key, name := "domain "+h.FailureDomain, h.FailureDomain
		if name == "" {
			key, name = "host "+string(h.Name), string(h.Name)
		}
		d, ok := at[key]
		if !ok {
			d = len(w.domains)
			at[key] = d
			w.domains = append(w.domains, name)
		}
		w.domain = append(w.domain, d)
	}
}

func (w *world) baseOf(v *VM) bitset.Set {
	if v.Hosts == nil {
		return bitset.Full(len(w.hosts))
	}
	set := bitset.New(len(w.hosts))
	for _, h := range v.Hosts {
		if k, ok := w.hostAt[h]; ok {
			set.Add(k)
		}
	}
	if set.Empty() {
		w.homeless = append(w.homeless, Note{VMs: []string{v.Name}, Reason: "no host reaches all its datastores and networks"})
		return nil
	}
	return set
}

// allowed are the hosts that a rule between VMs and hosts leaves to its VMs.
func (w *world) allowed(rule int) bitset.Set {
	if w.list[rule].Kind == OnHosts {
		return w.named[rule].Clone()
	}
	set := bitset.Full(len(w.hosts))
	set.Subtract(w.named[rule])
	return set
}

// parts are the hard rules, those that share VMs together, each oldest first.
func (w *world) parts() [][]int {
	uf := newUnion(len(w.names))
	for i := range w.list {
		if w.list[i].Hard {
			for _, v := range w.vms[i] {
				uf.join(w.vms[i][0], v)
			}
		}
	}
	at := map[int]int{}
	var out [][]int
	for i := range w.list {
		if !w.list[i].Hard || len(w.vms[i]) == 0 {
			continue
		}
		root := uf.find(w.vms[i][0])
		k, ok := at[root]
		if !ok {
			k = len(out)
			at[root] = k
			out = append(out, nil)
		}
		out[k] = append(out[k], i)
	}
	return out
}

func (w *world) vmNames(rules []int) []string {
	seen := map[int]bool{}
	var out []string
	for _, i := range rules {
		for _, v := range w.vms[i] {
			if !seen[v] {
				seen[v] = true
				out = append(out, w.names[v])
			}
		}
	}
	sort.Strings(out)
	return out
}

func (w *world) hostNames(set []int) []model.HostID {
	var out []model.HostID
	for _, h := range set {
		out = append(out, w.hosts[h])
	}
	return out
}

// union is a union-find.
type union []int

func newUnion(n int) union {
	u := make(union, n)
	for i := range u {
		u[i] = i
	}
	return u
}

func (u union) find(x int) int {
	for u[x] != x {
		u[x] = u[u[x]]
		x = u[x]
	}
	return x
}

// join keeps the lower number as root.
func (u union) join(a, b int) {
	a, b = u.find(a), u.find(b)
	u[max(a, b)] = min(a, b)
}

// someOf lists names for people, not more than eight.
func someOf[T ~string](names []T) string {
	const most = 8
	var b strings.Builder
	for i, n := range names {
		switch {
		case i == most:
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			return b.String()
		case i == 0:
		case i == len(names)-1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}
