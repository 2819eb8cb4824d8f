// Package layout names the files, cgroups and directories of a lab. It only
// names them.
package layout

import (
	"fmt"
	"path/filepath"
	"regexp"
)

// Directories that all labs share.
const (
	// RunRoot holds one directory of sockets and mount points per lab.
	RunRoot = "/run/hanok-lab"
	// DataRoot holds one directory of hosts and datastores per lab.
	DataRoot = "/var/lib/hanok-lab"
	// CacheRoot holds guest images, named by their content.
	CacheRoot = "/var/cache/hanok-lab"
	// CgroupParent is the cgroup, below the cgroup v2 mount, of all labs.
	CgroupParent = "hanok-lab"
)

// What a host sees at fixed places.
const (
	// HostBin is where a host finds the binaries.
	HostBin = "/opt/hanok/bin"
	// HostGuest is where a host finds the guests' kernel and initramfs.
	HostGuest = "/opt/hanok/guest"
	// HostRun is the lab's own run-time directory inside a host.
	HostRun = "/run/hanok-lab"
	// HoldFile, while it exists, keeps a host's init from starting daemons.
	HoldFile = "/etc/hanok/lab-hold"
)

// Lab names the places of one lab.
type Lab struct{ name string }

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?$`)

// New returns the layout of the named lab: 1 to 16 lower-case letters, digits
// and dashes, since the name becomes part of file and cgroup names.
func New(name string) (Lab, error) {
	if !namePattern.MatchString(name) {
		return Lab{}, fmt.Errorf("lab name %q: use 1 to 16 lower-case letters, digits and dashes", name)
	}
	return Lab{name}, nil
}

// Name returns the lab's name.
func (l Lab) Name() string { return l.name }

// RunDir is removed when the lab goes down.
func (l Lab) RunDir() string { return filepath.Join(RunRoot, l.name) }

// Socket is where the supervisor listens.
func (l Lab) Socket() string { return filepath.Join(l.RunDir(), "supervisor.sock") }

// MountPoint is where the supervisor presents a datastore for one host.
func (l Lab) MountPoint(host, datastore string) string {
	return filepath.Join(l.RunDir(), "mounts", host, datastore)
}

// WatchdogDir is where the supervisor presents a host's watchdog device.
func (l Lab) WatchdogDir(host string) string { return filepath.Join(l.RunDir(), "watchdogs", host) }

// UsrDir holds what packages installed below each host's /usr; it is the
// supervisor's own mount, and gone with it.
func (l Lab) UsrDir() string { return filepath.Join(l.RunDir(), "usr") }

// HostUsr is where the changes of a host's /usr are.
func (l Lab) HostUsr(host string) string { return filepath.Join(l.UsrDir(), host) }

// NewRoot is where a booting host assembles its root file system.
func (l Lab) NewRoot(host string) string { return filepath.Join(l.RunDir(), "roots", host) }

// DataDir holds what outlives a supervisor: hosts, datastores, logs.
func (l Lab) DataDir() string { return filepath.Join(DataRoot, l.name) }

// ClusterFile is the cluster file that the lab was brought up with.
func (l Lab) ClusterFile() string { return filepath.Join(l.DataDir(), "cluster.yaml") }

// SupervisorLog is the supervisor's log.
func (l Lab) SupervisorLog() string { return filepath.Join(l.DataDir(), "supervisor.log") }

// EventLog is the observer's log, one JSON object a line.
func (l Lab) EventLog() string { return filepath.Join(l.DataDir(), "events.jsonl") }

// PKIDir holds the cluster CA of the lab.
func (l Lab) PKIDir() string { return filepath.Join(l.DataDir(), "pki") }

// ServerDir holds the state of the lab's server, ServerPKI its certificate.
func (l Lab) ServerDir() string { return filepath.Join(l.DataDir(), "server") }

// ServerPKI is the directory of the server's certificate for the hosts.
func (l Lab) ServerPKI() string { return filepath.Join(l.DataDir(), "server-pki") }

// ServerSocket is where the lab's server listens.
func (l Lab) ServerSocket() string { return filepath.Join(l.RunDir(), "server.sock") }

// ServerLog is the server's log.
func (l Lab) ServerLog() string { return filepath.Join(l.DataDir(), "server.log") }

// ServerCgroup is the server's cgroup relative to the cgroup v2 mount.
func (l Lab) ServerCgroup() string { return filepath.Join(l.Cgroup(), "server") }

// Backing is the directory behind a datastore.
func (l Lab) Backing(datastore string) string {
	return filepath.Join(l.DataDir(), "datastores", datastore)
}

// HostDir holds what a host keeps over a power-off.
func (l Lab) HostDir(host string) string { return filepath.Join(l.DataDir(), "hosts", host) }

// HostEtc is a host's /etc.
func (l Lab) HostEtc(host string) string { return filepath.Join(l.HostDir(host), "etc") }

// HostVar is a host's /var.
func (l Lab) HostVar(host string) string { return filepath.Join(l.HostDir(host), "var") }

// Cgroup is the lab's cgroup relative to the cgroup v2 mount.
func (l Lab) Cgroup() string { return filepath.Join(CgroupParent, l.name) }

// HostCgroup is a host's cgroup relative to the cgroup v2 mount.
func (l Lab) HostCgroup(host string) string { return filepath.Join(l.Cgroup(), "hosts", host) }

// SupervisorCgroup is the supervisor's cgroup relative to the cgroup v2 mount.
func (l Lab) SupervisorCgroup() string { return filepath.Join(l.Cgroup(), "supervisor") }
