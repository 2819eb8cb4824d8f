package lab_test

import (
	"fmt"
	"testing"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// A host loses all its networks: it declares itself isolated. By the response of
// each VM one is powered off and runs elsewhere, the others stay and are not
// touched. Healed, it is connected again.
func TestIsolation(t *testing.T) {
	c := settled(t)
	primary, host := c.primary(), c.secondaryWithVMs()
	here := c.vmsOn(host)
	off, stay := here[:1], c.without(here[:1])
	restore := c.edited(func(f *config.Cluster) { f.VMByName(off[0]).IsolationResponse = "powerOff" })
	start := time.Now()
	c.cut(host)
	c.eventually(8*time.Second, host+" is isolated by its own account", func() error { return c.selfState(host, model.HostIsolated) })
	declared := time.Since(start)
	c.eventually(10*time.Second, "the primary sees it isolated", func() error { return c.sees(primary, host, model.HostIsolated) })
	c.eventually(25*time.Second, off[0]+" runs elsewhere", func() error { return c.runElsewhere(off, host) })
	t.Logf("isolated %.1f s after its networks were cut, %s elsewhere after %.1f s", declared.Seconds(), off[0], time.Since(start).Seconds())
	c.untouched(stay)
	c.heal(host)
	c.settle()
	c.untouched(stay)
	restore()
}

// A partition with an isolation address on each side: nobody is isolated, no VM
// is touched, a VM that ends on the primary's side is restarted there. Healed,
// one primary is left.
func TestPartitionHeals(t *testing.T) {
	c := settled(t)
	primary := c.primary()
	apart := c.otherThan(primary)
	c.ensureVMsOn(primary)
	ended := c.vmsOn(primary)[0]
	before := c.instance(ended)
	var rest []string
	for _, h := range c.hosts() {
		if h != apart {
			rest = append(rest, h)
		}
	}
	c.must(c.d.Partition(c.ctx, [][]string{{apart}, rest}))
	c.eventually(15*time.Second, "the primary sees the host partitioned", func() error { return c.sees(primary, apart, model.HostPartitioned) })
	c.killProcess(ended)
	c.eventually(20*time.Second, ended+" was restarted", func() error { return c.restarted(ended, before) })
	c.runCheck(c.notRunOn([]string{ended}, apart))
	c.untouched(c.without([]string{ended}))
	for _, h := range c.hosts() {
		c.heal(h)
	}
	c.eventually(5*time.Second, "one primary is left, and all follow it", c.onePrimary)
	c.settle()
	c.untouched(c.without([]string{ended}))
}

// One host loses a datastore: with a hang its VMs there wait frozen for the
// time-out and are then moved; a device that is gone is not waited for. VMs on
// the other datastore are not touched, and the host is not reset.
func TestLostStorageMovesVMs(t *testing.T) {
	c := settled(t)
	restore := c.edited(func(f *config.Cluster) {
		f.HA.Storage.APD, f.HA.Storage.APDTimeout = "restartAggressive", 10*time.Second
	})
	for _, x := range []struct {
		fault        string
		after, limit time.Duration
	}{{"hang", 10 * time.Second, 35 * time.Second}, {"lost", 0, 20 * time.Second}} {
		host := c.secondaryWithVMs()
		ds := c.datastoreOf(c.vmsOn(host)[0])
		hit := c.vmsOnWithHome(host, ds)
		rest, resets := c.without(hit), c.resets(host)
		start := time.Now()
		c.storage(host, ds, x.fault)
		if x.after > 0 {
			c.eventually(8*time.Second, "they wait frozen", func() error { return c.areFrozen(hit) })
		}
		c.eventually(x.limit, fmt.Sprintf("the VMs of %s on %s run elsewhere", ds, host), func() error { return c.runElsewhere(hit, host) })
		took := time.Since(start)
		t.Logf("%s of %s on %s: %d VMs run elsewhere after %.1f s", x.fault, ds, host, len(hit), took.Seconds())
		if took < x.after {
			t.Errorf("they were moved after %v, the time-out is %v", took, x.after)
		}
		c.untouched(rest)
		if got := c.resets(host); got != resets {
			t.Errorf("%s was reset %d times", host, got-resets)
		}
		c.heal(host)
		c.settle()
	}
	restore()
}

// A host is shut down in order: its VMs shut down, and run elsewhere by policy.
// It is no failure: nobody finds the host failed before it is off.
func TestPlannedShutdown(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	here := c.vmsOn(host)
	rest, failovers := c.without(here), c.told("has failed")
	c.must(c.d.Power(c.ctx, host, supervisor.Shutdown))
	c.eventually(30*time.Second, "its VMs run elsewhere", func() error { return c.runElsewhere(here, host) })
	c.untouched(rest)
	c.eventually(15*time.Second, "the host is known to be shut down in order", func() error { return c.hostReason(host, "shut down in order") })
	if got := c.told("has failed"); got != failovers {
		t.Errorf("%d failures were declared for a planned shutdown", got-failovers)
	}
	if c.told(host+" is being shut down in order") == 0 {
		t.Error("the shutdown was not announced: the VMs were not stopped in order")
	}
	c.powerOn(host)
	c.settle()
}
