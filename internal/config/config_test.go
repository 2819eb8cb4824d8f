package config

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/model"
)

const full = `
version: 7
name: seoul-1
ha:
  enabled: true
  hostMonitoring: true
  timing: {interval: 500ms, lease: 6s, margin: 1500ms, watchdog: 3s}
  isolationResponse: none
  isolationDelay: 5s
  storage: {apd: restartConservative, apdTimeout: 30s, apdDelay: 0s, apdRecovery: none, pdl: restart}
  vmMonitoring: {mode: vm, sensitivity: high}
  admission: {policy: off, hostFailures: 1}
  options: {das.isolationaddress0: gw.example, perhostconcurrentfailoverslimit: 4, das.isolationShutdownTimeout: 2m}
networks:   [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}, {name: vm}]
datastores: [{name: ds1, backing: array-a}, {name: ds2, backing: array-b, path: /mnt/two, uuid: 6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55, fence: none, unfenced: accept}]
hosts:
- {name: host1, address: {mgmt: 10.99.0.11, hb2: 10.99.1.11}, cpu: {cores: 4, mhz: 2000}, memory: 16GiB,
   datastores: [ds1, ds2], groups: [rack-a], failureDomain: rack-a, maintenance: false}
- {name: host2, address: {mgmt: "fd00::12"}, cpu: {cores: 4, mhz: 2000}, memory: 16GiB, datastores: [ds1, ds2]}
vms:
- {name: web, type: vm, host: host1, datastore: ds1, disksOn: [ds2], cpus: 2, memory: 4GiB,
   reservation: {cpu: 500MHz, memory: 4GiB}, usage: {cpu: 900MHz, memory: 2GiB},
   requested: started,
   restart: {priority: high, readyWhen: guestHeartbeat, delay: 0s, timeout: 600s, maxRestart: 1, maxRelocate: 1, failback: true},
   dependsOn: [dns], boot: 10s}
- {name: dns, datastore: ds1, restart: {priority: highest}}
- {name: db1, datastore: ds1}
rules:
- {name: near-licence, kind: nodeAffinity, vms: [web], hosts: {host1: 10, host2: 5}, strict: false}
- {name: apart,        kind: resourceAffinity, vms: [db1, dns], policy: apart}
- {name: must-rack-a,  kind: vmHost, vms: [web], hostGroups: [rack-a], must: true}
`

