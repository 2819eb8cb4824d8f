// Package fdm is the fault domain manager: the pure state machine that decides
// for one host's agent — heartbeats, election, verdicts, the protected list,
// failover, and the steps of starting and stopping VMs on its own host.
//
// # Contract
//
// The caller owns time, I/O and identity. It calls Step with the time since
// boot (CLOCK_BOOTTIME) and one event at a time, carries out the returned
// effects in order, without waiting for one before the next, and feeds every
// outcome back as an event. Effects that name an Op are answered by exactly one
// event with the same Op; an answer that never comes is answered by the caller
// with a time-out. Between events the caller calls Step with a Tick no later
// than Next says.
//
// What a machine puts into effects (slices, maps, pointers) and what it is given
// in events belongs to both sides: neither changes it afterwards. Answers may
// come late, twice or never in order; an answer that nobody waits for any more
// is dropped. Effects that answer an administrator come exactly once for each
// AdminAsked.
//
// # What decides what
//
// election.go and beat.go decide who is primary; slots.go and verdict.go what
// became of a silent host; list.go for which datastores a primary may act,
// listwrite.go what it keeps there; vm.go and decide.go what a VM's lock record
// and the reports mean for it;
// failover.go where it is started and when again; exec.go carries commands out
// on their target; admin.go answers people; view.go shows. Safety rests on none
// of this: it rests on the locks, which the guards claim (package lease).
//
// Nothing in this package performs I/O, reads a clock, draws random numbers,
// starts goroutines or logs. The same inputs give the same outputs, bit for
// bit, so that a simulator can drive thousands of machines in virtual time.
package fdm
