// Package admission decides whether the cluster can still lose hosts after what
// an administrator wants to do: start or adopt a VM, reserve more for one, take a
// host into maintenance.
//
// [Check] looks at the cluster as it is, [Decide] at what it would be. Both ask a
// placement.State and leave it as it was. A restart is never refused: it is what
// the room is kept for.
//
// Policies:
//
//   - exact: every combination of so many lost hosts leaves a place for every VM
//     that is to be restarted, rules included. Yes has a witness for each
//     combination; no has a proof for one; anything else is unknown, is treated
//     as no, and says so.
//   - percentage: a share of processor and of memory stays unreserved.
//   - slots: counted in slots of the largest reservation, without the largest
//     hosts.
//   - dedicated: hosts kept free for failover.
//
// The package is pure: no I/O, clock, randomness or goroutine.
package admission
