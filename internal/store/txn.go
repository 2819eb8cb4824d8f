package store

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Txn is a change being put together: what it rests on, and what it writes. A
// key may be written once. The zero value is empty.
type Txn struct {
	rests  []condition
	writes []write
}

type condition struct {
	key      string
	revision int64 // of the last change, 0: absent
	created  bool  // revision is that of its creation
}

type write struct {
	key    string
	value  []byte
	delete bool
	prefix bool
	ifNew  bool
}

// Absent rests the change on there being no such key.
func (t *Txn) Absent(key string) *Txn { return t.Unchanged(key, 0) }

// Unchanged rests it on the key having been changed last at revision
// (Item.Modified); 0 is Absent.
func (t *Txn) Unchanged(key string, revision int64) *Txn {
	t.rests = append(t.rests, condition{key: key, revision: revision})
	return t
}

// Same rests it on the key being the one that was made at a revision
// (Item.Created), whatever it holds by now.
func (t *Txn) Same(key string, created int64) *Txn {
	t.rests = append(t.rests, condition{key: key, revision: created, created: true})
	return t
}

// Put writes a key.
func (t *Txn) Put(key string, value []byte) *Txn {
	t.writes = append(t.writes, write{key: key, value: value})
	return t
}

// PutIfNew writes a key unless it is there already, which is no conflict.
func (t *Txn) PutIfNew(key string, value []byte) *Txn {
	t.writes = append(t.writes, write{key: key, value: value, ifNew: true})
	return t
}

// Delete removes a key; that it is not there is no conflict.
func (t *Txn) Delete(key string) *Txn {
	t.writes = append(t.writes, write{key: key, delete: true})
	return t
}

// DeleteAll removes all keys that begin with prefix.
func (t *Txn) DeleteAll(prefix string) *Txn {
	t.writes = append(t.writes, write{key: prefix, delete: true, prefix: true})
	return t
}

// Len is the number of writes.
func (t *Txn) Len() int { return len(t.writes) }

// Commit carries a change out, and returns its revision.
func (s *Store) Commit(ctx context.Context, t *Txn) (int64, error) {
	if len(t.writes) > MaxOps {
		return 0, fmt.Errorf("commit: %d writes at once; at most %d", len(t.writes), MaxOps)
	}
	var cmps []clientv3.Cmp
	for _, c := range t.rests {
		what := clientv3.ModRevision(s.key(c.key))
		if c.created {
			what = clientv3.CreateRevision(s.key(c.key))
		}
		cmps = append(cmps, clientv3.Compare(what, "=", c.revision))
	}
	var ops []clientv3.Op
	for _, w := range t.writes {
		if len(w.value) > MaxValue {
			return 0, fmt.Errorf("commit: %s has %d bytes; at most %d", w.key, len(w.value), MaxValue)
		}
		k := s.key(w.key)
		switch {
		case w.prefix:
			ops = append(ops, clientv3.OpDelete(k, clientv3.WithPrefix()))
		case w.delete:
			ops = append(ops, clientv3.OpDelete(k))
		case w.ifNew:
			ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(k), "=", 0)},
				[]clientv3.Op{clientv3.OpPut(k, string(w.value))}, nil))
		default:
			ops = append(ops, clientv3.OpPut(k, string(w.value)))
		}
	}
	s.cfg.Failpoint("commit.before")
	r, err := s.commit(ctx, cmps, ops)
	if full(err) && s.member != nil { // nothing was carried out
		if err := s.makeRoom(ctx); err != nil {
			return 0, fmt.Errorf("commit: %w (%w)", ErrFull, err)
		}
		r, err = s.commit(ctx, cmps, ops)
	}
	switch {
	case full(err):
		return 0, fmt.Errorf("commit: %w (%w)", ErrFull, err)
	case err != nil:
		return 0, fmt.Errorf("commit: %w", err)
	}
	s.cfg.Failpoint("commit.after")
	if !r.Succeeded {
		return 0, ErrConflict
	}
	return r.Header.Revision, nil
}

func (s *Store) commit(ctx context.Context, cmps []clientv3.Cmp, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return s.client.Txn(ctx).If(cmps...).Then(ops...).Commit()
}
