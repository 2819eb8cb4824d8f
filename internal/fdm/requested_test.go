package fdm

import (
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// A VM may be requested stopped while its restart is being recorded: the start
// does not leave any more.
func TestStoppedBeforeItsStartIsSent(t *testing.T) {
	conf := func(version uint64, want model.Requested) Cluster {
		c := chaosConfig(version)
		c.VMs = map[string]VMSettings{"web": {Requested: want}}
		return c
	}
	b := newBench(t, conf(1, model.RequestedStarted))
	web := protectedVM("v1")
	web.Settled = model.RequestedStarted
	b.lead(web)
	b.report("a", "boot-a")
	lock := func() {
		for _, e := range take[ReadLock](b) {
			b.step(LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: model.LockRecord{Lock: model.VMLock(e.VM), Epoch: 3, State: model.LockReleased, Reason: model.ReasonCrashed, Owner: "a"}})
		}
	}
	lock()
	if v := b.m.vms["v1"]; v.order == nil || v.order.sent {
		t.Fatalf("order %+v, want a start that waits for its record", v.order)
	}
	b.step(ConfigLoaded{conf(2, model.RequestedStopped)})
	for range 5 {
		b.written()
		lock()
		b.pass(10 * time.Millisecond)
	}
	for _, e := range take[SendMessage](b) {
		if e.Message.Command != nil {
			t.Errorf("%s of %s left", e.Message.Command.Kind, e.Message.Command.VM.Name)
		}
	}
	if v := b.m.vms["v1"]; v.order != nil || v.p.Requested != model.RequestedStopped || v.p.Settled != model.RequestedStopped {
		t.Errorf("order %+v, requested %s, settled %s: want it to be settled as stopped", v.order, v.p.Requested, v.p.Settled)
	}
}
