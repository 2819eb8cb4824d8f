package model

import "time"

// ProtectedList is the content of a datastore's protected list at one term.
type ProtectedList struct {
	Term Term `json:"term"`
	// Version grows by one with each write within a term, from 1.
	Version uint64        `json:"version"`
	VMs     []ProtectedVM `json:"vms"`
}

// ProtectedVM is what a primary must know of a VM to restart it.
type ProtectedVM struct {
	ID   VMID   `json:"id"`
	Name string `json:"name"`
	// Home is the datastore whose lock and list the VM belongs to.
	Home DatastoreName `json:"home"`
	// Datastores are all datastores that hold its disks, Home included.
	Datastores []DatastoreName `json:"datastores"`
	// Config is the path of the domain XML on its home datastore.
	Config string `json:"config"`
	// Disks are the paths of its disks on managed datastores.
	Disks     []string  `json:"disks,omitempty"`
	Memory    MiB       `json:"memory"`
	CPUs      int       `json:"cpus"`
	Priority  Priority  `json:"priority,omitempty"`
	Requested Requested `json:"requested"`
	DependsOn []string  `json:"dependsOn,omitempty"`
	// Settled is the requested state of the cluster file that was last brought
	// about; empty until the file has one.
	Settled Requested `json:"settled,omitempty"`
	// Host is where it last ran, LastEpoch the lock epoch it ran under.
	Host      HostID `json:"host,omitempty"`
	LastEpoch Epoch  `json:"lastEpoch,omitempty"`
	// Origin is the host that it ran on before restarts brought it elsewhere;
	// empty when it is where it was.
	Origin HostID `json:"origin,omitempty"`
	// Awaited: it was restarted in a failover and was not ready yet when the list
	// was written.
	Awaited bool `json:"awaited,omitempty"`
	// Down is set while the VM is known not to run though it is requested:
	// waiting for a restart. It survives the primary.
	Down *DownState `json:"down,omitempty"`
}

// DownState is the persistent part of a pending restart.
type DownState struct {
	// Cause is why the VM went down, for people.
	Cause string `json:"cause"`
	// Attempts made so far, and the hosts they were made on, oldest first, at
	// most 16 kept.
	Attempts int      `json:"attempts"`
	Hosts    []HostID `json:"hosts,omitempty"`
	// Here is how many attempts have failed on the last of Hosts since the VM was
	// placed there, Moves how often it was placed on another one after a failure.
	Here  int `json:"here,omitempty"`
	Moves int `json:"moves,omitempty"`
	// Failed: its own limits of restarts and relocations are used up; it stays
	// down until somebody asks for its start.
	Failed bool `json:"failed,omitempty"`
	// Reason is the standing reason why it does not run, for people.
	Reason string `json:"reason,omitempty"`
	// RetryIn is how long the next attempt had still to wait when the list was
	// written. Hosts share no clock: a new primary counts from its take-over.
	RetryIn time.Duration `json:"retryIn,omitempty"`
	// Failover names the failover this restart belongs to.
	Failover string `json:"failover,omitempty"`
	// Asked: an administrator asked for its start; it is no restart, and gets no
	// dedicated failover host, unless a Failover makes it one.
	Asked bool `json:"asked,omitempty"`
}
