// Package paths names the files that Hanok's daemons and commands share on a
// host. It only names them.
package paths

// Configuration, root only (0600).
const (
	// ClusterFile is the cluster's configuration, the highest version this
	// host has seen. It is changed only through `hanok cluster apply`.
	ClusterFile = "/etc/hanok/cluster.yaml"
	// HostFile holds this host's name in the cluster, one line.
	HostFile = "/etc/hanok/host"
	// PKIDir holds ca.crt, host.crt and host.key.
	PKIDir = "/etc/hanok/pki"
)

// Run-time files; they vanish with a reboot.
const (
	// RunDir is the directory of the sockets and of the guard's state.
	RunDir = "/run/hanok"
	// GuardSocket is where the guard serves the agent and the libvirt hook.
	GuardSocket = "/run/hanok/guard.sock"
	// AgentSocket is where the agent serves the command line.
	AgentSocket = "/run/hanok/agent.sock"
	// ServerSocket is where a server serves root on its machine.
	ServerSocket = "/run/hanok/server.sock"
	// GuardState is what a restarted guard needs to know of its predecessor
	// within one boot.
	GuardState = "/run/hanok/guard-state.json"
)

// State that survives a reboot.
const (
	// StateDir holds the agent's and the guard's persistent state.
	StateDir = "/var/lib/hanok"
	// ManagedFile lists the VMs and disks that Hanok manages on this host; the
	// libvirt hook reads it when the guard does not answer.
	ManagedFile = "/var/lib/hanok/managed.json"
	// ServerDir holds the server's state.
	ServerDir = "/var/lib/hanok-server"
	// LogDir holds the daemons' logs where there is no journal.
	LogDir = "/var/log/hanok"
)

// Devices and foreign directories.
const (
	// Watchdog is the host's watchdog device.
	Watchdog = "/dev/watchdog"
	// HookDir is where libvirt looks for QEMU hook scripts.
	HookDir = "/etc/libvirt/hooks/qemu.d"
	// Hook is Hanok's hook script there.
	Hook = "/etc/libvirt/hooks/qemu.d/50-hanok"
	// BootID is the kernel's identification of this boot.
	BootID = "/proc/sys/kernel/random/boot_id"
	// MachineID identifies this installation of the host.
	MachineID = "/etc/machine-id"
)
