package datastore

import "hanok.dev/hanok/internal/model"

// Driver is the on-disk protocol of one datastore on one host
// (docs/protocol.md, "On the datastore").
//
// Every method blocks on storage and may hang as long as the storage does; no
// method can be cancelled. Callers run them in bounded workers (Pool) and give
// up waiting, never the call itself. Methods may be called from several
// goroutines at once, except that at most one WriteSlot may be in flight.
//
// Every method opens what it needs afresh by path and verifies the datastore's
// identity first, so that an unmounted, replaced or rolled-back file system is
// noticed before anything is trusted. Nothing is ever created silently: only
// Initialise makes the directory, only CreateLock makes a lock.
//
// Errors are *Error with a Kind that callers decide on; KindOf extracts it.
type Driver interface {
	// Check verifies the directory and returns its header. It fails with
	// KindNotMounted, KindNotInitialised (no .hanok/<cluster-id> directory),
	// KindForeign (another UUID or cluster), KindFuture (a newer format),
	// KindCorrupt, KindReadOnly, KindLost or KindPermission.
	Check() (Header, error)

	// ClaimSlot returns the index of the host's slot, claiming a free one by
	// link(2) on the first call. The claim is bound to machine, the identity of
	// the installation: KindConflict if the same host name was claimed by
	// another machine, KindFull if no slot is free.
	ClaimSlot(host model.HostID, machine string) (index int, err error)

	// WriteSlot writes next into the slot, after reading the slot and checking
	// that its content is what this host last wrote or had in flight. known are
	// the acceptable digests; an empty slice accepts anything (first write of
	// an incarnation that has no memory). On mismatch nothing is written and
	// KindChanged is returned: the world changed under the host (rollback,
	// deletion, clone). It returns the identity of what was written.
	//
	// After `hanok datastore repair` the slot says so and any writer is
	// accepted, whatever it knows; if the claim itself was lost, KindMissing is
	// returned: call ClaimSlot again and go on with the index it returns and
	// the same known.
	WriteSlot(index int, known []string, next model.Slot) (model.SlotIdentity, error)

	// SlotIdentityOf returns the identity that WriteSlot will return for next,
	// so that a caller can record it as in flight beforehand.
	SlotIdentityOf(next model.Slot) model.SlotIdentity

	// ReadSlots returns all claimed slots, in index order. A slot never written
	// reads as Valid false with the digest of its zero bytes.
	ReadSlots() ([]model.SlotReading, error)

	// ReadSlot returns one host's slot; KindMissing if it claimed none.
	ReadSlot(host model.HostID) (model.SlotReading, error)

	// CreateLock makes a lock with a first record `released` (created), by
	// FirstRecord: its epoch is by.Epoch if that is higher than the first one
	// of this generation of the datastore (1 on one that was never repaired).
	// An existing lock is left as it is and is no error.
	CreateLock(lock model.LockID, by model.LockRecord) error

	// Highest returns the record with the highest epoch, from a fresh listing.
	// KindMissing if the lock does not exist, KindCorrupt (or Short, Torn,
	// Foreign, Future) if its highest record cannot be understood, KindChanged
	// if it is lower than one that this driver has seen before: all unknown,
	// never free.
	Highest(lock model.LockID) (model.LockRecord, error)

	// Link publishes rec as record rec.Epoch: writes and syncs a temporary
	// file, links it, syncs the directory. KindExists if the epoch is taken. On
	// any other error the record may or may not exist: list again.
	Link(rec model.LockRecord) error

	// Prune removes all but the newest 16 records of a lock.
	Prune(lock model.LockID) error

	// WriteList writes the protected list of list.Term, durably and atomically.
	// Of two writes of one term the one that was begun later stays, even if the
	// other one hangs and goes on: that fails with KindBusy.
	WriteList(list model.ProtectedList) error

	// ReadList returns the list of the highest term that is complete; Term 0
	// and no error when none was ever written.
	ReadList() (model.ProtectedList, error)

	// WritePoweredOff and ReadPoweredOff keep the notes of VMs that HA powered
	// off; reading a missing note returns KindMissing.
	WritePoweredOff(note model.PoweredOffNote) error
	ReadPoweredOff(vm model.VMID) (model.PoweredOffNote, error)
}

// Header identifies a datastore.
type Header struct {
	ID      model.DatastoreID `json:"id"`
	Cluster string            `json:"cluster"`
	Format  int               `json:"format"`
	Slots   int               `json:"slots"`
	// Generation is 1 from Initialise on and grows with each Repair that had
	// to begin anew; see Header.FirstEpoch.
	Generation uint64 `json:"generation"`
}
