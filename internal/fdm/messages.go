package fdm

import (
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

// Heartbeat is the content of a datagram between agents.
type Heartbeat struct {
	// Kind tells a primary's or secondary's heartbeat from election traffic.
	Kind BeatKind `json:"k"`
	// Rank orders candidates: Datastores first, then the host id as text.
	Datastores int `json:"d"`
	// Primary is whom the sender follows ("" during an election).
	Primary model.HostID `json:"p,omitempty"`
	// Round grows with each election that the sender knows of.
	Round uint64 `json:"r"`
	// ConfigVersion is the version of the cluster file that the sender keeps.
	ConfigVersion uint64 `json:"v"`
	// ConfigSum is of the content of that file (fileSum); 0 if the sender does not
	// know of it. There may be two files of one version, see applyConfig.
	ConfigSum uint64 `json:"vs,omitempty"`
	// Start identifies the life of the sender's agent.
	Start uint64 `json:"s"`
	// Hears, from a primary: it heard the receiver lately. A secondary that
	// reads false for a while sends over its next network.
	Hears bool `json:"h,omitempty"`
	// Watch, from a primary: the receiver is one of the next two ranks and
	// reads all slots all the time, so that it knows their ages if it takes
	// over.
	Watch bool `json:"w,omitempty"`
	// Settled: the sender knows of a primary that had its members gathered, so
	// the cluster does not just come back from a loss of all power.
	Settled bool `json:"o,omitempty"`
	// Stamp is the sender's time since boot; Echo and EchoStart are the Stamp
	// and Start of the last heartbeat that it got from the receiver, if any.
	Stamp     time.Duration `json:"t"`
	Echo      time.Duration `json:"e,omitempty"`
	EchoStart uint64        `json:"es,omitempty"`
	// Vouches, from a primary: nobody took the receiver's VMs after the moment
	// VouchAge before this was sent, and nobody will before the receiver was
	// silent for StaleAfter.
	Vouches  bool          `json:"c,omitempty"`
	VouchAge time.Duration `json:"a,omitempty"`
	// Answer: send a heartbeat back at once. Between a primary and its
	// secondaries; an answer to a question asks nothing that is answered again.
	Answer bool `json:"n,omitempty"`
}

// BeatKind is the kind of a heartbeat.
type BeatKind string

// The kinds of heartbeats.
const (
	BeatPrimary   BeatKind = "P" // I am primary
	BeatSecondary BeatKind = "S" // I follow Primary
	BeatElection  BeatKind = "E" // I am a candidate
	BeatYield     BeatKind = "Y" // I step down: elect at once
)

// Message is a message over the reliable transport; exactly one pointer is set.
// Unknown fields are ignored, so that neighbouring versions understand each
// other.
type Message struct {
	Report   *Report      `json:"report,omitempty"`
	Welcome  *Welcome     `json:"welcome,omitempty"`
	Command  *Command     `json:"command,omitempty"`
	Progress *Progress    `json:"progress,omitempty"`
	Config   *ConfigOffer `json:"config,omitempty"`
	Admin    *AdminRelay  `json:"admin,omitempty"`
	Answer   *AnswerRelay `json:"answer,omitempty"`
	Events   *EventShare  `json:"events,omitempty"`
	View     *ClusterView `json:"view,omitempty"`
}

// Report is a secondary's account of itself to its primary: on connection, on
// every change, and every ReportInterval.
type Report struct {
	Host          model.HostID            `json:"host"`
	Boot          model.BootID            `json:"boot"`
	Incarnation   uint64                  `json:"incarnation"`
	ConfigVersion uint64                  `json:"configVersion"`
	Armed         bool                    `json:"armed"`
	ArmedWhy      string                  `json:"armedWhy,omitempty"`
	HookSeen      bool                    `json:"hookSeen"`
	GuardUp       bool                    `json:"guardUp"`
	HypervisorUp  bool                    `json:"hypervisorUp"`
	Memory        model.MiB               `json:"memory"` // capacity
	MHz           model.MHz               `json:"mhz"`
	Datastores    []lease.DatastoreStatus `json:"datastores"`
	VMs           []LocalVM               `json:"vms"`
	// Networks are the heartbeat networks as it sees them.
	Networks []NetworkStatus `json:"networks,omitempty"`
	// Leaving: it goes down on purpose and takes no VM.
	Leaving bool `json:"leaving,omitempty"`
	// Losses are the datastores that it has lost.
	Losses []StorageLoss `json:"losses,omitempty"`
}

// LocalVM is a managed or unmanaged VM as its host sees it.
type LocalVM struct {
	ID      model.VMID    `json:"id"`
	Name    string        `json:"name"`
	Managed bool          `json:"managed"`
	Active  bool          `json:"active"`
	Cause   StopCause     `json:"cause,omitempty"`
	Epoch   model.Epoch   `json:"epoch,omitempty"`
	Phase   lease.VMPhase `json:"phase,omitempty"`
	Alive   bool          `json:"alive,omitempty"` // its guest agent answered
	Memory  model.MiB     `json:"memory"`
	CPUs    int           `json:"cpus"`
	// Reason is why it is frozen, for people.
	Reason string `json:"reason,omitempty"`
}

// Welcome is the primary's answer to a report: it names the VMs that Hanok
// manages, for every guard and hook of the cluster.
type Welcome struct {
	Managed []lease.ManagedVM `json:"managed"`
	// Unknown are the datastores whose lists the primary has not been able to
	// read: the receiver keeps what it knows of VMs at home there.
	Unknown []model.DatastoreName `json:"unknown,omitempty"`
}

// Command is an order of the primary. It is carried out once, and only under
// the term that is current for the VM's home datastore.
type Command struct {
	ID   string      `json:"id"`
	Kind CommandKind `json:"kind"`
	Term model.Term  `json:"term"`
	// VM is what to act on, Epoch its lock's highest record by the primary.
	VM       model.ProtectedVM `json:"vm"`
	Epoch    model.Epoch       `json:"epoch"`
	Takeover *lease.Takeover   `json:"takeover,omitempty"`
	Failover string            `json:"failover,omitempty"`
	// Reason is why a VM is evacuated, for people.
	Reason string `json:"reason,omitempty"`
	// Expires is how long after receipt the command may still begin.
	Expires time.Duration `json:"expires"`
}

// CommandKind names an order.
type CommandKind string

// The commands.
const (
	CommandStart    CommandKind = "start"
	CommandShutdown CommandKind = "shutdown" // ask the guest, release when gone
	CommandKill     CommandKind = "kill"     // end it, release when gone
	CommandEvacuate CommandKind = "evacuate" // end it, say when it is gone; its storage is lost
)

// Progress tells the primary how a command stands; the last has Done set.
type Progress struct {
	Command string     `json:"command"`
	VM      model.VMID `json:"vm"`
	Stage   Stage      `json:"stage"`
	Done    bool       `json:"done,omitempty"`
	// Epoch is the lock epoch won, from StageLocked on.
	Epoch model.Epoch `json:"epoch,omitempty"`
	// Code and Text explain StageFailed.
	Code string `json:"code,omitempty"`
	Text string `json:"text,omitempty"`
	// After is the time since the command arrived.
	After time.Duration `json:"after"`
}

// Stage is how far a command is.
type Stage string

// The stages of a start and a stop.
const (
	StageAccepted Stage = "accepted"
	StageLocked   Stage = "locked"
	StageRunning  Stage = "running" // vCPUs continue
	StageAlive    Stage = "alive"   // guest agent answered
	StageGone     Stage = "gone"    // stopped and released
	StageFailed   Stage = "failed"
)

// ConfigOffer hands a cluster file on.
type ConfigOffer struct {
	Version uint64 `json:"version"`
	File    []byte `json:"file"`
}

// AdminRelay forwards an administrator's request to the primary or to the host
// it concerns; AnswerRelay brings the answer back.
type AdminRelay struct {
	ID      uint64       `json:"id"`
	Request AdminRequest `json:"request"`
}

// AnswerRelay answers an AdminRelay.
type AnswerRelay struct {
	ID    uint64     `json:"id"`
	Reply AdminReply `json:"reply"`
}

// AdminRequest is what an administrator asks of the cluster; exactly one
// pointer is set.
type AdminRequest struct {
	// Protect registers a VM that its host has adopted (definition checked and
	// copied to the datastore by the shell).
	Protect   *model.ProtectedVM `json:"protect,omitempty"`
	Unprotect *VMRef             `json:"unprotect,omitempty"`
	Start     *VMRef             `json:"start,omitempty"`
	Shutdown  *VMRef             `json:"shutdown,omitempty"`
	Kill      *VMRef             `json:"kill,omitempty"`
	// Leave is about the host that is asked, and answered by it.
	Leave *LeaveRequest `json:"leave,omitempty"`
	// Apply is a new cluster file, validated by the shell.
	Apply *ConfigOffer `json:"apply,omitempty"`
	// Consider asks what admission control says to something, and changes
	// nothing.
	Consider *Consideration `json:"consider,omitempty"`
	// Force has it done even though admission control refuses it.
	Force bool `json:"force,omitempty"`
	// By is who asks, for people: events about what was forced say so.
	By string `json:"by,omitempty"`
}

// Consideration is what admission control is asked about; exactly one pointer, or
// Leave, is set.
type Consideration struct {
	// Dry: nothing follows from the answer, so that no event tells of a refusal.
	Dry bool `json:"dry,omitempty"`
	// Protect is a VM to be adopted; running if it has a Host.
	Protect *model.ProtectedVM `json:"protect,omitempty"`
	// Start is a VM to be started.
	Start *VMRef `json:"start,omitempty"`
	// Leave is a host to be shut down in order.
	Leave model.HostID `json:"leave,omitempty"`
	// Apply is a cluster file to come into force.
	Apply *ConfigOffer `json:"apply,omitempty"`
}

// VMRef names a VM by name or id.
type VMRef struct {
	Name string `json:"name"`
}

// AdminReply answers an AdminRequest.
type AdminReply struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	// Help is what would make a refusal of admission control a yes, each way by
	// itself; empty for other refusals.
	Help []string `json:"help,omitempty"`
	// Refused: admission control said no, or could not say yes; Force overrides.
	Refused bool `json:"refused,omitempty"`
	// Warnings refuse nothing.
	Warnings []string `json:"warnings,omitempty"`
	// Fields are those of a cluster file that a refusal is about.
	Fields []string `json:"fields,omitempty"`
	// Decision is what admission control said to a Consider; nil if it was not
	// asked.
	Decision *admission.Decision `json:"decision,omitempty"`
}