func mustParse(t *testing.T, s string) *Cluster {
	t.Helper()
	c, err := Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseReadsEveryField(t *testing.T) {
	c := mustParse(t, full)
	want := &Cluster{
		Version: 7, ID: "seoul-1", Name: "seoul-1",
		HA: HA{Enabled: true, HostMonitoring: true,
			Timing: Timing{Values: model.Timing{Interval: 500 * time.Millisecond, Lease: 6 * time.Second,
				Margin: 1500 * time.Millisecond, Watchdog: 3 * time.Second, WatchdogMax: 4 * time.Second}},
			IsolationResponse: "none", HostShutdown: "restartElsewhere", IsolationDelay: 5 * time.Second,
			Storage:      Storage{APD: "restartConservative", APDTimeout: 30 * time.Second, APDRecovery: "none", PDL: "restart"},
			VMMonitoring: VMMonitoring{Mode: "vm", Sensitivity: "high"},
			Admission:    Admission{Policy: "off", HostFailures: 1, Degradation: 100}, MassFailurePercent: 50,
			Options: Options{"das.isolationaddress0": "gw.example", "das.perHostConcurrentFailoversLimit": "4", "das.isolationShutdownTimeout": "120"},
		},
		Networks: []Network{{"mgmt", true}, {"hb2", true}, {"vm", false}},
		Datastores: []Datastore{{Name: "ds1", Backing: "array-a", Path: "/srv/ds1", Fence: "reset"},
			{Name: "ds2", Backing: "array-b", Path: "/mnt/two", UUID: "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", Fence: "none", Unfenced: "accept"}},
		Hosts: []Host{{Name: "host1", Address: map[string]netip.Addr{"mgmt": netip.MustParseAddr("10.99.0.11"), "hb2": netip.MustParseAddr("10.99.1.11")},
			CPU: CPU{Cores: 4, MHz: 2000}, Memory: 16384, Datastores: []model.DatastoreName{"ds1", "ds2"}, Groups: []string{"rack-a"}, FailureDomain: "rack-a"},
			{Name: "host2", Address: map[string]netip.Addr{"mgmt": netip.MustParseAddr("fd00::12")},
				CPU: CPU{Cores: 4, MHz: 2000}, Memory: 16384, Datastores: []model.DatastoreName{"ds1", "ds2"}}},
		VMs: []VM{{Name: "web", Type: "vm", Host: "host1", Datastore: "ds1", DisksOn: []model.DatastoreName{"ds2"}, CPUs: 2, Memory: 4096,
			Reservation: Resources{500, 4096}, Usage: Resources{900, 2048}, Requested: "started",
			Restart:   Restart{Priority: "high", ReadyWhen: "guestHeartbeat", Timeout: 600 * time.Second, MaxRestart: 1, MaxRelocate: 1, Failback: true},
			DependsOn: []string{"dns"}, Boot: 10 * time.Second},
			withDefaults("dns", "highest"), withDefaults("db1", "medium")},
		Rules: []Rule{{Name: "near-licence", Kind: "nodeAffinity", VMs: []string{"web"}, Hosts: map[model.HostID]int{"host1": 10, "host2": 5}},
			{Name: "apart", Kind: "resourceAffinity", VMs: []string{"db1", "dns"}, Policy: "apart"},
			{Name: "must-rack-a", Kind: "vmHost", VMs: []string{"web"}, HostGroups: []string{"rack-a"}, Must: true}},
	}
	if diff := cmp.Diff(want, c, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func withDefaults(name string, p model.Priority) VM {
	v := defaultVM()
	v.Name, v.Datastore, v.Restart.Priority = name, "ds1", p
	return v
}

func TestProblemsNameFieldAndRemedy(t *testing.T) {
	const head = "version: 1\nname: c\n"
	const two = head + "networks: [{name: mgmt, heartbeat: true}]\ndatastores: [{name: ds1}, {name: ds2}]\n"
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", "the file is empty"},
		{"not yaml", "a: [", "did not find expected"},
		{"duplicate key", head + "name: d\n", "already set"},
		{"two documents", head + "---\nversion: 2\n", "one YAML document"},
		{"no version", "name: c\n", "version: is required"},
		{"version zero", "version: 0\nname: c", "version: 0 is no whole number from 1"},
		{"unknown field", head + "hosts: [{name: a}, {name: b, memroy: 1GiB}]", `hosts[1].memroy: unknown field; did you mean "memory"?`},
		{"unknown top field", head + "datastore: []", `did you mean "datastores"?`},
		{"name as number", "version: 1\nname: 12", "name: 12 is no text; put it in quotes"},
		{"no unit", head + "hosts: [{name: a, memory: 16}]", "hosts[0].memory: \"16\" has no unit; write for example 512MiB or 16GiB"},
		{"decimal unit", head + "hosts: [{name: a, memory: 16GB}]", "has no known unit"},
		{"not whole", head + "hosts: [{name: a, memory: 262152KiB}]", "no whole number of MiB"},
		{"duration without unit", head + "ha: {isolationDelay: 5}", `ha.isolationDelay: "5" has no unit; write for example 5s`},
		{"word", head + "ha: {isolationResponse: poweroff}", "use one of none, powerOff, shutdown"},
		{"profile", head + "ha: {timing: quick}", "ha.timing: unknown profile"},
		{"timing bound", head + "ha: {timing: {interval: 1s, lease: 5s, margin: 100ms, watchdog: 3s}}", "timing.margin 100ms: must be at least"},
		{"timing incomplete", head + "ha: {timing: {interval: 1s}}", "ha.timing.lease: is required"},
		{"duplicate host", head + "hosts: [{name: a}, {name: a}]", `hosts[1].name: host "a" is at hosts[0].name already`},
		{"bad host name", head + "hosts: [{name: a/b}]", "hosts[0].name: host name \"a/b\""},
		{"bad address", two + "hosts: [{name: a, address: {mgmt: host.example}}]", "hosts[0].address.mgmt: \"host.example\" is no address"},
		{"shared address", two + "hosts: [{name: a, address: {mgmt: 10.0.0.1}}, {name: b, address: {mgmt: 10.0.0.1}}]", "hosts[1].address.mgmt: address"},
		{"mapped address", two + "hosts: [{name: a, address: {mgmt: 10.0.0.1}}, {name: b, address: {mgmt: \"::ffff:10.0.0.1\"}}]", "hosts[1].address.mgmt: address"},
		{"multicast", two + "hosts: [{name: a, address: {mgmt: 224.0.0.1}}]", "no address of a single host"},
		{"unknown network", two + "hosts: [{name: a, address: {mgnt: 10.0.0.1}}]", `hosts[0].address.mgnt: no network is named "mgnt"; did you mean "mgmt"?`},
		{"unknown datastore", two + "vms: [{name: v, datastore: ds3}]", `did you mean "ds1" or "ds2"?`},
		{"VM without datastore", two + "vms: [{name: v}]", "vms[0].datastore: is required"},
		{"VM's host lacks datastore", two + "hosts: [{name: a, datastores: [ds1]}]\nvms: [{name: v, host: a, datastore: ds1, disksOn: [ds2]}]", "vms[0].host: a does not mount"},
		{"reservation above memory", two + "vms: [{name: v, datastore: ds1, memory: 1GiB, reservation: {memory: 2GiB}}]", "2GiB is more than the VM's 1GiB"},
		{"VM id", two + "vms: [{name: v, datastore: ds1, id: ABC}]", "vms[0].id"},
		{"cycle", two + "vms: [{name: a, datastore: ds1, dependsOn: [b]}, {name: b, datastore: ds1, dependsOn: [c]}, {name: c, datastore: ds1, dependsOn: [b]}]", "waits for itself: b → c → b"},
		{"self", two + "vms: [{name: a, datastore: ds1, dependsOn: [a]}]", "a → a"},
		{"priority inversion", two + "vms: [{name: a, datastore: ds1, dependsOn: [b], restart: {priority: high}}, {name: b, datastore: ds1}]", "would wait for b of priority medium"},
		{"relative path", head + "datastores: [{name: a, path: srv/a}]", "datastores[0].path"},
		{"shared path", head + "datastores: [{name: a, path: /x}, {name: b, path: /x}]", "datastores[1].path"},
		{"rule of other kind", two + "vms: [{name: a, datastore: ds1}]\nrules: [{name: r, kind: vmHost, vms: [a], policy: apart}]", "rules[0].policy: does not belong"},
		{"rule incomplete", two + "vms: [{name: a, datastore: ds1}]\nrules: [{name: r, kind: nodeAffinity, vms: [a]}]", "rules[0].hosts: is required"},
		{"rule alone", two + "vms: [{name: a, datastore: ds1}]\nrules: [{name: r, kind: resourceAffinity, vms: [a], policy: apart}]", "needs at least 2"},
		{"unknown option", head + "ha: {options: {das.maxvmrestartcnt: 3}}", `did you mean "das.maxvmrestartcount"?`},
		{"unknown option without prefix", head + "ha: {options: {heartbeatDsPerHosts: 3}}", `did you mean "das.heartbeatDsPerHost"?`},
		{"option twice", head + "ha: {options: {das.maxvmrestartcount: 3, maxvmrestartcount: 4}}", "set twice"},
		{"option range", head + "ha: {options: {das.heartbeatDsPerHost: 6}}", "from 2 to 5"},
		{"option network", two + "ha: {options: {das.allowNetwork0: mgmtt}}", `did you mean "mgmt"?`},
		{"long id", "version: 1\nname: " + strings.Repeat("a", 64), "at most 63"},
		{"id as path", "version: 1\nname: c\nid: ../x", "id: name"},
		{"too large", head + "#" + strings.Repeat("x", MaxSize), "at most 4194304 are read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse([]byte(tt.in))
			if err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q\nwant it to contain %q", err, tt.want)
			}
			if AsProblems(err) == nil {
				t.Errorf("error %T is no list of problems", err)
			}
		})
	}
}

