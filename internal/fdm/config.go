package fdm

import (
	"time"

	"hanok.dev/hanok/internal/model"
)

// Config is what a machine is told at birth. Self, Boot and Start are
// required; everything else has a default.
type Config struct {
	// Self is this host.
	Self model.HostID
	// Boot is this host's boot id, Incarnation its guard's, as far as they are
	// known at the start; the guard's status overrides both.
	Boot        model.BootID
	Incarnation uint64
	// Start identifies this life of the agent: larger than that of any earlier
	// life on this host (the shell takes the wall clock in nanoseconds, or a
	// counter kept on disk). It makes the ids of commands and failovers unique.
	Start uint64

	// ReportInterval is the pause between reports and views that nothing
	// asked for. Default 5 s: what a person who watches `hanok status` accepts.
	ReportInterval time.Duration
	// Gather is how long a primary that found no predecessor waits for the
	// members before it restarts VMs, unless all reported. Default 10 s: hosts
	// that get their power back together finish booting seconds apart.
	Gather time.Duration
	// Probe is the pause between attempts to start a VM after its counted
	// attempts are used up, for causes that nobody can see changing. Default
	// 10 s.
	Probe time.Duration
	// AliveLimit is how long a started VM is asked whether its guest lives.
	// Default 120 s.
	AliveLimit time.Duration
	// StopLimit is how long a guest may take to shut down before the command
	// is answered as failed. Default 300 s (das.isolationShutdownTimeout).
	StopLimit time.Duration
}

// Limits that need no setting.
const (
	// silentAfter is how many intervals without a sign of life make a host
	// silent: two lost datagrams in a row are no reason for alarm. A quarter of
	// an interval more lets the third arrive.
	silentAfter = 3
	// pingPause is the pause between pings of a silent host, defaultDeadPing that
	// of one that has failed: it is only to be seen when it comes back.
	pingPause       = 2 * time.Second
	defaultDeadPing = 10 * time.Second
	// windowIntervals is how many intervals a candidate waits for a better one.
	windowIntervals = 2
	// offInterval is the pause between heartbeats while HA is off.
	offInterval = 5 * time.Second
	// retryBase is the pause after the first failed attempt; it doubles.
	retryBase = 2 * time.Second
	// transientPause follows a failure that is not counted.
	transientPause = time.Second
	// fencePause is how often a VM that waits for proof of death looks again.
	fencePause = 5 * time.Second
	// commandExpires is how long after receipt a command may still begin.
	commandExpires = 10 * time.Second
	// commandSilence is how long a command may show no progress before the
	// lock record is consulted and the command repeated.
	commandSilence = 15 * time.Second
	// lockReads is the most lock reads outstanding at once.
	lockReads = 32
	// keptResults is how many finished commands a host remembers.
	keptResults = 512
	// adminLimit is how long an administrator's request may take.
	adminLimit = 60 * time.Second
	// keptHosts is how many hosts a DownState remembers.
	keptHosts = 16
	// clearLoss is how long a primary may lack its storage before it yields.
	clearLoss = 3 * time.Second
	// defaultMaxRestarts and defaultPerHost stand in for zero in Cluster.
	defaultMaxRestarts = 5
	defaultPerHost     = 32
)

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.ReportInterval, 5*time.Second)
	def(&c.Gather, 10*time.Second)
	def(&c.Probe, 10*time.Second)
	def(&c.AliveLimit, 120*time.Second)
	def(&c.StopLimit, 300*time.Second)
	return c
}
