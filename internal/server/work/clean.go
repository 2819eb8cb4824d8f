package work

import (
	"context"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
)

// bounds are how many are kept, the newest.
type bounds struct {
	events   int // of each cluster
	versions int // of each cluster file
	tasks    int // that have ended
	changes  int // of the audit log
	refused  int // of the audit log, refused attempts
}

var kept = bounds{events: 20000, versions: 500, tasks: 5000, changes: 50000, refused: 10000}

const (
	cleanEvery = time.Minute
	// keepHistory is how long streams can be resumed.
	keepHistory = time.Hour
)

// mark is a revision and when it was the newest.
type mark struct {
	at       time.Time
	revision int64
}

// clean removes what is old, now and then.
func (w *worker) clean(ctx context.Context) {
	tick := time.NewTicker(cleanEvery)
	defer tick.Stop()
	var marks []mark // of the last keepHistory, the oldest first
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		marks = append(marks, mark{now, w.Cache.Revision()})
		if old, rest := before(marks, now.Add(-keepHistory)); old > 0 {
			marks = rest
			if err := w.Store.Compact(ctx, old); err != nil && ctx.Err() == nil {
				w.Log.Warn("old history was not removed", "err", err)
			}
		}
		if err := w.cleanOnce(ctx, kept); err != nil && ctx.Err() == nil {
			w.Log.Warn("old events and tasks were not removed", "err", err)
		}
	}
}

// before is the newest revision that was the newest one at a moment or earlier, 0
// for none, and the marks after it.
func before(marks []mark, moment time.Time) (revision int64, rest []mark) {
	for len(marks) > 0 && !marks[0].at.After(moment) {
		revision, marks = marks[0].revision, marks[1:]
	}
	return revision, marks
}

func (w *worker) cleanOnce(ctx context.Context, b bounds) error {
	for _, name := range append(w.Cache.Names(), "-") {
		if err := w.cleanEvents(ctx, name, b.events); err != nil {
			return err
		}
		if err := w.keepNewest(ctx, state.VersionPrefix(name), b.versions); err != nil {
			return err
		}
	}
	for kind, keep := range map[string]int{state.AuditChange: b.changes, state.AuditRefused: b.refused} {
		if err := w.keepNewest(ctx, state.AuditPrefix(kind), keep); err != nil {
			return err
		}
	}
	old, err := w.over(ctx, time.Now())
	if err != nil {
		return err
	}
	ended := 0
	for _, t := range w.Cache.Tasks() {
		if state.Ended(t) {
			if ended++; ended > b.tasks {
				old = append(old, store.Item{Key: state.TaskKey(t.Id)})
			}
		}
	}
	return w.remove(ctx, old)
}

// keepNewest removes all below a prefix but the newest.
func (w *worker) keepNewest(ctx context.Context, prefix string, keep int) error {
	items, _, err := w.Store.List(ctx, prefix, store.ListOptions{NewestFirst: true, KeysOnly: true})
	if err != nil {
		return err
	}
	return w.remove(ctx, items[min(keep, len(items)):])
}

// cleanEvents removes all events of a cluster but the newest, and first notes up
// to which time they go: they must not come back with the next primary.
func (w *worker) cleanEvents(ctx context.Context, cluster string, keep int) error {
	prefix := state.EventPrefix(cluster)
	items, _, err := w.Store.List(ctx, prefix, store.ListOptions{NewestFirst: true, KeysOnly: true})
	if err != nil || len(items) <= keep {
		return err
	}
	old := map[string]bool{}
	for _, it := range items[keep:] {
		old[it.Key] = true
	}
	values, _, err := w.Store.List(ctx, prefix, store.ListOptions{CreatedBefore: items[keep].Created + 1})
	if err != nil {
		return err
	}
	floor, now := time.Time{}, time.Now()
	for _, it := range values {
		e, err := state.Decode[hanokv1.Event](it.Key, it.Value)
		if err != nil {
			return err
		}
		// A clock that is ahead must not hide what others will tell.
		if at := e.Time.AsTime(); old[it.Key] && at.After(floor) && at.Before(now) {
			floor = at
		}
	}
	if wanted := w.Cache.Wanted(cluster); wanted != nil {
		t := new(store.Txn).Same(state.ConfigKey(cluster), wanted.Created)
		if _, err := w.commit(ctx, t.Put(state.FloorKey(cluster), []byte(floor.Format(time.RFC3339Nano)))); err != nil {
			return err
		}
	}
	return w.remove(ctx, items[keep:])
}

// over are the tokens, sessions and idempotency keys whose time is over.
func (w *worker) over(ctx context.Context, now time.Time) ([]store.Item, error) {
	var old []store.Item
	for prefix, ended := range map[string]func(value []byte) bool{
		state.TokenPrefix:   func(v []byte) bool { return account.Ended(v, now) },
		state.SessionPrefix: func(v []byte) bool { return account.Ended(v, now) },
		state.EnrolPrefix:   func(v []byte) bool { return trust.Over(v, now) },
		state.DonePrefix:    func(v []byte) bool { return now.Sub(api.DoneAt(v)) > api.KeepDone },
	} {
		items, _, err := w.Store.List(ctx, prefix, store.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			if ended(it.Value) {
				old = append(old, it)
			}
		}
	}
	return old, nil
}

func (w *worker) remove(ctx context.Context, items []store.Item) error {
	for len(items) > 0 {
		n := min(len(items), store.MaxOps)
		t := new(store.Txn)
		for _, it := range items[:n] {
			t.Delete(it.Key)
		}
		if _, err := w.commit(ctx, t); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}
