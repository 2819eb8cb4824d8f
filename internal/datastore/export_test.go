package datastore

import "hanok.dev/hanok/internal/model"

// SealRecord encodes a lock record as Link does, for the broken claims of the
// race test.
func SealRecord(rec model.LockRecord) ([]byte, error) { return seal(whatLock, rec, maxRecord) }
