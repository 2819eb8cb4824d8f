// Package sim is a simulator of whole clusters in virtual time: the very
// machines of production, fdm.Machine and lease.Machine, over simulated
// networks, datastores, hosts, watchdogs, libvirt, guests and clocks.
//
// # Contract
//
// The same cluster file, options and calls give the same run, bit for bit
// (Sim.Hash). Nothing here decides what a cluster does: it carries out the
// machines' effects, as internal/agent and internal/guard do on a real host,
// and feeds the outcomes back. Every fault is a scenario.Action given to
// [Sim.Do]; docs/scenarios.md names them all.
//
// # How it is made
//
//	queue.go    the events of the future
//	sim.go      New, Run, Settle; host.go, clock.go, proc.go: hosts and guests
//	disk.go     a datastore's content; path.go one host's way to it, with faults
//	guard.go    the guard's shell, cgroup.go its freezer; agent.go the agent's
//	virt.go     libvirt and the hook; network.go datagrams and links
//	check.go    the invariants, looked at whenever something changes
//	do.go       actions; play.go scenarios; tamper.go what can be switched off
//
// docs/simulator.md says what is modelled and what is not.
package sim