// EventShare hands events on to the other hosts, so that any host can show
// them; at most 64 at a time.
type EventShare struct {
	Events []event.Event `json:"events"`
}

// ClusterView is the primary's account of the cluster, sent to every secondary
// on change and every ReportInterval, so that any host can show it.
type ClusterView struct {
	Primary model.HostID `json:"primary"`
	// Age is how old the view is; the primary sends 0, a host that shows it
	// adds the time since receipt.
	Age        time.Duration `json:"age"`
	HA         bool          `json:"ha"`
	Monitoring bool          `json:"monitoring"`
	Version    uint64        `json:"configVersion"`
	Hosts      []HostView    `json:"hosts"`
	VMs        []VMView      `json:"vms"`
	// Disabled are the rules that are not in force because older ones contradict
	// them.
	Disabled   []rules.Conflict `json:"disabledRules,omitempty"`
	Datastores []DatastoreView  `json:"datastores"`
	// Admission is whether the room is there that ha.admission asks for, as last
	// looked at; nil when that is off or not known yet.
	Admission *admission.Report `json:"admission,omitempty"`
}

// HostView is one host in a ClusterView.
type HostView struct {
	Name          model.HostID    `json:"name"`
	Role          model.Role      `json:"role"`
	State         model.HostState `json:"state"`
	Reason        string          `json:"reason,omitempty"`
	Armed         bool            `json:"armed"`
	ArmedWhy      string          `json:"armedWhy,omitempty"`
	Hook          bool            `json:"hook"`
	Guard         bool            `json:"guard"`
	Hypervisor    bool            `json:"hypervisor"`
	ConfigVersion uint64          `json:"configVersion"`
	// Silence is the time since its last network heartbeat, SlotAges since its
	// slot last changed on each datastore, as the primary sees them.
	Silence    time.Duration                         `json:"silence"`
	SlotAges   map[model.DatastoreName]time.Duration `json:"slotAges,omitempty"`
	Datastores []lease.DatastoreStatus               `json:"datastores,omitempty"`
	Memory     model.MiB                             `json:"memory"`
	MemoryUsed model.MiB                             `json:"memoryUsed"`
	// Heartbeats are its heartbeat datastores, Networks its heartbeat networks.
	Heartbeats []model.DatastoreName `json:"heartbeats,omitempty"`
	Networks   []NetworkStatus       `json:"networks,omitempty"`
	// Warnings are what is not as redundant as it should be.
	Warnings []string `json:"warnings,omitempty"`
}