func TestAllProblemsAreReported(t *testing.T) {
	_, err := Parse([]byte("version: 1\nname: c\nhots: []\nhosts: [{name: a, memory: 1}, {name: a}]\nha: {options: {x: 1, das.maxvmrestartcount: -1}}"))
	p := AsProblems(err)
	if p == nil || len(p.List) != 5 {
		t.Fatalf("want 5 problems, got: %v", err)
	}
	var b strings.Builder
	b.WriteString("version: 1\nname: c\nvms:\n")
	for i := range 300 {
		fmt.Fprintf(&b, "- {name: v%d, datastore: nowhere}\n", i)
	}
	_, err = Parse([]byte(b.String()))
	if p = AsProblems(err); p == nil || len(p.List) != maxProblems || p.More != 200 {
		t.Errorf("want %d problems and 200 more, got: %v", maxProblems, err)
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	c := mustParse(t, full)
	first, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again := mustParse(t, string(first))
	if diff := cmp.Diff(c, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, first)
	}
	second, _ := again.Marshal()
	if string(first) != string(second) || c.Digest() != again.Digest() {
		t.Errorf("not canonical:\n%s\n---\n%s", first, second)
	}
	if s := string(first); strings.Contains(s, "isolationDelay") || strings.Contains(s, "/srv/ds1") || !strings.Contains(s, "/mnt/two") {
		t.Errorf("defaults must be left out, and nothing else:\n%s", s)
	}
	other := c.Clone()
	other.Hosts[0].Address["mgmt"] = netip.MustParseAddr("10.0.0.9")
	other.HA.Options["das.maxvmrestartcount"] = "1"
	if c.Digest() != again.Digest() || other.Digest() == c.Digest() {
		t.Error("Clone shares memory, or Digest ignores content")
	}
}

