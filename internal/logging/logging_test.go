package logging

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// collector is a datagram socket like that of a log daemon.
func collector(t *testing.T) (path string, next func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "log")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path, func() string {
		t.Helper()
		b := make([]byte, 1<<20)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := c.Read(b)
		if err != nil {
			t.Fatal("nothing was logged:", err)
		}
		return string(b[:n])
	}
}

func TestJournal(t *testing.T) {
	path, next := collector(t)
	h, err := newJournal(path, "fdm")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(h).With("cluster", "lab")
	log.Warn("host1 has failed", "host", "host1", "cause", "silent for 5 s", "vm", "", "evidence", map[string]string{"slot.ds1": "still"})
	got := next()
	for _, want := range []string{"MESSAGE=host1 has failed cluster=lab host=host1 cause=\"silent for 5 s\"", "\nPRIORITY=4\n", "\nSYSLOG_IDENTIFIER=fdm\n",
		"\nHANOK_CLUSTER=lab\n", "\nHANOK_HOST=host1\n", "\nHANOK_CAUSE=silent for 5 s\n", "\nHANOK_EVIDENCE=map[slot.ds1:still]\n"} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	if strings.Contains(got, "HANOK_VM") {
		t.Error("an empty attribute was logged")
	}
}

// A value must not be able to add fields of its own.
func TestJournalFieldsCannotBeForged(t *testing.T) {
	path, next := collector(t)
	h, err := newJournal(path, "fdm")
	if err != nil {
		t.Fatal(err)
	}
	slog.New(h).Info("a\nPRIORITY=0", "vm", "x\nSYSLOG_IDENTIFIER=sshd", "a b=c", "v")
	got := next()
	// In the framed form each value with a line break comes after its length.
	if strings.HasPrefix(got, "MESSAGE=") || !strings.Contains(got, "HANOK_VM\n\x18\x00\x00\x00\x00\x00\x00\x00x\n") {
		t.Errorf("values with line breaks are not framed: %q", got)
	}
	if !strings.Contains(got, "HANOK_A_B_C=v\n") {
		t.Errorf("key not cleaned: %q", got)
	}
}

func TestSyslog(t *testing.T) {
	path, next := collector(t)
	h, err := newSyslog(path, "guard")
	if err != nil {
		t.Fatal(err)
	}
	slog.New(h).Error("it\nbroke", "why", strings.Repeat("x", 100000))
	got := next()
	if !strings.HasPrefix(got, "<27>") || !strings.Contains(got, fmt.Sprintf(" guard[%d]: it broke why=xxx", os.Getpid())) {
		t.Errorf("line %.80q", got)
	}
	if strings.Contains(got, "\n") || len(got) > maxValue+200 {
		t.Errorf("a line of %d bytes, or more than one", len(got))
	}
}

// A collector that takes nothing must not hold a daemon up; the lines that it
// missed are counted in the next that it takes, also after its restart.
func TestFullCollectorStallsNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	open := func() *net.UnixConn {
		_ = os.Remove(path)
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := open()
	h, err := newJournal(path, "fdm")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5000 {
			slog.New(h).Info("again")
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the logger waits for the collector")
	}
	first.Close()
	second := open()
	defer second.Close()
	slog.New(h).Info("after the restart")
	b := make([]byte, 4096)
	_ = second.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, err := second.Read(b)
	if err != nil || !strings.Contains(string(b[:n]), "HANOK_LINESDROPPED=") {
		t.Errorf("got %q, %v: the lines dropped are not told", b[:n], err)
	}
}

// hung is a stream that takes nothing until it is healed.
type hung struct {
	healed chan struct{}
	b      strings.Builder
}

func (h *hung) Write(b []byte) (int, error) {
	<-h.healed
	return h.b.Write(b)
}

// A disk that hangs under a log, or a pipe that nobody reads, must not hold a
// daemon up either.
func TestHungStreamStallsNobody(t *testing.T) {
	w := &hung{healed: make(chan struct{})}
	log, flush, err := New(Stderr, "guard", w)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 * streamLines {
			log.Info("again")
		}
		flush() // gives up
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the logger waits for the stream")
	}
	close(w.healed)
	log.Info("last")
	flush()
	got := w.b.String()
	if !strings.Contains(got, "linesDropped=") || strings.Count(got, "msg=again") < streamLines {
		t.Errorf("%d lines came through, the others are not told: %.300q", strings.Count(got, "msg=again"), got)
	}
}

func TestTargets(t *testing.T) {
	if _, _, err := New("mail", "fdm", io.Discard); err == nil || !strings.Contains(err.Error(), "stderr") {
		t.Errorf("unknown target: %v", err)
	}
	if _, err := newSyslog(filepath.Join(t.TempDir(), "none"), "fdm"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no syslog: %v", err)
	}
	var b strings.Builder
	log, flush, err := New(Auto, "fdm", &b)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("here")
	flush()
	if !strings.Contains(b.String(), "msg=here id=fdm") {
		t.Errorf("auto without a journal: %q", b.String())
	}
	if onJournal("1:1", 2) || onJournal("", 2) {
		t.Error("standard error is taken for the journal")
	}
}
