package local

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// The paths of the API.
const (
	PathStatus = "/v1/status" // GET: Status
	PathEvents = "/v1/events" // GET: event.Event as JSON lines; EventQuery's fields as parameters
	PathAdmin  = "/v1/admin"  // POST fdm.AdminRequest: fdm.AdminReply
	PathConfig = "/v1/config" // GET: the cluster file that this host keeps, as YAML
	// PathFollow, GET, is for servers: the events behind the one whose ID is
	// the parameter `after`, as JSON lines, then new ones until the client hangs
	// up; an empty line at least every FollowBeat. With `own` only those that
	// this host emitted. The answer ends when the client falls behind.
	PathFollow = "/v1/follow"
	// PathPeer is for the other hosts of the cluster, while HA is off. POST Word:
	// WordAnswer.
	PathPeer = "/v1/peer"
)

// Servers ask agents over mutual TLS 1.3, on a port of its own.
const (
	RemotePort     = 8183
	RemoteProtocol = "hanok-server/1" // ALPN of servers
	PeerProtocol   = "hanok-peer/1"   // ALPN of hosts, which may ask PathPeer alone
	// HeaderGap is set when the event to follow from is not known any more:
	// all that the host has comes, and something before it may be missing.
	HeaderGap = "Hanok-Gap"
	// FollowBeat is the longest silence on a followed stream.
	FollowBeat = 5 * time.Second
)

// MaxBody bounds every request and every answer but a followed event stream:
// a cluster file of its largest size, in base64, with room for the rest.
const MaxBody = 8 << 20

// Word is what hosts tell each other while HA is off and their own port is
// closed: one of the two.
type Word struct {
	// Beat is a heartbeat, as for Network.
	Network string         `json:"network,omitempty"`
	Beat    *fdm.Heartbeat `json:"beat,omitempty"`
	// Offer is a cluster file.
	Offer *fdm.ConfigOffer `json:"offer,omitempty"`
}

// WordAnswer answers a Word.
type WordAnswer struct {
	// Version of the cluster file that the receiver keeps.
	Version uint64 `json:"version"`
}

// EventQuery selects events.
type EventQuery struct {
	// Failover keeps the events of one failover; "last" is the newest.
	Failover string
	// Limit is the most events that are given, the newest; 0 is DefaultEvents.
	Limit int
	// Follow goes on with new events until the client hangs up.
	Follow bool
}

// Bounds of EventQuery.Limit.
const (
	DefaultEvents = 200
	MaxEvents     = 20000
)

// Status is what a host knows of its cluster. Field names are those of
// scenario files where they name the same thing; durations are in seconds.
type Status struct {
	// Host, Cluster and Software say who answers.
	Host     model.HostID `json:"host"`
	Cluster  string       `json:"cluster"`
	Software string       `json:"software"`
	// Role and State are this host's own; Primary is whom it follows.
	Role    model.Role      `json:"role"`
	State   model.HostState `json:"state"`
	Primary model.HostID    `json:"primary,omitempty"`
	// AgeSeconds is how old the primary's account is that the lists rest on.
	AgeSeconds     float64 `json:"ageSeconds"`
	HA             bool    `json:"ha"`
	HostMonitoring bool    `json:"hostMonitoring"`
	ConfigVersion  uint64  `json:"configVersion"`

	Hosts      []Host      `json:"hosts"`
	VMs        []VM        `json:"vms"`
	Datastores []Datastore `json:"datastores"`
	// Local is what only this host knows.
	Local Local `json:"local"`
	// DisabledRules are not in force, because older ones contradict them.
	DisabledRules []rules.Conflict `json:"disabledRules,omitempty"`
	// Admission is whether the room is there that admission control keeps; nil
	// when that is off or not known yet.
	Admission *admission.Report `json:"admission,omitempty"`
	// Problems says what is wrong and what to do; empty when all is well.
	Problems []Problem `json:"problems"`
}

