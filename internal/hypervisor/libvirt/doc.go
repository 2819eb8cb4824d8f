// Package libvirt drives libvirt's QEMU domains through libvirtd's local
// socket. It fulfils hypervisor.Driver.
//
// # Connections
//
// The RPC library below has neither deadlines nor keepalive, and libvirtd
// handles at most five calls of one connection at a time. So there are
// three sorts of connections, none of which can hold up another:
//
//	control  one; carries events and, every Config.ProbeInterval, a call that
//	         proves that libvirtd is alive, and that no domain started or
//	         stopped without an event. Its fate is the driver's
//	         Connection(): while it is down, calls fail at once.
//	calls    two pools, one of them for what no frozen VM can hold up; one
//	         connection for each call under way. A call that misses its
//	         deadline costs its connection, and only that.
//	lanes    three, for disk counters. A call that hangs because its VM is
//	         frozen keeps its lane until the VM thaws; so frozen VMs can
//	         never occupy more than three of libvirtd's twenty workers.
//
// An event stream is never ended but by closing its connection, after which
// it is read to its end: the library deadlocks when an event arrives for a
// stream that is being ended.
package libvirt
