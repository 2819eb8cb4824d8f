package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func commit(t *testing.T, s *Store, x *Txn) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestCommit(t *testing.T) {
	s := open(t, t.TempDir())
	first := commit(t, s, new(Txn).Absent("a").Put("a", []byte("1")).Put("b", []byte("1")))
	for name, x := range map[string]*Txn{
		"absent":    new(Txn).Absent("a").Put("c", nil).Put("b", []byte("2")),
		"unchanged": new(Txn).Unchanged("a", first-1).Put("c", nil).Put("b", []byte("2")),
	} {
		if _, err := s.Commit(t.Context(), x); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Get(t.Context(), "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("half of a refused change was written: %v", err)
	}
	it, err := s.Get(t.Context(), "b")
	if err != nil || string(it.Value) != "1" || it.Created != first || it.Modified != first {
		t.Errorf("b: %+v, %v", it, err)
	}
	// Only the new one of two is written.
	second := commit(t, s, new(Txn).Unchanged("a", first).PutIfNew("b", []byte("3")).PutIfNew("d", []byte("3")).Delete("a"))
	list, rev, err := s.List(t.Context(), "", ListOptions{NewestFirst: true})
	if err != nil || rev != second {
		t.Fatal(rev, err)
	}
	var got []string
	for _, it := range list {
		got = append(got, it.Key+"="+string(it.Value))
	}
	if s := strings.Join(got, " "); !strings.HasPrefix(s, "d=3 b=1 store/id=") {
		t.Errorf("list %s", s)
	}
	if _, err := s.Commit(t.Context(), new(Txn).Put("big", make([]byte, MaxValue+1))); err == nil {
		t.Error("a value of more than MaxValue was taken")
	}
}

func TestStateOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	commit(t, s, new(Txn).Put("k", []byte("v")))
	id := s.ID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if it, err := s.Get(t.Context(), "k"); err != nil || string(it.Value) != "v" || s.ID() != id {
		t.Errorf("%+v, %v, id %s", it, err, s.ID())
	}
}

func TestWatchResumes(t *testing.T) {
	s := open(t, t.TempDir())
	from := commit(t, s, new(Txn).Put("w/0", nil))
	for i := range 5 {
		commit(t, s, new(Txn).Put(fmt.Sprintf("w/%d", i+1), nil).Put("other", nil).Put(fmt.Sprintf("w/x%d", i), nil))
	}
	commit(t, s, new(Txn).Delete("w/0"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []string
	done := errors.New("seen all")
	err := s.Watch(ctx, "w/", from, func(b Batch) error {
		for _, e := range b.Events {
			got = append(got, e.Key)
		}
		if len(got) >= 11 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || got[0] != "w/1" || got[10] != "w/0" || len(got) != 11 {
		t.Errorf("%v: %v", err, got)
	}
}

func TestOneLeads(t *testing.T) {
	s := open(t, t.TempDir())
	a, err := s.Lead(t.Context(), "work", "a")
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan *Leadership, 1)
	go func() {
		b, err := s.Lead(t.Context(), "work", "b")
		if err != nil {
			t.Error(err)
		}
		second <- b
	}()
	if who, err := s.Leader(t.Context(), "work"); who != "a" || err != nil {
		t.Errorf("leader %q, %v", who, err)
	}
	commit(t, s, a.Fence(new(Txn).Put("x", []byte("a"))))
	a.Resign(t.Context())
	b := <-second
	if _, err := s.Commit(t.Context(), a.Fence(new(Txn).Put("x", []byte("late")))); !errors.Is(err, ErrConflict) {
		t.Errorf("a change of a leader that is none any more: %v", err)
	}
	commit(t, s, b.Fence(new(Txn).Put("x", []byte("b"))))
	b.Resign(t.Context())
}

func TestBackupAndRestore(t *testing.T) {
	s := open(t, t.TempDir())
	for i := range 12 { // more than one page
		x := new(Txn)
		for j := range 100 {
			x.Put(fmt.Sprintf("k/%d", 100*i+j), []byte(strings.Repeat("v", 100*i+j)))
		}
		commit(t, s, x)
	}
	var file bytes.Buffer
	if err := s.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(t.Context(), bytes.NewReader(file.Bytes())); err == nil {
		t.Error("restored over what was there")
	}
	damaged := bytes.Clone(file.Bytes())
	damaged[len(damaged)/2] ^= 1
	other := open(t, t.TempDir())
	for name, b := range map[string][]byte{"damaged": damaged, "cut short": file.Bytes()[:file.Len()-1], "longer": append(bytes.Clone(file.Bytes()), 0), "foreign": []byte("x")} {
		if err := other.Restore(t.Context(), bytes.NewReader(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := other.Restore(t.Context(), bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := other.Backup(t.Context(), &again); err != nil || !bytes.Equal(file.Bytes(), again.Bytes()) {
		t.Errorf("the restored state is another: %v", err)
	}
	if other.ID() == s.ID() {
		t.Error("the restored store pretends to have the old history")
	}
}

func FuzzReadBackup(f *testing.F) {
	f.Add([]byte(backupMagic))
	f.Add([]byte(backupMagic + "\xff\xff\xff\xff"))
	f.Add([]byte(backupMagic + "\x00\x00\x00\x01\x00\x00\x00\x01kv\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readBackup(bytes.NewReader(b), func(key string, value []byte) error {
			if key == "" || len(key) > maxKey || len(value) > MaxValue {
				t.Errorf("key of %d bytes, value of %d", len(key), len(value))
			}
			return nil
		})
	})
}
