package rules

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
)

// many is how many rounds of a hundred random clusters a test looks at.
const many = 10

// small is a cluster small enough to try every placement.
type small struct {
	u    Universe
	list []Rule
}

func drawSmall(t *rapid.T) small {
	hosts := rapid.IntRange(1, 4).Draw(t, "hosts")
	vms := rapid.IntRange(1, 5).Draw(t, "vms")
	var s small
	var hostNames, vmNames []string
	for i := range hosts {
		h := Host{Name: model.HostID(fmt.Sprintf("h%d", i)), FailureDomain: rapid.SampledFrom([]string{"", "r1", "r2"}).Draw(t, "domain")}
		s.u.Hosts = append(s.u.Hosts, h)
		hostNames = append(hostNames, string(h.Name))
	}
	for i := range vms {
		v := VM{Name: fmt.Sprintf("v%d", i)}
		if rapid.IntRange(0, 5).Draw(t, "limited") == 0 {
			v.Hosts = []model.HostID{}
			for _, h := range subset(t, hostNames, 0) {
				v.Hosts = append(v.Hosts, model.HostID(h))
			}
		}
		s.u.VMs = append(s.u.VMs, v)
		vmNames = append(vmNames, v.Name)
	}
	vmNames = append(vmNames, "stranger")
	for i := range rapid.IntRange(1, 8).Draw(t, "rules") {
		r := Rule{Name: fmt.Sprintf("rule%d", i), Kind: Kind(rapid.IntRange(0, 3).Draw(t, "kind")), VMs: subset(t, vmNames, 1),
			Hard: rapid.IntRange(0, 4).Draw(t, "soft") > 0, Domains: rapid.Bool().Draw(t, "domains")}
		if r.Kind == OnHosts || r.Kind == OffHosts {
			for _, h := range subset(t, hostNames, 1) {
				r.Hosts = append(r.Hosts, HostWeight{Host: model.HostID(h)})
			}
		}
		s.list = append(s.list, r)
	}
	return s
}

func subset(t *rapid.T, from []string, least int) []string {
	return slices.Clone(rapid.Permutation(from).Draw(t, "order")[:rapid.IntRange(least, len(from)).Draw(t, "size")])
}

// holds tries every placement of the VMs that rules name on the hosts that are
// not lost.
func (s small) holds(list []Rule, lost []model.HostID) bool {
	var vms []VM
	for _, v := range s.u.VMs {
		named := slices.ContainsFunc(list, func(r Rule) bool { return r.Hard && slices.Contains(r.VMs, v.Name) })
		if named && (v.Hosts == nil || len(v.Hosts) > 0) {
			vms = append(vms, v)
		}
	}
	at := map[string]Host{}
	var place func(i int) bool
	place = func(i int) bool {
		if i == len(vms) {
			return !slices.ContainsFunc(list, func(r Rule) bool { return r.Hard && broken(r, at) })
		}
		for _, h := range s.u.Hosts {
			if slices.Contains(lost, h.Name) || vms[i].Hosts != nil && !slices.Contains(vms[i].Hosts, h.Name) {
				continue
			}
			at[vms[i].Name] = h
			if place(i + 1) {
				return true
			}
			delete(at, vms[i].Name)
		}
		return false
	}
	return place(0)
}

func broken(r Rule, at map[string]Host) bool {
	for i, a := range r.VMs {
		h, runs := at[a]
		if !runs {
			continue
		}
		named := slices.ContainsFunc(r.Hosts, func(x HostWeight) bool { return x.Host == h.Name })
		if r.Kind == OnHosts && !named || r.Kind == OffHosts && named {
			return true
		}
		for _, b := range r.VMs[:i] {
			o, runs := at[b]
			if !runs {
				continue
			}
			same := o.Name == h.Name
			if r.Kind == Apart && r.Domains {
				same = same || h.FailureDomain != "" && h.FailureDomain == o.FailureDomain
			}
			if r.Kind == Together && !same || r.Kind == Apart && same {
				return true
			}
		}
	}
	return false
}

// elders keeps each rule that can hold beside those kept before it: what "the
// older rule wins" means.
func (s small) elders() []Rule {
	var kept []Rule
	for _, r := range s.list {
		if !r.Hard || s.holds(append(slices.Clone(kept), r), nil) {
			kept = append(kept, r)
		}
	}
	return kept
}

func (s small) named(names []string) []Rule {
	var out []Rule
	for _, r := range s.list {
		if slices.Contains(names, r.Name) {
			out = append(out, r)
		}
	}
	return out
}

func (s small) lossesOf(n int) [][]model.HostID {
	var out [][]model.HostID
	for mask := range 1 << len(s.u.Hosts) {
		var lost []model.HostID
		for i, h := range s.u.Hosts {
			if mask>>i&1 == 1 {
				lost = append(lost, h.Name)
			}
		}
		if len(lost) == min(n, len(s.u.Hosts)) {
			out = append(out, lost)
		}
	}
	return out
}

func names(list []Rule) []string {
	var out []string
	for _, r := range list {
		out = append(out, r.Name)
	}
	return out
}

// irreducible: the rules contradict each other, and without any one of them they
// do not.
func (s small) irreducible(t *rapid.T, c Conflict) {
	core := s.named(c.Rules)
	if s.holds(core, c.Lost) {
		t.Fatalf("%v do not contradict each other without %v", c.Rules, c.Lost)
	}
	for i := range core {
		if rest := slices.Delete(slices.Clone(core), i, i+1); !s.holds(rest, c.Lost) {
			t.Fatalf("%v contradict each other without %s, too", c.Rules, core[i].Name)
		}
	}
	if c.Reason == "" || len(c.VMs) == 0 {
		t.Fatalf("no reason: %+v", c)
	}
}

func TestCheckAgreesWithTryingEverything(t *testing.T) {
	often(t, func(t *rapid.T) {
		s := drawSmall(t)
		n := rapid.IntRange(0, 2).Draw(t, "failures")
		r := Check(s.list, s.u, Options{HostFailures: n})
		if len(r.Undecided) > 0 {
			t.Fatalf("undecided: %+v", r.Undecided)
		}
		if got, want := names(r.Active), names(s.elders()); !slices.Equal(got, want) {
			t.Fatalf("in force are %v, want %v; conflicts %v", got, want, r.Conflicts)
		}
		if len(r.Active)+len(r.Conflicts) != len(s.list) {
			t.Fatalf("%d rules: %d in force and %d conflicts", len(s.list), len(r.Active), len(r.Conflicts))
		}
		for _, c := range r.Conflicts {
			s.irreducible(t, c)
			if c.Disabled != c.Rules[len(c.Rules)-1] || !slices.Equal(names(s.named(c.Rules)), c.Rules) {
				t.Fatalf("%+v does not disable the newest, or is not in the order of age", c)
			}
		}
		weak := false
		for _, lost := range s.lossesOf(n) {
			weak = weak || n > 0 && !s.holds(r.Active, lost)
		}
		if weak != (len(r.Weak) > 0) {
			t.Fatalf("after the loss of any %d: weak is %v, want %v", n, r.Weak, weak)
		}
		for _, c := range r.Weak {
			s.irreducible(t, c)
		}
	})
}

func often(t *testing.T, check func(*rapid.T)) {
	t.Helper()
	for range many {
		rapid.Check(t, check)
	}
}
