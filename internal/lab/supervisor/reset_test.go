package supervisor

import (
	"strings"
	"testing"
	"time"
)

func TestLateness(t *testing.T) {
	var l lateness
	at := time.Unix(1000, 0)
	if got := l.worst(at); got != 0 {
		t.Errorf("before it ran: %v", got)
	}
	l.note(at)
	at = at.Add(latenessTick)
	l.note(at)
	if got := l.worst(at); got != 0 {
		t.Errorf("in time: %v", got)
	}
	at = at.Add(4*time.Second + latenessTick)
	if got := l.worst(at); got != 4*time.Second {
		t.Errorf("while it stands still: %v", got)
	}
	l.note(at)
	if got := l.worst(at.Add(latenessTick)); got != 4*time.Second {
		t.Errorf("afterwards: %v", got)
	}
	for end := at.Add(2 * latenessKept); at.Before(end); at = at.Add(latenessTick) {
		l.note(at)
	}
	if got := l.worst(at); got != 0 {
		t.Errorf("long afterwards: %v", got)
	}
}

func TestGuardThreadsWithoutAGuard(t *testing.T) {
	if got := guardThreads(t.TempDir()); !strings.Contains(got, "no guard") {
		t.Errorf("got %q", got)
	}
}
