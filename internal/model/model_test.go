package model

import (
	"strings"
	"testing"
	"time"
)

func TestProfilesSatisfyTheirInequalities(t *testing.T) {
	for name, timing := range map[string]Timing{"fast": TimingFast, "steady": TimingSteady} {
		if err := timing.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTimingRefusesUnsafeValues(t *testing.T) {
	for want, change := range map[string]func(*Timing){
		"timing.interval":    func(x *Timing) { x.Interval = 10 * time.Millisecond },
		"timing.lease":       func(x *Timing) { x.Lease = x.WatchdogMax },
		"timing.margin 1s":   func(x *Timing) { x.Margin = time.Second },
		"timing.margin 4.5s": func(x *Timing) { x.Margin = 4500 * time.Millisecond },
		"timing.watchdogMax": func(x *Timing) { x.WatchdogMax = x.Watchdog - 1 },
		"timing.watchdog 0s": func(x *Timing) { x.Watchdog = 0 },
	} {
		timing := TimingFast
		change(&timing)
		if err := timing.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}

func TestStaleAfterCoversTheDriftOfTwoClocks(t *testing.T) {
	// A writer whose clock runs 1 % slow may hold its lease for L/0.99 of true
	// time; a reader whose clock runs 1 % fast counts 1.01 for each second.
	worst := float64(TimingFast.Lease) / (1 - MaxDrift) * (1 + MaxDrift)
	if got := TimingFast.StaleAfter(); float64(got) < worst {
		t.Errorf("stale after %v, but two clocks at their worst need %v", got, time.Duration(worst))
	}
}

func TestLockStatesFollowTheTable(t *testing.T) {
	states := []LockState{"", LockHeld, LockReleased, LockMoving, LockHanded, LockMovedTo}
	legal := map[LockState]string{
		"":           "held released movedTo",
		LockReleased: "held released movedTo",
		LockHeld:     "held released moving",
		LockHanded:   "held released moving",
		LockMoving:   "handed held",
		LockMovedTo:  "",
	}
	for _, prev := range states {
		for _, next := range states[1:] {
			want := strings.Contains(" "+legal[prev]+" ", " "+string(next)+" ")
			if got := next.MayFollow(prev); got != want {
				t.Errorf("%q after %q: %v, want %v", next, prev, got, want)
			}
		}
	}
}

func TestNamesThatCouldEscapeADirectoryAreRefused(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", strings.Repeat("x", 129)} {
		if ValidateName(bad) == nil {
			t.Errorf("name %q accepted", bad)
		}
		if HostID(bad).Validate() == nil {
			t.Errorf("host %q accepted", bad)
		}
	}
	if VMID("6B1F1D3A-0F0A-4C58-9A4E-2B9F0C7D1E55").Validate() == nil {
		t.Error("upper-case VM id accepted: it would name another lock")
	}
}