// Problem is something wrong, for people.
type Problem struct {
	// About is the host, VM or datastore concerned; empty for the cluster.
	About  string `json:"about,omitempty"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// Host is one host of the cluster.
type Host struct {
	Name           model.HostID    `json:"name"`
	Role           model.Role      `json:"role"`
	State          model.HostState `json:"state"`
	Reason         string          `json:"reason,omitempty"`
	Armed          bool            `json:"armed"`
	ArmedWhy       string          `json:"armedWhy,omitempty"`
	Hook           bool            `json:"hook"`
	Guard          bool            `json:"guard"`
	Hypervisor     bool            `json:"hypervisor"`
	ConfigVersion  uint64          `json:"configVersion"`
	SilenceSeconds float64         `json:"silenceSeconds"`
	// SlotAgeSeconds is the age of its heartbeat slot on each datastore, as
	// the primary reads it.
	SlotAgeSeconds map[model.DatastoreName]float64 `json:"slotAgeSeconds,omitempty"`
	Leases         []Lease                         `json:"leases,omitempty"`
	Memory         model.MiB                       `json:"memory"`
	MemoryUsed     model.MiB                       `json:"memoryUsed"`
	// HeartbeatDatastores are those chosen for it, HeartbeatNetworks what it says
	// of each heartbeat network; Warnings are what lacks redundancy.
	HeartbeatDatastores []model.DatastoreName `json:"heartbeatDatastores,omitempty"`
	HeartbeatNetworks   []fdm.NetworkStatus   `json:"heartbeatNetworks,omitempty"`
	Warnings            []string              `json:"warnings,omitempty"`
}

// Lease is a host's lease on one datastore.
type Lease struct {
	Datastore model.DatastoreName `json:"datastore"`
	OK        bool                `json:"ok"`
	Kind      string              `json:"kind,omitempty"`
	Problem   string              `json:"problem,omitempty"`
	// LeftSeconds is negative after the lease lapsed.
	LeftSeconds float64    `json:"leftSeconds"`
	ListTerm    model.Term `json:"listTerm,omitempty"`
}

// VM is one virtual machine.
type VM struct {
	Name           string              `json:"name"`
	ID             model.VMID          `json:"id"`
	State          model.VMState       `json:"state"`
	Host           model.HostID        `json:"host,omitempty"`
	Datastore      model.DatastoreName `json:"datastore,omitempty"`
	Protected      bool                `json:"protected"`
	Reason         string              `json:"reason,omitempty"`
	Epoch          model.Epoch         `json:"epoch,omitempty"`
	Alive          bool                `json:"alive"`
	Priority       model.Priority      `json:"priority,omitempty"`
	Attempts       int                 `json:"attempts,omitempty"`
	RetryInSeconds float64             `json:"retryInSeconds,omitempty"`
	// Order is its place among the restarts that are not done, from 1; Ready is
	// how far it is towards its ready condition, for people. Both only in a
	// restart.
	Order int    `json:"order,omitempty"`
	Ready string `json:"ready,omitempty"`
	// WaitsFor are the VMs that must be ready before it starts.
	WaitsFor []string `json:"waitsFor,omitempty"`
	// Origin is where it ran before a failover brought it elsewhere.
	Origin model.HostID `json:"origin,omitempty"`
}

// Datastore is one datastore and its protected list.
type Datastore struct {
	Name    model.DatastoreName `json:"name"`
	Owner   model.HostID        `json:"owner,omitempty"`
	Term    model.Term          `json:"term"`
	VMs     int                 `json:"vms"`
	Problem string              `json:"problem,omitempty"`
}

// Local is what only the answering host knows.
type Local struct {
	// Error is why the agent cannot work (state initError), Remedy what to do.
	Error  string `json:"error,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	// Notices are about this host's cluster file and its firewall.
	Notices           []string `json:"notices,omitempty"`
	Guard             bool     `json:"guard"`
	GuardProblem      string   `json:"guardProblem,omitempty"`
	Hypervisor        bool     `json:"hypervisor"`
	HypervisorProblem string   `json:"hypervisorProblem,omitempty"`
	// Armed, HookSeen and Warnings are the guard's own account of this host;
	// ArmedWhy is why it is not armed.
	Armed    bool     `json:"armed"`
	ArmedWhy string   `json:"armedWhy,omitempty"`
	HookSeen bool     `json:"hookSeen"`
	Warnings []string `json:"warnings,omitempty"`
	// LongestWriteSeconds is the longest heartbeat write since the guard
	// started.
	LongestWriteSeconds float64 `json:"longestWriteSeconds"`
	Leases              []Lease `json:"leases,omitempty"`
	Locks               []Lock  `json:"locks,omitempty"`
	// Counters count what was dropped, refused or late since the agent started.
	Counters map[string]uint64 `json:"counters"`
	// Events counts this host's own events since the agent started, by severity.
	Events map[string]uint64 `json:"events,omitempty"`
	// CertificateExpires is the end of this host's certificate, in seconds
	// since 1970; 0 while there is none.
	CertificateExpires int64 `json:"certificateExpires,omitempty"`
}

