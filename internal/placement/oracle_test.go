package placement

import (
	"fmt"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// many is how many rounds of a hundred random clusters a test looks at.
const many = 10

// world is a cluster small enough to try every placement, in plain terms.
type world struct {
	hosts []Host
	vms   []VM
	rules []rules.Rule
	on    map[string]model.HostID
	to    map[string]model.HostID
}

func drawWorld(t *rapid.T, vms int) world {
	w := world{on: map[string]model.HostID{}, to: map[string]model.HostID{}}
	stores := []model.DatastoreName{"ds1", "ds2"}
	pick := func(odds int, what string) bool { return rapid.IntRange(0, odds).Draw(t, what) == 0 }
	for i := range rapid.IntRange(1, 4).Draw(t, "hosts") {
		h := Host{Name: model.HostID(fmt.Sprintf("h%d", i)), Memory: model.MiB(rapid.IntRange(1, 4).Draw(t, "memory")), CPU: model.MHz(rapid.IntRange(0, 4).Draw(t, "cpu")),
			Datastores: stores, FailureDomain: rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(t, "domain"),
			Maintenance: pick(9, "maintenance"), Quarantine: pick(9, "quarantine"), DedicatedFailover: pick(6, "dedicated")}
		if pick(5, "few stores") {
			h.Datastores = stores[:1]
		}
		if pick(5, "max") {
			h.MaxVMs = rapid.IntRange(1, 2).Draw(t, "maxVMs")
		}
		w.hosts = append(w.hosts, h)
	}
	var vmNames, hostNames []string
	for i := range rapid.IntRange(1, vms).Draw(t, "vms") {
		v := VM{Name: fmt.Sprintf("v%d", i), Reservation: Resources{Memory: model.MiB(rapid.IntRange(0, 3).Draw(t, "mem"))},
			Datastores: stores[:rapid.IntRange(0, 2).Draw(t, "stores")], NoRestart: pick(8, "norestart")}
		if pick(2, "cpu") {
			v.Overhead.CPU = model.MHz(rapid.IntRange(0, 2).Draw(t, "cpus"))
		}
		w.vms = append(w.vms, v)
		vmNames = append(vmNames, v.Name)
		if rapid.Bool().Draw(t, "runs") {
			w.on[v.Name] = w.hosts[rapid.IntRange(0, len(w.hosts)-1).Draw(t, "on")].Name
			if h := w.hosts[rapid.IntRange(0, len(w.hosts)-1).Draw(t, "to")].Name; pick(4, "moves") && h != w.on[v.Name] {
				w.to[v.Name] = h
			}
		}
	}
	for _, h := range w.hosts {
		hostNames = append(hostNames, string(h.Name))
	}
	some := func(from []string) []string {
		return rapid.Permutation(from).Draw(t, "order")[:rapid.IntRange(1, len(from)).Draw(t, "size")]
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "rules") {
		r := rules.Rule{Name: fmt.Sprintf("rule%d", i), Kind: rules.Kind(rapid.IntRange(0, 3).Draw(t, "kind")), VMs: slices.Clone(some(vmNames)),
			Hard: !pick(3, "soft"), Domains: pick(2, "domains")}
		if r.Kind == rules.OnHosts || r.Kind == rules.OffHosts {
			for _, h := range some(hostNames) {
				r.Hosts = append(r.Hosts, rules.HostWeight{Host: model.HostID(h), Weight: rapid.IntRange(0, 2).Draw(t, "weight")})
			}
		}
		w.rules = append(w.rules, r)
	}
	return w
}

func (w world) state() *State {
	s := New(w.hosts, w.vms, w.rules)
	for _, v := range w.vms {
		if h := w.on[v.Name]; h != "" {
			if err := s.Run(v.Name, h); err != nil {
				panic(err)
			}
		}
		if h := w.to[v.Name]; h != "" {
			if err := s.Move(v.Name, h); err != nil {
				panic(err)
			}
		}
	}
	return s
}

func (w world) host(name model.HostID) Host {
	return w.hosts[slices.IndexFunc(w.hosts, func(h Host) bool { return h.Name == name })]
}

func (w world) vm(name string) VM {
	return w.vms[slices.IndexFunc(w.vms, func(v VM) bool { return v.Name == name })]
}

// where are the hosts that a VM counts on.
func (w world) where(vm string, placed map[string]model.HostID) []model.HostID {
	var out []model.HostID
	for _, m := range []map[string]model.HostID{w.on, w.to, placed} {
		if h := m[vm]; h != "" {
			out = append(out, h)
		}
	}
	return out
}

// mates are the VMs that hard together-rules tie to vm, directly or not.
func (w world) mates(vm string) []string {
	in := map[string]bool{vm: true}
	for range w.rules {
		for _, r := range w.rules {
			if r.Kind == rules.Together && r.Hard && slices.ContainsFunc(r.VMs, func(x string) bool { return in[x] }) {
				for _, x := range r.VMs {
					in[x] = true
				}
			}
		}
	}
	var out []string
	for x := range in {
		if x != vm {
			out = append(out, x)
		}
	}
	sort.Strings(out)
	return out
}

// legal tells whether all of placed may run where they are placed, beside what
// runs.
func (w world) legal(placed map[string]model.HostID, p Purpose) bool {
	for _, h := range w.hosts {
		mem, cpu, n, fresh := h.Memory, h.CPU, 0, false
		var freshMem, freshCPU bool
		for _, v := range w.vms {
			if slices.Contains(w.where(v.Name, placed), h.Name) {
				mem, cpu, n = mem-v.Need().Memory, cpu-v.Need().CPU, n+1
			}
			if placed[v.Name] == h.Name {
				fresh = true
				freshMem = freshMem || v.Need().Memory > 0
				freshCPU = freshCPU || v.Need().CPU > 0
			}
		}
		if fresh && (freshMem && mem < 0 || freshCPU && cpu < 0 || h.MaxVMs > 0 && n > h.MaxVMs || h.Maintenance || h.DedicatedFailover && p == PowerOn) {
			return false
		}
	}
	for name, at := range placed {
		v, h := w.vm(name), w.host(at)
		for _, d := range v.Datastores {
			if !slices.Contains(h.Datastores, d) {
				return false
			}
		}
		if w.on[name] == at || w.to[name] == at {
			return false
		}
		for _, r := range w.rules {
			if r.Hard && slices.Contains(r.VMs, name) && w.breaks(r, name, h, placed) {
				return false
			}
		}
		if !w.joined(name, at, placed) {
			return false
		}
	}
	return true
}

// joined: together with whom it must be.
func (w world) joined(name string, at model.HostID, placed map[string]model.HostID) bool {
	others, there := false, false
	for _, m := range w.mates(name) {
		if h, new := placed[m]; new && h != at {
			return false
		}
		if _, new := placed[m]; new {
			continue
		}
		for _, h := range w.where(m, placed) {
			others = true
			there = there || h == at
		}
	}
	return !others || there
}

func (w world) breaks(r rules.Rule, name string, h Host, placed map[string]model.HostID) bool {
	named := slices.ContainsFunc(r.Hosts, func(x rules.HostWeight) bool { return x.Host == h.Name })
	switch r.Kind {
	case rules.OnHosts:
		return !named
	case rules.OffHosts:
		return named
	case rules.Apart:
		for _, o := range r.VMs {
			if o == name {
				continue
			}
			for _, at := range w.where(o, placed) {
				x := w.host(at)
				if x.Name == h.Name || r.Domains && x.FailureDomain != "" && x.FailureDomain == h.FailureDomain {
					return true
				}
			}
		}
	}
	return false
}

// best tries everything: the most VMs by class, and whether all can be placed.
// VMs that a hard rule keeps together are placed all or none.
func (w world) best(wants []Want) []int {
	classes := map[int]int{}
	class := map[string]int{}
	for _, x := range wants {
		class[x.VM] = x.Class
	}
	for _, x := range wants {
		for _, m := range w.mates(x.VM) {
			if c, asked := class[m]; asked {
				class[x.VM] = min(class[x.VM], c)
			}
		}
	}
	var sorted []int
	for _, c := range class {
		sorted = append(sorted, c)
	}
	slices.Sort(sorted)
	for i, c := range slices.Compact(sorted) {
		classes[c] = i
	}
	best := make([]int, len(classes))
	placed := map[string]model.HostID{}
	var try func(i int)
	try = func(i int) {
		if i == len(wants) {
			if !w.whole(wants, placed) || !w.legal(placed, wants[0].Purpose) {
				return
			}
			n := make([]int, len(classes))
			for vm := range placed {
				n[classes[class[vm]]]++
			}
			if slices.Compare(n, best) > 0 {
				best = n
			}
			return
		}
		try(i + 1)
		for _, h := range w.hosts {
			placed[wants[i].VM] = h.Name
			try(i + 1)
			delete(placed, wants[i].VM)
		}
	}
	try(0)
	return best
}

func (w world) whole(wants []Want, placed map[string]model.HostID) bool {
	for _, x := range wants {
		_, one := placed[x.VM]
		for _, m := range w.mates(x.VM) {
			if asked := slices.ContainsFunc(wants, func(o Want) bool { return o.VM == m }); !asked {
				continue
			}
			if _, other := placed[m]; one != other {
				return false
			}
		}
	}
	return true
}

func TestFitsSaysWhatTryingSays(t *testing.T) {
	often(t, func(t *rapid.T) {
		w := drawWorld(t, 5)
		s := w.state()
		for _, v := range w.vms {
			for _, p := range []Purpose{Restart, PowerOn} {
				refused := map[model.HostID]bool{}
				for _, r := range s.WhyNot(Want{VM: v.Name, Purpose: p}) {
					refused[r.Host] = true
				}
				for _, h := range w.hosts {
					want := w.legal(map[string]model.HostID{v.Name: h.Name}, p)
					if got := s.fits(s.vms[v.Name], s.hostAt[h.Name], p); got != want || refused[h.Name] == want {
						t.Fatalf("%s on %s for %d: fits %v, refused %v, want %v", v.Name, h.Name, p, got, refused[h.Name], want)
					}
				}
			}
		}
	})
}

func TestPlaceAllFindsTheBest(t *testing.T) {
	often(t, func(t *rapid.T) {
		w := drawWorld(t, 5)
		purpose := rapid.SampledFrom([]Purpose{Restart, PowerOn}).Draw(t, "purpose")
		var wants []Want
		for _, v := range w.vms {
			if w.on[v.Name] == "" || rapid.IntRange(0, 3).Draw(t, "move") == 0 && w.to[v.Name] == "" {
				wants = append(wants, Want{VM: v.Name, Purpose: purpose, Class: rapid.IntRange(0, 2).Draw(t, "class")})
			}
		}
		if len(wants) == 0 {
			return
		}
		s := w.state()
		before := fmt.Sprint(s.dump())
		plan := s.PlaceAll(wants)
		if after := fmt.Sprint(s.dump()); after != before {
			t.Fatalf("the plan changed the State:\n%s\n%s", before, after)
		}
		placed := map[string]model.HostID{}
		for i, c := range plan.Choices {
			if c.VM != wants[i].VM || (c.Host == "") == (len(c.Refusals) == 0) {
				t.Fatalf("choice %d is %+v", i, c)
			}
			if c.Host != "" {
				placed[c.VM] = c.Host
			}
		}
		if !w.legal(placed, purpose) || !w.whole(wants, placed) {
			t.Fatalf("the plan %v is not legal", placed)
		}
		best, total := w.best(wants), 0
		for _, n := range best {
			total += n
		}
		// The search and the proofs by themselves, without the luck of packings.
		units := s.byHardness(s.units(wants), false)
		all := total == len(wants)
		if why := s.impossible(units); why != "" && all {
			t.Fatalf("all can be placed, although %s", why)
		}
		if found := newSearch(s, units, planWork).run(); found != all {
			t.Fatalf("the search says %v, want %v", found, all)
		}
		got := countByClass(w, wants, placed)
		if plan.Placed != len(placed) || !plan.Proven || !slices.Equal(got, best) {
			t.Fatalf("the plan %v places %v by class (proven %v), the best is %v", placed, got, plan.Proven, best)
		}
	})
}

// countByClass counts what is placed the way best does.
func countByClass(w world, wants []Want, placed map[string]model.HostID) []int {
	class := map[string]int{}
	for _, x := range wants {
		class[x.VM] = x.Class
	}
	for _, x := range wants {
		for _, m := range w.mates(x.VM) {
			if c, asked := class[m]; asked {
				class[x.VM] = min(class[x.VM], c)
			}
		}
	}
	var sorted []int
	for _, c := range class {
		sorted = append(sorted, c)
	}
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	out := make([]int, len(sorted))
	for vm := range placed {
		out[slices.Index(sorted, class[vm])]++
	}
	return out
}

// dump is all that a State knows, in a fixed order.
func (s *State) dump() []string {
	var out []string
	for _, h := range s.hosts {
		var on []string
		for _, v := range h.on {
			on = append(on, v.Name)
		}
		sort.Strings(on)
		out = append(out, fmt.Sprint(h.Host, h.freeCPU, h.freeMem, h.class, on))
	}
	for _, name := range s.VMs() {
		v := s.vms[name]
		on, to := s.On(name)
		out = append(out, fmt.Sprintf("%v on %q to %q rank %v", v.VM, on, to, v.mask.rank))
		for _, a := range append(slices.Clone(v.aparts), v.softs...) {
			out = append(out, fmt.Sprint(a.Name, a.count, a.domains, a.total))
		}
		if v.group != nil {
			out = append(out, fmt.Sprint(v.group.count, v.group.total))
		}
	}
	return out
}

func TestSurvivesSaysWhatTryingSays(t *testing.T) {
	often(t, func(t *rapid.T) {
		w := drawWorld(t, 5)
		n := rapid.IntRange(0, 2).Draw(t, "failures")
		s := w.state()
		before := fmt.Sprint(s.dump())
		got := s.Survives(Failures{Hosts: n})
		if after := fmt.Sprint(s.dump()); after != before {
			t.Fatalf("the check changed the State:\n%s\n%s", before, after)
		}
		want := Yes
		for _, lost := range w.losses(n) {
			if !w.survives(lost) {
				want = No
				if got.Verdict == No && slices.Equal(got.Lost, lost) {
					break
				}
			} else if got.Verdict == No && slices.Equal(got.Lost, lost) {
				t.Fatalf("the loss of %v is survived: %+v", lost, got)
			}
		}
		if got.Verdict != want {
			t.Fatalf("verdict %v, want %v: %+v", got.Verdict, want, got)
		}
		// Where counting says yes, so does trying.
		if c := s.newSurvey(1); n > 0 && want == No && n <= len(w.hosts) && c.countsOut(s.single(), n) {
			t.Fatalf("counting says that it survives the loss of any %d", n)
		}
		if got.Verdict == No && (got.Reason == "" || len(got.Lost) == 0) {
			t.Fatalf("no reason: %+v", got)
		}
	})
}

func (w world) losses(n int) [][]model.HostID {
	n = min(n, len(w.hosts))
	var out [][]model.HostID
	for mask := 1; mask < 1<<len(w.hosts); mask++ {
		var lost []model.HostID
		for i, h := range w.hosts {
			if mask>>i&1 == 1 {
				lost = append(lost, h.Name)
			}
		}
		if len(lost) == n {
			out = append(out, lost)
		}
	}
	return out
}

// survives tries to place what is to be restarted after a loss.
func (w world) survives(lost []model.HostID) bool {
	after := world{vms: w.vms, rules: w.rules, on: map[string]model.HostID{}, to: map[string]model.HostID{}}
	for _, h := range w.hosts {
		if slices.Contains(lost, h.Name) {
			h.Maintenance = true
		}
		after.hosts = append(after.hosts, h)
	}
	var wants []Want
	for _, v := range w.vms {
		on, to := w.on[v.Name], w.to[v.Name]
		switch {
		case on == "":
		case slices.Contains(lost, on):
			if !v.NoRestart {
				wants = append(wants, Want{VM: v.Name})
			}
		default:
			after.on[v.Name] = on
			if to != "" && !slices.Contains(lost, to) {
				after.to[v.Name] = to
			}
		}
	}
	if len(wants) == 0 {
		return true
	}
	n := 0
	for _, k := range after.best(wants) {
		n += k
	}
	return n == len(wants)
}

// What a State answers depends on what it knows, not on how it came to know it.
func TestIncrementalEqualsFresh(t *testing.T) {
	often(t, func(t *rapid.T) {
		w := drawWorld(t, 6)
		s := w.state()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			v := w.vms[rapid.IntRange(0, len(w.vms)-1).Draw(t, "vm")]
			h := w.hosts[rapid.IntRange(0, len(w.hosts)-1).Draw(t, "host")]
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				s.Stop(v.Name)
				delete(w.on, v.Name)
				delete(w.to, v.Name)
			case 1, 2:
				_ = s.Run(v.Name, h.Name)
				w.on[v.Name] = h.Name
				delete(w.to, v.Name)
			case 3:
				if s.Move(v.Name, h.Name) == nil {
					delete(w.to, v.Name)
					if w.on[v.Name] != h.Name {
						w.to[v.Name] = h.Name
					}
				}
			case 4:
				h.Datastores = h.Datastores[:rapid.IntRange(0, len(h.Datastores)).Draw(t, "stores")]
				h.Memory, h.FailureDomain, h.Quarantine = model.MiB(rapid.IntRange(0, 5).Draw(t, "m")), rapid.SampledFrom([]string{"", "r1", "r3"}).Draw(t, "d"), !h.Quarantine
				w.hosts[slices.IndexFunc(w.hosts, func(x Host) bool { return x.Name == h.Name })] = h
				s.SetHost(h)
			case 5:
				v.Reservation.Memory, v.Datastores = model.MiB(rapid.IntRange(0, 5).Draw(t, "vm memory")), []model.DatastoreName{"ds2"}
				w.vms[slices.IndexFunc(w.vms, func(x VM) bool { return x.Name == v.Name })] = v
				s.SetVM(v)
			case 6:
				s.RemoveHost(h.Name)
				s.SetHost(h)
				for name, on := range w.on {
					if on == h.Name {
						delete(w.on, name)
						if to := w.to[name]; to != "" { // it has arrived, as far as anyone knows
							w.on[name] = to
							delete(w.to, name)
						}
					}
				}
				for name, to := range w.to {
					if to == h.Name {
						delete(w.to, name)
					}
				}
			}
		}
		w.hosts, w.vms = rapid.Permutation(w.hosts).Draw(t, "hosts anew"), rapid.Permutation(w.vms).Draw(t, "vms anew")
		fresh := w.state()
		if a, b := fmt.Sprint(s.dump()), fmt.Sprint(fresh.dump()); a != b {
			t.Fatalf("incremental:\n%s\nfresh:\n%s", a, b)
		}
		for _, v := range w.vms {
			a, b := s.Place(Want{VM: v.Name}), fresh.Place(Want{VM: v.Name})
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("%s: incremental %+v, fresh %+v", v.Name, a, b)
			}
		}
	})
}

func often(t *testing.T, check func(*rapid.T)) {
	t.Helper()
	for range many {
		rapid.Check(t, check)
	}
}
