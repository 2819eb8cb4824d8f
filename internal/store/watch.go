package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Event is one change of a key.
type Event struct {
	Item
	// Deleted: the key is gone; Value is empty.
	Deleted bool
}

// Batch is what one revision, or several, changed below the prefix.
type Batch struct {
	Events []Event
	// Revision is the last one that the batch covers: go on after it. A batch
	// without events only says that nothing changed up to there.
	Revision int64
}

// Watch calls each for every change below prefix after a revision, in order,
// until ctx ends, each fails, or the history is gone (ErrCompacted). All
// changes of one Commit come in one batch.
func (s *Store) Watch(ctx context.Context, prefix string, after int64, each func(Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch := s.client.Watch(clientv3.WithRequireLeader(ctx), s.key(prefix), clientv3.WithPrefix(), clientv3.WithRev(after+1), clientv3.WithProgressNotify())
	for r := range ch {
		if err := r.Err(); err != nil {
			return fmt.Errorf("watch %s: %w", prefix, compacted(err))
		}
		if r.Created {
			continue
		}
		b := Batch{Revision: r.Header.Revision}
		for _, e := range r.Events {
			kv := e.Kv
			b.Events = append(b.Events, Event{Deleted: e.Type == mvccpb.DELETE, Item: Item{Key: strings.TrimPrefix(string(kv.Key), s.cfg.Prefix),
				Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision}})
			b.Revision = kv.ModRevision
		}
		if err := each(b); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("watch %s: it ended", prefix)
}

func compacted(err error) error {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return ErrCompacted
	}
	return err
}

// Revision is the newest revision.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, s.key("store/id"), clientv3.WithKeysOnly())
	if err != nil {
		return 0, fmt.Errorf("read the revision: %w", err)
	}
	return r.Header.Revision, nil
}
