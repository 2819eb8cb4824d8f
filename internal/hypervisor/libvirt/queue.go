package libvirt

import (
	"context"
	"sync"

	"hanok.dev/hanok/internal/hypervisor"
)

// queue holds events for a reader that may be slow. When it is full, what it
// holds is replaced by one EventResync: listing again tells the same.
type queue struct {
	out  chan hypervisor.Event
	wake chan struct{}
	max  int

	mu    sync.Mutex
	items []hypervisor.Event
}

func newQueue(max int) *queue {
	return &queue{out: make(chan hypervisor.Event), wake: make(chan struct{}, 1), max: max}
}

// push never blocks.
func (q *queue) push(e hypervisor.Event) {
	q.mu.Lock()
	if len(q.items) >= q.max {
		q.items = append(q.items[:0], hypervisor.Event{Kind: hypervisor.EventResync, Detail: "events were not read in time"})
	}
	q.items = append(q.items, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) pop() (hypervisor.Event, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return hypervisor.Event{}, false
	}
	e := q.items[0]
	q.items = q.items[1:]
	return e, true
}

// pump hands events to the reader until ctx ends, then closes the channel.
func (q *queue) pump(ctx context.Context) {
	defer close(q.out)
	for {
		e, ok := q.pop()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case q.out <- e:
		case <-ctx.Done():
			return
		}
	}
}
