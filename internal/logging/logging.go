package logging

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Target is where a log goes.
type Target string

// The targets. Auto is the journal when systemd connected standard error with
// it, and text on standard error otherwise.
const (
	Auto    Target = "auto"
	Journal Target = "journal"
	Syslog  Target = "syslog"
	Stderr  Target = "stderr"
)

// The sockets of the collectors.
const (
	journalSocket = "/run/systemd/journal/socket"
	syslogSocket  = "/dev/log"
)

// Crit is the level of what must be read after a crash: journald writes it to
// disk at once, not minutes later.
const Crit = slog.LevelError + 4

// New returns a logger under an identity such as "fdm". What cannot be reached
// is an error, but for Auto, which falls back to text on w. flush is to be called
// before the process ends: it waits, for a second at most, until w has taken what
// was logged.
func New(t Target, identity string, w io.Writer) (log *slog.Logger, flush func(), err error) {
	taken := func() {} // datagrams are sent at once, or dropped
	switch t {
	case Journal:
		h, err := newJournal(journalSocket, identity)
		if err != nil {
			return nil, nil, fmt.Errorf("log to the journal: %w; choose stderr or syslog", err)
		}
		return slog.New(h), taken, nil
	case Syslog:
		h, err := newSyslog(syslogSocket, identity)
		if err != nil {
			return nil, nil, fmt.Errorf("log to syslog: %w; choose stderr or journal", err)
		}
		return slog.New(h), taken, nil
	case Stderr:
		log, flush = text(identity, w)
		return log, flush, nil
	case Auto, "":
		if onJournal(os.Getenv("JOURNAL_STREAM"), int(os.Stderr.Fd())) {
			if h, err := newJournal(journalSocket, identity); err == nil {
				return slog.New(h), taken, nil
			}
		}
		log, flush = text(identity, w)
		return log, flush, nil
	}
	return nil, nil, fmt.Errorf("log target %q: must be auto, journal, syslog or stderr", t)
}

func text(identity string, w io.Writer) (*slog.Logger, func()) {
	s := newStream(w, identity)
	return slog.New(slog.NewTextHandler(s, nil)).With("id", identity), s.flush
}

// onJournal reports whether fd is the stream that systemd named in
// JOURNAL_STREAM, "device:inode".
func onJournal(stream string, fd int) bool {
	var st unix.Stat_t
	return stream != "" && unix.Fstat(fd, &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// severity is syslog's number for a level.
func severity(l slog.Level) int {
	switch {
	case l >= Crit:
		return 2
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// field is one attribute, flat: groups are joined with dots.
type field struct{ key, value string }

// maxValue bounds a field's value in bytes, maxFields their number: evidence
// from other hosts ends up in them.
const (
	maxValue  = 4 << 10
	maxFields = 64
)

func flatten(out []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, sub := range v.Group() {
			out = flatten(out, prefix, sub)
		}
		return out
	}
	if a.Key == "" || len(out) >= maxFields {
		return out
	}
	s := v.String()
	if s == "" || s == "map[]" || s == "[]" {
		return out // nothing to say
	}
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "") + "…"
	}
	return append(out, field{prefix + a.Key, s})
}

// line is message and fields as people read them.
func line(message string, fields []field) string {
	var b strings.Builder
	b.WriteString(message)
	for _, f := range fields {
		b.WriteByte(' ')
		b.WriteString(f.key)
		b.WriteByte('=')
		if strings.ContainsAny(f.value, " \"\n=") {
			fmt.Fprintf(&b, "%q", f.value)
		} else {
			b.WriteString(f.value)
		}
	}
	return b.String()
}
