// Package event holds what Hanok tells people about what happened: events with
// their cause and evidence, and the timeline of a failover made from them.
package event

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// Event is one thing that happened, as an operator should read it.
type Event struct {
	// ID is unique in the cluster: the emitting host, its agent's start and a
	// counter. Events shared between hosts keep it, so duplicates are dropped.
	ID string `json:"id"`
	// At is the emitting host's time since boot. Wall is the same instant by
	// its wall clock, stamped by the shell for display only.
	At   time.Duration `json:"at"`
	Wall time.Time     `json:"wall"`
	// By is the emitting host.
	By       model.HostID `json:"by"`
	Severity Severity     `json:"severity"`
	Kind     Kind         `json:"kind"`
	// What it is about; empty where it does not apply.
	Host      model.HostID        `json:"host,omitempty"`
	VM        string              `json:"vm,omitempty"`
	Datastore model.DatastoreName `json:"datastore,omitempty"`
	// Failover groups the events of one failover.
	Failover string `json:"failover,omitempty"`
	// Text is the sentence; Cause says why, Evidence what was seen.
	Text     string            `json:"text"`
	Cause    string            `json:"cause,omitempty"`
	Evidence map[string]string `json:"evidence,omitempty"`
}

// Severity grades an event.
type Severity string

// The severities.
const (
	Info    Severity = "info"
	Warning Severity = "warning"
	Error   Severity = "error"
)

// Kind is a stable name for a kind of event.
type Kind string

// Kinds of events. The first group are the phases of a failover, in order.
const (
	ClusterStart  Kind = "failover.cluster-start" // instead of the next three, after all hosts were down
	LastHeartbeat Kind = "failover.last-heartbeat"
	Silence       Kind = "failover.silence"
	Verdict       Kind = "failover.verdict"
	StartIssued   Kind = "failover.start-issued"
	LockTaken     Kind = "failover.lock-taken"
	DomainRunning Kind = "failover.domain-running"
	GuestAlive    Kind = "failover.guest-alive"
	FailoverDone  Kind = "failover.done"

	RestartFailed  Kind = "vm.restart-failed"
	RestartPending Kind = "vm.restart-pending"
	RestartOrder   Kind = "vm.restart-order"
	Protected      Kind = "vm.protected"
	Unprotected    Kind = "vm.unprotected"
	VMDown         Kind = "vm.down"
	VMUp           Kind = "vm.up"
	VMFrozen       Kind = "vm.frozen"
	VMThawed       Kind = "vm.thawed"
	VMKilled       Kind = "vm.killed"
	HostState      Kind = "host.state"
	Election       Kind = "ha.election"
	Config         Kind = "ha.config"
	Storage        Kind = "datastore.state"
	Guard          Kind = "guard.state"
	Hypervisor     Kind = "hypervisor.state"
	Network        Kind = "network.state"
	Security       Kind = "security"
	Refused        Kind = "ha.refused"
	Admission      Kind = "ha.admission"
	MassFailure    Kind = "ha.mass-failure"
	Admin          Kind = "admin"
)
