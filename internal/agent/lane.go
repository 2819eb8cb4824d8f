package agent

import (
	"context"
	"sync/atomic"
	"time"

	"hanok.dev/hanok/internal/datastore"
)

// lane runs jobs on a bounded number of goroutines.
type lane interface {
	// submit arranges for f to run; false when too much waits already.
	submit(f func()) bool
}

// workers is a lane of goroutines that live as long as there is work.
type workers struct {
	slots   chan struct{}
	waiting atomic.Int32
	backlog int32
}

func newWorkers(n, backlog int) *workers {
	return &workers{slots: make(chan struct{}, n), backlog: int32(backlog)}
}

// submit never blocks. Those that wait are goroutines, at most backlog.
func (w *workers) submit(f func()) bool {
	if w.waiting.Add(1) > w.backlog {
		w.waiting.Add(-1)
		return false
	}
	go func() {
		w.slots <- struct{}{}
		w.waiting.Add(-1)
		defer func() { <-w.slots }()
		f()
	}()
	return true
}

// poolLane is one lane of a datastore's pool.
type poolLane struct {
	pool *datastore.Pool
	lane datastore.Lane
}

func (p poolLane) submit(f func()) bool { return p.pool.Submit(p.lane, f) == nil }

// outcome says how a job ended.
type outcome int

const (
	finished outcome = iota
	late             // no result in time; it may still happen
	full             // not even begun
)

// call runs f in a lane and waits until it ends, limit passes or ctx ends. A
// job that was given up before it began does not run. The result is the zero
// value unless finished.
func call[T any](ctx context.Context, l lane, limit time.Duration, f func() T) (T, outcome) {
	var zero T
	var gone atomic.Bool
	ch := make(chan T, 1)
	ok := l.submit(func() {
		if !gone.Load() {
			ch <- f()
		}
	})
	if !ok {
		return zero, full
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v, finished
	case <-timer.C:
	case <-ctx.Done():
	}
	gone.Store(true)
	return zero, late
}
