package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// A backup: the magic line, then for each key its length, the value's length
// (4 bytes each, big endian), key and value; a length of all ones and the
// SHA-256 of all before end it. It is the state at one revision, without the
// history, and can be read into an embedded or an external etcd.
const (
	backupMagic = "hanok-backup 1\n"
	backupEnd   = ^uint32(0)
	maxKey      = 4096
)

// transient keys are not part of a backup: who leads is not state, and a
// restored store has a history of its own.
func transient(key string) bool {
	return strings.HasPrefix(key, "lead/") || key == "store/id" || key == restoring
}

// restoring is there from the first write of a Restore to its last: half a state
// must not be taken for one.
const restoring = "store/restoring"

// whole refuses a store whose Restore did not end.
func (s *Store) whole(ctx context.Context) error {
	_, err := s.Get(ctx, restoring)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errors.New("a backup was being restored into it and that did not end: restore again, into an empty data directory or etcd")
}

// Backup writes everything at one revision.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(w, sum))
	if _, err := out.WriteString(backupMagic); err != nil {
		return err
	}
	after, revision := "", int64(0)
	for {
		items, rev, err := s.List(ctx, "", ListOptions{Limit: 500, After: after, Revision: revision})
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		if revision == 0 {
			revision = rev
		}
		for _, it := range items {
			after = it.Key
			if transient(it.Key) {
				continue
			}
			var head [8]byte
			binary.BigEndian.PutUint32(head[:4], uint32(len(it.Key)))
			binary.BigEndian.PutUint32(head[4:], uint32(len(it.Value)))
			for _, part := range [][]byte{head[:], []byte(it.Key), it.Value} {
				if _, err := out.Write(part); err != nil {
					return err
				}
			}
		}
		if len(items) == 0 {
			break
		}
	}
	if err := binary.Write(out, binary.BigEndian, backupEnd); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// Restore reads a backup into a store that must be empty. The backup is checked
// as a whole before anything is written; a Restore that did not end leaves a
// store that Open refuses: begin with an empty one.
func (s *Store) Restore(ctx context.Context, backup io.ReadSeeker) error {
	items, _, err := s.List(ctx, "", ListOptions{Limit: 50, KeysOnly: true})
	if err != nil {
		return err
	}
	for _, it := range items {
		if !transient(it.Key) {
			return fmt.Errorf("restore: the store is not empty, it has %s: restore into a new data directory", it.Key)
		}
	}
	if err := readBackup(backup, func(string, []byte) error { return nil }); err != nil {
		return fmt.Errorf("restore: %w; nothing was changed", err)
	}
	if _, err := backup.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := s.Commit(ctx, new(Txn).Absent(restoring).Put(restoring, nil)); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	t, size := new(Txn), 0
	flush := func() error {
		if t.Len() == 0 {
			return nil
		}
		_, err := s.Commit(ctx, t)
		t, size = new(Txn), 0
		return err
	}
	err = readBackup(backup, func(key string, value []byte) error {
		if t.Len() == MaxOps || size+len(value) > MaxValue {
			if err := flush(); err != nil {
				return err
			}
		}
		t.Put(key, value)
		size += len(value)
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err == nil {
		_, err = s.Commit(ctx, new(Txn).Delete(restoring))
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

var errDamaged = errors.New("the backup is damaged or cut short")

// readBackup gives each key and value, and fails unless all is intact.
func readBackup(r io.Reader, each func(key string, value []byte) error) error {
	sum := sha256.New()
	in := &summed{bufio.NewReader(r), sum}
	magic := make([]byte, len(backupMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != backupMagic {
		return errors.New("this is no backup of a Hanok server of this version")
	}
	for {
		var n uint32
		if binary.Read(in, binary.BigEndian, &n) != nil {
			return errDamaged
		}
		if n == backupEnd {
			break
		}
		var size uint32
		if binary.Read(in, binary.BigEndian, &size) != nil || n == 0 || n > maxKey || size > MaxValue {
			return errDamaged
		}
		both := make([]byte, int(n)+int(size))
		if _, err := io.ReadFull(in, both); err != nil {
			return errDamaged
		}
		if err := each(string(both[:n]), both[n:]); err != nil {
			return err
		}
	}
	want := sum.Sum(nil)
	got := make([]byte, len(want)+1)
	if n, _ := io.ReadFull(in.r, got); n != len(want) || string(got[:n]) != string(want) {
		return errDamaged
	}
	return nil
}

type summed struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.sum.Write(b[:n])
	return n, err
}
