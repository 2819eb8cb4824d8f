package work

import (
	"context"
	"time"

	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
)

// What is kept.
const (
	keepEvents   = 20000 // of each cluster, the newest
	keepVersions = 500   // of each cluster file
	keepTasks    = 5000  // that have ended
	keepChanges  = 50000 // of the audit log
	keepRefused  = 10000 // of the audit log, refused attempts
	cleanEvery   = time.Minute
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
		if err := w.cleanOnce(ctx, keepEvents); err != nil && ctx.Err() == nil {
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

func (w *worker) cleanOnce(ctx context.Context, events int) error {
	for _, name := range append(w.Cache.Names(), "-") {
		for prefix, keep := range map[string]int{state.EventPrefix(name): events, state.VersionPrefix(name): keepVersions} {
			items, _, err := w.Store.List(ctx, prefix, store.ListOptions{NewestFirst: true, KeysOnly: true})
			if err != nil {
				return err
			}
			if err := w.remove(ctx, items[min(keep, len(items)):]); err != nil {
				return err
			}
		}
	}
	for kind, keep := range map[string]int{state.AuditChange: keepChanges, state.AuditRefused: keepRefused} {
		items, _, err := w.Store.List(ctx, state.AuditPrefix(kind), store.ListOptions{NewestFirst: true, KeysOnly: true})
		if err != nil {
			return err
		}
		if err := w.remove(ctx, items[min(keep, len(items)):]); err != nil {
			return err
		}
	}
	var old []store.Item
	for _, prefix := range []string{state.TokenPrefix, state.SessionPrefix} {
		items, _, err := w.Store.List(ctx, prefix, store.ListOptions{})
		if err != nil {
			return err
		}
		for _, it := range items {
			if account.Ended(it.Value, time.Now()) {
				old = append(old, it)
			}
		}
	}
	ended := 0
	for _, t := range w.Cache.Tasks() {
		if state.Ended(t) {
			if ended++; ended > keepTasks {
				old = append(old, store.Item{Key: state.TaskKey(t.Id)})
			}
		}
	}
	tokens, _, err := w.Store.List(ctx, state.EnrolPrefix, store.ListOptions{})
	if err != nil {
		return err
	}
	for _, it := range tokens {
		if trust.Over(it.Value, time.Now()) {
			old = append(old, it)
		}
	}
	done, _, err := w.Store.List(ctx, state.DonePrefix, store.ListOptions{})
	if err != nil {
		return err
	}
	for _, it := range done {
		if time.Since(api.DoneAt(it.Value)) > api.KeepDone {
			old = append(old, it)
		}
	}
	return w.remove(ctx, old)
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
