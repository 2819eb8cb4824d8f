package placement

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"hanok.dev/hanok/internal/bitset"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// book holds the rules, by the VMs that they touch, with their counts.
type book struct {
	host   map[string][]*limit  // OnHosts and OffHosts, oldest first
	aparts map[string][]*spread // Apart
	softs  map[string][]*spread // Together, not hard
	groups map[string]*group    // Together, hard, merged where they share a VM
}

// limit is a rule between VMs and hosts.
type limit struct {
	*rules.Rule
	id    int
	level map[int]int // host → 0 for the highest weight, 1 for the next, …
	deep  int         // number of levels
}

// spread is a rule between VMs, with the number of them on each host.
type spread struct {
	*rules.Rule
	count   []int32
	domains []int32 // by failure domain
	total   int32
}

func (a *spread) add(h *host, n int32) {
	a.count[h.index] += n
	a.domains[h.domain] += n
	a.total += n
}

// group is VMs that hard rules keep together, with the number on each host.
type group struct {
	id    int
	rule  string // one of its rules, for people
	count []int32
	total int32
}

func (g *group) add(h *host, n int32) {
	g.count[h.index] += n
	g.total += n
}

func newBook(list []rules.Rule, hosts []*host, hostAt map[model.HostID]int, domains int) *book {
	b := &book{host: map[string][]*limit{}, aparts: map[string][]*spread{}, softs: map[string][]*spread{}, groups: map[string]*group{}}
	parent := map[string]string{}
	for i := range list {
		r := &list[i]
		switch r.Kind {
		case rules.OnHosts, rules.OffHosts:
			l := newLimit(r, i, hostAt)
			addTo(b.host, r.VMs, l)
		case rules.Apart:
			addTo(b.aparts, r.VMs, &spread{Rule: r, count: make([]int32, len(hosts)), domains: make([]int32, domains)})
		case rules.Together:
			if !r.Hard {
				addTo(b.softs, r.VMs, &spread{Rule: r, count: make([]int32, len(hosts)), domains: make([]int32, domains)})
				continue
			}
			for _, v := range r.VMs {
				join(parent, r.VMs[0], v)
			}
		}
	}
	b.makeGroups(list, parent, len(hosts))
	return b
}

func addTo[T comparable](m map[string][]T, names []string, x T) {
	for _, n := range names {
		if l := m[n]; len(l) == 0 || l[len(l)-1] != x {
			m[n] = append(l, x)
		}
	}
}

// find and join are union-find on names.
func find(parent map[string]string, x string) string {
	for {
		p, ok := parent[x]
		if !ok || p == x {
			return x
		}
		if g, ok := parent[p]; ok {
			parent[x] = g
		}
		x = p
	}
}

func join(parent map[string]string, a, b string) {
	ra, rb := find(parent, a), find(parent, b)
	if ra > rb {
		ra, rb = rb, ra
	}
	parent[ra], parent[rb] = ra, ra
}

func (b *book) makeGroups(list []rules.Rule, parent map[string]string, hosts int) {
	byRoot := map[string]*group{}
	for i := range list {
		r := &list[i]
		if r.Kind != rules.Together || !r.Hard {
			continue
		}
		for _, v := range r.VMs {
			root := find(parent, v)
			g := byRoot[root]
			if g == nil {
				g = &group{id: len(byRoot), rule: r.Name, count: make([]int32, hosts)}
				byRoot[root] = g
			}
			b.groups[v] = g
		}
	}
}

func newLimit(r *rules.Rule, id int, hostAt map[model.HostID]int) *limit {
	l := &limit{Rule: r, id: id, level: map[int]int{}}
	var weights []int
	for _, hw := range r.Hosts {
		weights = append(weights, hw.Weight)
	}
	slices.Sort(weights)
	weights = slices.Compact(weights)
	l.deep = len(weights)
	for _, hw := range r.Hosts {
		if h, ok := hostAt[hw.Host]; ok {
			at, _ := slices.BinarySearch(weights, hw.Weight)
			l.level[h] = len(weights) - 1 - at
		}
	}
	return l
}

// allows tells whether the rule lets a VM of it run on host h.
func (l *limit) allows(h int) bool {
	_, named := l.level[h]
	return named == (l.Kind == rules.OnHosts)
}

