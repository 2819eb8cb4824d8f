package datastore

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Lane separates operations of a Pool, so that those of one kind cannot use up
// the workers of another.
type Lane int

// The lanes of a pool.
const (
	// LaneHeartbeat is for WriteSlot: one worker, one waiting.
	LaneHeartbeat Lane = iota
	// LaneLock is for locks and notes: claims must not wait for reads.
	LaneLock
	// LaneRead is for reading slots, lists and for checks.
	LaneRead

	lanes = iota
)

// String names the lane in messages.
func (l Lane) String() string {
	switch l {
	case LaneHeartbeat:
		return "heartbeat"
	case LaneLock:
		return "lock"
	case LaneRead:
		return "read"
	default:
		return fmt.Sprintf("lane %d", int(l))
	}
}

// LaneSize bounds one lane.
type LaneSize struct {
	// Workers is how many operations run at once, at least 1.
	Workers int
	// Queue is how many more wait.
	Queue int
}

// DefaultLanes are the sizes of the lanes: claims of a failover's VMs run four
// at a time (each is a few round trips), and a hung datastore holds at most
// nine goroutines and their threads.
var DefaultLanes = map[Lane]LaneSize{
	LaneHeartbeat: {Workers: 1, Queue: 1},
	LaneLock:      {Workers: 4, Queue: 1024},
	LaneRead:      {Workers: 4, Queue: 16},
}

// Pool runs the operations of one datastore in a bounded number of goroutines
// that may be lost to it: a hung datastore holds its own pool and nothing
// else. Its methods may be called concurrently and never block.
type Pool struct {
	name string
	now  func() time.Duration

	mu     sync.Mutex
	lanes  [lanes]laneState
	busy   int // goroutines alive
	nextID uint64
	closed bool
	done   chan struct{} // closed when closed and busy == 0
}

type laneState struct {
	size    LaneSize
	running map[uint64]time.Duration // start times
	queue   []func()
}

// PoolOptions configure NewPool; the zero value is usable.
type PoolOptions struct {
	// Lanes replaces DefaultLanes where it has an entry.
	Lanes map[Lane]LaneSize
	// Now is the clock that ages are measured with; CLOCK_BOOTTIME by default.
	Now func() time.Duration
}

// NewPool makes a pool; name is the datastore's, for messages.
func NewPool(name string, opts PoolOptions) *Pool {
	p := &Pool{name: name, now: opts.Now, done: make(chan struct{})}
	if p.now == nil {
		p.now = BootTime
	}
	for i := range p.lanes {
		size := DefaultLanes[Lane(i)]
		if s, ok := opts.Lanes[Lane(i)]; ok {
			size = s
		}
		size.Workers = max(size.Workers, 1)
		size.Queue = max(size.Queue, 0)
		p.lanes[i] = laneState{size: size, running: make(map[uint64]time.Duration)}
	}
	return p
}

// Submit arranges for fn to run in the lane, in the order of submission. It
// fails at once with KindBusy when the lane's workers and queue are full, and
// with KindInvalid after Close; fn then never runs.
func (p *Pool) Submit(lane Lane, fn func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return &Error{Op: "use datastore", Object: p.name, Kind: KindInvalid, Cause: "it was closed"}
	}
	l := &p.lanes[lane]
	switch {
	case len(l.running) < l.size.Workers:
		id := p.startLocked(l)
		p.busy++
		go p.work(l, id, fn)
	case len(l.queue) < l.size.Queue:
		l.queue = append(l.queue, fn)
	default:
		return &Error{Op: "use datastore", Object: p.name, Kind: KindBusy,
			Cause: fmt.Sprintf("%d %s operations are outstanding, the oldest for %v",
				len(l.running)+len(l.queue), lane, p.oldestLocked(l).Round(time.Millisecond)),
			Remedy: "check the storage path"}
	}
	return nil
}

func (p *Pool) startLocked(l *laneState) uint64 {
	p.nextID++
	l.running[p.nextID] = p.now()
	return p.nextID
}

// work runs fn, then what waits in the lane, and ends when nothing does.
func (p *Pool) work(l *laneState, id uint64, fn func()) {
	for fn != nil {
		fn()
		p.mu.Lock()
		delete(l.running, id)
		if len(l.queue) > 0 {
			fn, l.queue = l.queue[0], l.queue[1:]
			id = p.startLocked(l)
		} else {
			fn, l.queue = nil, nil
			p.busy--
			p.finishLocked()
		}
		p.mu.Unlock()
	}
}

func (p *Pool) finishLocked() {
	if p.closed && p.busy == 0 {
		close(p.done)
	}
}

// Oldest tells for how long the oldest running operation of the lane has been
// running; 0 when none runs.
func (p *Pool) Oldest(lane Lane) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.oldestLocked(&p.lanes[lane])
}

func (p *Pool) oldestLocked(l *laneState) time.Duration {
	var age time.Duration
	now := p.now()
	for _, start := range l.running {
		age = max(age, now-start)
	}
	return age
}

// Outstanding counts the lane's operations, running and waiting.
func (p *Pool) Outstanding(lane Lane) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.lanes[lane].running) + len(p.lanes[lane].queue)
}

// Close refuses further operations and drops those that wait. It does not wait
// for those that run: they end when the storage lets them. The channel it
// returns is closed when all have ended.
func (p *Pool) Close() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		for i := range p.lanes {
			p.lanes[i].queue = nil
		}
		p.finishLocked()
	}
	return p.done
}

// BootTime is CLOCK_BOOTTIME: the time since boot, suspend included.
func BootTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}
