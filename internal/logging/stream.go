package logging

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	// streamLines bounds the lines that wait for a stream that does not take them.
	streamLines = 1024
	// flushLimit is how long Flush waits for it.
	flushLimit = time.Second
)

// stream writes lines to a writer that may hang, such as a file on a disk that
// does not answer or a pipe that nobody reads. Whoever logs never waits for it:
// what does not fit into the queue is dropped and counted.
type stream struct {
	w       io.Writer
	id      string
	lines   chan streamLine
	dropped atomic.Uint64
}

// streamLine is a line, or a mark: then done is closed once all before it is written.
type streamLine struct {
	text []byte
	done chan struct{}
}

// newStream starts the goroutine that writes; it lives as long as the process.
func newStream(w io.Writer, id string) *stream {
	s := &stream{w: w, id: id, lines: make(chan streamLine, streamLines)}
	go s.run()
	return s
}

func (s *stream) run() {
	for l := range s.lines {
		if n := s.dropped.Swap(0); n > 0 {
			_, _ = fmt.Fprintf(s.w, "time=%s level=WARN msg=\"the log was not taken in time\" id=%s linesDropped=%d\n",
				time.Now().Format("2006-01-02T15:04:05.000Z07:00"), s.id, n)
		}
		if l.done != nil {
			close(l.done)
			continue
		}
		_, _ = s.w.Write(l.text) // nobody could be told
	}
}

// Write takes one line; it never blocks and never fails.
func (s *stream) Write(b []byte) (int, error) {
	select {
	case s.lines <- streamLine{text: append([]byte(nil), b...)}:
	default:
		s.dropped.Add(1)
	}
	return len(b), nil
}

// flush waits until what was logged before is written, at most flushLimit.
func (s *stream) flush() {
	limit := time.NewTimer(flushLimit)
	defer limit.Stop()
	mark := streamLine{done: make(chan struct{})}
	select {
	case s.lines <- mark:
	case <-limit.C:
		return
	}
	select {
	case <-mark.done:
	case <-limit.C:
	}
}
