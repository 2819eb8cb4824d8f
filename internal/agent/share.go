package agent

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

// Bounds of sharing.
const (
	// backlogEvents is how many of the newest events a host gets when its
	// link comes up.
	backlogEvents = 256
	// shareChunk is the most events of one message (fdm.EventShare).
	shareChunk = 64
	// shareIDs is how many IDs are remembered so as not to hand on twice.
	shareIDs = 4096
)

// share decides which events go to whom: a secondary gives its own to the
// primary, the primary gives all to everybody, so every host has them. A host
// whose link comes up gets the newest ones again; IDs drop duplicates. Only the
// loop uses it.
type share struct {
	self    model.HostID
	primary model.HostID // "" during an election
	recent  []event.Event
	ids     map[string]bool
	order   []string
	pending []event.Event
	linked  map[model.HostID]bool
	caught  map[model.HostID]bool // has had the backlog on this link
}

func newShare(self model.HostID, recent []event.Event) *share {
	s := &share{self: self, ids: map[string]bool{}, linked: map[model.HostID]bool{}, caught: map[model.HostID]bool{}}
	for _, e := range recent {
		s.add(e)
	}
	s.pending = nil
	return s
}

// follow learns the roles from this host's own heartbeats.
func (s *share) follow(b fdm.Heartbeat) {
	primary := b.Primary
	if b.Kind == fdm.BeatPrimary {
		primary = s.self
	}
	if primary != s.primary {
		s.primary = primary
		clear(s.caught)
	}
}

func (s *share) link(host model.HostID, up bool) {
	delete(s.caught, host)
	if up {
		s.linked[host] = true
	} else {
		delete(s.linked, host)
	}
}

// add takes an event; false when it is known.
func (s *share) add(e event.Event) bool {
	if s.ids[e.ID] {
		return false
	}
	s.ids[e.ID] = true
	if s.order = append(s.order, e.ID); len(s.order) > shareIDs {
		delete(s.ids, s.order[0])
		s.order = s.order[1:]
	}
	if s.recent = append(s.recent, e); len(s.recent) > backlogEvents {
		s.recent = s.recent[1:]
	}
	if s.pending = append(s.pending, e); len(s.pending) > backlogEvents {
		s.pending = s.pending[1:] // nobody to give them to; the backlog has them
	}
	return true
}

// flush returns what is to be sent now.
func (s *share) flush() map[model.HostID][][]event.Event {
	if s.primary == "" || len(s.pending) == 0 && len(s.caught) == len(s.linked) {
		return nil
	}
	out := map[model.HostID][][]event.Event{}
	for host := range s.linked {
		if s.primary != s.self && host != s.primary {
			s.caught[host] = true // the primary gives it everything
			continue
		}
		list := s.pending
		if !s.caught[host] {
			list = s.recent
			s.caught[host] = true
		}
		if chunks := s.chunks(list, host); len(chunks) > 0 {
			out[host] = chunks
		}
	}
	s.pending = nil
	return out
}

func (s *share) chunks(list []event.Event, to model.HostID) [][]event.Event {
	var out [][]event.Event
	var cur []event.Event
	for _, e := range list {
		if e.By == to || s.primary != s.self && e.By != s.self {
			continue
		}
		if cur = append(cur, e); len(cur) == shareChunk {
			out, cur = append(out, cur), nil
		}
	}
	if len(cur) > 0 {
		out = append(out, cur)
	}
	return out
}

// emit completes an event of this host and keeps it.
func (a *Agent) emit(now time.Duration, e event.Event) {
	a.emitted++
	e.ID = fmt.Sprintf("%s-%x-%d", a.host, a.start, a.emitted)
	e.By = a.host
	if e.At == 0 {
		e.At = now
	}
	e.Wall = time.Now().Add(e.At - now).UTC().Round(time.Millisecond)
	a.keep(e)
	a.told.add(string(cmp.Or(e.Severity, event.Info)))
	level := map[event.Severity]func(string, ...any){event.Warning: a.log.Warn, event.Error: a.log.Error}[e.Severity]
	if level == nil {
		level = a.log.Info
	}
	level(e.Text, "kind", e.Kind, "host", e.Host, "vm", e.VM, "datastore", e.Datastore, "cause", e.Cause,
		"failover", e.Failover, "evidence", e.Evidence)
}

// keep gives an event to the log and to the other hosts.
func (a *Agent) keep(e event.Event) {
	if !a.share.add(e) {
		return
	}
	select {
	case a.logged <- e:
	default:
		a.count.add("events-dropped")
	}
}

// takeShared picks out events that another host shares.
func (a *Agent) takeShared(ev fdm.Event) (*fdm.EventShare, bool) {
	m, ok := ev.(fdm.MessageReceived)
	if !ok || m.Message.Events == nil {
		return nil, false
	}
	return m.Message.Events, true
}

func (a *Agent) keepShared(in *fdm.EventShare) {
	for _, e := range in.Events[:min(len(in.Events), shareChunk)] {
		if e.ID != "" && e.By != a.host {
			a.keep(e)
		}
	}
}

func (a *Agent) flushEvents() {
	for host, chunks := range a.share.flush() {
		for _, list := range chunks {
			a.sendMessage(host, fdm.Message{Events: &fdm.EventShare{Events: list}})
		}
	}
}

// writeEvents writes to disk what the loop hands over.
func (a *Agent) writeEvents(ctx context.Context) {
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-a.logged:
			_, err := a.events.Add(e)
			if err != nil {
				a.count.add("events-not-written")
				if !warned {
					a.log.Error("events are not written", "err", err)
				}
			}
			warned = err != nil
		}
	}
}
