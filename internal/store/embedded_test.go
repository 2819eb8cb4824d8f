package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The history of an embedded etcd that is full is given up, not the state.
func TestAFullEmbeddedEtcdMakesRoom(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	cfg := Config{Dir: dir, Quota: 8 << 20, Log: slog.New(slog.NewTextHandler(&log, nil))}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	first := commit(t, s, new(Txn).Put("kept", []byte("v")))
	if err := fill(t, s, func() bool { return strings.Contains(log.String(), "room was made") }); err != nil {
		t.Fatal(err)
	}
	if it, err := s.Get(t.Context(), "kept"); err != nil || string(it.Value) != "v" {
		t.Errorf("the state: %+v, %v", it, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Watch(ctx, "", first, func(Batch) error { return nil }); !errors.Is(err, ErrCompacted) {
		t.Errorf("history that is gone: %v", err)
	}
	// What is no history stays, and nothing more is taken.
	for i := 0; err == nil; i++ {
		if i == 10000 {
			t.Fatal("1 GB of state was taken")
		}
		_, err = s.Commit(t.Context(), new(Txn).Put(fmt.Sprintf("more/%d", i), make([]byte, 100<<10)))
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("full of state: %v", err)
	}
	// With room, and a new start, it goes on.
	if _, err := s.Commit(t.Context(), new(Txn).DeleteAll("more/")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, cfg)
	commit(t, s, new(Txn).Put("kept", []byte("w")))
}

// fillKeys writes n keys.
func fillKeys(t *testing.T, s *Store, prefix string, n int) {
	t.Helper()
	x := new(Txn)
	for i := range n {
		if x.Put(fmt.Sprintf("%s%04d", prefix, i), make([]byte, 10)); x.Len() == MaxOps || i == n-1 {
			commit(t, s, x)
			x = new(Txn)
		}
	}
}

func TestOneDirectoryHasOneServer(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "another server works in "+dir) {
		t.Errorf("a second one: %v", err)
	}
}

// A database that cannot be read is refused in words, where etcd itself would
// end the process.
func TestADamagedDirectoryIsRefused(t *testing.T) {
	for name, damage := range map[string]func(path string, b []byte) error{
		"overwritten": func(path string, b []byte) error { return os.WriteFile(path, bytes.Repeat([]byte("x"), len(b)), 0o600) },
		"cut short":   func(path string, b []byte) error { return os.WriteFile(path, b[:5000], 0o600) },
		"empty":       func(path string, _ []byte) error { return os.WriteFile(path, bytes.Repeat([]byte{0}, 8192), 0o600) },
	} {
		dir := t.TempDir()
		s := open(t, dir)
		commit(t, s, new(Txn).Put("k", []byte("v")))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		db := filepath.Join(dir, "etcd", "member", "snap", "db")
		b, err := os.ReadFile(db)
		if err == nil {
			err = damage(db, b)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), "is damaged") || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Its log is damaged: what may help is said, whether etcd notices or not.
func TestADamagedLogIsTold(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 40 {
		commit(t, s, new(Txn).Put(fmt.Sprintf("k/%d", i), make([]byte, 2000)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	f, err := os.OpenFile(logs[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 8192), 40000); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler), StartLimit: 2 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "restore a backup") {
		t.Errorf("%v", err)
	}
}

// A backup is one moment, however much is written beside it.
func TestABackupIsOneMoment(t *testing.T) {
	s := open(t, t.TempDir())
	// The two of each change lie at both ends of several pages.
	fillKeys(t, s, "m/", 1600)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			v := []byte(fmt.Sprint(i))
			if _, err := s.Commit(t.Context(), new(Txn).Put("a", v).Put("z", v).Put(fmt.Sprintf("m/%04d", i%1600), v)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var files [3]bytes.Buffer
	for i := range files {
		if err := s.Backup(t.Context(), &files[i]); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
	last := "-1"
	for i := range files {
		got := map[string]string{}
		if err := readBackup(&files[i], func(k string, v []byte) error { got[k] = string(v); return nil }); err != nil {
			t.Fatal(err)
		}
		if got["a"] != got["z"] || len(got) < 1600 {
			t.Errorf("backup %d has %s of one change and %s of another", i, got["a"], got["z"])
		}
		last = got["a"]
	}
	if last == "" || last == "0" {
		t.Errorf("nothing was written beside the backups: %q", last)
	}
}

// Whoever dies while it restores leaves no half of a state that passes for one.
func TestHalfARestoreIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	fillKeys(t, s, "k/", 350)
	var file bytes.Buffer
	if err := s.Backup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	for died := 1; ; died++ { // at each of its writes
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		left := -1
		half, err := Open(ctx, Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Failpoint: func(name string) {
			if left > 0 && name == "commit.before" {
				if left--; left == 0 {
					cancel()
				}
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		left = died
		err = half.Restore(ctx, bytes.NewReader(file.Bytes()))
		cancel()
		if err := half.Close(); err != nil {
			t.Fatal(err)
		}
		keys, oerr := 0, error(nil)
		if again, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err != nil {
			oerr = err
		} else {
			list, _, err := again.List(t.Context(), "k/", ListOptions{KeysOnly: true})
			if keys = len(list); err != nil {
				t.Fatal(err)
			}
			_ = again.Close()
		}
		if oerr == nil && keys != 0 && keys != 350 || oerr != nil && !strings.Contains(oerr.Error(), "did not end") {
			t.Errorf("cut short at write %d: %d keys, %v", died, keys, oerr)
		}
		if err == nil { // it was through
			if keys != 350 || died < 5 {
				t.Errorf("after %d writes: %d keys, %v", died, keys, oerr)
			}
			return
		}
	}
}
