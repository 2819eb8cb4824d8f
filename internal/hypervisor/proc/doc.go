// Package proc finds the processes of virtual machines on this host and
// freezes, thaws and kills them by cgroup, without libvirt.
//
// Each VM has a unit: a cgroup v2 directory that holds QEMU and its helpers.
// Where libvirt gave the VM a scope of its own in cgroup v2 that scope is the
// unit; elsewhere the processes are moved to <cgroup2>/hanok/<uuid>. Nobody
// else may write cgroup.freeze of a unit.
//
// A freeze is asynchronous. It is confirmed when cgroup.events says frozen 1.
// While a thread is in D state (in a system call that waits for storage) that
// never comes; once no other thread is runnable the freeze is reported as
// outstanding: no vCPU runs, but the system call may still write.
// Kernel threads of vhost before Linux 6.4 are not part of the process and do
// not freeze; they serve networks, not disks.
package proc
