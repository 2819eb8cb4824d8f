package datastore_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/model"
)

func TestPoolAnswersBusyAtOnceAndRunsInOrder(t *testing.T) {
	var now atomic.Int64
	p := datastore.NewPool("ds1", datastore.PoolOptions{
		Lanes: map[datastore.Lane]datastore.LaneSize{datastore.LaneLock: {Workers: 1, Queue: 2}},
		Now:   func() time.Duration { return time.Duration(now.Load()) },
	})
	release := make(chan struct{})
	started := make(chan struct{})
	order := make(chan int, 3)
	submit := func(lane datastore.Lane, fn func()) {
		t.Helper()
		if err := p.Submit(lane, fn); err != nil {
			t.Fatal(err)
		}
	}
	submit(datastore.LaneLock, func() { close(started); <-release; order <- 1 })
	<-started
	submit(datastore.LaneLock, func() { order <- 2 })
	submit(datastore.LaneLock, func() { order <- 3 })
	now.Store(int64(7 * time.Second))
	err := p.Submit(datastore.LaneLock, func() { t.Error("a refused operation ran") })
	if datastore.KindOf(err) != datastore.KindBusy {
		t.Errorf("the full lane answered %v", err)
	}
	if got := p.Oldest(datastore.LaneLock); got != 7*time.Second {
		t.Errorf("oldest operation %v", got)
	}
	if got := p.Outstanding(datastore.LaneLock); got != 3 {
		t.Errorf("%d operations outstanding", got)
	}
	// Another lane goes on.
	done := make(chan struct{})
	submit(datastore.LaneHeartbeat, func() { close(done) })
	<-done
	close(release)
	for want := 1; want <= 3; want++ {
		if got := <-order; got != want {
			t.Errorf("operation %d ran as number %d", got, want)
		}
	}
	<-p.Close()
	if got := p.Oldest(datastore.LaneLock); got != 0 {
		t.Errorf("oldest operation of an idle pool: %v", got)
	}
	if err := p.Submit(datastore.LaneRead, func() {}); datastore.KindOf(err) != datastore.KindInvalid {
		t.Errorf("a closed pool answered %v", err)
	}
}

func TestPoolCloseDropsWhatWaitsAndDoesNotWait(t *testing.T) {
	p := datastore.NewPool("ds1", datastore.PoolOptions{
		Lanes: map[datastore.Lane]datastore.LaneSize{datastore.LaneRead: {Workers: 1, Queue: 1}}})
	release := make(chan struct{})
	started := make(chan struct{})
	if err := p.Submit(datastore.LaneRead, func() { close(started); <-release }); err != nil {
		t.Fatal(err)
	}
	<-started
	if err := p.Submit(datastore.LaneRead, func() { t.Error("a dropped operation ran") }); err != nil {
		t.Fatal(err)
	}
	ended := p.Close()
	select {
	case <-ended:
		t.Error("the pool ended before its operation")
	default:
	}
	close(release)
	<-ended
}

func TestPoolRunsNoMoreThanItsWorkers(t *testing.T) {
	const workers, tasks = 3, 200
	p := datastore.NewPool("ds1", datastore.PoolOptions{
		Lanes: map[datastore.Lane]datastore.LaneSize{datastore.LaneLock: {Workers: workers, Queue: tasks}}})
	var running, most, ran atomic.Int32
	var all sync.WaitGroup
	all.Add(tasks)
	for range tasks {
		if err := p.Submit(datastore.LaneLock, func() {
			defer all.Done()
			n := running.Add(1)
			for {
				if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			ran.Add(1)
			running.Add(-1)
		}); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	<-p.Close()
	if most.Load() > workers || ran.Load() != tasks {
		t.Errorf("%d at once, %d ran", most.Load(), ran.Load())
	}
}

// A hung path holds its own pool only, and its late write is found out.
func TestHungDatastoreHoldsOnlyItsPool(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	backing := t.TempDir()
	initialise(t, backing)
	hungDir, fs := mount(t, backing)
	goodDir, _ := mount(t, backing)
	hung, good := open(t, hungDir, datastore.Options{}), open(t, goodDir, datastore.Options{})
	index, err := hung.ClaimSlot("host1", "m1")
	if err != nil {
		t.Fatal(err)
	}
	first, err := hung.WriteSlot(index, nil, slot("host1", 1))
	if err != nil {
		t.Fatal(err)
	}

	fs.SetFault(fusefs.Hang)
	pool := datastore.NewPool("hung", datastore.PoolOptions{})
	answers := make(chan error, 4)
	write := func(sequence uint64) func() {
		return func() {
			_, err := hung.WriteSlot(index, []string{first.Digest}, slot("host1", sequence))
			answers <- err
		}
	}
	if err := pool.Submit(datastore.LaneHeartbeat, write(2)); err != nil {
		t.Fatal(err)
	}
	if err := fs.WaitBlocked(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := pool.Submit(datastore.LaneHeartbeat, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := pool.Submit(datastore.LaneHeartbeat, func() {}); datastore.KindOf(err) != datastore.KindBusy {
		t.Fatalf("the lane of a hung datastore answered %v", err)
	}
	if pool.Oldest(datastore.LaneHeartbeat) <= 0 {
		t.Error("a hung operation has no age")
	}
	// A driver opens without waiting, and another host goes on.
	open(t, hungDir, datastore.Options{})
	if r, err := good.ReadSlot("host1"); err != nil || r.Slot.Sequence != 1 {
		t.Fatalf("the other host reads %+v, %v", r, err)
	}
	ended := pool.Close()
	fs.SetFault(fusefs.None)
	if err := <-answers; err != nil {
		t.Errorf("the write that hung: %v", err)
	}
	<-ended
	// What was in flight must be among the known, or it looks like a change.
	_, err = good.WriteSlot(index, []string{first.Digest}, slot("host1", 3))
	if datastore.KindOf(err) != datastore.KindChanged {
		t.Errorf("write that forgot what was in flight: %v", err)
	}
	inFlight := good.SlotIdentityOf(slot("host1", 2)).Digest
	if _, err := good.WriteSlot(index, []string{first.Digest, inFlight}, slot("host1", 3)); err != nil {
		t.Errorf("write that knows it: %v", err)
	}
}

func slot(host model.HostID, sequence uint64) model.Slot {
	return model.Slot{Host: host, Boot: "boot", Incarnation: 1, Sequence: sequence, Lease: 5 * time.Second}
}