// VMView is one VM in a ClusterView.
type VMView struct {
	ID        model.VMID          `json:"id"`
	Name      string              `json:"name"`
	State     model.VMState       `json:"state"`
	Host      model.HostID        `json:"host,omitempty"`
	Home      model.DatastoreName `json:"datastore,omitempty"`
	Protected bool                `json:"protected"`
	// Reason says why it is not started, or not protected.
	Reason   string         `json:"reason,omitempty"`
	Epoch    model.Epoch    `json:"epoch,omitempty"`
	Alive    bool           `json:"alive"`
	Priority model.Priority `json:"priority,omitempty"`
	Attempts int            `json:"attempts,omitempty"`
	// RetryIn is how long until the next attempt, when one is scheduled.
	RetryIn time.Duration `json:"retryIn,omitempty"`
	// Order is its place among the restarts that are not done, from 1; Ready
	// says how far it is towards its ready condition, for people. Both only in a
	// restart.
	Order int    `json:"order,omitempty"`
	Ready string `json:"ready,omitempty"`
	// WaitsFor are the VMs that must be ready before it starts.
	WaitsFor []string `json:"waitsFor,omitempty"`
	// Origin is where it ran before a failover brought it elsewhere.
	Origin model.HostID `json:"origin,omitempty"`
}

