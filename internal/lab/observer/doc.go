// Package observer watches, from outside the hosts, which instances of each
// virtual machine exist and which of them can run.
//
// It is told by the kernel: the process connector reports every exec and exit
// on the machine, inotify every change of a cgroup's frozen and populated
// state. Nothing is polled, except the processor time of an instance that has
// not run yet, every 10 ms (after 3 s, every 100 ms) until it does.
//
// An instance is a QEMU process with a -uuid in a cgroup of the lab. libvirt
// starts every QEMU stopped (-S), and a stopped instance beside a running one
// is how a safe takeover looks. So an instance counts as able to run from the
// moment that its virtual processors provably execute: once a thread named
// "CPU n/..." has used 50 ms of processor time, it has been running since at
// least that long ago. From then on it counts as able to run until all its
// virtual processor threads are gone, except while its cgroup is confirmed
// frozen (cgroup.events, frozen 1, whether by the guard or because the whole
// host is frozen). Being stopped through the monitor does not count as unable.
//
// A violation is two instances of one UUID that were both able to run at the
// same time for longer than 25 ms, the bound of the observer's own reaction.
// An instance that becomes able to run and ends within its first 50 ms of
// processor time is not counted: the firmware does not reach the disk by then.
package observer
