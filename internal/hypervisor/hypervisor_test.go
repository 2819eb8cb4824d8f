package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestError(t *testing.T) {
	e := &Error{Op: "start", VM: "6b1f", Kind: KindHook, Text: " web runs\n on host2 ", Err: context.DeadlineExceeded}
	if got, want := e.Error(), "start 6b1f: refused by a hook: web runs on host2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := (&Error{Op: "list", Kind: KindTimeout}).Error(), "list: no answer in time, outcome unknown"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	wrapped := fmt.Errorf("fail over web: %w", e)
	if !errors.Is(wrapped, context.DeadlineExceeded) || KindOf(wrapped) != KindHook {
		t.Errorf("lost by wrapping: %v is %s", wrapped, KindOf(wrapped))
	}
	if KindOf(nil) != "" || KindOf(errors.New("x")) != KindOther {
		t.Error("kind of an error that is not a driver's")
	}
}

// A VM that its user stopped stays down; one that was lost comes back.
func TestRestart(t *testing.T) {
	for cause, want := range map[StopCause]bool{
		StopNone: false, StopGuestShutdown: false, StopDestroyed: false, StopMigrated: false, StopSaved: false,
		StopSnapshot: false, StopUnknown: false, StopHostSignal: true, StopCrashed: true, StopFailed: true, StopDaemonLost: true,
	} {
		if cause.Restart() != want {
			t.Errorf("%q: %v", cause, !want)
		}
	}
}
