package config

import (
	"net/netip"
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Cluster is one version of the cluster file. Treat a Cluster that others can
// see as immutable; [Cluster.Clone] gives a copy to change.
//
// Tags: `yaml` names the field, `required` makes its absence an error, `plain`
// takes a number without a unit, and `words` lists the only legal values.
type Cluster struct {
	// Version grows with every change, from 1; a host keeps the highest it has
	// seen and refuses lower ones.
	Version uint64 `yaml:"version,required"`
	// ID names the cluster on datastores and in certificates; it must never
	// change. Default: Name. At most 63 characters.
	ID string `yaml:"id"`
	// Name is what people call the cluster.
	Name       string      `yaml:"name,required"`
	HA         HA          `yaml:"ha"`
	Networks   []Network   `yaml:"networks"`
	Datastores []Datastore `yaml:"datastores"`
	Hosts      []Host      `yaml:"hosts"`
	VMs        []VM        `yaml:"vms"`
	Rules      []Rule      `yaml:"rules"`
}

// HA is the cluster-wide behaviour of high availability.
type HA struct {
	// Enabled switches failover; off leaves running VMs alone. Default true.
	Enabled bool `yaml:"enabled"`
	// HostMonitoring off, for network work, means no verdicts on hosts and no
	// isolation response. Default true.
	HostMonitoring bool `yaml:"hostMonitoring"`
	// Timing is the profile of protocol durations. Default fast.
	Timing Timing `yaml:"timing"`
	// IsolationResponse is what an isolated host does with its VMs.
	IsolationResponse string `yaml:"isolationResponse" words:"none|powerOff|shutdown"`
	// HostShutdown is what becomes of the VMs of a host that is shut down in
	// order: they start elsewhere, or stay down until it is back.
	HostShutdown string `yaml:"hostShutdown" words:"restartElsewhere|stop"`
	// IsolationDelay is the pause between isolation and its response. Default 5s.
	IsolationDelay time.Duration `yaml:"isolationDelay"`
	Storage        Storage       `yaml:"storage"`
	VMMonitoring   VMMonitoring  `yaml:"vmMonitoring"`
	Admission      Admission     `yaml:"admission"`
	// MassFailurePercent is the share of the hosts beyond which failures at once
	// make the primary check its own view before it acts; 0 or 100 never.
	// Default 50.
	MassFailurePercent int `yaml:"massFailurePercent"`
	// Options are advanced options under their canonical names; see [Describe].
	Options Options `yaml:"options"`
}

// Timing is a named profile, or durations given one by one.
type Timing struct {
	// Profile is "fast", "steady", or "" when Values were given one by one.
	Profile string
	// Values are the durations, valid by [model.Timing.Validate].
	Values model.Timing
}

// Storage is the reaction to storage that hangs (APD) or is lost (PDL).
type Storage struct {
	APD         string        `yaml:"apd" words:"off|events|restartConservative|restartAggressive"`
	APDTimeout  time.Duration `yaml:"apdTimeout"`
	APDDelay    time.Duration `yaml:"apdDelay"`
	APDRecovery string        `yaml:"apdRecovery" words:"none|reset"`
	PDL         string        `yaml:"pdl" words:"off|events|restart"`
}

// VMMonitoring is the reaction to guests that stop answering.
type VMMonitoring struct {
	Mode        string `yaml:"mode" words:"off|vm|vmAndApplication"`
	Sensitivity string `yaml:"sensitivity" words:"low|medium|high"`
}

// Admission is the admission control policy.
type Admission struct {
	Policy string `yaml:"policy" words:"exact|slots|percentage|dedicated|off"`
	// HostFailures is the number of host failures to tolerate. Default 1.
	HostFailures int `yaml:"hostFailures"`
	// FailureDomains is the number of failure domains to tolerate the loss of;
	// exact only. Default 0.
	FailureDomains int `yaml:"failureDomains"`
	// CPUPercent and MemoryPercent are the shares to keep free; percentage only.
	// Default 0: computed from HostFailures.
	CPUPercent    int `yaml:"cpuPercent"`
	MemoryPercent int `yaml:"memoryPercent"`
	// Degradation is by how many percent VMs may get less after the failures
	// than they use now before it is warned of. Default 100: never.
	Degradation int `yaml:"degradation"`
}

// Network is one of the cluster's networks.
type Network struct {
	Name string `yaml:"name,required"`
	// Heartbeat: agents talk to each other on this network. Default false.
	Heartbeat bool `yaml:"heartbeat"`
}

// Datastore is shared storage, mounted at the same path on all its hosts.
type Datastore struct {
	Name model.DatastoreName `yaml:"name,required"`
	// Backing names the device behind it; datastores with one backing fail
	// together.
	Backing string `yaml:"backing"`
	// Path is where it is mounted. Default /srv/<name>.
	Path string `yaml:"path"`
	// UUID is what `hanok datastore init` wrote on it; when given, a datastore
	// with another UUID at Path is refused.
	UUID model.DatastoreID `yaml:"uuid"`
	// Fence says what stops I/O in flight of a silent owner. Default reset.
	Fence model.FenceClass `yaml:"fence" words:"storage|reset|none"`
	// Server names the array, filer or target behind it, FailureDomain its rack,
	// room or site: heartbeat datastores are chosen to differ in them.
	Server        string `yaml:"server"`
	FailureDomain string `yaml:"failureDomain"`
	// OnHostNetwork: it is reached over the hosts' own network (hyper-converged,
	// or storage behind the same switches): whatever silences a host's network
	// silences its heartbeat there too.
	OnHostNetwork bool `yaml:"onHostNetwork"`
	// Heartbeat is the administrator's preference for its use as a heartbeat
	// datastore; default by merit.
	Heartbeat string `yaml:"heartbeat" words:"|prefer|avoid"`
	// Unfenced "accept" is the administrator's consent to take locks over
	// although nothing stops a silent owner's I/O. Default empty: refused.
	Unfenced string `yaml:"unfenced" words:"|accept"`
}

// Host is one host of the cluster.
type Host struct {
	Name model.HostID `yaml:"name,required"`
	// Address maps a network's name to the host's address there.
	Address    map[string]netip.Addr `yaml:"address"`
	CPU        CPU                   `yaml:"cpu"`
	Memory     model.MiB             `yaml:"memory"`
	Datastores []model.DatastoreName `yaml:"datastores"`
	// Networks that VMs can be connected to here, beside those of Address.
	Networks []string `yaml:"networks"`
	// Reserved is what the host itself needs.
	Reserved Resources `yaml:"reserved"`
	// MaxVMs is the most VMs that may run here. Default 0: no limit.
	MaxVMs int `yaml:"maxVMs"`
	// Hypervisor is its version, such as 10.0.2.
	Hypervisor    string   `yaml:"hypervisor"`
	Groups        []string `yaml:"groups"`
	FailureDomain string   `yaml:"failureDomain"`
	Maintenance   bool     `yaml:"maintenance"`
	// Quarantine: its hardware is degraded; it takes a VM only if no other can.
	Quarantine bool `yaml:"quarantine"`
	// DedicatedFailover: kept free for restarts.
	DedicatedFailover bool `yaml:"dedicatedFailover"`
}

// CPU is a host's processor capacity.
type CPU struct {
	Cores int       `yaml:"cores"`
	MHz   model.MHz `yaml:"mhz,plain"`
	// Features are the processor features that guests can have.
	Features []string `yaml:"features"`
}

// Capacity is the processor capacity of all cores.
func (c CPU) Capacity() model.MHz { return c.MHz * model.MHz(c.Cores) }

// VM is one virtual machine or container.
type VM struct {
	Name string `yaml:"name,required"`
	// ID is the VM's libvirt UUID; empty: read from its definition.
	ID   model.VMID `yaml:"id"`
	Type string     `yaml:"type" words:"vm|ct"`
	// Host is where the VM should run first and fail back to.
	Host model.HostID `yaml:"host"`
	// Datastore is the VM's home: its definition and its lock are there.
	Datastore model.DatastoreName `yaml:"datastore,required"`
	// DisksOn are further datastores that hold disks of the VM.
	DisksOn []model.DatastoreName `yaml:"disksOn"`
	CPUs    int                   `yaml:"cpus"`
	Memory  model.MiB             `yaml:"memory"`
	// Reservation is what must be free for it; without a memory reservation all
	// of its memory.
	Reservation Resources `yaml:"reservation"`
	// Overhead is what its hypervisor process takes on top.
	Overhead Resources `yaml:"overhead"`
	Usage    Resources `yaml:"usage"`
	// Networks that it is connected to, CPUFeatures that its guest needs, and
	// the oldest hypervisor that can run it.
	Networks      []string `yaml:"networks"`
	CPUFeatures   []string `yaml:"cpuFeatures"`
	MinHypervisor string   `yaml:"minHypervisor"`
	// Groups are VM groups for rules.
	Groups    []string        `yaml:"groups"`
	Requested model.Requested `yaml:"requested" words:"started|stopped|disabled|ignored"`
	Restart   Restart         `yaml:"restart"`
	// IsolationResponse replaces that of the cluster for this VM; empty: the
	// cluster's.
	IsolationResponse string `yaml:"isolationResponse" words:"|none|powerOff|shutdown"`
	// DependsOn names the VMs that must be ready before this one starts, or VM
	// groups, of which all must be.
	DependsOn []string `yaml:"dependsOn"`
	// Boot is how long the guest takes to boot; simulator only.
	Boot time.Duration `yaml:"boot"`
}

// Resources is an amount of processor and memory.
type Resources struct {
	CPU    model.MHz `yaml:"cpu"`
	Memory model.MiB `yaml:"memory"`
}

// Restart is how a VM is restarted after a failure.
type Restart struct {
	// Infrastructure: what other VMs need to work, such as an agent VM; it is
	// restarted before all priorities. Default false.
	Infrastructure bool           `yaml:"infrastructure"`
	Priority       model.Priority `yaml:"priority" words:"disabled|lowest|low|medium|high|highest"`
	ReadyWhen      string         `yaml:"readyWhen" words:"resourcesAllocated|poweredOn|guestHeartbeat|applicationHeartbeat"`
	// Delay is an extra pause after the ready condition. Default 0s.
	Delay time.Duration `yaml:"delay"`
	// Timeout is how long lower classes wait for it. Default 600s.
	Timeout time.Duration `yaml:"timeout"`
	// MaxRestart is how many more attempts to start it follow a failure on the
	// same host, MaxRelocate how often another host is tried then, before it stays
	// down in state error. When both are NoLimit (default),
	// das.maxvmrestartcount counts; when one is, it is 1.
	MaxRestart  int `yaml:"maxRestart"`
	MaxRelocate int `yaml:"maxRelocate"`
	// Failback: it returns to the host that it ran on before a failover. Without
	// effect until VMs can move while they run. Default false.
	Failback bool `yaml:"failback"`
}

// NoLimit is the value of MaxRestart and MaxRelocate that are not set.
const NoLimit = -1

// Limits are the limits of attempts that are the VM's own; ok false when it has
// none.
func (r *Restart) Limits() (restarts, relocations int, ok bool) {
	if r.MaxRestart < 0 && r.MaxRelocate < 0 {
		return 0, 0, false
	}
	or1 := func(n int) int {
		if n < 0 {
			return 1
		}
		return n
	}
	return or1(r.MaxRestart), or1(r.MaxRelocate), true
}

// Rule kinds.
const (
	RuleNodeAffinity     = "nodeAffinity"
	RuleResourceAffinity = "resourceAffinity"
	RuleVMHost           = "vmHost"
)

// Rule constrains where VMs run.
type Rule struct {
	Name string   `yaml:"name,required"`
	Kind string   `yaml:"kind,required" words:"nodeAffinity|resourceAffinity|vmHost"`
	VMs  []string `yaml:"vms"`
	// VMGroups are groups of VM.Groups, whose VMs the rule is about, too.
	VMGroups []string `yaml:"vmGroups"`
	// Hosts maps host to weight; nodeAffinity only.
	Hosts map[model.HostID]int `yaml:"hosts"`
	// Strict: never elsewhere; nodeAffinity only.
	Strict bool `yaml:"strict"`
	// Policy is apart or together; resourceAffinity only.
	Policy string `yaml:"policy" words:"|apart|together"`
	// Scope of apart: different hosts (default) or different failure domains.
	Scope string `yaml:"scope" words:"|host|failureDomain"`
	// Preferred: kept where possible, and broken rather than leave a VM down;
	// resourceAffinity only.
	Preferred bool `yaml:"preferred"`
	// HostGroups are groups of Host.Groups; vmHost only.
	HostGroups []string `yaml:"hostGroups"`
	// Must: broken by nothing, by HA neither; vmHost only.
	Must bool `yaml:"must"`
	// Avoid: not on these hosts instead of on them; vmHost only.
	Avoid bool `yaml:"avoid"`
}

// defaultCluster is what a file that says nothing means.
func defaultCluster() Cluster {
	return Cluster{HA: HA{
		Enabled: true, HostMonitoring: true,
		Timing:            Timing{Profile: "fast", Values: model.TimingFast},
		IsolationResponse: "none", HostShutdown: "restartElsewhere", IsolationDelay: 5 * time.Second,
		Storage:      Storage{APD: "restartConservative", APDTimeout: 30 * time.Second, APDRecovery: "none", PDL: "restart"},
		VMMonitoring: VMMonitoring{Mode: "off", Sensitivity: "high"},
		Admission:    Admission{Policy: "exact", HostFailures: 1, Degradation: 100}, MassFailurePercent: 50,
	}}
}

// NewVM is a VM of which a file says only the name.
func NewVM(name string) VM {
	v := defaultVM()
	v.Name = name
	return v
}

func defaultVM() VM {
	return VM{Type: "vm", Requested: model.RequestedStarted, CPUs: 1, Restart: Restart{
		Priority: model.PriorityMedium, ReadyWhen: "resourcesAllocated", Timeout: 600 * time.Second,
		MaxRestart: NoLimit, MaxRelocate: NoLimit,
	}}
}

func defaultDatastore() Datastore { return Datastore{Fence: model.FenceReset} }

// fillDerived sets the defaults that depend on other fields.
func (c *Cluster) fillDerived() {
	if c.ID == "" {
		c.ID = c.Name
	}
	for i := range c.Datastores {
		if d := &c.Datastores[i]; d.Path == "" && d.Name != "" {
			d.Path = "/srv/" + string(d.Name)
		}
	}
}

// withoutDerived is a copy without the values that fillDerived would set.
func (c *Cluster) withoutDerived() Cluster {
	out := *c
	if out.ID == out.Name {
		out.ID = ""
	}
	out.Datastores = append([]Datastore(nil), c.Datastores...)
	for i := range out.Datastores {
		if d := &out.Datastores[i]; d.Path == "/srv/"+string(d.Name) {
			d.Path = ""
		}
	}
	return out
}

// Timing returns the durations of the safety protocol.
func (c *Cluster) Timing() model.Timing { return c.HA.Timing.Values }

// HostByName returns the named host, or nil.
func (c *Cluster) HostByName(name model.HostID) *Host {
	for i := range c.Hosts {
		if c.Hosts[i].Name == name {
			return &c.Hosts[i]
		}
	}
	return nil
}

// VMByName returns the named VM, or nil.
func (c *Cluster) VMByName(name string) *VM {
	for i := range c.VMs {
		if c.VMs[i].Name == name {
			return &c.VMs[i]
		}
	}
	return nil
}

// VMByID returns the VM with that id, or nil; VMs without an id never match.
func (c *Cluster) VMByID(id model.VMID) *VM {
	for i := range c.VMs {
		if id != "" && c.VMs[i].ID == id {
			return &c.VMs[i]
		}
	}
	return nil
}

// IsolationDelay is the pause between isolation and the response to it: the
// advanced option where it is set, else ha.isolationDelay.
func (c *Cluster) IsolationDelay() time.Duration {
	if c.HA.Options.IsSet(optIsolationDelay) {
		return c.HA.Options.Duration(optIsolationDelay)
	}
	return c.HA.IsolationDelay
}

// Options whose defaults come from other settings.
const (
	optIsolationDelay = "das.config.fdm.isolationPolicyDelaySec"
	optHostTimeout    = "das.config.fdm.hostTimeout"
	optPingTimeout    = "das.config.fdm.icmpPingTimeout"
)

// HostTimeout is how long a host is silent on the network before it is looked
// into: the advanced option, but never less than three intervals and a quarter.
func (c *Cluster) HostTimeout() time.Duration {
	i := c.Timing().Interval
	return max(3*i+i/4, c.HA.Options.Duration(optHostTimeout))
}

// PingTimeout is how long the answer to a ping is waited for: the advanced
// option, or two intervals.
func (c *Cluster) PingTimeout() time.Duration {
	if d := c.HA.Options.Duration(optPingTimeout); d > 0 {
		return d
	}
	return 2 * c.Timing().Interval
}

// DatastoreByName returns the named datastore, or nil.
func (c *Cluster) DatastoreByName(name model.DatastoreName) *Datastore {
	for i := range c.Datastores {
		if c.Datastores[i].Name == name {
			return &c.Datastores[i]
		}
	}
	return nil
}

// DatastoresOf returns the datastores that the host mounts, in the order of
// its list; none for an unknown host.
func (c *Cluster) DatastoresOf(name model.HostID) []Datastore {
	h := c.HostByName(name)
	if h == nil {
		return nil
	}
	out := make([]Datastore, 0, len(h.Datastores))
	for _, n := range h.Datastores {
		if d := c.DatastoreByName(n); d != nil {
			out = append(out, *d)
		}
	}
	return out
}

// HeartbeatNetworks returns the names of the networks that agents talk on, in
// the order of the file, which is the order in which they are tried. Options
// das.allowNetwork0 to 9 narrow them down.
func (c *Cluster) HeartbeatNetworks() []string {
	allowed := c.HA.Options.List("das.allowNetwork")
	var out []string
	for _, n := range c.Networks {
		if n.Heartbeat && (len(allowed) == 0 || slices.Contains(allowed, n.Name)) {
			out = append(out, n.Name)
		}
	}
	return out
}

// AddressOf returns the host's address on a network; the zero Addr when it has
// none there.
func (h *Host) AddressOf(network string) netip.Addr { return h.Address[network] }

// Accessible reports whether the host mounts all datastores that the VM needs.
func (h *Host) Accessible(v *VM) bool {
	has := func(n model.DatastoreName) bool {
		for _, d := range h.Datastores {
			if d == n {
				return true
			}
		}
		return false
	}
	if !has(v.Datastore) {
		return false
	}
	for _, n := range v.DisksOn {
		if !has(n) {
			return false
		}
	}
	return true
}
