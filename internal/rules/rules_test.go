package rules

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
)

func universe(hosts, vms int) Universe {
	var u Universe
	for i := range hosts {
		u.Hosts = append(u.Hosts, Host{Name: model.HostID(fmt.Sprintf("h%d", i+1))})
	}
	for i := range vms {
		u.VMs = append(u.VMs, VM{Name: fmt.Sprintf("v%d", i+1)})
	}
	return u
}

func hard(name string, k Kind, vms ...string) Rule {
	return Rule{Name: name, Kind: k, VMs: vms, Hard: true}
}

func (r Rule) on(hosts ...model.HostID) Rule {
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, HostWeight{Host: h})
	}
	return r
}

// The contradictions that pairwise checks, and checks of the union of hosts, do
// not see.
func TestContradictionsThatFollow(t *testing.T) {
	domains := universe(4, 4)
	for i := range domains.Hosts {
		domains.Hosts[i].FailureDomain = []string{"a", "a", "b", "b"}[i]
	}
	disks := universe(3, 2)
	disks.VMs[0].Hosts = []model.HostID{"h1"}
	disks.VMs[1].Hosts = []model.HostID{"h2", "h3"}
	for _, c := range []struct {
		name   string
		u      Universe
		list   []Rule
		core   string // rules of the contradiction; the last is disabled
		reason string
	}{
		{"together-rules chain", universe(3, 3),
			[]Rule{hard("t1", Together, "v1", "v2"), hard("other", Together, "v3", "v2"), hard("a", Apart, "v1", "v3")},
			"t1 other a", "v1 and v3 must be apart by a and together by t1 and other"},
		{"two VMs apart, both tied to one host by rules of their own", universe(3, 2),
			[]Rule{hard("n1", OnHosts, "v1").on("h1"), hard("n2", OnHosts, "v2").on("h1"), hard("a", Apart, "v1", "v2")},
			"n1 n2 a", "2 VMs (v1 and v2) must be apart and have only 1 host (h1)"},
		{"a group apart larger than the hosts", universe(3, 4),
			[]Rule{hard("a", Apart, "v1", "v2", "v3", "v4")},
			"a", "4 VMs (v1, v2, v3 and v4) must be apart and have only 3 hosts"},
		{"a group apart whose union of hosts is large enough, but three share two", universe(5, 4),
			[]Rule{hard("a", Apart, "v1", "v2", "v3", "v4"), hard("n1", OnHosts, "v1", "v2").on("h1", "h2"), hard("n2", OnHosts, "v3").on("h1", "h2"), hard("n3", OnHosts, "v4").on("h3", "h4", "h5")},
			"a n1 n2", "3 VMs (v1, v2 and v3) must be apart and have only 2 hosts (h1 and h2)"},
		{"pairs that add up to a group", universe(3, 4),
			[]Rule{hard("p12", Apart, "v1", "v2"), hard("p13", Apart, "v1", "v3"), hard("p14", Apart, "v1", "v4"), hard("p23", Apart, "v2", "v3"), hard("p24", Apart, "v2", "v4"), hard("p34", Apart, "v3", "v4")},
			"p12 p13 p14 p23 p24 p34", "4 VMs"},
		{"together, on hosts that exclude each other", universe(3, 2),
			[]Rule{hard("t", Together, "v1", "v2"), hard("on", OnHosts, "v1").on("h1", "h2"), hard("off", OffHosts, "v2").on("h1", "h2")},
			"t on off", "no host is left for v1 and v2, which must be together"},
		{"apart by failure domain", domains,
			[]Rule{{Name: "racks", Kind: Apart, VMs: []string{"v1", "v2", "v3"}, Hard: true, Domains: true}},
			"racks", "have only 2 failure domains (a and b)"},
		{"together, with disks that no host reaches all of", disks,
			[]Rule{hard("t", Together, "v1", "v2")},
			"t", "no host is left for v1 and v2"},
		{"a cycle of five apart on two hosts", universe(2, 5),
			[]Rule{hard("c1", Apart, "v1", "v2"), hard("c2", Apart, "v2", "v3"), hard("c3", Apart, "v3", "v4"), hard("c4", Apart, "v4", "v5"), hard("c5", Apart, "v5", "v1")},
			"c1 c2 c3 c4 c5", "every one was tried"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Check(c.list, c.u, Options{})
			if len(r.Conflicts) != 1 {
				t.Fatalf("%d contradictions: %v", len(r.Conflicts), r.Conflicts)
			}
			x := r.Conflicts[0]
			core := strings.Fields(c.core)
			if !slices.Equal(x.Rules, core) || x.Disabled != core[len(core)-1] || !strings.Contains(x.Reason, c.reason) {
				t.Errorf("got %v, disabled %q, because %q", x.Rules, x.Disabled, x.Reason)
			}
			if len(r.Active) != len(c.list)-1 || slices.ContainsFunc(r.Active, func(a Rule) bool { return a.Name == x.Disabled }) {
				t.Errorf("in force: %v", names(r.Active))
			}
			if found, ok := r.Lookup(x.Disabled); !ok || found.Reason != x.Reason {
				t.Errorf("the report does not find why %s is disabled", x.Disabled)
			}
		})
	}
}

