package logging

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// socket sends datagrams to a collector, without waiting for it.
type socket struct {
	path    string
	mu      sync.Mutex
	fd      int
	dropped atomic.Uint64
}

func dial(path string) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &socket{path: path, fd: fd}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// send drops what the collector does not take. A collector that was restarted
// has a new socket, which is looked for once a line.
func (s *socket) send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := unix.Send(s.fd, b, unix.MSG_NOSIGNAL)
	if err == unix.ECONNREFUSED || err == unix.ENOTCONN || err == unix.ECONNRESET {
		if unix.Connect(s.fd, &unix.SockaddrUnix{Name: s.path}) == nil {
			err = unix.Send(s.fd, b, unix.MSG_NOSIGNAL)
		}
	}
	if err != nil {
		s.dropped.Add(1)
	}
}

// handler is a slog.Handler over a socket; encode makes the datagram.
type handler struct {
	sock   *socket
	encode func(at time.Time, severity int, message string, fields []field) []byte
	fields []field
	prefix string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.fields = append([]field(nil), h.fields...)
	for _, a := range attrs {
		next.fields = flatten(next.fields, h.prefix, a)
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	next := *h
	next.prefix += name + "."
	return &next
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	fields := append([]field(nil), h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		fields = flatten(fields, h.prefix, a)
		return true
	})
	if n := h.sock.dropped.Swap(0); n > 0 {
		fields = append(fields, field{"linesDropped", fmt.Sprint(n)})
	}
	h.sock.send(h.encode(r.Time, severity(r.Level), r.Message, fields))
	return nil
}

// newJournal speaks journald's native protocol: a field for each attribute,
// HANOK_ before its name, so that `journalctl HANOK_VM=web` finds a VM.
func newJournal(path, identity string) (*handler, error) {
	s, err := dial(path)
	if err != nil {
		return nil, err
	}
	return &handler{sock: s, encode: func(_ time.Time, severity int, message string, fields []field) []byte {
		var b bytes.Buffer
		put := func(key, value string) {
			if !strings.Contains(value, "\n") {
				fmt.Fprintf(&b, "%s=%s\n", key, value)
				return
			}
			b.WriteString(key + "\n")
			_ = binary.Write(&b, binary.LittleEndian, uint64(len(value)))
			b.WriteString(value + "\n")
		}
		put("MESSAGE", line(message, fields))
		put("PRIORITY", fmt.Sprint(severity))
		put("SYSLOG_IDENTIFIER", identity)
		for _, f := range fields {
			put("HANOK_"+journalKey(f.key), f.value)
		}
		return b.Bytes()
	}}, nil
}

// journalKey is a key with what journald permits: capitals, digits, underscores.
func journalKey(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key[:min(len(key), 50)])
}

// newSyslog writes RFC 3164 lines as the C library does, facility daemon.
func newSyslog(path, identity string) (*handler, error) {
	s, err := dial(path)
	if err != nil {
		return nil, err
	}
	const daemon = 3 << 3
	return &handler{sock: s, encode: func(at time.Time, severity int, message string, fields []field) []byte {
		text := strings.ReplaceAll(line(message, fields), "\n", " ")
		if len(text) > maxValue {
			text = strings.ToValidUTF8(text[:maxValue], "") + "…"
		}
		return fmt.Appendf(nil, "<%d>%s %s[%d]: %s", daemon|severity, at.Format(time.Stamp), identity, os.Getpid(), text)
	}}, nil
}
