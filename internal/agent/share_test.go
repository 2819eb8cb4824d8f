package agent

import (
	"fmt"
	"testing"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

func shareEvent(by model.HostID, n int) event.Event {
	return event.Event{ID: fmt.Sprintf("%s-%d", by, n), By: by}
}

func count(chunks [][]event.Event) (n int) {
	for _, c := range chunks {
		n += len(c)
	}
	return n
}

func TestShare(t *testing.T) {
	s := newShare("host1", []event.Event{shareEvent("host1", 1), shareEvent("host2", 1)})
	s.link("host2", true)
	s.link("host3", true)
	if got := s.flush(); got != nil {
		t.Errorf("during an election: %v", got)
	}
	// A secondary gives its own events to the primary only.
	s.follow(fdm.Heartbeat{Kind: fdm.BeatSecondary, Primary: "host2"})
	if got := s.flush(); len(got) != 1 || count(got["host2"]) != 1 {
		t.Errorf("backlog of a secondary: %v", got)
	}
	if got := s.flush(); got != nil {
		t.Errorf("nothing new: %v", got)
	}
	s.add(shareEvent("host2", 2))
	if got := s.flush(); len(got) != 0 {
		t.Errorf("a secondary hands on what it was given: %v", got)
	}
	// A new primary gives everything to everybody, but nobody its own.
	s.follow(fdm.Heartbeat{Kind: fdm.BeatPrimary})
	got := s.flush()
	if count(got["host3"]) != 3 || count(got["host2"]) != 1 {
		t.Errorf("backlog of a primary: %v", got)
	}
	if s.add(shareEvent("host2", 2)) {
		t.Error("a known event was taken again")
	}
	s.add(shareEvent("host2", 3))
	if got := s.flush(); count(got["host3"]) != 1 || count(got["host2"]) != 0 {
		t.Errorf("one new event: %v", got)
	}
	// A host that comes back gets the backlog again, in messages of bounded size.
	for n := range 2 * backlogEvents {
		s.add(shareEvent("host1", 100+n))
	}
	s.flush()
	s.link("host3", false)
	s.link("host3", true)
	got = s.flush()
	if len(got["host3"]) != backlogEvents/shareChunk || count(got["host3"]) != backlogEvents || len(got["host2"]) != 0 {
		t.Errorf("backlog after a reconnect: %d messages, %d events", len(got["host3"]), count(got["host3"]))
	}
	for n := range 3 * shareIDs {
		s.add(shareEvent("host1", 10000+n))
	}
	if len(s.ids) > shareIDs || len(s.recent) > backlogEvents || len(s.pending) > backlogEvents {
		t.Errorf("not bounded: %d ids, %d recent, %d pending", len(s.ids), len(s.recent), len(s.pending))
	}
}
