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
// together in memory. It moves keys without pointers; what they stand for stays
// where it is.
type queue struct {
	keys  []key
	items []item
	empty []uint32 // places in items that are free
	seq   uint64
	free  *load
	spare int // how many are free
}

// key orders an item.
type key struct {
	at  time.Duration
	seq uint64
	i   uint32 // its place in items
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

func (a *key) before(b *key) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// until tells whether the next item is due at end or before.
func (q *queue) until(end time.Duration) bool { return len(q.keys) > 0 && q.keys[0].at <= end }

func (q *queue) push(it item) {
	q.seq++
	k := key{at: it.at, seq: q.seq}
	if n := len(q.empty); n > 0 {
		k.i = q.empty[n-1]
		q.empty = q.empty[:n-1]
		q.items[k.i] = it
	} else {
		k.i = uint32(len(q.items))
		q.items = append(q.items, it)
	}
	q.keys = append(q.keys, k)
	i := len(q.keys) - 1
	for i > 0 {
		p := (i - 1) / 4
		if !k.before(&q.keys[p]) {
			break
		}
		q.keys[i] = q.keys[p]
		i = p
	}
	q.keys[i] = k
}

// pop takes the next item. Its place is used again, and holds it until then.
func (q *queue) pop() item {
	top := q.keys[0].i
	q.empty = append(q.empty, top)
	last := len(q.keys) - 1
	k := q.keys[last]
	q.keys = q.keys[:last]
	if last == 0 {
		return q.items[top]
	}
	keys := q.keys
	i := 0
	for {
		c := 4*i + 1
		if c >= last {
			break
		}
		best := c
		for n := c + 1; n < c+4 && n < last; n++ {
			if keys[n].before(&keys[best]) {
				best = n
			}
		}
		if !keys[best].before(&k) {
			break
		}
		keys[i] = keys[best]
		i = best
	}
	keys[i] = k
	return q.items[top]
}
