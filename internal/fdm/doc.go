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
// Nothing in this package performs I/O, reads a clock, draws random numbers,
// starts goroutines or logs. The same inputs give the same outputs, bit for
// bit, so that a simulator can drive thousands of machines in virtual time.
package fdm