func TestDiffIsReadable(t *testing.T) {
	a := mustParse(t, full)
	b := a.Clone()
	b.Version = 8
	b.HA.Timing = Timing{Profile: "fast", Values: model.TimingFast}
	b.VMs[0].Memory = 8192
	b.VMs = append(b.VMs[:2], VM{Name: "new", Datastore: "ds1", CPUs: 1})
	b.Hosts[0], b.Hosts[1] = b.Hosts[1], b.Hosts[0]
	b.Hosts[1].Address["mgmt"] = netip.MustParseAddr("10.99.0.99")
	b.Networks[0], b.Networks[1] = b.Networks[1], b.Networks[0]
	b.Rules[0], b.Rules[1] = b.Rules[1], b.Rules[0]
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.String())
	}
	want := []string{
		"~ ha.timing: {interval: 500ms, lease: 6s, margin: 1.5s, watchdog: 3s, watchdogMax: 4s} → fast",
		"~ hosts[host1].address: {hb2: 10.99.1.11, mgmt: 10.99.0.11} → {hb2: 10.99.1.11, mgmt: 10.99.0.99}",
		"~ vms[web].memory: 4GiB → 8GiB",
		"+ vms[new]",
		"- vms[db1]",
		"~ networks: [mgmt hb2 vm] → [hb2 mgmt vm]",
		"~ rules: [near-licence apart must-rack-a] → [apart near-licence must-rack-a]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if d := Diff(a, a.Clone()); len(d) != 0 {
		t.Errorf("equal clusters differ: %v", d)
	}
}

func TestCheckDeployable(t *testing.T) {
	c := mustParse(t, full)
	if err := c.CheckDeployable("host2"); err != nil {
		t.Error(err)
	}
	if err := c.CheckDeployable("host9"); err == nil || !strings.Contains(err.Error(), "not among the hosts") {
		t.Errorf("got %v", err)
	}
	c.Hosts[1].Address = nil
	if err := c.CheckDeployable(""); err == nil || !strings.Contains(err.Error(), "hosts[1].address: host2 has no address") {
		t.Errorf("got %v", err)
	}
}

// TestTooLargeToHandOn: a file that hosts could not give to each other is
// refused before it is in force anywhere.
func TestTooLargeToHandOn(t *testing.T) {
	c := mustParse(t, full)
	for i := range MaxDeployed / 80 {
		c.VMs = append(c.VMs, VM{Name: fmt.Sprintf("a-virtual-machine-%06d", i), Memory: 1 << 30})
	}
	want := fmt.Sprintf("they hand on at most %d", MaxDeployed)
	if err := c.CheckDeployable(""); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestOptionDefaultsAreLegal(t *testing.T) {
	for _, s := range optionTable {
		if s.Default == "" {
			continue
		}
		if got, err := s.canonical(s.Default); err != nil || got != s.Default {
			t.Errorf("%s: default %q becomes %q, %v", s.Name, s.Default, got, err)
		}
	}
	var none Options
	if none.Int("maxvmrestartcount") != 5 || none.Duration("das.isolationShutdownTimeout") != 300*time.Second || !none.Bool("das.usedefaultisolationaddress") {
		t.Error("defaults of unset options")
	}
	o := Options{}
	for i, v := range []string{"10.0.0.2", "gw.example"} {
		if err := o.Set(fmt.Sprintf("isolationAddress%d", 9-i), v); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"gw.example", "10.0.0.2"}, o.List("das.isolationaddress")); diff != "" {
		t.Error(diff)
	}
	for _, name := range o.Ineffective() {
		if s, _, ok := findOption(name); !ok || s.Effective() {
			t.Errorf("%s is called ineffective", name)
		}
	}
	if d := o.Describe(); len(d) != len(optionTable) || len(d[0].Set) != 2 {
		t.Errorf("Describe: %+v", d[0])
	}
}

