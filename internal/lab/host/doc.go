// Package host is one lab host: namespaces, a cgroup of its own and a PID 1
// that runs libvirtd and Hanok's daemons as an init system would.
//
// Start, called by the supervisor, makes the host's process; Init is what runs
// as PID 1 inside. A host keeps its /etc and /var over a power-off; everything
// else, /run and the boot id included, is new at each boot.
package host
