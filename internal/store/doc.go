// Package store keeps the server's state in etcd, embedded in the process or
// an external cluster.
//
// What is promised: a Commit is carried out whole or not at all, and when it
// returned nil it survives the death of the process and of the machine. A
// Commit says what it rests on (Unchanged, Absent); if that does not hold any
// more it changes nothing and returns ErrConflict. All stores of one etcd see
// the same revisions in the same order, so that a revision read from one can
// be resumed at another.
//
// What may not be assumed: that a Commit that returned another error was not
// carried out. Ask again, or make it repeatable by resting it on something.
//
// Values are bytes; what they mean is the caller's business. Keys are paths
// below one prefix.
package store
