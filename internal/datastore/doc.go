// Package datastore is the on-disk protocol of Hanok's shared datastores:
// heartbeat slots, lock chains, protected lists and power-off notes below
// <mount>/.hanok/<cluster-id>/ (docs/protocol.md, "On the datastore").
//
// Driver is the boundary; Posix is the driver for any POSIX file system that
// all hosts mount at the same path. Package datastoretest holds the suite that
// every driver must pass.
//
// What a caller may rely on:
//
//   - Nothing is created silently. Only Initialise and Repair make the
//     directory, only CreateLock makes a lock. Anything missing, foreign, torn
//     or newer is an error with a Kind, and never means "free".
//   - A record exists completely or not at all, and never changes.
//   - An error of a writing method does not mean that nothing was written:
//     read again. Link and WriteSlot say so in their comments.
//
// What a caller must do: run every method in a worker that may be lost (Pool),
// because a method blocks for as long as its storage does.
package datastore
