package work

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Bounds of streams of events.
const (
	// batchEvents is how many events are written at once, at the latest
	// batchWait after the first one came.
	batchEvents = 60
	batchWait   = 100 * time.Millisecond
	// batchBytes bounds them together: events have up to 64 KiB, and an external
	// etcd takes 1.5 MiB at once.
	batchBytes = 512 << 10
	maxID      = 300
	// retryEvents is the pause before a stream is opened again.
	retryEvents = 2 * time.Second
)

// stream follows the events of one host, or all of the primary's.
type stream struct {
	f    *follower
	name string // of the cursor
	host model.HostID
	own  bool
	stop context.CancelFunc
}

// all is the key of the stream of all events of the primary.
const all = model.HostID("")

// follow keeps a stream for each host, and one for the primary's.
func (f *follower) follow(ctx context.Context) {
	want := map[model.HostID]model.HostID{}
	for i := range f.wanted.Cluster.Hosts {
		h := f.wanted.Cluster.Hosts[i].Name
		want[h] = h
	}
	if f.primary != "" {
		want[all] = f.primary
	}
	for key, s := range f.streams {
		if want[key] != s.host {
			s.stop()
			delete(f.streams, key)
		}
	}
	for key, host := range want {
		if f.streams[key] != nil {
			continue
		}
		s := &stream{f: f, host: host, own: key != all, name: string(host)}
		if !s.own {
			s.name = "all/" + string(host)
		}
		sctx, cancel := context.WithCancel(ctx)
		s.stop = cancel
		f.streams[key] = s
		f.w.wg.Go(func() { s.run(sctx) })
	}
}

func (s *stream) run(ctx context.Context) {
	for ctx.Err() == nil {
		s.f.w.mu.Lock()
		a := s.f.agents[s.host]
		s.f.w.mu.Unlock()
		if a != nil {
			if err := s.read(ctx, a); errors.Is(err, errDeposed) || errors.Is(err, errRemoved) {
				return
			}
		}
		pause(ctx, retryEvents)
	}
}

// read follows from where the stream was left until the connection ends.
func (s *stream) read(ctx context.Context, a Agent) error {
	cluster := s.f.name
	it, err := s.f.w.Store.Get(ctx, state.CursorKey(cluster, s.name))
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	b := &batch{s: s, after: string(it.Value)}
	if !s.own {
		if b.floor, err = s.f.floor(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() { // writes what waits, however slowly more comes
		defer close(done)
		tick := time.NewTicker(batchWait)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if b.flush(ctx) != nil {
					cancel()
					return
				}
			}
		}
	}()
	err = a.Follow(ctx, b.after, s.own, func() { b.gap = it.Value != nil }, func(e *event.Event) error {
		if e == nil || s.own && e.By != s.host {
			return nil // a sign of life, or a host that speaks for another
		}
		return b.add(ctx, e)
	})
	cancel()
	<-done
	if b.err == nil {
		return err
	}
	if !errors.Is(b.err, context.Canceled) && !errors.Is(b.err, errDeposed) && !errors.Is(b.err, errRemoved) {
		s.f.w.Log.Warn("events of a host were not written", "cluster", cluster, "host", s.host, "err", b.err)
	}
	return b.err
}

// floor is the time up to which events of the cluster were removed: a new primary
// tells from its beginning what the server has had, and has removed since.
func (f *follower) floor(ctx context.Context) (time.Time, error) {
	it, err := f.w.Store.Get(ctx, state.FloorKey(f.name))
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339Nano, string(it.Value))
}

// batch collects events until they are written with the cursor behind them.
type batch struct {
	s *stream

	// floor: events up to it are passed over.
	floor time.Time

	mu    sync.Mutex
	list  []*hanokv1.Event
	size  int // of list, in bytes
	after string
	moved bool // after is behind the cursor
	gap   bool
	err   error
}

func (b *batch) add(ctx context.Context, e *event.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	x := api.ToEvent(b.s.f.name, e)
	size := proto.Size(x)
	switch {
	case size > batchBytes || len(e.ID) > maxID:
		b.err = fmt.Errorf("event %.80s of %s is too large", e.ID, b.s.host)
		return b.err
	case !b.floor.IsZero() && !e.Wall.After(b.floor):
		b.after, b.moved = e.ID, true
		return nil
	case b.size+size > batchBytes:
		if b.err = b.write(ctx); b.err != nil {
			return b.err
		}
	}
	if b.gap {
		b.gap = false
		b.list = append(b.list, b.missing(e))
	}
	b.list, b.size, b.after, b.moved = append(b.list, x), b.size+size, e.ID, true
	if len(b.list) >= batchEvents {
		b.err = b.write(ctx)
	}
	return b.err
}

// missing is the event that says that events may be missing before e.
func (b *batch) missing(e *event.Event) *hanokv1.Event {
	sum := sha256.Sum256([]byte(b.s.name + "\n" + b.after + "\n" + e.ID))
	return &hanokv1.Event{Id: "server-gap-" + hex.EncodeToString(sum[:8]), Cluster: b.s.f.name, Time: timestamppb.Now(), By: "server", Severity: "warning",
		Kind: "server.gap", Host: string(b.s.host), Text: "events of " + string(b.s.host) + " may be missing before this moment",
		Cause: "the host does not keep the last one that the server has any more"}
}

func (b *batch) flush(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.moved {
		b.err = b.write(ctx)
	}
	return b.err
}

// write puts the events and the cursor into one change; b.mu is held.
func (b *batch) write(ctx context.Context) error {
	t := new(store.Txn)
	seen := map[string]bool{}
	for _, e := range b.list {
		k := state.EventKey(e.Cluster, e.Id)
		if !seen[k] {
			seen[k] = true
			t.PutIfNew(k, state.Encode(e))
		}
	}
	t.Put(state.CursorKey(b.s.f.name, b.s.name), []byte(b.after))
	_, err := b.s.f.commit(ctx, t)
	b.list, b.size, b.moved = nil, 0, false
	return err
}
