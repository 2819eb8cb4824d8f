// Package journal is the lab's event log: what the lab did to its hosts and
// what its observer saw, in one order, on one clock.
package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Kind says what an event is about.
type Kind string

// The kinds of events.
const (
	Power     Kind = "power"     // a host went on or off, was frozen or thawed
	Reset     Kind = "reset"     // a host's watchdog expired
	Fault     Kind = "fault"     // a network or storage fault was set or healed
	Started   Kind = "started"   // a QEMU process of a VM appeared
	Running   Kind = "running"   // its processors have been seen running
	Exited    Kind = "exited"    // it can run no more
	Frozen    Kind = "frozen"    // its cgroup is confirmed frozen
	Thawed    Kind = "thawed"    // it is no longer frozen
	Violation Kind = "violation" // a VM had two instances that could run
	Lost      Kind = "lost"      // the kernel dropped events; all was read afresh
)

// Event is one line of the log.
type Event struct {
	// Boot is CLOCK_BOOTTIME of the machine in nanoseconds.
	Boot int64 `json:"boot"`
	// Time is the same instant as people read it.
	Time   time.Time `json:"time"`
	Kind   Kind      `json:"kind"`
	Host   string    `json:"host,omitempty"`
	VM     string    `json:"vm,omitempty"` // its UUID
	Name   string    `json:"name,omitempty"`
	Pid    int       `json:"pid,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

// Now reads CLOCK_BOOTTIME in nanoseconds.
func Now() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return t.Nano()
}

// subscription is bounded: a reader that falls so far behind is cut off.
const subscription = 4096

// Journal appends events to a file and hands them to those who follow. Its
// methods may be called from several goroutines.
type Journal struct {
	mu        sync.Mutex
	file      *os.File
	followers map[chan Event]bool
}

// Open appends to the file at path.
func Open(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	return &Journal{file: f, followers: map[chan Event]bool{}}, nil
}

// Add logs an event, stamping it unless it is stamped already.
func (j *Journal) Add(e Event) {
	now := Now()
	if e.Boot == 0 {
		e.Boot = now
	}
	e.Time = time.Now().Add(time.Duration(e.Boot - now))
	line, err := json.Marshal(e)
	if err != nil {
		return // no field can fail
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		_, _ = j.file.Write(append(line, '\n'))
	}
	for c := range j.followers {
		select {
		case c <- e:
		default:
			delete(j.followers, c)
			close(c)
		}
	}
}

// Follow returns events from now on, until the context ends or the reader
// falls 4096 events behind; then the channel is closed.
func (j *Journal) Follow(ctx context.Context) <-chan Event {
	c := make(chan Event, subscription)
	j.mu.Lock()
	j.followers[c] = true
	j.mu.Unlock()
	context.AfterFunc(ctx, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.followers[c] {
			delete(j.followers, c)
			close(c)
		}
	})
	return c
}

// Close ends the log.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for c := range j.followers {
		delete(j.followers, c)
		close(c)
	}
	err := j.file.Close()
	j.file = nil
	return err
}
