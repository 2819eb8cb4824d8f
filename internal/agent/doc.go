// Package agent is the fault domain manager's shell on one host: it gives the
// pure machine of package fdm its events and carries out its effects.
//
// # Who runs
//
//	loop       the only goroutine that touches the machine. It never does I/O
//	           and never waits for anybody but its own queues.
//	operation  one goroutine for each effect that names an Op, at most
//	           maxOperations. It ends with exactly one event: the answer, or a
//	           time-out. More operations are answered as busy at once.
//	lanes      bounded workers: one lane for each datastore, one each for
//	           libvirt, guest agents and pings. A worker that hangs (storage)
//	           is given up by its operation; its late result is dropped, and
//	           it counts against its own lane only.
//	guard link, hypervisor watch, event writer, local API, transport.
//
// # Queues and what happens when they are full
//
//	heartbeats in    dropped and counted: the next one comes within an interval
//	events in        the producer waits: a peer's stream, the guard's notices
//	                 and answers are slowed down, nothing is lost
//	lane             the operation is answered as busy
//	messages out     the transport drops the link, which the machine is told
//	events to disk   dropped and counted
//
// Killing the agent at any moment is safe: it owns no VM, no lock and no file
// that cannot be replaced. A new one asks the guard and libvirt for what there
// is, and adopts nothing by itself.
package agent
