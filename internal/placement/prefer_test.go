package placement

import (
	"slices"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

func on(name string, k rules.Kind, hard bool, vms string, hosts ...rules.HostWeight) rules.Rule {
	return rules.Rule{Name: name, Kind: k, Hard: hard, VMs: strings.Fields(vms), Hosts: hosts}
}

func hw(h model.HostID, w int) rules.HostWeight { return rules.HostWeight{Host: h, Weight: w} }

func TestPreferences(t *testing.T) {
	hosts := func(change func(map[string]*Host)) []Host {
		m := map[string]*Host{}
		for _, n := range []string{"a", "b", "c", "d"} {
			m[n] = &Host{Name: model.HostID(n), Memory: 100}
		}
		if change != nil {
			change(m)
		}
		return []Host{*m["a"], *m["b"], *m["c"], *m["d"]}
	}
	quarantined := func(m map[string]*Host) { m["a"].Quarantine, m["b"].Quarantine, m["c"].Quarantine = true, true, true }
	dedicated := func(m map[string]*Host) { m["d"].DedicatedFailover = true }
	for _, c := range []struct {
		name    string
		change  func(map[string]*Host)
		rules   []rules.Rule
		running string // vm@host
		want    Want
		host    model.HostID
		broken  string
	}{
		{"the highest weight", nil, []rules.Rule{on("near", rules.OnHosts, false, "v", hw("b", 5), hw("c", 10), hw("d", 0))}, "", Want{}, "c", ""},
		{"the next weight when that one failed", nil, []rules.Rule{on("near", rules.OnHosts, false, "v", hw("b", 5), hw("c", 10))}, "",
			Want{Failed: map[model.HostID]int{"c": 1}}, "b", ""},
		{"equal weights by room, then name", nil, []rules.Rule{on("near", rules.OnHosts, true, "v", hw("b", 1), hw("c", 1), hw("d", 1))}, "x@b", Want{}, "c", ""},
		{"a weight of zero before hosts outside", nil, []rules.Rule{on("near", rules.OnHosts, false, "v", hw("d", 0))}, "", Want{}, "d", ""},
		{"outside rather than down", func(m map[string]*Host) { m["d"].Maintenance = true },
			[]rules.Rule{on("near", rules.OnHosts, false, "v", hw("d", 1))}, "", Want{}, "a", "near"},
		{"strict: down rather than outside", func(m map[string]*Host) { m["d"].Maintenance = true },
			[]rules.Rule{on("near", rules.OnHosts, true, "v", hw("d", 1))}, "", Want{}, "", ""},
		{"off hosts", nil, []rules.Rule{on("off", rules.OffHosts, false, "v", hw("a", 0), hw("b", 0))}, "", Want{}, "c", ""},
		{"the older preference wins", nil, []rules.Rule{on("old", rules.OnHosts, false, "v", hw("c", 0), hw("d", 0)), on("new", rules.OnHosts, false, "v", hw("a", 0), hw("d", 0))},
			"", Want{}, "d", ""},
		{"of preferences that differ the older", nil, []rules.Rule{on("old", rules.OnHosts, false, "v", hw("c", 0)), on("new", rules.OnHosts, false, "v", hw("a", 0))},
			"", Want{}, "c", "new"},
		{"apart if possible", nil, []rules.Rule{on("apart", rules.Apart, false, "v x y")}, "x@a y@b", Want{}, "c", ""},
		{"together if possible", nil, []rules.Rule{on("together", rules.Together, false, "v x")}, "x@d", Want{}, "d", ""},
		{"together by a chain", nil, []rules.Rule{on("t1", rules.Together, true, "v x"), on("t2", rules.Together, true, "x y")}, "y@d", Want{}, "d", ""},
		{"replicas in another failure domain", func(m map[string]*Host) {
			m["a"].FailureDomain, m["b"].FailureDomain, m["c"].FailureDomain, m["d"].FailureDomain = "r1", "r1", "r2", "r2"
		}, []rules.Rule{on("apart", rules.Apart, true, "v x")}, "x@a", Want{}, "c", ""},
		{"a host in quarantine last", quarantined, nil, "x@d", Want{}, "d", ""},
		{"a host in quarantine rather than down", func(m map[string]*Host) { quarantined(m); m["d"].Maintenance = true }, nil, "", Want{}, "a", ""},
		{"a restart takes the dedicated host", dedicated, nil, "", Want{}, "d", ""},
		{"and then any", dedicated, nil, "", Want{Failed: map[model.HostID]int{"d": 1}}, "a", ""},
		{"a start never takes it", dedicated, []rules.Rule{on("near", rules.OnHosts, false, "v", hw("d", 1))}, "", Want{Purpose: PowerOn}, "a", "near"},
		{"where it ran before", nil, nil, "x@c", Want{Prefer: "c"}, "c", ""},
		{"unless it failed there", nil, nil, "", Want{Prefer: "c", Failed: map[model.HostID]int{"c": 1}}, "a", ""},
		{"the holder of the lock only", nil, nil, "x@c", Want{Only: "c"}, "c", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(hosts(c.change), []VM{vm1("v", 10), vm1("x", 10), vm1("y", 10)}, c.rules)
			for _, r := range strings.Fields(c.running) {
				name, at, _ := strings.Cut(r, "@")
				must(t, s.Run(name, model.HostID(at)))
			}
			c.want.VM = "v"
			got := s.Place(c.want)
			if got.Host != c.host || strings.Join(got.Broken, " ") != c.broken {
				t.Errorf("got %+v, want %q, breaking %q", got, c.host, c.broken)
			}
			if plan := s.PlaceAll([]Want{c.want}); plan.Choices[0].Host != c.host {
				t.Errorf("a plan of it alone says %q, want %q", plan.Choices[0].Host, c.host)
			}
		})
	}
}

