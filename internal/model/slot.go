package model

import "time"

// Slot is what a host's guard writes into its heartbeat slot on a datastore.
type Slot struct {
	Host HostID
	Boot BootID
	// Incarnation is drawn anew when a guard starts without a predecessor in
	// the same boot; a restarted guard of the same boot keeps it.
	Incarnation uint64
	// Sequence grows by one with each write of an incarnation, from 1.
	Sequence uint64
	// AgentSequence grows whenever the guard hears from its agent: a slot whose
	// Sequence moves while AgentSequence rests belongs to a host whose agent is
	// dead.
	AgentSequence uint64
	Flags         SlotFlags
	// Running is a digest of the set of VMs whose locks the writer holds here.
	Running uint64
	// Lease is the writer's lease, so that readers judge it by its own timing.
	// Whole milliseconds.
	Lease time.Duration
}

// SlotFlags are the facts that a guard states in its slot.
type SlotFlags uint32

// The flags of a slot.
const (
	// SlotArmed: the host's watchdog runs and satisfies the inequalities.
	SlotArmed SlotFlags = 1 << iota
	// SlotIsolated: the agent declared its host isolated.
	SlotIsolated
	// SlotShuttingDown: the host is going down on purpose.
	SlotShuttingDown
)

// Has reports whether all of f2 is set in f.
func (f SlotFlags) Has(f2 SlotFlags) bool { return f&f2 == f2 }

// SlotIdentity names one exact content of a slot, so that two readers can tell
// whether they saw the same write. Digest covers the raw bytes and decides;
// the rest is for people and is zero for a torn slot.
type SlotIdentity struct {
	Boot        BootID `json:"boot,omitempty"`
	Incarnation uint64 `json:"incarnation,omitempty"`
	Sequence    uint64 `json:"sequence,omitempty"`
	Digest      string `json:"digest"`
}

// SlotReading is one host's slot as one read found it.
type SlotReading struct {
	// Host is the host that claimed the slot; known from the claim even when
	// the content is torn.
	Host     HostID
	Identity SlotIdentity
	// Valid tells whether the content carries a correct checksum; Slot is zero
	// otherwise, and Damage says what was found instead.
	Valid  bool
	Slot   Slot
	Damage SlotDamage
}

// SlotDamage says why a slot's content is not a valid heartbeat; empty for a
// valid one.
type SlotDamage string

// What is found in slots besides valid heartbeats. None of it proves that the
// host is dead or alive: only that the raw bytes stopped changing does.
const (
	// SlotEmpty: never written.
	SlotEmpty SlotDamage = "empty"
	// SlotTorn: a write reached the storage in part.
	SlotTorn SlotDamage = "torn"
	// SlotCorrupt: wrong checksum or impossible content.
	SlotCorrupt SlotDamage = "corrupt"
	// SlotForeign: the heartbeat of another host, or no heartbeat at all.
	SlotForeign SlotDamage = "foreign"
	// SlotFuture: written in a newer format.
	SlotFuture SlotDamage = "future"
	// SlotRepaired: reset by `hanok datastore repair`, not written since.
	SlotRepaired SlotDamage = "repaired"
)
