package model

import (
	"fmt"
	"time"
)

// Timing holds the durations of the safety protocol (docs/protocol.md). All
// are measured on each host's own CLOCK_BOOTTIME.
type Timing struct {
	// Interval is the pause between heartbeats, on the network and on
	// datastores alike. 100 ms to 10 s.
	Interval time.Duration
	// Lease is how long a heartbeat written to a datastore protects the locks
	// that live there, counted from the start of the write.
	Lease time.Duration
	// Margin is how long before the end of the lease a guard freezes its VMs.
	Margin time.Duration
	// Watchdog is the time-out that the host's watchdog is set to.
	Watchdog time.Duration
	// WatchdogMax is the longest time from the last pet to the reset: Watchdog
	// plus its granularity plus the latency of the reset.
	WatchdogMax time.Duration
}

// The two profiles of timings (safety protocol, "Terms").
var (
	TimingFast = Timing{Interval: 500 * time.Millisecond, Lease: 5 * time.Second,
		Margin: 1500 * time.Millisecond, Watchdog: 3 * time.Second, WatchdogMax: 4 * time.Second}
	TimingSteady = Timing{Interval: time.Second, Lease: 20 * time.Second,
		Margin: 5 * time.Second, Watchdog: 10 * time.Second, WatchdogMax: 11 * time.Second}
)

// MaxDrift is the largest relative error of one host's clock rate against true
// time that the protocol allows for.
const MaxDrift = 0.01

// FreezeAllowance is the time that the inequalities reserve for freezing all
// VMs of a host. The guard measures the real time and disarms when it is
// exceeded.
const FreezeAllowance = 100 * time.Millisecond

// PetPeriod is how often a guard feeds the watchdog.
const PetPeriod = 250 * time.Millisecond

// StaleAfter is the age at which a slot proves that its writer's lease has
// lapsed, whatever the rates of the two clocks within MaxDrift: the writer's may
// be slow by MaxDrift while the reader's is fast by as much.
func (t Timing) StaleAfter() time.Duration { return StaleAfter(t.Lease) }

// StaleAfter is Timing.StaleAfter for a lease read from a slot.
func StaleAfter(lease time.Duration) time.Duration {
	return time.Duration(float64(lease)*(1+MaxDrift)/(1-MaxDrift)) + 1
}

// Validate checks the durations against each other:
// Margin ≥ (WatchdogMax − Watchdog) + FreezeAllowance + PetPeriod, and
// Lease ≥ WatchdogMax + Interval (safety protocol, "Terms").
func (t Timing) Validate() error {
	switch {
	case t.Interval < 100*time.Millisecond || t.Interval > 10*time.Second:
		return fmt.Errorf("timing.interval %v: must be between 100ms and 10s", t.Interval)
	case t.Watchdog < time.Second:
		return fmt.Errorf("timing.watchdog %v: must be at least 1s", t.Watchdog)
	case t.WatchdogMax < t.Watchdog:
		return fmt.Errorf("timing.watchdogMax %v: must not be below timing.watchdog %v", t.WatchdogMax, t.Watchdog)
	}
	if least := t.WatchdogMax + t.Interval; t.Lease < least {
		return fmt.Errorf("timing.lease %v: must be at least the watchdog's longest time to reset plus one interval, %v", t.Lease, least)
	}
	if least := t.WatchdogMax - t.Watchdog + FreezeAllowance + PetPeriod; t.Margin < least {
		return fmt.Errorf("timing.margin %v: must be at least %v (watchdog spread %v + freeze %v + pet period %v)",
			t.Margin, least, t.WatchdogMax-t.Watchdog, FreezeAllowance, PetPeriod)
	}
	if t.Margin >= t.Lease-2*t.Interval {
		return fmt.Errorf("timing.margin %v: must leave at least two intervals of the lease %v", t.Margin, t.Lease)
	}
	return nil
}