func TestRequirements(t *testing.T) {
	h := Host{Name: "h", Memory: 100, CPU: 1000, Datastores: []model.DatastoreName{"ds1"}, Networks: []string{"lan"}, CPUFeatures: []string{"avx"}, Hypervisor: 9_000_000, MaxVMs: 1}
	good := VM{Name: "v", Reservation: Resources{500, 50}, Overhead: Resources{100, 10}, Datastores: h.Datastores, Networks: h.Networks, CPUFeatures: h.CPUFeatures, MinHypervisor: 8_002_001}
	if got := New([]Host{h}, []VM{good}, nil).Place(Want{VM: "v"}); got.Host != "h" {
		t.Fatalf("got %+v", got)
	}
	for want, change := range map[string]func(*Host, *VM){
		"does not reach datastore ds2":                            func(_ *Host, v *VM) { v.Datastores = []model.DatastoreName{"ds1", "ds2"} },
		"has no network dmz":                                      func(_ *Host, v *VM) { v.Networks = []string{"dmz"} },
		"its processor has no vmx":                                func(_ *Host, v *VM) { v.CPUFeatures = []string{"vmx"} },
		"its hypervisor is version 9.0.0, the VM needs 10.0.2":    func(_ *Host, v *VM) { v.MinHypervisor = 10_000_002 },
		"its hypervisor is version unknown, the VM needs 8.2.1":   func(h *Host, _ *VM) { h.Hypervisor = 0 },
		"59 MiB free of 100 MiB, 60 MiB needed":                   func(h *Host, _ *VM) { h.Reserved.Memory = 41 },
		"599 MHz free of 1000 MHz, 600 MHz needed":                func(h *Host, _ *VM) { h.Reserved.CPU = 401 },
		"0 MHz free of 0 MHz, 600 MHz needed":                     func(h *Host, _ *VM) { h.CPU = 0 },
		"it is in maintenance":                                    func(h *Host, _ *VM) { h.Maintenance = true },
		"no heartbeat":                                            func(h *Host, _ *VM) { h.Unfit = "no heartbeat" },
		"it runs 1 VMs, the limit is 1":                           nil,
		"rule pair keeps it together with VMs on other":           nil,
		"rule racks keeps it apart from x in the same failure do": nil,
	} {
		hosts, v, list := []Host{h, {Name: "other", Memory: 1}}, good, []rules.Rule(nil)
		x := VM{Name: "x"}
		run := model.HostID("")
		switch {
		case change != nil:
			change(&hosts[0], &v)
		case strings.Contains(want, "limit"):
			run = "h"
		case strings.Contains(want, "pair"):
			list, run = []rules.Rule{on("pair", rules.Together, true, "v x")}, "other"
		default:
			hosts[0].FailureDomain, hosts[1].FailureDomain = "r", "r"
			list, run = []rules.Rule{{Name: "racks", Kind: rules.Apart, Hard: true, Domains: true, VMs: []string{"v", "x"}}}, "other"
		}
		s := New(hosts, []VM{v, x}, list)
		if run != "" {
			must(t, s.Run("x", run))
		}
		got := s.Place(Want{VM: "v"})
		if got.Host != "" || len(got.Refusals) != 2 || !strings.Contains(got.Refusals[0].Reason, want) {
			t.Errorf("want %q, got %+v", want, got)
		}
	}
}

// Preferences would spread the small VMs and leave no host for the large one.
func TestAPlanPacksWhenPreferencesLeaveOneOut(t *testing.T) {
	s := New([]Host{host1("a", 10, 0), host1("b", 10, 0)}, []VM{vm1("s1", 3), vm1("s2", 3), vm1("large", 10)}, nil)
	plan := s.PlaceAll([]Want{{VM: "s1"}, {VM: "s2"}, {VM: "large"}})
	if plan.Placed != 3 || !plan.Proven || plan.Choices[0].Host != plan.Choices[1].Host {
		t.Errorf("got %+v", plan)
	}
}