func TestUnits(t *testing.T) {
	for in, want := range map[string]model.MiB{"0": 0, "512MiB": 512, "16GiB": 16384, "0.5GiB": 512, "2TiB": 2 << 20, "2048KiB": 2} {
		if got, err := ParseMemory(in); err != nil || got != want {
			t.Errorf("ParseMemory(%q) = %v, %v; want %v", in, got, err, want)
		}
		if back, err := ParseMemory(FormatMemory(want)); err != nil || back != want {
			t.Errorf("%v is written %q, read back %v, %v", want, FormatMemory(want), back, err)
		}
	}
	for _, bad := range []string{"", "GiB", "-1GiB", "NaNGiB", "InfGiB", "1e30TiB", "1 000MiB"} {
		if got, err := ParseMemory(bad); err == nil {
			t.Errorf("ParseMemory(%q) = %v", bad, got)
		}
	}
	for in, want := range map[string]time.Duration{"0": 0, "5s": 5 * time.Second, "1h30m": 90 * time.Minute, "600s": 10 * time.Minute, "1.5s": 1500 * time.Millisecond} {
		got, err := ParseDuration(in)
		if err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v", in, got, err)
		}
		if back, err := ParseDuration(FormatDuration(want)); err != nil || back != want {
			t.Errorf("%v is written %q, read back %v, %v", want, FormatDuration(want), back, err)
		}
	}
}

// The guard reads the cluster file and must stay free of network code.
func TestImportsNoNetwork(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if p == "net" || strings.HasPrefix(p, "net/http") || p == "crypto/tls" {
			t.Errorf("config imports %s", p)
		}
	}
}

// With changes the tree of a cluster without writing and reading YAML.
func TestTreeIsWhatAFileSays(t *testing.T) {
	c := mustParse(t, full)
	data, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseTree(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, any(c.tree())); diff != "" {
		t.Errorf("(-read +tree):\n%s", diff)
	}
}

func TestWith(t *testing.T) {
	c := mustParse(t, strings.ReplaceAll(full, "ds2", "ds.2"))
	for _, tt := range []struct{ path, value, want string }{
		{"ha.isolationResponse", "powerOff", "~ ha.isolationResponse: none → powerOff"},
		{"ha.hostMonitoring", "false", "~ ha.hostMonitoring: true → false"},
		{"ha.admission.hostFailures", "2", "~ ha.admission.hostFailures: 1 → 2"},
		{"ha.storage.apdDelay", "10s", "~ ha.storage.apdDelay: 0s → 10s"},
		{"ha.timing", "steady", "→ steady"},
		{"ha.options.das.maxvmrestartcount", "3", "das.maxvmrestartcount: 3"},
		{"ha.options.isolationShutdownTimeout", "60", "das.isolationShutdownTimeout: 60"},
		{"hosts[host1].maintenance", "true", "~ hosts[host1].maintenance: false → true"},
		{"vms[web].restart.priority", "medium", "~ vms[web].restart.priority: high → medium"},
		{"vms[db1].memory", "2GiB", "~ vms[db1].memory: 0MiB → 2GiB"},
		{"datastores[ds.2].backing", "array-c", "~ datastores[ds.2].backing: array-b → array-c"},
		{"rules[near-licence].hosts.host2", "7", "host2: 7"},
		{"rules[near-licence].hosts", "host1:3,host2:4", "{host1: 3, host2: 4}"},
		{"vms[web].groups", "a, b", "groups:"},
		{"vms[web].restart.priority", "", "~ vms[web].restart.priority: high → medium"},
	} {
		got, err := c.With(tt.path, tt.value)
		if err != nil {
			t.Errorf("%s: %v", tt.path, err)
			continue
		}
		if d := Diff(c, got); len(d) != 1 || !strings.Contains(d[0].String(), tt.want) || got.Version != c.Version+1 {
			t.Errorf("%s: version %d, changes %v, want %q", tt.path, got.Version, d, tt.want)
		}
	}
	for _, tt := range []struct{ path, value, want string }{
		{"ha.isolationRespons", "none", `did you mean "isolationResponse"`},
		{"ha.isolationResponse", "poweroff", "use one of"},
		{"ha.options.das.maxrestart", "3", "unknown option"},
		{"hosts[host7].maintenance", "true", `has no element named "host7"`},
		{"hosts[host1]", "true", "name a field"},
		{"ha.timing.lease", "9s", "set as a whole"},
		{"name.x", "y", "has no fields"},
		{"vms[web].host", "host9", `no host is named "host9"`},
		{"ha.enabled", "[", "no YAML"},
	} {
		if _, err := c.With(tt.path, tt.value); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s=%s: %v, want %q", tt.path, tt.value, err, tt.want)
		}
	}
}

