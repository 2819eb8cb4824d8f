package snapshot

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

const file = `version: 1
name: test
ha:
  admission: {policy: slots, hostFailures: 2, failureDomains: 1, cpuPercent: 10, memoryPercent: 20, degradation: 30}
  options: {das.slotCpuInMHz: 500, das.slotMemInMB: 600, das.vmMemoryMinMB: 64, das.perHostConcurrentFailoversLimit: 3}
networks: [{name: mgmt, heartbeat: true}, {name: lan}]
datastores: [{name: ds1}, {name: ds2}]
hosts:
- {name: h1, address: {mgmt: 10.0.0.1}, networks: [lan], cpu: {cores: 4, mhz: 2000, features: [avx]}, memory: 16GiB, reserved: {cpu: 1GHz, memory: 1GiB},
   maxVMs: 9, hypervisor: 10.0.2, datastores: [ds1, ds2], groups: [rack-a], failureDomain: ra, quarantine: true}
- {name: h2, address: {mgmt: 10.0.0.2}, memory: 8GiB, datastores: [ds1], groups: [rack-b], maintenance: true}
- {name: h3, address: {mgmt: 10.0.0.3}, memory: 8GiB, datastores: [ds1], groups: [rack-b, spare], dedicatedFailover: true}
vms:
- {name: web, host: h1, datastore: ds1, disksOn: [ds2], networks: [lan], cpuFeatures: [avx], minHypervisor: "9.0", memory: 4GiB, groups: [front],
   reservation: {cpu: 500MHz}, overhead: {memory: 100MiB}, usage: {cpu: 900MHz, memory: 2GiB}}
- {name: db, host: h3, datastore: ds1, memory: 4GiB, reservation: {memory: 1GiB}, groups: [back, front]}
- {name: old, host: h3, datastore: ds1, memory: 1GiB, requested: stopped}
- {name: low, host: h3, datastore: ds1, memory: 1GiB, restart: {priority: disabled}}
rules:
- {name: weights, kind: nodeAffinity, vms: [web], hosts: {h3: 0, h1: 10}, strict: true}
- {name: should, kind: vmHost, vmGroups: [front], hostGroups: [rack-b, spare]}
- {name: never, kind: vmHost, vms: [db, web], vmGroups: [back], hostGroups: [spare], must: true, avoid: true}
- {name: racks, kind: resourceAffinity, vmGroups: [front], policy: apart, scope: failureDomain}
- {name: wish, kind: resourceAffinity, vms: [db, old], policy: together, preferred: true}
`