// What does not fit in all is left to those that come later.
func TestAPlanPlacesTheEarlierClassFirst(t *testing.T) {
	s := New([]Host{host1("a", 10, 0)}, []VM{vm1("large", 8), vm1("s1", 5), vm1("s2", 5)}, nil)
	plan := s.PlaceAll([]Want{{VM: "s1", Class: 1}, {VM: "s2", Class: 1}, {VM: "large", Class: 0}})
	if plan.Choices[2].Host != "a" || plan.Placed != 1 || !plan.Proven || !strings.Contains(DescribeRefusals(plan.Choices[0].Refusals), "a: 2 MiB free of 10 MiB, 5 MiB needed") {
		t.Errorf("got %+v", plan)
	}
}

func TestAPlanKeepsGroupsOnOneHost(t *testing.T) {
	list := []rules.Rule{on("pair", rules.Together, true, "v x"), on("apart", rules.Apart, true, "x y")}
	s := New([]Host{host1("a", 10, 0), host1("b", 9, 0)}, []VM{vm1("v", 6), vm1("x", 4), vm1("y", 1)}, list)
	plan := s.PlaceAll([]Want{{VM: "y"}, {VM: "v"}, {VM: "x"}})
	got := []string{string(plan.Choices[0].Host), string(plan.Choices[1].Host), string(plan.Choices[2].Host)}
	if !slices.Equal(got, []string{"b", "a", "a"}) {
		t.Errorf("got %v", got)
	}
	must(t, s.Run("y", "a"))
	plan = s.PlaceAll([]Want{{VM: "v"}, {VM: "x"}})
	if plan.Placed != 0 || !strings.Contains(DescribeRefusals(plan.Choices[0].Refusals), "10 MiB needed by it and the VMs that rule pair keeps together with it") {
		t.Errorf("got %+v", plan)
	}
}

func TestUnknownNamesAreSaid(t *testing.T) {
	s := New(nil, nil, nil)
	if err := s.Run("v", "h"); err == nil || !strings.Contains(err.Error(), `no VM "v"`) {
		t.Error(err)
	}
	s.SetVM(vm1("v", 1))
	if err := s.Run("v", "h"); err == nil || !strings.Contains(err.Error(), `no host "h"`) {
		t.Error(err)
	}
	s.SetHost(host1("h", 1, 0))
	if err := s.Move("v", "h"); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Error(err)
	}
	for _, list := range [][]Refusal{s.Place(Want{VM: "w"}).Refusals, s.PlaceAll([]Want{{VM: "w"}}).Choices[0].Refusals, s.WhyNot(Want{VM: "w"})} {
		if len(list) != 1 || DescribeRefusals(list) != `any host: no VM "w" is known` {
			t.Errorf("got %v", list)
		}
	}
}

// A failure domain is lost as a whole.
func TestSurvivesDomains(t *testing.T) {
	hosts := []Host{host1("a", 10, 0), host1("b", 10, 0), host1("c", 10, 0)}
	hosts[0].FailureDomain, hosts[1].FailureDomain = "r1", "r1"
	s := New(hosts, []VM{vm1("v", 6), vm1("x", 6)}, nil)
	must(t, s.Run("v", "a"))
	must(t, s.Run("x", "b"))
	if got := s.Survives(Failures{Hosts: 1}); got.Verdict != Yes || got.Checked != 3 {
		t.Errorf("one host: %+v", got)
	}
	got := s.Survives(Failures{Domains: 1})
	if got.Verdict != No || !slices.Equal(got.Lost, []model.HostID{"a", "b"}) || got.Reason != "2 VMs need 12 MiB of memory, the hosts that can take them have 10 free in all" {
		t.Errorf("one domain: %+v", got)
	}
}

// Far more combinations than the bound allows to look at, but room for all.
func TestSurvivesCountsWhenThereAreTooMany(t *testing.T) {
	var hosts []Host
	var vms []VM
	for i := range 40 {
		hosts = append(hosts, host1(string(rune('a'+i/26))+string(rune('a'+i%26)), 100, 0))
		vms = append(vms, vm1("v"+string(hosts[i].Name), 30))
	}
	s := New(hosts, vms, nil)
	for i := range hosts {
		must(t, s.Run(vms[i].Name, hosts[i].Name))
	}
	got := s.Survives(Failures{Hosts: 4, Work: 1000})
	if got.Verdict != Yes || !got.Counted {
		t.Errorf("got %+v", got)
	}
	for i := range hosts {
		hosts[i].Reserved.Memory = 69
		s.SetHost(hosts[i])
	}
	if got := s.Survives(Failures{Hosts: 4, Work: 1000}); got.Verdict == Yes {
		t.Errorf("without room: %+v", got)
	}
}
