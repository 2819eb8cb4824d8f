package model

import "fmt"

// LockID names a lock on a datastore: a VM's id, or ListLock.
type LockID string

// ListLock is the lock on a datastore's protected list; its epoch is the term.
const ListLock LockID = "protected"

// VMLock is the lock of a VM.
func VMLock(vm VMID) LockID { return LockID(vm) }

// LockState is what a lock record says.
type LockState string

// The states of a lock record and the records that may follow each are in
// LockState.MayFollow.
const (
	// LockHeld: Owner runs the VM, or owns the list.
	LockHeld LockState = "held"
	// LockReleased: nobody does; Reason says why.
	LockReleased LockState = "released"
	// LockMoving: Owner is migrating the VM under MoveID to Target.
	LockMoving LockState = "moving"
	// LockHanded: the source's guard handed the VM to Owner under MoveID.
	LockHanded LockState = "handed"
	// LockMovedTo: the lock lives on the datastore Target from now on; final.
	LockMovedTo LockState = "movedTo"
)

// MayFollow reports whether a record in state s may follow one in state prev
// at the next epoch. prev is empty before the first record.
func (s LockState) MayFollow(prev LockState) bool {
	switch prev {
	case "", LockReleased:
		return s == LockHeld || s == LockReleased || s == LockMovedTo
	case LockHeld, LockHanded:
		return s == LockHeld || s == LockReleased || s == LockMoving
	case LockMoving:
		return s == LockHanded || s == LockHeld
	default:
		return false
	}
}

// Reasons of a released record.
const (
	ReasonCreated   = "created"          // the lock was made, nobody ran the VM yet
	ReasonUserOff   = "user-powered-off" // its user or administrator powered it off
	ReasonGuestOff  = "guest-shutdown"   // the guest shut itself down
	ReasonCrashed   = "crashed"          // the VM died without being asked to
	ReasonHAOff     = "ha-powered-off"   // powered off by HA; may be restarted elsewhere
	ReasonStartFail = "start-failed"     // a start was granted but did not succeed
	ReasonLateWin   = "late-win"         // a claim succeeded after its request was gone
	ReasonYield     = "yield"            // a list's owner stepped down
	ReasonForced    = "forced"           // released by an administrator (break-glass)
	ReasonHostOff   = "host-shutdown"    // the host went down on purpose
	ReasonRepaired  = "repaired"         // the datastore was repaired; whoever ran the VM is frozen and may claim it
)

// LockRecord is one immutable record of a lock: the file <lock>/<epoch>.
type LockRecord struct {
	Lock  LockID `json:"lock"`
	Epoch Epoch  `json:"epoch"`
	// Owner, Boot and Incarnation name the writer, except in a handed record,
	// where Owner is the destination.
	Owner       HostID `json:"owner"`
	Boot        BootID `json:"boot"`
	Incarnation uint64 `json:"incarnation"`
	// Nonce is random and unique; a claim counts if the highest record carries
	// the claimer's nonce.
	Nonce  string    `json:"nonce"`
	State  LockState `json:"state"`
	Reason string    `json:"reason,omitempty"`
	MoveID string    `json:"moveId,omitempty"`
	// Target is the destination host of a moving record, or the datastore of a
	// movedTo record.
	Target string `json:"target,omitempty"`
}

// Holder is the host that may run the VM by this record, or "" when nobody may.
func (r LockRecord) Holder() HostID {
	switch r.State {
	case LockHeld, LockHanded, LockMoving:
		return r.Owner
	default:
		return ""
	}
}

// String describes the record in one line for people.
func (r LockRecord) String() string {
	switch {
	case r.Epoch == 0:
		return "no record"
	case r.State == LockReleased:
		return fmt.Sprintf("epoch %d released by %s (%s)", r.Epoch, r.Owner, r.Reason)
	default:
		return fmt.Sprintf("epoch %d %s by %s", r.Epoch, r.State, r.Owner)
	}
}

// PoweredOffNote says that HA powered a VM off on an isolated host. It counts
// only when the epoch after LockEpoch is released with ReasonHAOff.
type PoweredOffNote struct {
	VM        VMID   `json:"vm"`
	LockEpoch Epoch  `json:"lockEpoch"`
	Host      HostID `json:"host"`
	// Withdrawn: the stop did not come, and the note counts for nothing.
	Withdrawn bool `json:"withdrawn,omitempty"`
}