func parse(t *testing.T, text string) *config.Cluster {
	t.Helper()
	c, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Both vocabularies come out in the one form of package rules.
func TestRules(t *testing.T) {
	h := func(name model.HostID, w int) rules.HostWeight { return rules.HostWeight{Host: name, Weight: w} }
	want := []rules.Rule{
		{Name: "weights", Kind: rules.OnHosts, VMs: []string{"web"}, Hosts: []rules.HostWeight{h("h1", 10), h("h3", 0)}, Hard: true},
		{Name: "should", Kind: rules.OnHosts, VMs: []string{"web", "db"}, Hosts: []rules.HostWeight{h("h2", 0), h("h3", 0)}},
		{Name: "never", Kind: rules.OffHosts, VMs: []string{"db", "web"}, Hosts: []rules.HostWeight{h("h3", 0)}, Hard: true},
		{Name: "racks", Kind: rules.Apart, VMs: []string{"web", "db"}, Hard: true, Domains: true},
		{Name: "wish", Kind: rules.Together, VMs: []string{"db", "old"}},
	}
	if diff := cmp.Diff(want, Rules(parse(t, file))); diff != "" {
		t.Error(diff)
	}
}

func TestHostsAndVMs(t *testing.T) {
	c := parse(t, file)
	wantHost := placement.Host{Name: "h1", CPU: 8000, Memory: 16384, Reserved: placement.Resources{CPU: 1000, Memory: 1024}, MaxVMs: 9, StartLimit: 3,
		Datastores: []model.DatastoreName{"ds1", "ds2"}, Networks: []string{"lan", "mgmt"}, CPUFeatures: []string{"avx"}, Hypervisor: 10_000_002, FailureDomain: "ra", Quarantine: true}
	if diff := cmp.Diff(wantHost, Hosts(c)[0]); diff != "" {
		t.Error(diff)
	}
	if h := Hosts(c); !h[1].Maintenance || !h[2].DedicatedFailover {
		t.Error("marks are lost")
	}
	wantVM := placement.VM{Name: "web", Reservation: placement.Resources{CPU: 500, Memory: 4096}, Overhead: placement.Resources{Memory: 100}, Usage: placement.Resources{CPU: 900, Memory: 2048},
		Datastores: []model.DatastoreName{"ds1", "ds2"}, Networks: []string{"lan"}, CPUFeatures: []string{"avx"}, MinHypervisor: 9_000_000}
	vms := VMs(c)
	if diff := cmp.Diff(wantVM, vms[0]); diff != "" {
		t.Error(diff)
	}
	if vms[1].Reservation.Memory != 1024 || vms[1].NoRestart || !vms[2].NoRestart || !vms[3].NoRestart {
		t.Errorf("got %+v", vms[1:])
	}
	wantPolicy := admission.Policy{Kind: admission.Slots, HostFailures: 2, FailureDomains: 1, CPUPercent: 10, MemoryPercent: 20, Degradation: 30, MinCPU: 32, MinMemory: 64, SlotCPU: 500, SlotMemory: 600}
	if diff := cmp.Diff(wantPolicy, Policy(c)); diff != "" {
		t.Error(diff)
	}
}

func TestStateRunsWhatIsToBeStarted(t *testing.T) {
	s := State(parse(t, file), nil)
	for vm, want := range map[string]model.HostID{"web": "h1", "db": "h3", "old": "", "low": "h3"} {
		if on, _ := s.On(vm); on != want {
			t.Errorf("%s runs on %q, want %q", vm, on, want)
		}
	}
}

// Disks count for the check of rules: web reaches both its datastores on h1 alone.
func TestCheckKnowsWhereDisksAre(t *testing.T) {
	c := parse(t, strings.Replace(file, "policy: apart, scope: failureDomain", "policy: together", 1))
	r := Check(c, rules.Options{})
	if len(r.Conflicts) != 0 {
		t.Fatalf("got %v", r.Conflicts)
	}
	c.Hosts[0].Datastores = []model.DatastoreName{"ds2"}
	r = Check(c, rules.Options{})
	if len(r.Homeless) != 1 || r.Homeless[0].VMs[0] != "web" {
		t.Errorf("got %+v", r)
	}
	// A host in maintenance comes back: rules count it.
	m := parse(t, file)
	m.Rules = []config.Rule{{Name: "there", Kind: config.RuleNodeAffinity, VMs: []string{"db"}, Hosts: map[model.HostID]int{"h2": 1}, Strict: true}}
	if r := Check(m, rules.Options{}); len(r.Conflicts) > 0 {
		t.Errorf("got %v", r.Conflicts)
	}
}

func TestForRestart(t *testing.T) {
	c := parse(t, file)
	o := config.Options{}
	if got := ForRestart(Rules(c), o); !cmp.Equal(got, Rules(c)) {
		t.Errorf("by default rules change: %v", got)
	}
	for k, v := range map[string]string{"das.respectVmVmAntiAffinityRules": "false", "das.respectVmHostSoftAffinityRules": "false"} {
		if err := o.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	got := ForRestart(Rules(c), o)
	if slices.ContainsFunc(got, func(r rules.Rule) bool { return r.Name == "should" || r.Name == "racks" && r.Hard }) || len(got) != 4 {
		t.Errorf("got %+v", got)
	}
}