// depth ranks host h for a VM of the rule: 0 is best.
func (l *limit) depth(h int) int {
	level, named := l.level[h]
	switch {
	case l.Kind == rules.OffHosts && named:
		return 1
	case l.Kind == rules.OffHosts:
		return 0
	case named:
		return level
	}
	return l.deep
}

// mask says where VMs with the same requirements and the same host rules may
// run, and where they would rather. It is shared by them.
type mask struct {
	need   VM // requirements only
	limits []*limit
	fits   bitset.Set
	rank   []int32 // of each host by the rules that prefer; nil if none does
	key    string
	users  int
}

// bind finds what follows for v from the rules.
func (s *State) bind(v *vm) {
	v.aparts, v.softs, v.group = s.book.aparts[v.Name], s.book.softs[v.Name], s.book.groups[v.Name]
	limits := s.book.host[v.Name]
	key := maskKey(&v.VM, limits)
	m := s.masks[key]
	if m == nil {
		m = &mask{need: v.VM, limits: limits, fits: bitset.New(len(s.hosts)), key: key}
		for i, h := range s.hosts {
			m.fits.Put(i, m.allows(h))
		}
		m.rank = rankHosts(limits, len(s.hosts))
		s.masks[key] = m
	}
	m.users++
	s.unbind(v)
	v.mask = m
}

// unbind lets go of v's mask.
func (s *State) unbind(v *vm) {
	if v.mask == nil {
		return
	}
	if v.mask.users--; v.mask.users == 0 {
		delete(s.masks, v.mask.key)
	}
	v.mask = nil
}

func maskKey(v *VM, limits []*limit) string {
	if len(limits) == 0 && len(v.Datastores) == 1 && len(v.Networks) == 0 && len(v.CPUFeatures) == 0 && v.MinHypervisor == 0 {
		return string(v.Datastores[0])
	}
	var b strings.Builder
	part := func(list []string) {
		sort.Strings(list)
		for _, x := range list {
			b.WriteString(x)
			b.WriteByte(0)
		}
		b.WriteByte(1)
	}
	ds := make([]string, len(v.Datastores))
	for i, d := range v.Datastores {
		ds[i] = string(d)
	}
	part(ds)
	part(slices.Clone(v.Networks))
	part(slices.Clone(v.CPUFeatures))
	fmt.Fprintf(&b, "%d", v.MinHypervisor)
	for _, l := range limits {
		fmt.Fprintf(&b, ",%d", l.id)
	}
	return b.String()
}

// allows tells whether requirements and hard rules let such VMs run on h.
func (m *mask) allows(h *host) bool { return m.why(h) == "" }

// why is the reason why they cannot run on h; "" if they can.
func (m *mask) why(h *host) string {
	for _, d := range m.need.Datastores {
		if !slices.Contains(h.Datastores, d) {
			return fmt.Sprintf("does not reach datastore %s", d)
		}
	}
	for _, n := range m.need.Networks {
		if !slices.Contains(h.Networks, n) {
			return fmt.Sprintf("has no network %s", n)
		}
	}
	for _, f := range m.need.CPUFeatures {
		if !slices.Contains(h.CPUFeatures, f) {
			return fmt.Sprintf("its processor has no %s", f)
		}
	}
	if h.Hypervisor < m.need.MinHypervisor {
		return fmt.Sprintf("its hypervisor is version %s, the VM needs %s", version(h.Hypervisor), version(m.need.MinHypervisor))
	}
	for _, l := range m.limits {
		if l.Hard && !l.allows(h.index) {
			return fmt.Sprintf("rule %s forbids it", l.Name)
		}
	}
	return ""
}

func version(v int) string {
	if v == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}

// rankHosts orders the hosts by what the rules prefer, older rules first: equal
// hosts have equal ranks.
func rankHosts(limits []*limit, hosts int) []int32 {
	prefers := false
	for _, l := range limits {
		prefers = prefers || !l.Hard || l.deep > 1
	}
	if !prefers {
		return nil
	}
	order := make([]int, hosts)
	for i := range order {
		order[i] = i
	}
	compare := func(a, b int) int {
		for _, l := range limits {
			if d := l.depth(a) - l.depth(b); d != 0 {
				return d
			}
		}
		return 0
	}
	slices.SortStableFunc(order, compare)
	rank := make([]int32, hosts)
	for i, h := range order {
		switch {
		case i == 0:
		case compare(order[i-1], h) == 0:
			rank[h] = rank[order[i-1]]
		default:
			rank[h] = rank[order[i-1]] + 1
		}
	}
	return rank
}
