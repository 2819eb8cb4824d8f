package lease

import (
	"fmt"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// BenchmarkIdleSecond is what a simulator pays for one virtual second of a host
// with 20 running VMs.
func BenchmarkIdleSecond(b *testing.B) {
	var vms []ManagedVM
	saved := &Saved{Host: "host1", Boot: "b1", Stores: []SavedStore{{Name: "ds1", HasS: true, Limits: limitsOf(0, model.TimingFast)}}}
	var procs []Proc
	for i := range 20 {
		v := ManagedVM{ID: model.VMID(fmt.Sprintf("aaaaaaaa-0000-0000-0000-%012d", i)), Home: "ds1"}
		vms = append(vms, v)
		procs = append(procs, Proc{VM: v.ID})
		saved.VMs = append(saved.VMs, SavedVM{Spec: v, Epoch: 2, Running: true})
	}
	m := New(Config{Host: "host1", Boot: "b1", Timing: model.TimingFast, Managed: vms,
		Datastores: []DatastoreConfig{{Name: "ds1", Fence: model.FenceReset}},
		Nonce:      func() string { return "n" }, Identify: func(model.DatastoreName, model.Slot) string { return "d" }}, saved)
	now := time.Duration(0)
	var todo []Event
	step := func(ev Event) {
		for _, e := range m.Step(now, ev) {
			switch e.Kind {
			case EffWriteSlot:
				todo = append(todo, Event{Kind: EvSlotWritten, Op: e.Op})
			case EffScan:
				todo = append(todo, Event{Kind: EvScanned, Op: e.Op, Procs: procs})
			}
		}
	}
	step(Event{Kind: EvWatchdog, On: true, Open: true, Timeout: model.TimingFast.Watchdog})
	b.ReportAllocs()
	for b.Loop() {
		for end := now + time.Second; now < end; {
			for len(todo) > 0 {
				ev := todo[0]
				todo = todo[1:]
				step(ev)
			}
			now = max(m.Next(), now+time.Microsecond)
			step(Event{Kind: EvTick})
		}
	}
	if s := m.Status(now); len(s.VMs) != 20 || s.VMs[0].Phase != PhaseRunning {
		b.Fatalf("%+v", s)
	}
}
