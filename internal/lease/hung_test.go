package lease

import (
	"fmt"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// A mount that hangs costs its own VMs and nothing else: the heartbeats of the
// healthy datastore go on in their rhythm, its VMs run on, and once the others
// are frozen the watchdog is fed. All that does not grow with the number of
// VMs: they are frozen in one step.
func TestAHungDatastoreHoldsNothingElseUp(t *testing.T) {
	for _, n := range []int{1, 500} {
		t.Run(fmt.Sprintf("%d VMs", n), func(t *testing.T) { hungDatastore(t, n) })
	}
}

func hungDatastore(t *testing.T, n int) {
	var managed []ManagedVM
	for i := range n + 1 {
		v := ManagedVM{ID: model.VMID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)), Name: fmt.Sprint(i), Home: "bad"}
		if i == n {
			v.Home = "good"
		}
		managed = append(managed, v)
	}
	m := New(Config{Host: "host1", Boot: "b1", Incarnation: 1, Timing: model.TimingFast, Managed: managed,
		Datastores: []DatastoreConfig{{Name: "bad", Fence: model.FenceReset}, {Name: "good", Fence: model.FenceReset}},
		Nonce:      func() string { return "n" }, Identify: func(_ model.DatastoreName, s model.Slot) string { return fmt.Sprint(s.Sequence) }}, nil)
	var now, lastPet, lastBeat, widestPet, widestBeat time.Duration
	var running []ManagedVM
	frozen := map[model.VMID]time.Duration{}
	const hangs = 2 * time.Second
	queue := []Event{{Kind: EvWatchdog, On: true, Open: true}}
	carry := func(effects []Effect) {
		for _, e := range effects {
			switch e.Kind {
			case EffScan:
				ev := Event{Kind: EvScanned, Op: e.Op}
				for _, v := range running {
					ev.Procs = append(ev.Procs, Proc{VM: v.ID})
				}
				queue = append(queue, ev)
			case EffWriteSlot:
				if e.Datastore == "bad" && now >= hangs {
					continue // it never returns
				}
				if e.Datastore == "good" {
					widestBeat, lastBeat = max(widestBeat, now-lastBeat), now
				}
				queue = append(queue, Event{Kind: EvSlotWritten, Op: e.Op})
			case EffFreeze:
				frozen[e.VM] = now
				queue = append(queue, Event{Kind: EvFroze, Op: e.Op, VM: e.VM, Frozen: FrozenYes, Took: 5 * time.Millisecond})
			case EffThaw:
				delete(frozen, e.VM)
			case EffPet:
				if now <= e.Before {
					widestPet, lastPet = max(widestPet, now-lastPet), now
				}
			}
		}
	}
	for end := 30 * time.Second; now < end; {
		if len(queue) > 0 {
			ev := queue[0]
			queue = queue[1:]
			carry(m.Step(now, ev))
			continue
		}
		now = max(now+time.Millisecond, min(m.Next(), end))
		if now >= time.Second && running == nil { // both leases are valid: the VMs start
			running = managed
			for _, v := range managed {
				x := m.addVM(v)
				x.lock, x.epoch, x.nonce, x.running = lockHeld, 2, "n", true
			}
		}
		carry(m.Step(now, Event{Kind: EvTick}))
	}
	timing := model.TimingFast
	if widestBeat > timing.Interval+50*time.Millisecond {
		t.Errorf("the healthy datastore got no heartbeat for %v", widestBeat)
	}
	if widestPet > timing.Watchdog {
		t.Errorf("the watchdog was not fed for %v", widestPet)
	}
	if len(frozen) != n {
		t.Errorf("%d VMs are frozen, want the %d of the hung datastore", len(frozen), n)
	}
	for id, at := range frozen {
		if id == managed[n].ID || at > hangs+timing.Lease-timing.Margin {
			t.Errorf("%s froze at %v", id, at)
		}
	}
}
