package agent

import (
	"context"
	"testing"
	"time"
)

func TestWorkersAreBounded(t *testing.T) {
	w := newWorkers(2, 3)
	release, began := make(chan struct{}), make(chan struct{}, 2)
	block := func() { began <- struct{}{}; <-release }
	for range 2 {
		if !w.submit(block) {
			t.Fatal("an idle worker refused")
		}
		<-began // it does not wait any more
	}
	done := make(chan struct{}, 3)
	for range 3 {
		if !w.submit(func() { done <- struct{}{} }) {
			t.Fatal("the backlog refused too early")
		}
	}
	if w.submit(func() {}) {
		t.Error("more waits than the backlog allows")
	}
	close(release)
	for range 3 {
		<-done
	}
}

// A job that was given up before its turn does not run; one that ends late is
// dropped.
func TestCallGivesUp(t *testing.T) {
	w := newWorkers(1, 8)
	release, began := make(chan struct{}), make(chan struct{})
	ctx := context.Background()
	outcomes := make(chan outcome)
	go func() { // given up only once it runs: a slow machine must not drop it before
		gctx, giveUp := context.WithCancel(ctx)
		go func() { <-began; giveUp() }()
		_, out := call(gctx, w, time.Minute, func() int { close(began); <-release; return 1 })
		outcomes <- out
	}()
	<-began
	if out := <-outcomes; out != late {
		t.Errorf("a job that hangs ended with %v", out)
	}
	ran := false
	if _, out := call(ctx, w, time.Millisecond, func() int { ran = true; return 2 }); out != late {
		t.Errorf("a job behind a hung one ended with %v", out)
	}
	close(release)
	if v, out := call(ctx, w, 10*time.Second, func() int { return 3 }); out != finished || v != 3 {
		t.Errorf("after the repair: %v, %v", v, out)
	}
	if ran {
		t.Error("a job ran that nobody waited for")
	}
}

// Datagrams never hold the network up, whatever the loop does.
func TestHeartbeatsAreDroppedWhenTheLoopIsBusy(t *testing.T) {
	a, err := New(Config{Hypervisor: newFakeHypervisor(), Ports: (&rig{}).ports()})
	if err != nil {
		t.Fatal(err)
	}
	r := receiver{a, context.Background()}
	for range beatQueue + 100 {
		r.Datagram("host2", "mgmt", []byte(`{"k":"S"}`))
	}
	if n := a.count.all()["heartbeats-dropped"]; n != 100 {
		t.Errorf("%d heartbeats were dropped, want 100", n)
	}
}