// Lock is a VM's lock that this host's guard holds.
type Lock struct {
	VM          model.VMID          `json:"vm"`
	Name        string              `json:"name"`
	Datastore   model.DatastoreName `json:"datastore"`
	Epoch       model.Epoch         `json:"epoch"`
	Phase       string              `json:"phase"`
	Outstanding bool                `json:"outstanding,omitempty"`
	Reason      string              `json:"reason,omitempty"`
}

// Failure is the body of an answer that is not 2xx.
type Failure struct {
	Error  string `json:"error"`
	Remedy string `json:"remedy,omitempty"`
}

// VMByName returns the VM of that name or id, or nil.
func (s *Status) VMByName(name string) *VM {
	for i := range s.VMs {
		if s.VMs[i].Name == name || string(s.VMs[i].ID) == name {
			return &s.VMs[i]
		}
	}
	return nil
}

// HostByName returns the host of that name, or nil.
func (s *Status) HostByName(name model.HostID) *Host {
	for i := range s.Hosts {
		if s.Hosts[i].Name == name {
			return &s.Hosts[i]
		}
	}
	return nil
}

// SetView fills the cluster's part from the core's view.
func (s *Status) SetView(v fdm.ClusterView) {
	s.Primary, s.AgeSeconds = v.Primary, v.Age.Seconds()
	s.HA, s.HostMonitoring, s.DisabledRules, s.Admission = v.HA, v.Monitoring, v.Disabled, v.Admission
	s.Hosts, s.VMs, s.Datastores = make([]Host, 0, len(v.Hosts)), make([]VM, 0, len(v.VMs)), make([]Datastore, 0, len(v.Datastores))
	for _, h := range v.Hosts {
		out := Host{Name: h.Name, Role: h.Role, State: h.State, Reason: h.Reason, Armed: h.Armed, ArmedWhy: h.ArmedWhy,
			Hook: h.Hook, Guard: h.Guard, Hypervisor: h.Hypervisor, ConfigVersion: h.ConfigVersion,
			SilenceSeconds: h.Silence.Seconds(), Leases: Leases(h.Datastores), Memory: h.Memory, MemoryUsed: h.MemoryUsed,
			HeartbeatDatastores: h.Heartbeats, HeartbeatNetworks: h.Networks, Warnings: h.Warnings}
		for name, age := range h.SlotAges {
			if out.SlotAgeSeconds == nil {
				out.SlotAgeSeconds = map[model.DatastoreName]float64{}
			}
			out.SlotAgeSeconds[name] = age.Seconds()
		}
		s.Hosts = append(s.Hosts, out)
	}
	for _, v := range v.VMs {
		s.VMs = append(s.VMs, VM{Name: v.Name, ID: v.ID, State: v.State, Host: v.Host, Datastore: v.Home,
			Protected: v.Protected, Reason: v.Reason, Epoch: v.Epoch, Alive: v.Alive, Priority: v.Priority,
			Attempts: v.Attempts, RetryInSeconds: v.RetryIn.Seconds(),
			Order: v.Order, Ready: v.Ready, WaitsFor: v.WaitsFor, Origin: v.Origin})
	}
	// By name, as servers list them.
	slices.SortFunc(s.VMs, func(a, b VM) int { return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	for _, d := range v.Datastores {
		s.Datastores = append(s.Datastores, Datastore(d))
	}
}

// Leases converts the guard's account of its datastores.
func Leases(list []lease.DatastoreStatus) []Lease {
	out := make([]Lease, 0, len(list))
	for _, d := range list {
		out = append(out, Lease{Datastore: d.Name, OK: d.OK, Kind: d.Kind, Problem: d.Problem,
			LeftSeconds: d.LeaseLeft.Seconds(), ListTerm: d.ListTerm})
	}
	return out
}