// Of the newest rules that contradict an older one each is disabled, the older
// ones stay.
func TestTheOlderRuleWins(t *testing.T) {
	r := Check([]Rule{
		hard("apart", Apart, "v1", "v2"), hard("together", Together, "v1", "v2"), hard("again", Together, "v2", "v1"), hard("fine", Together, "v2", "v3"),
	}, universe(2, 3), Options{})
	if got := names(r.Active); !slices.Equal(got, []string{"apart", "fine"}) || len(r.Conflicts) != 2 {
		t.Errorf("in force %v, contradictions %v", got, r.Conflicts)
	}
}

func TestRulesThatCannotHoldAfterAFailure(t *testing.T) {
	list := []Rule{hard("apart", Apart, "v1", "v2", "v3"), hard("licence", OnHosts, "v4").on("h1")}
	u := universe(4, 4)
	r := Check(list, u, Options{HostFailures: 1})
	if len(r.Conflicts) != 0 || len(r.Weak) != 1 || r.Weak[0].Rules[0] != "licence" || r.Weak[0].Lost[0] != "h1" || !strings.HasPrefix(r.Weak[0].Reason, "without h1: no host is left for v4") {
		t.Fatalf("with one failure: %+v", r)
	}
	if len(r.Active) != 2 {
		t.Errorf("a weakness disabled a rule")
	}
	r = Check(list, u, Options{HostFailures: 2})
	if len(r.Weak) != 2 {
		t.Errorf("with two failures: %v", r.Weak)
	}
}

func TestWishesInVain(t *testing.T) {
	wish := Rule{Name: "wish", Kind: OnHosts, VMs: []string{"v1", "v2"}}.on("h2")
	r := Check([]Rule{hard("must", OnHosts, "v1").on("h1"), wish}, universe(2, 2), Options{})
	if len(r.Vain) != 1 || r.Vain[0].Rule != "wish" || !slices.Equal(r.Vain[0].VMs, []string{"v1"}) || len(r.Active) != 2 {
		t.Errorf("got %+v", r)
	}
}

// A search that is not allowed to finish says so, and disables nothing.
func TestUndecidedIsSaid(t *testing.T) {
	var list []Rule
	vm := func(i int) string { return fmt.Sprintf("v%d", i%9+1) }
	for i := range 9 {
		list = append(list, hard(fmt.Sprintf("r%d", i), Apart, vm(i), vm(i+1)), hard(fmt.Sprintf("s%d", i), Apart, vm(i), vm(i+4)))
	}
	r := Check(list, universe(3, 9), Options{Work: 1})
	if len(r.Undecided) != 1 || len(r.Active) != len(list) {
		t.Errorf("got %+v", r)
	}
}

// Apart-rules in any pattern over VMs with hosts of their own: what needs search.
func TestColouringAgreesWithTryingEverything(t *testing.T) {
	often(t, func(t *rapid.T) {
		s := small{u: universe(3, 6)}
		var vmNames []string
		for i := range s.u.VMs {
			v := &s.u.VMs[i]
			vmNames = append(vmNames, v.Name)
			if rapid.IntRange(0, 3).Draw(t, "limited") == 0 {
				v.Hosts = [][]model.HostID{{"h1", "h2"}, {"h2", "h3"}, {"h3"}}[rapid.IntRange(0, 2).Draw(t, "hosts")]
			}
		}
		for i := range rapid.IntRange(4, 9).Draw(t, "rules") {
			p := rapid.Permutation(vmNames).Draw(t, "order")
			s.list = append(s.list, hard(fmt.Sprintf("rule%d", i), Apart, p[:rapid.SampledFrom([]int{2, 2, 2, 3}).Draw(t, "size")]...))
		}
		r := Check(s.list, s.u, Options{})
		if got, want := names(r.Active), names(s.elders()); !slices.Equal(got, want) || len(r.Undecided) > 0 {
			t.Fatalf("in force are %v, want %v; %+v", got, want, r)
		}
		for _, c := range r.Conflicts {
			s.irreducible(t, c)
		}
	})
}

// Large groups that only just do not fit cost no search.
func TestPigeonsAreCounted(t *testing.T) {
	const n = 24
	u := universe(n-1, n)
	var all []string
	for _, v := range u.VMs {
		all = append(all, v.Name)
	}
	var list []Rule
	for i := range all {
		for j := range i {
			list = append(list, hard(fmt.Sprintf("p%d-%d", j, i), Apart, all[j], all[i]))
		}
	}
	r := Check(list, u, Options{Work: 20_000})
	if len(r.Undecided) > 0 || len(r.Conflicts) != 1 || len(r.Conflicts[0].Rules) != n*(n-1)/2 {
		t.Errorf("undecided %v, contradictions %d", r.Undecided, len(r.Conflicts))
	}
}
