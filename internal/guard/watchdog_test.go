package guard

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lease"
)

// TestWatchdogIsOpenedOnlyWhenItMayBeFed: to open the device, and to set its
// time-out, feeds it. A guard that restarts past its leases must not do that:
// other hosts count on the reset that its predecessor let come.
func TestWatchdogIsOpenedOnlyWhenItMayBeFed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	events := make(chan lease.Event, 16)
	w := startWatchdog(path, func(ev lease.Event) { events <- ev }, nil)
	defer w.stop(false)
	send := func(before, timeout time.Duration) {
		t.Helper()
		select {
		case w.pets <- pet{before, timeout}:
		case <-time.After(10 * time.Second):
			t.Fatal("the watchdog does not take a pet")
		}
	}
	for range 3 { // the first two have been dealt with when the third is taken
		send(datastore.BootTime()-time.Second, 3*time.Second)
	}
	for range 3 {
		send(datastore.BootTime()-time.Second, 5*time.Second)
	}
	for len(events) > 0 {
		if ev := <-events; ev.Open {
			t.Fatalf("it was opened although it may not be fed: %+v", ev)
		}
	}
	send(datastore.BootTime()+time.Minute, 5*time.Second)
	deadline := time.After(10 * time.Second)
	for {
		select {
		case ev := <-events:
			if ev.Open {
				return
			}
		case <-deadline:
			t.Fatal("it was never opened")
		}
	}
}
