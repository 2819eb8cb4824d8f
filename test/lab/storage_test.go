package lab_test

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// The path to a datastore hangs for longer than the lease while the network is
// up: the VMs freeze, and thaw unharmed when it answers again.
func TestHungStorageFreezesAndThaws(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	ds := c.datastoreOf(c.vmsOn(host)[0])
	hit := c.vmsOnWithHome(host, ds)
	rest := c.without(hit)
	c.storage(host, ds, "hang")
	c.eventually(10*time.Second, "its VMs are frozen", func() error { return c.areFrozen(hit) })
	c.holds(8*time.Second, "nobody takes them, the rest runs on", func() error {
		if err := c.areFrozen(hit); err != nil {
			return err
		}
		return c.runOnce(rest)
	})
	if vm := c.known(hit[0]); vm == nil || vm.State != model.VMFrozen || vm.Reason == "" {
		t.Errorf("status of a frozen VM: %+v; want state frozen with the reason", vm)
	}
	c.heal(host)
	c.eventually(15*time.Second, "they run again on the same host", func() error { return c.runOn(hit, host) })
	c.untouched(rest)
	c.settle()
}

// A host whose path to a datastore hangs loses power with writes outstanding:
// its VMs run elsewhere, and no late write appears on their disks when the path
// answers again.
func TestHungStorageLateWrites(t *testing.T) {
	c := settled(t)
	host := c.secondaryWithVMs()
	vm := c.vmsOn(host)[0]
	c.storage(host, c.datastoreOf(vm), "hang")
	c.eventually(10*time.Second, vm+" is frozen", func() error { return c.areFrozen([]string{vm}) })
	c.powerOff(host)
	c.eventually(20*time.Second, vm+" runs elsewhere", func() error { return c.runElsewhere([]string{vm}, host) })
	c.heal(host)
	c.powerOn(host)
	c.settle()
}

// The cluster's directory on a datastore is deleted: what lives by it freezes,
// status explains it, nothing is created anew; the documented repair brings it
// back.
func TestDirectoryDeleted(t *testing.T) {
	c := settled(t)
	ds := "ds1"
	hit := c.vmsWithHome(ds)
	aside := c.moveDirectoryAside(ds)
	c.eventually(15*time.Second, "the VMs of "+ds+" are frozen", func() error { return c.areFrozen(hit) })
	c.eventually(5*time.Second, "status explains it", func() error { return c.datastoreProblem(ds, "repair") })
	if c.directoryExists(ds) {
		t.Error("the directory was created again by itself")
	}
	c.runCheck(c.runOnce(c.without(hit)))
	c.moveDirectoryBack(ds, aside)
	c.eventually(30*time.Second, "they run again where they were", func() error { return c.allRunOnce() })
	c.settle()
}

// An older copy of the cluster's directory takes the place of the present one:
// noticed, frozen, and repaired by the documented command.
func TestDatastoreRolledBack(t *testing.T) {
	c := settled(t)
	ds := "ds2"
	hit := c.vmsWithHome(ds)
	old := c.copyDirectory(ds)
	c.churn(ds)
	c.replaceDirectory(ds, old)
	c.eventually(15*time.Second, "the VMs of "+ds+" are frozen", func() error { return c.areFrozen(hit) })
	c.eventually(5*time.Second, "status explains it", func() error { return c.datastoreProblem(ds, "changed") })
	c.runCheck(c.runOnce(c.without(hit)))
	c.repair(ds, "--rolled-back", "--settle", "6s")
	c.eventually(45*time.Second, "all VMs run again, once each", func() error { return c.allRunOnce() })
	c.settle()
}

// A full datastore stops neither heartbeats nor failover.
func TestFullDatastore(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	lost := c.vmsOn(victim)
	for _, h := range c.hosts() {
		for _, ds := range []string{"ds1", "ds2"} {
			c.storage(h, ds, "full")
		}
	}
	c.holds(8*time.Second, "every VM runs on", func() error { return c.allRunOnce() })
	c.powerOff(victim)
	c.eventually(25*time.Second, "its VMs run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	for _, h := range c.hosts() {
		c.heal(h)
	}
	c.powerOn(victim)
	c.settle()
}

// Another datastore is mounted in the place of one: refused and explained.
func TestWrongDatastoreMounted(t *testing.T) {
	c := settled(t)
	ds := "ds1"
	hit := c.vmsWithHome(ds)
	aside := c.moveDirectoryAside(ds)
	out := c.mustExec(c.primary(), "hanok", "datastore", "init", "/srv/"+ds, "--cluster", c.clusterID())
	if !strings.Contains(out, "-") {
		t.Errorf("datastore init printed no UUID: %q", out)
	}
	c.eventually(15*time.Second, "the VMs of "+ds+" are frozen", func() error { return c.areFrozen(hit) })
	c.eventually(5*time.Second, "status explains it", func() error { return c.datastoreProblem(ds, "uuid", "another", "foreign") })
	c.removeDirectory(ds)
	c.moveDirectoryBack(ds, aside)
	c.eventually(30*time.Second, "they run again", func() error { return c.allRunOnce() })
	c.settle()
}
