package libvirt

import (
	"context"
	"sync"
	"sync/atomic"

	lv "github.com/digitalocean/go-libvirt"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

// subscriptions are the event streams of one control connection.
type subscriptions struct {
	conn *conn
	out  *queue
	gate chan struct{} // closed by open
	pass bool          // valid once gate is closed
	wg   sync.WaitGroup
	// changes counts starts and stops.
	changes atomic.Uint64

	// signalled has the domains whose process was ended by a signal and
	// whose stop event is awaited. Only the lifecycle stream uses it.
	signalled map[model.VMID]bool
}

func newSubscriptions(c *conn, out *queue) *subscriptions {
	return &subscriptions{conn: c, out: out, gate: make(chan struct{}), signalled: map[model.VMID]bool{}}
}

// start subscribes to all kinds of events. They are held back until open.
func (s *subscriptions) start(ctx context.Context) error {
	for _, id := range []lv.DomainEventID{
		lv.DomainEventIDLifecycle, lv.DomainEventIDAgentLifecycle,
		lv.DomainEventIDIoErrorReason, lv.DomainEventIDWatchdog,
	} {
		var stream <-chan any
		err := s.conn.do(ctx, func(l *lv.Libvirt) (err error) {
			// Not ctx: the stream ends with the connection, see doc.go.
			stream, err = l.SubscribeEvents(context.Background(), id, nil)
			return err
		})
		if stream != nil {
			s.wg.Add(1)
			go func() { defer s.wg.Done(); s.forward(stream) }()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// open lets events pass, or throws them away. It must be called once.
func (s *subscriptions) open(pass bool) {
	s.pass = pass
	close(s.gate)
}

// wait returns when all streams have ended. The connection must be closed
// and the gate open.
func (s *subscriptions) wait() { s.wg.Wait() }

func (s *subscriptions) forward(stream <-chan any) {
	<-s.gate
	for raw := range stream {
		if e, ok := s.translate(raw); ok && s.pass {
			s.out.push(e)
		}
	}
}

// translate puts an event of libvirt into the boundary's words. It says no
// to events that nobody needs.
func (s *subscriptions) translate(raw any) (hypervisor.Event, bool) {
	var e hypervisor.Event
	switch m := raw.(type) {
	case *lv.DomainEventCallbackLifecycleMsg:
		e = lifecycle(m.Msg)
		s.signals(m.Msg, &e)
	case *lv.DomainEventCallbackAgentLifecycleMsg:
		e = about(m.Dom, hypervisor.EventAgentDisconnected)
		if lv.ConnectDomainEventAgentLifecycleState(m.State) == lv.ConnectDomainEventAgentLifecycleStateConnected {
			e.Kind = hypervisor.EventAgentConnected
		}
	case *lv.DomainEventCallbackIOErrorReasonMsg:
		e = about(m.Msg.Dom, hypervisor.EventIOError)
		e.Disk = m.Msg.SrcPath
		e.Detail = word(ioActions, m.Msg.Action)
		if m.Msg.Reason != "" {
			e.Detail = m.Msg.Reason + ", " + e.Detail
		}
	case *lv.DomainEventCallbackWatchdogMsg:
		e = about(m.Msg.Dom, hypervisor.EventWatchdog)
		e.Detail = word(watchdogActions, m.Msg.Action)
	}
	return e, e.Kind != ""
}

// signals remembers that a signal ended a domain's process, which its stop
// event does not tell apart from a shutdown by the guest.
func (s *subscriptions) signals(m lv.DomainEventLifecycleMsg, e *hypervisor.Event) {
	switch e.Kind {
	case hypervisor.EventShuttingDown:
		if lv.DomainEventShutdownDetailType(m.Detail) == lv.DomainEventShutdownHost {
			s.signalled[e.VM] = true
		}
	case hypervisor.EventStopped:
		s.changes.Add(1)
		if s.signalled[e.VM] && e.Cause == hypervisor.StopGuestShutdown {
			e.Cause = hypervisor.StopHostSignal
		}
		delete(s.signalled, e.VM)
	case hypervisor.EventStarted:
		s.changes.Add(1)
		delete(s.signalled, e.VM)
	case hypervisor.EventUndefined:
		delete(s.signalled, e.VM)
	}
}

func about(d lv.Domain, kind hypervisor.EventKind) hypervisor.Event {
	return hypervisor.Event{Kind: kind, VM: vmID(d.UUID), Name: d.Name}
}

// lifecycle translates a lifecycle event without regard to earlier ones.
func lifecycle(m lv.DomainEventLifecycleMsg) hypervisor.Event {
	kind := lifecycleKinds[lv.DomainEventType(m.Event)]
	e := about(m.Dom, kind)
	e.Detail = word(lifecycleDetails[kind], m.Detail)
	if kind == hypervisor.EventStopped {
		e.Cause = stopCauseOfEvent(lv.DomainEventStoppedDetailType(m.Detail))
	}
	return e
}
