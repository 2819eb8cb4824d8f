package eventlog

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"hanok.dev/hanok/internal/event"
)

// Bounds.
const (
	// MaxFile is the size at which the file is rotated, Files how many are kept,
	// unless Bound says otherwise.
	MaxFile = 8 << 20
	Files   = 2
	// MaxEvent is the largest event kept, as a JSON line.
	MaxEvent = 64 << 10
	// keepRecent is how many events stay in memory for followers and for
	// hosts that reconnect.
	keepRecent = 1024
	// keepIDs is how many IDs are remembered to drop duplicates.
	keepIDs = 8192
)

// Log is a host's event log. Its methods may be called concurrently.
type Log struct {
	path string

	mu      sync.Mutex
	maxFile int64
	files   int
	file    *os.File
	size    int64
	seen    map[string]bool
	order   []string // of seen, oldest first
	recent  []event.Event
	next    uint64 // number of the next event; recent holds those before it
	moved   chan struct{}
	bad     int
}

// Open opens or creates the log at path and reads what it holds.
func Open(path string) (*Log, error) { return open(path, MaxFile) }

func open(path string, maxFile int64) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &Log{path: path, maxFile: maxFile, files: Files, seen: map[string]bool{}, moved: make(chan struct{})}
	for _, p := range l.all() {
		if err := l.scan(p, l.remember); err != nil {
			return nil, err
		}
	}
	if err := l.openFile(); err != nil {
		return nil, err
	}
	return l, nil
}

// old is the n-th file before the one that is written.
func (l *Log) old(n int) string { return fmt.Sprintf("%s.%d", l.path, n) }

// all are the files that exist, the oldest first.
func (l *Log) all() []string {
	out := []string{l.path}
	for n := 1; n < maxFiles; n++ {
		if _, err := os.Stat(l.old(n)); err != nil {
			break
		}
		out = append(out, l.old(n))
	}
	slices.Reverse(out)
	return out
}

// maxFiles bounds the number of files that are looked for.
const maxFiles = 1000

// Bound sets the size at which the file is rotated, at least two of the largest
// events, and the number of files that are kept, at least two; older ones are
// removed.
func (l *Log) Bound(maxFile int64, files int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.maxFile, l.files = max(maxFile, 2*MaxEvent), min(max(files, 2), maxFiles)
	return l.trim(l.files)
}

// trim removes the files from the n-th on.
func (l *Log) trim(n int) error {
	for ; ; n++ {
		if err := os.Remove(l.old(n)); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("event log: %w", err)
		}
	}
}

// openFile opens the file for appending; a line that a crash cut short is ended
// first, so that it spoils no other.
func (l *Log) openFile() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("event log: %w", err), f.Close())
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// Add keeps an event and wakes followers. It reports whether the event was new;
// one whose ID is known, or that is too large, is dropped. When only the disk
// fails the event is new, kept in memory, and the error says so.
func (l *Log) Add(e event.Event) (bool, error) {
	line, err := json.Marshal(e)
	if err != nil {
		return false, fmt.Errorf("event %s: %w", e.ID, err)
	}
	if e.ID == "" || len(line) >= MaxEvent {
		return false, fmt.Errorf("event %q of %d bytes: needs an ID and less than %d bytes", e.ID, len(line), MaxEvent)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[e.ID] {
		return false, nil
	}
	l.remember(e)
	close(l.moved)
	l.moved = make(chan struct{})
	return true, l.write(append(line, '\n'))
}

func (l *Log) write(line []byte) error {
	if l.file == nil || l.size+int64(len(line)) > l.maxFile {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	return nil
}

func (l *Log) rotate() error {
	if l.file != nil {
		_ = l.file.Close() // nothing is buffered
		l.file = nil
		if err := l.shift(); err != nil {
			return fmt.Errorf("event log: rotate: %w", err)
		}
	}
	return l.openFile()
}

// shift renames each file to the next older, but those that are too old.
func (l *Log) shift() error {
	if err := l.trim(l.files - 1); err != nil {
		return err
	}
	for n := len(l.all()) - 1; n > 0; n-- {
		if err := os.Rename(l.old(n), l.old(n+1)); err != nil {
			return err
		}
	}
	return os.Rename(l.path, l.old(1))
}

// remember notes an event in memory.
func (l *Log) remember(e event.Event) {
	if l.seen[e.ID] {
		return
	}
	l.seen[e.ID] = true
	if l.order = append(l.order, e.ID); len(l.order) > keepIDs {
		delete(l.seen, l.order[0])
		l.order = l.order[1:]
	}
	if l.recent = append(l.recent, e); len(l.recent) > keepRecent {
		l.recent = l.recent[1:]
	}
	l.next++
}

// scan gives every readable event of a file to each, in order.
func (l *Log) scan(path string, each func(event.Event)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, MaxEvent)
	for {
		line, err := r.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			_, err = r.ReadSlice('\n')
		}
		var e event.Event
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fmt.Errorf("event log: %w", err)
		case len(bytes.TrimSpace(line)) == 0:
		case long || json.Unmarshal(line, &e) != nil || e.ID == "":
			l.bad++
		default:
			each(e)
		}
		if err != nil {
			return nil
		}
	}
}

// Bad is the number of unreadable lines that were met so far.
func (l *Log) Bad() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}

// Recent returns the newest events kept in memory for which keep is true (all
// when it is nil), at most limit, oldest first.
func (l *Log) Recent(limit int, keep func(event.Event) bool) []event.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []event.Event
	for i := len(l.recent) - 1; i >= 0 && len(out) < limit; i-- {
		if keep == nil || keep(l.recent[i]) {
			out = append(out, l.recent[i])
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// Read returns the newest events of all files for which keep is true (all when
// it is nil), at most limit, oldest first.
func (l *Log) Read(limit int, keep func(event.Event) bool) ([]event.Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []event.Event
	for _, p := range l.all() {
		err := l.scan(p, func(e event.Event) {
			if keep != nil && !keep(e) {
				return
			}
			if out = append(out, e); len(out) >= 2*limit {
				out = append(out[:0], out[len(out)-limit:]...)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out[max(0, len(out)-limit):], nil
}

// After returns the first events behind the one with an ID for which keep is
// true, in the order in which they were written down, at most limit. When the
// log does not know the ID (any more), found is false and all that it has
// counts as behind it. last is the ID to go on with.
func (l *Log) After(id string, limit int, keep func(event.Event) bool) (events []event.Event, last string, found bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, last = id == "", id
	for _, whole := range []bool{false, true} {
		for _, p := range l.all() {
			err := l.scan(p, func(e event.Event) {
				switch {
				case !found && !whole:
					found = e.ID == id
				case len(events) < limit:
					if last = e.ID; keep(e) {
						events = append(events, e)
					}
				}
			})
			if err != nil {
				return nil, id, found, err
			}
		}
		if found {
			break
		}
	}
	return events, last, found, nil
}

// Next is the number that the next new event will get; give it to Wait.
func (l *Log) Next() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// Wait returns the events numbered from on, waiting for one if there is none,
// and the number to go on with. A follower that is slower than keepRecent
// events misses some; missed says how many.
func (l *Log) Wait(ctx context.Context, from uint64) (events []event.Event, next uint64, missed uint64, err error) {
	for {
		l.mu.Lock()
		if from < l.next {
			first := l.next - uint64(len(l.recent))
			if from < first {
				missed, from = first-from, first
			}
			events = append(events, l.recent[from-first:]...)
			next = l.next
			l.mu.Unlock()
			return events, next, missed, nil
		}
		moved := l.moved
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, from, 0, ctx.Err()
		case <-moved:
		}
	}
}