// Fields of one kind of rule are only right together.
func TestWithAll(t *testing.T) {
	c := mustParse(t, full)
	c.Rules = append(c.Rules, Rule{Name: "new"})
	got, err := c.WithAll(Setting{"rules[new].kind", "vmHost"}, Setting{"rules[new].vms", "db1,dns"}, Setting{"rules[new].hostGroups", "rack-a"}, Setting{"rules[new].must", "true"})
	if err != nil {
		t.Fatal(err)
	}
	want := Rule{Name: "new", Kind: RuleVMHost, VMs: []string{"db1", "dns"}, HostGroups: []string{"rack-a"}, Must: true}
	if diff := cmp.Diff(want, got.Rules[3]); diff != "" || got.Version != c.Version+1 {
		t.Errorf("version %d (-want +got):\n%s", got.Version, diff)
	}
	if _, err := c.WithAll(Setting{"rules[new].kind", "vmHost"}, Setting{"rules[new].policy", "apart"}); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Errorf("a field of another kind: %v", err)
	}
}

func TestFieldsOf(t *testing.T) {
	words := map[string]string{}
	for _, f := range FieldsOf("vms") {
		words[f.Path] = strings.Join(f.Words, " ")
	}
	if _, named := words["name"]; named || words["requested"] != "started stopped disabled ignored" || words["restart.failback"] != "true false" || words["isolationResponse"] != "none powerOff shutdown" {
		t.Errorf("got %v", words)
	}
	if FieldsOf("name") != nil || FieldsOf("vmz") != nil {
		t.Error("what is no list has fields")
	}
}

func TestDependenciesOnGroups(t *testing.T) {
	file := func(vms string) string {
		return "version: 1\nname: c\ndatastores: [{name: ds1}]\nvms:\n" + vms
	}
	c, err := Parse([]byte(file(`
- {name: dns1, datastore: ds1, groups: [dns], restart: {priority: high}}
- {name: dns2, datastore: ds1, groups: [dns], restart: {priority: high}, dependsOn: [dns1]}
- {name: web, datastore: ds1, dependsOn: [dns, dns1]}
`)))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.DependenciesOf(c.VMByName("web")), " "); got != "dns1 dns2" {
		t.Errorf("web depends on %q", got)
	}
	for want, vms := range map[string]string{
		"waits for itself: a → b → a": `
- {name: a, datastore: ds1, groups: [g], dependsOn: [g]}
- {name: b, datastore: ds1, groups: [g], dependsOn: [g]}
`,
		"waits for itself: a → a": `
- {name: a, datastore: ds1, dependsOn: [a]}
`,
		"a has priority high and would wait for b of priority medium": `
- {name: a, datastore: ds1, dependsOn: [g], restart: {priority: high}}
- {name: b, datastore: ds1, groups: [g]}
`,
		"a is infrastructure and would wait for b, which is not": `
- {name: a, datastore: ds1, dependsOn: [b], restart: {infrastructure: true}}
- {name: b, datastore: ds1}
`,
		`no VM or VM group is named "x"`: `
- {name: a, datastore: ds1, dependsOn: [x]}
`,
	} {
		if _, err := Parse([]byte(file(vms))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
