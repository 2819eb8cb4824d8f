package lab_test

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// A secondary loses power: its VMs run elsewhere, once each, and the others are
// not touched.
func TestSecondaryLosesPower(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	lost, kept := c.vmsOn(victim), c.vmsNotOn(victim)
	start := time.Now()
	c.powerOff(victim)
	c.eventually(20*time.Second, "the VMs of "+victim+" run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	t.Logf("%d VMs of %s ran elsewhere %.1f s after its power was cut", len(lost), victim, time.Since(start).Seconds())
	c.untouched(kept)
	c.timelineIsComplete(lost)
	c.powerOn(victim)
	c.settle()
}

// The primary loses power: another host takes over the lists and restarts.
func TestPrimaryLosesPower(t *testing.T) {
	c := settled(t)
	victim := c.primary()
	c.ensureVMsOn(victim)
	lost, kept := c.vmsOn(victim), c.vmsNotOn(victim)
	start := time.Now()
	c.powerOff(victim)
	c.eventually(25*time.Second, "the VMs of "+victim+" run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	t.Logf("%d VMs of primary %s ran elsewhere %.1f s after its power was cut", len(lost), victim, time.Since(start).Seconds())
	c.untouched(kept)
	c.timelineIsComplete(lost)
	c.powerOn(victim)
	c.settle()
}

// Two of three hosts lose power at once: all VMs run on the one that is left.
func TestTwoHostsLosePower(t *testing.T) {
	c := settled(t)
	left := c.secondaryWithVMs()
	kept := c.vmsOn(left)
	lost := c.vmsNotOn(left)
	for _, h := range c.hosts() {
		if h != left {
			c.powerOff(h)
		}
	}
	c.eventually(45*time.Second, "all VMs run on "+left, func() error { return c.runOn(lost, left) })
	c.untouched(kept)
	for _, h := range c.hosts() {
		if h != left {
			c.powerOn(h)
		}
	}
	c.settle()
}

// All hosts lose power and come back: every VM runs once.
func TestAllHostsLosePower(t *testing.T) {
	c := settled(t)
	for _, h := range c.hosts() {
		c.powerOff(h)
	}
	for _, h := range c.hosts() {
		c.powerOn(h)
	}
	c.settle()
}

// A host that is frozen longer than its lease is reset by its watchdog before
// anyone else takes its VMs.
func TestFrozenHostIsReset(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	lost := c.vmsOn(victim)
	resets := c.resets(victim)
	c.freeze(victim)
	c.eventually(20*time.Second, "the VMs of "+victim+" run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	if got := c.resets(victim); got != resets+1 {
		t.Errorf("%s was reset %d times, want once: its VMs run elsewhere", victim, got-resets)
	}
	c.powerOn(victim)
	c.settle()
}

// Without a watchdog nothing proves that a silent host's VMs are dead: status
// says so, take-over waits, and proof of death ends the wait: the lock that an
// administrator breaks after the evidence is shown, or the host's return.
func TestWithoutWatchdogTakeoverWaitsForProof(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	c.powerOff(victim)
	c.eventually(45*time.Second, "no VM is left without a host", func() error { return c.allRunOnce() })
	c.powerOnWithoutWatchdog(victim)
	c.settle()
	st := c.status()
	if h := st.HostByName(model.HostID(victim)); h == nil || h.Armed || h.ArmedWhy == "" {
		t.Fatalf("status of a host without a watchdog: %+v; want not armed, with the reason", h)
	}
	c.ensureVMsOn(victim)
	lost := c.vmsOn(victim)
	c.powerOff(victim)
	c.eventually(20*time.Second, "status says that the take-over waits, and why", func() error { return c.vmsWait(lost, model.VMFence, "not armed") })
	c.holds(5*time.Second, "nothing of it starts elsewhere", func() error { return c.runNowhere(lost) })
	c.breakLock(lost[0]) // the administrator's word is one, for one VM
	c.eventually(45*time.Second, lost[0]+" runs elsewhere", func() error { return c.runElsewhere(lost[:1], victim) })
	c.runCheck(c.runNowhere(lost[1:]))
	c.powerOn(victim) // a new boot id is another
	c.eventually(45*time.Second, "its VMs run again", func() error { return c.allRunOnce() })
	c.settle()
}

// breakLock releases a lock by force: only with the VM's name typed, and with the
// evidence shown.
func (c *cluster) breakLock(vm string) {
	c.t.Helper()
	host := c.primary()
	if out, err := c.exec(host, "hanok", "lock", "release", "--force", vm, "--confirm", "another"); err == nil || !strings.Contains(out, "nothing was changed") {
		c.t.Errorf("a lock was released for a name that is not the VM's: %v, %q", err, out)
	}
	out := c.mustExec(host, "hanok", "lock", "release", "--force", vm, "--confirm", vm, "--why", "its host is gone")
	if !strings.Contains(out, "the lock of "+vm+" is released") {
		c.t.Errorf("lock release said %q", out)
	}
}
