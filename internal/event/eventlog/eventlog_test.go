package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/event"
)

func ev(n int) event.Event {
	return event.Event{ID: fmt.Sprintf("host1-1-%d", n), Kind: event.Admin, Text: strings.Repeat("x", 100)}
}

func add(t *testing.T, l *Log, e event.Event) {
	t.Helper()
	if fresh, err := l.Add(e); err != nil || !fresh {
		t.Fatalf("Add(%s) = %v, %v", e.ID, fresh, err)
	}
}

func ids(events []event.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, strings.TrimPrefix(e.ID, "host1-1-"))
	}
	return strings.Join(out, " ")
}

func TestKeepsAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "events.jsonl")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		add(t, l, ev(n))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if fresh, err := l.Add(ev(3)); fresh || err != nil {
		t.Errorf("a known event was taken again: %v, %v", fresh, err)
	}
	add(t, l, ev(5))
	got, err := l.Read(100, nil)
	if err != nil || ids(got) != "0 1 2 3 4 5" {
		t.Errorf("Read: %s, %v", ids(got), err)
	}
	if got := l.Recent(2, nil); ids(got) != "4 5" {
		t.Errorf("Recent: %s", ids(got))
	}
	if got, _ := l.Read(2, func(e event.Event) bool { return e.ID != ev(5).ID }); ids(got) != "3 4" {
		t.Errorf("filtered Read: %s", ids(got))
	}
}

func TestRotatesInBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	const limit = 4096
	l, err := open(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for n := range 200 {
		add(t, l, ev(n))
	}
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > limit || info.Size() == 0 {
			t.Errorf("%s has %d bytes, want 1 to %d", p, info.Size(), limit)
		}
	}
	got, err := l.Read(1000, nil)
	if err != nil || len(got) < 10 || got[len(got)-1].ID != ev(199).ID {
		t.Fatalf("Read after rotation: %s, %v", ids(got), err)
	}
	for i := 1; i < len(got); i++ {
		if got[i].ID != ev(200-len(got)+i).ID {
			t.Fatalf("a gap in what was kept: %s", ids(got))
		}
	}
}

func TestSurvivesCorruption(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	good := `{"id":"host1-1-%d","kind":"admin","text":"ok"}` + "\n"
	content := fmt.Sprintf(good, 1) + "\x00\x00\x00\n{}\n\n" + strings.Repeat("y", 3*MaxEvent) + "\n" +
		fmt.Sprintf(good, 2) + `{"id":"host1-1-3","kind":"ad`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Bad() != 4 {
		t.Errorf("%d bad lines counted, want 4", l.Bad())
	}
	add(t, l, ev(4))
	got, err := l.Read(10, nil)
	if err != nil || ids(got) != "1 2 4" {
		t.Errorf("the event after a cut-off line must be readable: %s, %v", ids(got), err)
	}
	if fresh, err := l.Add(event.Event{ID: "big", Text: strings.Repeat("z", MaxEvent)}); fresh || err == nil {
		t.Error("an event beyond the bound was taken")
	}
}

func TestFollow(t *testing.T) {
	l, err := Open(filepath.Join(t.TempDir(), "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from := l.Next()
	got := make(chan string)
	go func() {
		events, _, _, _ := l.Wait(context.Background(), from)
		got <- ids(events)
	}()
	add(t, l, ev(1))
	if s := <-got; s != "1" {
		t.Errorf("follower saw %q", s)
	}
	for n := range keepRecent + 10 {
		add(t, l, ev(n+2))
	}
	events, next, missed, err := l.Wait(context.Background(), from)
	if err != nil || missed != 11 || len(events) != keepRecent || next != l.Next() {
		t.Errorf("slow follower: %d events, %d missed, next %d, %v", len(events), missed, next, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, _, err := l.Wait(ctx, next); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait past its context: %v", err)
	}
}

func TestAfter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l, err := open(path, 1500) // a few events, then a new file
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for n := range 12 {
		add(t, l, ev(n))
	}
	even := func(e event.Event) bool { return strings.HasSuffix(e.ID, "0") || strings.HasSuffix(e.ID, "8") }
	all := func(event.Event) bool { return true }
	for _, tt := range []struct {
		after string
		limit int
		keep  func(event.Event) bool
		want  string
		last  string
		found bool
	}{
		{ev(6).ID, 3, all, "7 8 9", "9", true},
		{ev(6).ID, 100, all, "7 8 9 10 11", "11", true},
		{ev(6).ID, 100, even, "8 10", "11", true},
		{ev(11).ID, 100, all, "", "11", true},
	} {
		got, last, found, err := l.After(tt.after, tt.limit, tt.keep)
		if err != nil || ids(got) != tt.want || strings.TrimPrefix(last, "host1-1-") != tt.last || found != tt.found {
			t.Errorf("after %s: %s, last %s, found %v, %v; want %s", tt.after, ids(got), last, found, err, tt.want)
		}
	}
	// One that the log does not know: all that there is.
	kept, _ := l.Read(1000, nil)
	if got, _, found, err := l.After("host9-1-1", 1000, all); err != nil || found || ids(got) != ids(kept) || len(kept) < 4 {
		t.Errorf("after an unknown one: %s, %v, %v", ids(got), found, err)
	}
}

// Bounds may change while the log is open: files that are too many go.
func TestBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	count := func() int {
		list, err := filepath.Glob(path + "*")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	big := func(n int) event.Event { e := ev(n); e.Text = strings.Repeat("x", MaxEvent/2); return e }
	if err := l.Bound(1, 4); err != nil { // never less than two of the largest events
		t.Fatal(err)
	}
	for n := range 40 {
		add(t, l, big(n))
	}
	if n := count(); n != 4 {
		t.Errorf("%d files, want 4", n)
	}
	got, err := l.Read(100, nil)
	if err != nil || len(got) < 9 || got[len(got)-1].ID != big(39).ID {
		t.Fatalf("%s, %v", ids(got), err)
	}
	for i := 1; i < len(got); i++ {
		if got[i].ID != big(40-len(got)+i).ID {
			t.Fatalf("a gap in what was kept: %s", ids(got))
		}
	}
	if err := l.Bound(1, 2); err != nil || count() != 2 {
		t.Errorf("%v, %d files, want 2", err, count())
	}
	for n := 40; n < 60; n++ {
		add(t, l, big(n))
	}
	if n := count(); n != 2 {
		t.Errorf("%d files, want 2", n)
	}
	if err := l.Bound(1<<20, 2); err != nil {
		t.Fatal(err)
	}
	for n := 60; n < 80; n++ {
		add(t, l, big(n))
	}
	if got, _ := l.Read(100, nil); len(got) < 20 {
		t.Errorf("larger files keep no more: %s", ids(got))
	}
}
