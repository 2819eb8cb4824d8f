package datastore

import "hanok.dev/hanok/internal/model"

// What every driver refuses to write, and the form of a slot: for drivers that
// keep something else than files.

// EncodeSlot returns the SlotSize bytes of a slot; KindInvalid if it cannot be
// written.
func EncodeSlot(s model.Slot) ([]byte, error) {
	b, err := encodeSlot(s)
	return b, wrap("encode", "slot", err)
}

// DecodeSlot reads SlotSize bytes as the slot of host, "" for any host.
func DecodeSlot(host model.HostID, block []byte) model.SlotReading { return decodeSlot(host, block) }

// CheckClaimer refuses what may not claim a slot.
func CheckClaimer(host model.HostID, machine string) error {
	return wrap("check", "slot claim", validateClaimer(host, machine))
}

// CheckLock refuses names that are no locks.
func CheckLock(lock model.LockID) error { return wrap("check", "lock", validateLock(lock)) }

// CheckRecord refuses records that may not be written.
func CheckRecord(rec model.LockRecord) error {
	return wrap("check", "lock record", validateRecord(rec))
}

// CheckList refuses lists that may not be written.
func CheckList(list model.ProtectedList) error {
	_, err := sealList(list)
	return wrap("check", "protected list", err)
}

// CheckNote refuses notes that may not be written.
func CheckNote(note model.PoweredOffNote) error {
	return wrap("check", "power-off note", validateNote(note))
}