// DatastoreView is one datastore in a ClusterView.
type DatastoreView struct {
	Name    model.DatastoreName `json:"name"`
	Owner   model.HostID        `json:"owner,omitempty"` // of the protected list
	Term    model.Term          `json:"term"`
	VMs     int                 `json:"vms"`
	Problem string              `json:"problem,omitempty"`
}

// Cluster is the configuration as the core needs it, made from the cluster
// file by the shell.
type Cluster struct {
	Version           uint64
	File              []byte // the file itself, to hand on
	Enabled           bool
	HostMonitoring    bool
	Timing            model.Timing
	Hosts             []ClusterHost
	HeartbeatNetworks []string
	Datastores        []ClusterDatastore
	// VMs are the per-VM settings of the file, by name.
	VMs map[string]VMSettings
	// HeartbeatStores is das.heartbeatDsPerHost; 0 is the default, 2.
	HeartbeatStores int
	// IgnoreFewHeartbeats and IgnoreOneNetwork switch warnings off.
	IgnoreFewHeartbeats, IgnoreOneNetwork bool
	// HostTimeout is das.config.fdm.hostTimeout: how long a host is silent on the
	// network before it is looked into. Less than three intervals and a quarter,
	// 0 too, is that time.
	HostTimeout time.Duration
	// DeadPing is das.config.fdm.deadIcmpPingInterval, the pause between pings of
	// a host that has failed; 0 is the default, 10 s.
	DeadPing time.Duration
	// MaskCleanShutdown is das.maskCleanShutdownEnabled: the shutdown of a guest
	// whose host has lost a datastore of it is taken for a consequence of that.
	MaskCleanShutdown bool
	// Storage is the reaction to lost datastores.
	Storage StoragePolicy
	// HostShutdown is what becomes of the VMs of a host shut down in order.
	HostShutdown HostShutdown
	// Isolation is the response to this host's isolation.
	Isolation Isolation
	// Specs are the VMs of the file as placement knows them, by name. Rules are
	// those in force for restarts, Conflicts the contradictions that disabled
	// others.
	Specs     map[string]placement.VM
	Rules     []rules.Rule
	Conflicts []rules.Conflict
	// MaxRestarts is das.maxvmrestartcount, PerHost the limit of concurrent
	// starts of one host.
	MaxRestarts int
	PerHost     int
	// Admission is the policy of admission control.
	Admission admission.Policy
	// MassFailure is the share of the hosts, in percent, beyond which failures
	// at once make a primary check its own view first; 0 and 100 never.
	MassFailure int
}

// ClusterHost is a member.
type ClusterHost struct {
	Name        model.HostID
	Datastores  []model.DatastoreName
	Memory      model.MiB
	CPU         model.MHz
	Maintenance bool
	// Spec is what else placement knows of it.
	Spec placement.Host
}

// ClusterDatastore is a datastore.
type ClusterDatastore struct {
	Name     model.DatastoreName
	Path     string
	Fence    model.FenceClass
	Unfenced bool // unfenced: accept
	// Backing, Server and FailureDomain are what heartbeat datastores should not
	// share; OnHostNetwork: it depends on the hosts' own network.
	Backing, Server, FailureDomain string
	OnHostNetwork                  bool
	Preference                     Preference
}

// VMSettings are a VM's settings in the cluster file.
type VMSettings struct {
	Priority  model.Priority
	Requested model.Requested
	// Infrastructure: it is restarted before all priorities.
	Infrastructure bool
	// DependsOn are the VMs, by name, that must be ready before it starts.
	DependsOn []string
	// Isolation is its own isolation response; "" is the cluster's.
	Isolation IsolationResponse
	// Ready and, from then, Delay make it ready. Timeout is how long others wait
	// for that: 0 is 10 minutes, negative not at all.
	Ready   model.ReadyWhen
	Delay   time.Duration
	Timeout time.Duration
	// Limits are its own limits of attempts to start it; nil: Cluster.MaxRestarts,
	// each attempt on the host where fewest have failed.
	Limits *AttemptLimits
}

// AttemptLimits bound the attempts to start a VM: after each failure Restarts
// more on the same host, then on another one, at most Relocations times; then it
// stays down in state error.
type AttemptLimits struct{ Restarts, Relocations int }
