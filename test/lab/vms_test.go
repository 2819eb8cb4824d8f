package lab_test

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// virsh start of a VM that runs elsewhere is refused with the owner's name.
func TestVirshStartOfAVMThatRunsElsewhere(t *testing.T) {
	c := settled(t)
	owner := c.secondaryWithVMs()
	vm := c.vmsOn(owner)[0]
	other := c.otherThan(owner)
	out, err := c.exec(other, "virsh", "create", c.configOf(vm))
	if err == nil || !strings.Contains(out, owner) {
		t.Errorf("virsh create of %s on %s: %v, %q; want a refusal that names %s", vm, other, err, out, owner)
	}
	c.runCheck(c.runOn([]string{vm}, owner))
	c.settle()
}

// A VM whose process dies is restarted; one that its user shut down stays
// down, unprotected, until its user starts it again.
func TestCrashAgainstShutdown(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	vm := c.vmsOn(host)[0]
	before := c.instance(vm)
	c.killProcess(vm)
	c.eventually(20*time.Second, vm+" was restarted", func() error { return c.restarted(vm, before) })
	if got := c.vmHost(vm); got != host {
		t.Errorf("%s crashed on healthy %s and was restarted on %s; want it there first", vm, host, got)
	}
	c.settle()

	c.mustExec(host, "virsh", "shutdown", vm)
	c.eventually(40*time.Second, vm+" is down and known to be so on purpose", func() error { return c.vmState(vm, model.VMStopped) })
	c.holds(6*time.Second, "it stays down", func() error { return c.runNowhere([]string{vm}) })
	if v := c.known(vm); v == nil || v.Protected {
		t.Errorf("status of a VM that its user shut down: %+v; want unprotected", v)
	}
	c.mustExec(host, "virsh", "start", vm)
	c.eventually(20*time.Second, vm+" is protected again", func() error { return c.protected(vm) })
	c.settle()
}

// A start that cannot succeed follows the retry schedule, ends in a standing
// reason, and is cleared as soon as the cause is.
func TestMissingDisk(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	vm := c.vmsOn(host)[0]
	putBack := c.hideDisk(vm)
	c.killProcess(vm)
	c.eventually(90*time.Second, "the reason stands", func() error { return c.downBecause(vm, "attempts failed") })
	c.runCheck(c.runNowhere([]string{vm}))
	putBack()
	c.eventually(45*time.Second, vm+" runs again", func() error { return c.runOnce([]string{vm}) })
	c.settle()
}

// Too little memory on the hosts that are left: the VM waits with a reason for
// each host and starts as soon as one returns.
func TestNoMemory(t *testing.T) {
	c := settled(t)
	left := c.otherThan(c.primary())
	restore := c.shrinkMemory(left)
	var gone []string
	for _, h := range c.hosts() {
		if h != left {
			gone = append(gone, h)
		}
	}
	lost := c.vmsNotOn(left)
	for _, h := range gone {
		c.powerOff(h)
	}
	c.eventually(45*time.Second, "every lost VM says why it is down", func() error {
		for _, vm := range lost {
			if err := c.downBecause(vm, "MiB"); err != nil {
				return err
			}
		}
		return nil
	})
	c.powerOn(gone[0])
	c.eventually(60*time.Second, "they run on the host that returned", func() error { return c.runOnce(lost) })
	c.powerOn(gone[1])
	restore()
	c.settle()
}

// Host monitoring is switched off and on without touching VMs, and no failover
// happens meanwhile. The same of HA is in TestPortIsForMembersWhileHAIsOn.
func TestMonitoringSwitch(t *testing.T) {
	c := settled(t)
	all := c.vmNames()
	c.mustExec(c.primary(), "hanok", "ha", "monitoring", "off")
	c.eventually(10*time.Second, "monitoring is off everywhere", func() error { return c.switched("monitoring", false) })
	c.untouched(all)
	c.mustExec(c.hosts()[0], "hanok", "ha", "monitoring", "on")
	c.eventually(15*time.Second, "all is protected again", func() error {
		if err := c.switched("monitoring", true); err != nil {
			return err
		}
		return c.allProtected()
	})
	c.untouched(all)
}
