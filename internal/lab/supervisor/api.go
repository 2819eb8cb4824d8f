package supervisor

import (
	"hanok.dev/hanok/internal/lab/observer"
)

// Settings are what the supervisor is started with, a file in the lab's data
// directory beside the cluster file.
type Settings struct {
	// BinDir is the directory of the binaries that hosts run.
	BinDir string `json:"binDir"`
	// GuestDir is the directory of the guest image.
	GuestDir string `json:"guestDir"`
	// RebootOnReset: a host that its watchdog reset boots again.
	RebootOnReset bool `json:"rebootOnReset"`
	// SyncDisk: datastores pass fsync on to the machine's disk, which all labs
	// and everything else on the machine share. Otherwise they acknowledge from
	// memory, as an array with a battery-backed cache.
	SyncDisk bool `json:"syncDisk"`
	// Bare: the hosts run libvirtd only.
	Bare bool `json:"bare"`
	// Packages: the hosts have no binaries but those that packages install into
	// a /usr of their own, and systemd as PID 1.
	Packages bool `json:"packages,omitempty"`
	// VMs are the lab's virtual machines.
	VMs []VM `json:"vms"`
}

// VM is a virtual machine of the lab.
type VM struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Disk is its data disk on the machine, behind all storage faults.
	Disk string `json:"disk"`
}

// Host is the state of a host.
type Host struct {
	Name string `json:"name"`
	// Power is "on" or "off".
	Power  string `json:"power"`
	Frozen bool   `json:"frozen,omitempty"`
	BootID string `json:"bootID,omitempty"`
	// Pid is the host's PID 1 as the machine sees it; 0 when off.
	Pid int `json:"pid,omitempty"`
	// Resets counts the resets by its watchdog.
	Resets int `json:"resets"`
	// Watchdog is "none", "idle" or the running time-out.
	Watchdog string `json:"watchdog"`
	// Cuts maps a network to in, out or both.
	Cuts map[string]string `json:"cuts,omitempty"`
	// Deaf lists the hosts that it is kept apart from by a partition.
	Deaf []string `json:"deaf,omitempty"`
	// Storage maps a datastore to its fault, where there is one.
	Storage map[string]string `json:"storage,omitempty"`
}

// State is the whole lab.
type State struct {
	Lab        string              `json:"lab"`
	Pid        int                 `json:"pid"`
	Bare       bool                `json:"bare,omitempty"`
	Hosts      []Host              `json:"hosts"`
	VMs        []VM                `json:"vms"`
	Instances  []observer.Instance `json:"instances"`
	Violations []string            `json:"violations"`
	// ObserverError says why the observer no longer watches; empty: it does.
	ObserverError string `json:"observerError,omitempty"`
}

// The actions on a host's power.
const (
	PowerOn  = "power-on"
	PowerOff = "power-off"
	Freeze   = "freeze"
	Thaw     = "thaw"
	Reboot   = "reboot"
	Shutdown = "shutdown"
)

// PowerRequest asks for an action on a host's power.
type PowerRequest struct {
	Host   string `json:"host"`
	Action string `json:"action"`
	// NoWatchdog boots the host without a watchdog device.
	NoWatchdog bool `json:"noWatchdog,omitempty"`
}

// CutRequest cuts a host off a network, all if empty.
type CutRequest struct {
	Host      string `json:"host"`
	Network   string `json:"network,omitempty"`
	Direction string `json:"direction"`
}

// PartitionRequest lets only hosts of one group hear each other.
type PartitionRequest struct {
	Groups [][]string `json:"groups"`
}

// HealRequest ends all network and storage faults of a host.
type HealRequest struct {
	Host string `json:"host"`
}

// StorageRequest sets the fault of a host's path to a datastore.
type StorageRequest struct {
	Host      string `json:"host"`
	Datastore string `json:"datastore"`
	Fault     string `json:"fault"`
}

// PlugRequest connects the network namespace of a process that is no host to
// the lab's first network, under Address.
type PlugRequest struct {
	Pid     int    `json:"pid"`
	Address string `json:"address"`
}

// Failure is the body of an answer that is not a success.
type Failure struct {
	Error string `json:"error"`
}
