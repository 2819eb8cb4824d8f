package guard

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/lease"
)

// stallLimit is how late the loop may be before it says so: a third of the
// shortest watchdog time-out.
const stallLimit = time.Second

// slowest is the effect of a step that took longest to carry out.
type slowest struct {
	kind lease.EffectKind
	took time.Duration
}

func (s *slowest) note(kind lease.EffectKind, took time.Duration) {
	if took > s.took {
		s.kind, s.took = kind, took
	}
}

// stalled says what held the loop up, or "": late is from when it meant to wake
// up, work what it did then. What a reset leaves of the log tells so a guard that
// was held up from a host that stood still.
func stalled(late, work time.Duration, slow slowest) string {
	switch {
	case work > stallLimit:
		return fmt.Sprintf("the guard was held up for %v by its own work, %v of it by %s; the watchdog was not fed meanwhile",
			work.Round(time.Millisecond), slow.took.Round(time.Millisecond), workOf(slow.kind))
	case late > stallLimit:
		return fmt.Sprintf("the guard ran %v late: this host stood still, or had no processor time or memory for it; the watchdog was not fed meanwhile",
			late.Round(time.Millisecond))
	}
	return ""
}

// workOf names an effect for people.
func workOf(kind lease.EffectKind) string {
	switch kind {
	case lease.EffSaveState:
		return "saving its state in /run"
	case lease.EffScan:
		return "looking for the libvirt daemon"
	case lease.EffReply, lease.EffNotify:
		return "telling the agent"
	}
	return fmt.Sprintf("work of kind %d", kind)
}

// stalled tells of it; only the loop calls it.
func (g *Guard) stalled(text string) {
	n := &lease.Notice{What: lease.NoticeStalled, Text: text}
	g.tell(levels[n.What], n)
}

// slowDevice tells of a watchdog device that took long.
func (g *Guard) slowDevice(took time.Duration) {
	g.opts.Log.Error("the watchdog device was slow", "path", g.opts.Watchdog, "took", took.Round(time.Millisecond))
}
