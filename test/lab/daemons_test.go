package lab_test

import (
	"testing"
	"time"
)

// Any daemon of Hanok's, or libvirtd, killed on a running host: its VMs are
// untouched and protection is back within seconds.
func TestKilledDaemonsLeaveVMsAlone(t *testing.T) {
	for _, daemon := range []string{"agent", "guard", "libvirtd"} {
		t.Run(daemon, func(t *testing.T) {
			c := settled(t)
			host := c.secondaryWithVMs()
			all := c.vmsOn(host)
			c.kill(host, daemon)
			c.eventually(15*time.Second, "all is protected again", func() error { return c.allProtected() })
			c.untouched(all)
		})
	}
}

// The primary's agent dies, or is stopped; then another host loses power. Its
// VMs are restarted all the same.
func TestPrimaryAgentGoneThenHostDies(t *testing.T) {
	for _, signal := range []string{"KILL", "STOP"} {
		t.Run(signal, func(t *testing.T) {
			c := settled(t)
			primary := c.primary()
			victim := c.otherThan(primary)
			c.ensureVMsOn(victim)
			lost, kept := c.vmsOn(victim), c.vmsNotOn(victim)
			c.signal(primary, "agent", signal)
			c.powerOff(victim)
			c.eventually(30*time.Second, "the VMs of "+victim+" run elsewhere", func() error { return c.runElsewhere(lost, victim) })
			c.untouched(kept)
			if signal == "STOP" {
				c.signal(primary, "agent", "CONT")
			}
			c.powerOn(victim)
			c.settle()
		})
	}
}

// The guard is stopped for longer than the lease: the watchdog resets its host
// before anyone starts its VMs.
func TestStoppedGuardIsResetByTheWatchdog(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	lost := c.vmsOn(victim)
	resets := c.resets(victim)
	c.signal(victim, "guard", "STOP")
	c.eventually(25*time.Second, "its VMs run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	if got := c.resets(victim); got != resets+1 {
		t.Errorf("%s was reset %d times, want once", victim, got-resets)
	}
	c.powerOn(victim)
	c.settle()
}

// libvirtd restarts while the guard is down: running VMs live on. The host has
// no watchdog, or that would reset it for want of a guard.
func TestLibvirtdRestartsWithoutGuard(t *testing.T) {
	c := settled(t)
	host := c.otherThan(c.primary())
	c.powerOff(host)
	c.eventually(45*time.Second, "every VM runs", func() error { return c.allRunOnce() })
	c.powerOnWithoutWatchdog(host)
	c.settle()
	c.ensureVMsOn(host)
	all := c.vmsOn(host)
	c.signal(host, "guard", "STOP") // it answers no hook, as one that is down
	c.kill(host, "libvirtd")
	c.eventually(20*time.Second, "libvirtd is back", func() error { return c.libvirtAnswers(host) })
	c.signal(host, "guard", "CONT")
	c.eventually(20*time.Second, "all is protected again", func() error { return c.allProtected() })
	c.untouched(all)
	c.powerOff(host)
	c.powerOn(host)
	c.settle()
}
