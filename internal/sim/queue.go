package sim

import (
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

// kind says what an item of the queue is.
type kind uint8

const (
	kindFunc     kind = iota // call load.f
	kindGuard                // wake the guard
	kindAgent                // wake the agent
	kindBeat                 // a datagram arrives
	kindWrote                // a heartbeat write of the guard returns
	kindSlots                // the agent's read of all slots returns
	kindScan                 // a list of processes is ready
	kindWatchdog             // the watchdog may expire
)

// item is one event of the future. Items of one instant happen in the order in
// which they were made.
type item struct {
	at   time.Duration
	seq  uint64
	h    *host
	p    *load
	life uint32 // of the process that it is for
	kind kind
}

// load is what an item carries, by its kind. Loads are used again.
type load struct {
	f       func()
	from    *host
	net     int
	beat    fdm.Heartbeat
	path    *path
	op      uint64
	started time.Duration
	slot    model.Slot
	known   []string
	next    *load
}

// queue is a 4-ary heap: half as deep as a binary one, and its children lie
// together in memory.
type queue struct {
	items []item
	seq   uint64
	free  *load
	spare int // how many are free
}

// maxSpare bounds the loads that are kept: an election of a thousand hosts
// needs a million for a moment.
const maxSpare = 1 << 14

func (q *queue) load() *load {
	if p := q.free; p != nil {
		q.free, p.next = p.next, nil
		q.spare--
		return p
	}
	return &load{}
}

// release takes a load back. What it points to is dropped.
func (q *queue) release(p *load) {
	if q.spare >= maxSpare {
		return
	}
	q.spare++
	known := p.known[:0]
	*p = load{next: q.free, known: known}
	q.free = p
}

func (a *item) before(b *item) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (q *queue) push(it item) {
	q.seq++
	it.seq = q.seq
	q.items = append(q.items, it)
	i := len(q.items) - 1
	for i > 0 {
		p := (i - 1) / 4
		if !it.before(&q.items[p]) {
			break
		}
		q.items[i] = q.items[p]
		i = p
	}
	q.items[i] = it
}

func (q *queue) pop() item {
	top := q.items[0]
	last := len(q.items) - 1
	it := q.items[last]
	q.items[last] = item{}
	q.items = q.items[:last]
	if last == 0 {
		return top
	}
	i := 0
	for {
		c := 4*i + 1
		if c >= last {
			break
		}
		best := c
		for k := c + 1; k < c+4 && k < last; k++ {
			if q.items[k].before(&q.items[best]) {
				best = k
			}
		}
		if !q.items[best].before(&it) {
			break
		}
		q.items[i] = q.items[best]
		i = best
	}
	q.items[i] = it
	return top
}
