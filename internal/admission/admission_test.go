package admission

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

func host(name string, cpu model.MHz, mem model.MiB) placement.Host {
	return placement.Host{Name: model.HostID(name), CPU: cpu, Memory: mem}
}

func vm(name string, cpu model.MHz, mem model.MiB) placement.VM {
	return placement.VM{Name: name, Reservation: placement.Resources{CPU: cpu, Memory: mem}}
}

// state makes a State from hosts and "vm cpu memory host" lines; "-" is no host.
func state(t *testing.T, hosts []placement.Host, lines ...string) *placement.State {
	t.Helper()
	var vms []placement.VM
	on := map[string]model.HostID{}
	for _, l := range lines {
		var name, at string
		var cpu model.MHz
		var mem model.MiB
		if _, err := fmt.Sscan(l, &name, &cpu, &mem, &at); err != nil {
			t.Fatal(l, err)
		}
		vms = append(vms, vm(name, cpu, mem))
		if at != "-" {
			on[name] = model.HostID(at)
		}
	}
	s := placement.New(hosts, vms, nil)
	for name, at := range on {
		if err := s.Run(name, at); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func want(t *testing.T, r Report, v placement.Verdict, words ...string) {
	t.Helper()
	all := r.Reason + "\n" + strings.Join(r.Help, "\n") + "\n" + strings.Join(r.Warnings, "\n")
	if r.Verdict != v || r.Answer != v.String() {
		t.Errorf("the answer is %s, want %s: %s", r.Answer, v, all)
	}
	for _, w := range words {
		if !strings.Contains(all, w) {
			t.Errorf("%q is not said in: %s", w, all)
		}
	}
}

func three() []placement.Host {
	return []placement.Host{host("h1", 9000, 9000), host("h2", 9000, 6000), host("h3", 6000, 6000)}
}

// The worked example of slots: the largest reservations make the slot, each
// resource by itself; the smaller of the two floors counts.
func TestSlots(t *testing.T) {
	s := state(t, three(), "v1 2000 1000 h1", "v2 2000 1000 h1", "v3 1000 2000 h2", "v4 1000 1000 h2", "v5 1000 1000 h3")
	want(t, Check(s, Policy{Kind: Slots, HostFailures: 1, MinCPU: 32, Degradation: 100}), placement.Yes,
		"a slot is 2000 MHz and 2000 MiB; 6 are left without the 1 largest hosts, 5 are in use")
	d := Decide(s, Policy{Kind: Slots, HostFailures: 2, MinCPU: 32, Degradation: 100}, Request{Action: PowerOn, VM: vm("v6", 0, 0)})
	want(t, d.Report, placement.No, "3 are left without the 2 largest", "6 are in use", "das.slotCpuInMHz")
	if d.Allowed {
		t.Error("it was allowed")
	}
	// A bound makes the slot smaller, and large VMs take several.
	want(t, Check(s, Policy{Kind: Slots, HostFailures: 1, MinCPU: 32, SlotCPU: 1000, SlotMemory: 1000, Degradation: 100}), placement.Yes,
		"a slot is 1000 MHz and 1000 MiB; 12 are left", "8 are in use")
	// The scarcer resource decides how many slots a host has: h1 has one, h2 four.
	scarce := state(t, []placement.Host{host("h1", 1500, 9000), host("h2", 9000, 4000)}, "v1 1000 1000 h1")
	want(t, Check(scarce, Policy{Kind: Slots, HostFailures: 1, MinCPU: 32, Degradation: 100}), placement.Yes, "1 are left without the 1 largest")
	// Without reservations the least processor counts.
	idle := state(t, three(), "v1 0 100 h1")
	want(t, Check(idle, Policy{Kind: Slots, HostFailures: 1, MinCPU: 32, Degradation: 100}), placement.Yes, "a slot is 32 MHz and 100 MiB")
}

func TestPercentage(t *testing.T) {
	s := state(t, three(), "v1 7000 6000 h1", "v2 2000 1000 h1", "v3 1000 2000 h3", "v4 1000 1000 h3", "v5 1000 1000 h2")
	p := Policy{Kind: Percentage, HostFailures: 1, CPUPercent: 25, MemoryPercent: 25, MinCPU: 32, Degradation: 100}
	// 24,000 MHz and 21,000 MiB; 12,000 MHz and 11,000 MiB are reserved.
	want(t, Check(s, p), placement.Yes, "50.0 % of 24000 MHz", "47.6 % of 21000 MiB", "25.0 % is to be kept")
	d := Decide(s, p, Request{Action: Reserve, VM: vm("v5", 7001, 1000)})
	want(t, d.Report, placement.No, "after a reservation of 7001 MHz and 1000 MiB for v5", "free 1 MHz of reservations")
	if d := Decide(s, p, Request{Action: Reserve, VM: vm("v5", 7000, 1000)}); !d.Allowed {
		t.Errorf("exactly the share that is to be kept stays free, but: %s", d.Reason)
	}
	// Computed: the share of the largest host in each resource.
	p.CPUPercent, p.MemoryPercent = 0, 0
	want(t, Check(s, p), placement.Yes, "37.5 % is to be kept", "42.9 % is to be kept")
	unknown := state(t, []placement.Host{host("h1", 0, 0)}, "v1 0 100 h1")
	want(t, Check(unknown, p), placement.Unknown, "the hosts' memory is not known")
}

func TestDedicated(t *testing.T) {
	hosts := three()
	hosts[0].DedicatedFailover = true
	s := state(t, hosts, "v1 0 5000 h2", "v2 0 5000 h3", "v3 0 100 -")
	p := Policy{Kind: Dedicated, HostFailures: 1, Degradation: 100}
	want(t, Check(s, p), placement.Yes, "1 dedicated failover hosts are free (h1)")
	d := Decide(s, p, Request{Action: PowerOn, VM: vm("v3", 0, 2000)})
	want(t, d.Report, placement.No, "h1: it is kept free for failover", "h2, h3: 1000 MiB free")
	if got := s.Place(placement.Want{VM: "v3"}); got.Host != "h1" {
		t.Errorf("a restart goes to %q first, want the dedicated host", got.Host)
	}
	want(t, Decide(s, p, Request{Action: Maintenance, Host: "h1"}).Report, placement.No, "0 dedicated failover hosts are free (none), 1 are to be")
	if err := s.Run("v3", "h1"); err != nil {
		t.Fatal(err)
	}
	want(t, Check(s, p), placement.No, "h1 runs v3")
}

func TestExactSaysWhatIsMissingAndWhatHelps(t *testing.T) {
	hosts := []placement.Host{host("h1", 0, 10), host("h2", 0, 10), host("h3", 0, 10)}
	p := Policy{Kind: Exact, HostFailures: 1, Degradation: 100}
	s := state(t, hosts, "a 0 6 h1", "b 0 3 h2", "c 0 3 h3", "d 0 3 h3", "e 0 2 -")
	want(t, Check(s, p), placement.Yes, "a placement was found for each of 3 combinations")
	// h2 has the most room, but a would find none there any more.
	d := Decide(s, p, Request{Action: PowerOn, VM: vm("e", 0, 2)})
	if !d.Allowed || d.Host != "h1" {
		t.Fatalf("e is to start on %q: %s", d.Host, d.Reason)
	}
	d = Decide(s, p, Request{Action: PowerOn, VM: vm("e", 0, 4), Host: "h2"})
	want(t, d.Report, placement.No, "after the start of e", "without h1 a finds no place", "h2: 3 MiB free of 10 MiB, 6 MiB needed",
		"add a host like h1", "set ha.admission.hostFailures to 0", "move b from h2 to h3")
	if d.Allowed {
		t.Error("it was allowed")
	}
}

// Moves that would help after one loss are no help if another remains.
func TestHelpIsTried(t *testing.T) {
	hosts := []placement.Host{host("h1", 0, 10), host("h2", 0, 10), host("h3", 0, 10), host("h4", 0, 10)}
	s := state(t, hosts, "a 0 6 h1", "b 0 3 h2", "e 0 4 h2", "c 0 3 h3", "d 0 3 h3", "whole 0 10 h4")
	r := Check(s, Policy{Kind: Exact, HostFailures: 1, Degradation: 100})
	want(t, r, placement.No, "without h1 a finds no place", "add a host like h1")
	if strings.Contains(strings.Join(r.Help, " "), "move") {
		t.Errorf("moves would not help with the loss of h4: %v", r.Help)
	}
}

func TestExactCountsRules(t *testing.T) {
	hosts := []placement.Host{host("h1", 0, 10), host("h2", 0, 10), host("h3", 0, 10)}
	s := state(t, hosts, "a 0 1 h1", "b 0 1 h2", "c 0 1 -")
	s.SetRules([]rules.Rule{{Name: "replicas", Kind: rules.Apart, Hard: true, VMs: []string{"a", "b", "c"}}})
	p := Policy{Kind: Exact, HostFailures: 1, Degradation: 100}
	want(t, Check(s, p), placement.Yes)
	want(t, Decide(s, p, Request{Action: PowerOn, VM: vm("c", 0, 1)}).Report, placement.No, "rule replicas keeps it apart from b", "give up rule replicas", "add a host like")
}

// A check whose bound is too small says so, and counts as no.
func TestUnknownCountsAsNo(t *testing.T) {
	hosts := []placement.Host{host("h1", 0, 10), host("h2", 0, 10), host("h3", 0, 10)}
	s := state(t, hosts, "a 0 5 h1", "b 0 5 h1")
	s.SetRules([]rules.Rule{{Name: "apart", Kind: rules.Apart, Hard: true, VMs: []string{"a", "c"}}})
	d := Decide(s, Policy{Kind: Exact, HostFailures: 1, Degradation: 100, Work: 1}, Request{Action: Adopt, VM: vm("c", 0, 1), Host: "h2"})
	want(t, d.Report, placement.Unknown, "was not decided, which counts as no", "the search ended at its bound")
	if d.Allowed {
		t.Error("it was allowed")
	}
}

func TestMaintenanceNeedsPlacesForAll(t *testing.T) {
	hosts := []placement.Host{host("h1", 0, 10), host("h2", 0, 10), host("h3", 0, 10)}
	s := state(t, hosts, "a 0 6 h1", "b 0 6 h2", "c 0 6 h3")
	p := Policy{Kind: Exact, HostFailures: 1, Degradation: 100}
	d := Decide(s, p, Request{Action: Maintenance, Host: "h1"})
	want(t, d.Report, placement.No, "a would have to leave h1 and has no place", "stop a, or make room")
	small := state(t, hosts, "a 0 2 h1", "b 0 2 h2")
	if d := Decide(small, p, Request{Action: Maintenance, Host: "h1"}); !d.Allowed {
		t.Errorf("refused: %s", d.Reason)
	}
	two := state(t, hosts[:2], "a 0 2 h1", "b 0 2 h2")
	want(t, Decide(two, p, Request{Action: Maintenance, Host: "h1"}).Report, placement.No, "after maintenance of h1: without h2")
}

func TestDegradationWarnsOnly(t *testing.T) {
	s := state(t, []placement.Host{host("h1", 1000, 100), host("h2", 1000, 100)}, "a 0 1 h1", "b 0 1 h2")
	for _, name := range []string{"a", "b"} {
		v, _ := s.VM(name)
		v.Usage = placement.Resources{CPU: 600, Memory: 10}
		s.SetVM(v)
	}
	p := Policy{Kind: Exact, HostFailures: 1}
	want(t, Check(s, p), placement.Yes, "after 1 host failures 1000 MHz of processor are left for VMs that use 1200 MHz now; 0 % less are tolerated")
	p.Degradation = 20
	if r := Check(s, p); len(r.Warnings) > 0 {
		t.Errorf("17 %% less is tolerated, but: %v", r.Warnings)
	}
}

// Whatever is asked, a restart is allowed, the State stays as it was, and a
// request of a policy that is off is allowed.
func TestDecisionsLeaveTheStateAlone(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var hosts []placement.Host
		for i := range rapid.IntRange(1, 4).Draw(rt, "hosts") {
			h := host(fmt.Sprintf("h%d", i), 10, model.MiB(rapid.IntRange(1, 10).Draw(rt, "memory")))
			h.DedicatedFailover, h.Maintenance = rapid.IntRange(0, 4).Draw(rt, "dedicated") == 0, rapid.IntRange(0, 6).Draw(rt, "maintenance") == 0
			hosts = append(hosts, h)
		}
		var vms []placement.VM
		var list []rules.Rule
		for i := range rapid.IntRange(1, 5).Draw(rt, "vms") {
			vms = append(vms, vm(fmt.Sprintf("v%d", i), model.MHz(rapid.IntRange(0, 3).Draw(rt, "cpu")), model.MiB(rapid.IntRange(0, 5).Draw(rt, "mem"))))
		}
		if len(vms) > 1 {
			list = []rules.Rule{{Name: "r", Kind: rules.Kind(rapid.IntRange(2, 3).Draw(rt, "kind")), Hard: true, VMs: []string{"v0", "v1"}}}
		}
		s := placement.New(hosts, vms, list)
		for _, v := range vms {
			if rapid.Bool().Draw(rt, "runs") {
				_ = s.Run(v.Name, hosts[rapid.IntRange(0, len(hosts)-1).Draw(rt, "on")].Name)
			}
		}
		p := Policy{Kind: rapid.SampledFrom([]Kind{Exact, Percentage, Slots, Dedicated, Off}).Draw(rt, "policy"), HostFailures: rapid.IntRange(0, 2).Draw(rt, "n"), Degradation: 100}
		r := Request{Action: rapid.SampledFrom([]Action{PowerOn, Adopt, Reserve, Maintenance, Restart}).Draw(rt, "action"),
			VM: vm(fmt.Sprintf("v%d", rapid.IntRange(0, 5).Draw(rt, "vm")), 1, model.MiB(rapid.IntRange(0, 9).Draw(rt, "need"))), Host: hosts[0].Name}
		before := dump(s)
		d := Decide(s, p, r)
		if after := dump(s); after != before {
			rt.Fatalf("%+v changed the State:\n%s\n%s", r, before, after)
		}
		if (r.Action == Restart || p.Kind == Off) && !d.Allowed {
			rt.Fatalf("%+v is refused: %s", r, d.Reason)
		}
		if d.Reason == "" || d.Allowed != (d.Verdict == placement.Yes) || d.Answer != d.Verdict.String() {
			rt.Fatalf("%+v: %+v", r, d)
		}
	})
}

func dump(s *placement.State) string {
	var out []string
	for _, h := range s.Hosts() {
		_, free, _ := s.Host(h.Name)
		out = append(out, fmt.Sprint(h, free))
	}
	for _, name := range s.VMs() {
		v, _ := s.VM(name)
		on, to := s.On(name)
		out = append(out, fmt.Sprintf("%v on %q to %q", v, on, to))
	}
	for _, r := range s.Rules() {
		out = append(out, r.Name)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
