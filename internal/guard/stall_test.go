package guard

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/lease"
)

func TestStalled(t *testing.T) {
	for _, c := range []struct {
		name       string
		late, work time.Duration
		slow       slowest
		want       string
	}{
		{name: "in time", late: 20 * time.Millisecond, work: time.Millisecond},
		{name: "woken before its time", late: -time.Second, work: time.Millisecond},
		{name: "the host stood still", late: 3200 * time.Millisecond, work: time.Millisecond, want: "3.2s late: this host stood still"},
		{name: "its own work", late: time.Millisecond, work: 4 * time.Second, slow: slowest{lease.EffSaveState, 3900 * time.Millisecond},
			want: "held up for 4s by its own work, 3.9s of it by saving its state"},
	} {
		if got := stalled(c.late, c.work, c.slow); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSlowest(t *testing.T) {
	var s slowest
	s.note(lease.EffPet, time.Millisecond)
	s.note(lease.EffSaveState, time.Second)
	s.note(lease.EffReply, time.Microsecond)
	if s.kind != lease.EffSaveState || s.took != time.Second {
		t.Errorf("got %+v", s)
	}
}
