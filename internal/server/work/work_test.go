package work

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
	"hanok.dev/hanok/internal/store/etcdtest"
)

const file = `version: 1
name: seoul
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1}]
hosts: [{name: host1, address: {mgmt: 10.0.0.1}, memory: 16GiB, datastores: [ds1]}]
vms: [{name: web, datastore: ds1, host: host1, memory: 1GiB}]
`

// newWorker leads over a store; nothing runs but what a test calls.
func newWorker(t *testing.T, cfg store.Config) *worker {
	t.Helper()
	if len(cfg.Endpoints) == 0 {
		cfg.Dir = t.TempDir()
	}
	log := slog.New(slog.DiscardHandler)
	cfg.Log = log
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	lead, err := s.Lead(ctx, Leadership, "w")
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{Config: Config{Store: s, Cache: state.NewCache(s, log), Log: log, TaskLimit: time.Minute, Interval: time.Second},
		lead: lead, clusters: map[string]*follower{}, tasks: map[string]bool{}, again: make(chan struct{}, 1)}
	t.Cleanup(func() {
		cancel()
		w.wg.Wait()
		_ = s.Close()
	})
	return w
}

func (w *worker) commits(t *testing.T, x *store.Txn) {
	t.Helper()
	if _, err := w.Store.Commit(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	if err := w.Cache.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// add makes the cluster known.
func (w *worker) add(t *testing.T) {
	t.Helper()
	c, err := config.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	v := state.EncodeConfig(&hanokv1.ConfigVersion{Version: 1, Yaml: file, Digest: c.Digest()})
	w.commits(t, new(store.Txn).Put(state.ConfigKey("seoul"), v).Put(state.VersionKey("seoul", 1), v))
}

func (w *worker) keys(t *testing.T, prefix string) []string {
	t.Helper()
	items, _, err := w.Store.List(t.Context(), prefix, store.ListOptions{KeysOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, it := range items {
		out = append(out, it.Key)
	}
	return out
}

// Nothing of a cluster comes back after its removal, whatever was under way; one
// of the same name that is added then is another.
func TestNothingComesBackAfterARemoval(t *testing.T) {
	w := newWorker(t, store.Config{})
	w.add(t)
	created := w.Cache.Wanted("seoul").Created
	f := newFollower(w, "seoul", created)
	f.wanted = w.Cache.Wanted("seoul")
	gone := new(store.Txn)
	state.Forget(gone, "seoul")
	w.commits(t, gone)
	s := &stream{f: f, host: "host1", name: "host1", own: true}
	late := func() map[string]error {
		b := &batch{s: s}
		return map[string]error{
			"unreachable": f.unreachable(t.Context(), errors.New("nobody answers")),
			"event":       errors.Join(b.add(t.Context(), &event.Event{ID: "host1-1-1", By: "host1", Wall: time.Now()}), b.flush(t.Context())),
		}
	}
	for what, err := range late() {
		if !errors.Is(err, errRemoved) {
			t.Errorf("%s after the removal: %v", what, err)
		}
	}
	if err := f.round(t.Context()); !errors.Is(err, errRemoved) {
		t.Errorf("a round after the removal: %v", err)
	}
	if keys := w.keys(t, ""); slices.ContainsFunc(keys, func(k string) bool { return strings.Contains(k, "seoul") }) {
		t.Errorf("left: %v", keys)
	}
	w.add(t)
	for what, err := range late() {
		if !errors.Is(err, errRemoved) {
			t.Errorf("%s of the one before: %v", what, err)
		}
	}
	if err := newFollower(w, "seoul", w.Cache.Wanted("seoul").Created).unreachable(t.Context(), errors.New("nobody answers")); err != nil {
		t.Errorf("of the new one: %v", err)
	}
}

// A cluster that was removed and added again between two looks gets a follower of
// its own, which knows nothing of what the one before has written.
func TestAClusterAddedAgainIsFollowedAnew(t *testing.T) {
	w := newWorker(t, store.Config{})
	w.Dial = func(*config.Cluster, model.HostID) (Agent, error) { return nil, errors.New("no route to host") }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.add(t)
	w.attend(ctx)
	first := w.follower("seoul")
	w.attend(ctx)
	if w.follower("seoul") != first || first == nil {
		t.Fatal("the follower was changed without a reason")
	}
	gone := new(store.Txn)
	state.Forget(gone, "seoul")
	w.commits(t, gone)
	w.add(t)
	w.attend(ctx)
	if f := w.follower("seoul"); f == first || f == nil || f.created != w.Cache.Wanted("seoul").Created {
		t.Errorf("the follower is that of the cluster before")
	}
}

// Tasks that wait long, as for hosts that are off, keep no order from its turn.
func TestTasksThatWaitDoNotHoldOrdersUp(t *testing.T) {
	w := newWorker(t, store.Config{})
	x := new(store.Txn)
	task := func(id, kind, target string) {
		x.Put(state.TaskKey(id), state.Encode(&hanokv1.Task{Id: id, Kind: kind, Cluster: "seoul", Target: target, Created: timestamppb.Now(),
			State: hanokv1.TaskState_TASK_STATE_QUEUED}))
	}
	for i := range 20 {
		task(fmt.Sprintf("1-%02d", i), api.TaskReplaceAuthority, fmt.Sprint("ca", i))
	}
	for i := range maxOrders + 5 {
		task(fmt.Sprintf("2-%02d", i), api.TaskStart, fmt.Sprint("vm", i))
	}
	w.commits(t, x)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // they begin, and do nothing
	w.mu.Lock()
	defer w.mu.Unlock()
	w.startTasks(ctx)
	if w.orders != maxOrders || len(w.tasks) != maxOrders+20 || w.tasks[fmt.Sprintf("2-%02d", maxOrders)] {
		t.Errorf("%d orders and %d tasks in all were begun", w.orders, len(w.tasks))
	}
}

// told is an agent that has events to tell.
type told struct {
	Agent
	events []event.Event
}

func (a *told) Follow(ctx context.Context, after string, _ bool, gap func(), each func(*event.Event) error) error {
	i := slices.IndexFunc(a.events, func(e event.Event) bool { return e.ID == after })
	if i < 0 && after != "" {
		gap()
	}
	for _, e := range a.events[i+1:] {
		if err := each(&e); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// follow reads a stream until its cursor is at the last event.
func (a *told) follow(t *testing.T, s *stream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	key := state.CursorKey(s.f.name, s.name)
	before, err := s.f.w.Store.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.read(ctx, a) }()
	last := errors.New("at the last one")
	err = s.f.w.Store.Watch(ctx, key, before, func(b store.Batch) error {
		for _, e := range b.Events {
			if string(e.Value) == a.events[len(a.events)-1].ID {
				return last
			}
		}
		return nil
	})
	cancel()
	if rerr := <-done; !errors.Is(err, last) {
		t.Fatalf("the stream ended: %v, %v", err, rerr)
	}
}

func eventsOf(n, size int) []event.Event {
	var out []event.Event
	began := time.Now().Add(-time.Hour)
	for i := range n {
		out = append(out, event.Event{ID: fmt.Sprintf("host1-1-%d", i+1), By: "host1", Wall: began.Add(time.Duration(i) * time.Second), Text: strings.Repeat("x", size)})
	}
	return out
}

// What was removed for its age does not come back with a new primary, which tells
// all that it has.
func TestOldEventsDoNotComeBackWithANewPrimary(t *testing.T) {
	w := newWorker(t, store.Config{})
	w.add(t)
	f := newFollower(w, "seoul", w.Cache.Wanted("seoul").Created)
	a := &told{events: eventsOf(150, 10)}
	a.follow(t, &stream{f: f, host: "host1", name: "all/host1"})
	if n := len(w.keys(t, state.EventPrefix("seoul"))); n != 150 {
		t.Fatalf("%d events", n)
	}
	b := kept
	b.events = 20
	if err := w.cleanOnce(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	left := w.keys(t, state.EventPrefix("seoul"))
	if len(left) != 20 || !slices.Contains(left, state.EventKey("seoul", "host1-1-150")) {
		t.Fatalf("the newest 20 are to be kept: %v", left)
	}
	a.events = append(a.events, event.Event{ID: "host2-1-1", By: "host2", Wall: time.Now()})
	a.follow(t, &stream{f: f, host: "host2", name: "all/host2"})
	if now := w.keys(t, state.EventPrefix("seoul")); len(now) != 21 || !slices.Contains(now, state.EventKey("seoul", "host2-1-1")) {
		t.Errorf("%d events after the new primary told %d", len(now), len(a.events))
	}
}

// Large events fit into what an external etcd takes at once by default.
func TestLargeEventsFitAnExternalEtcd(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	w := newWorker(t, store.Config{Endpoints: c.Endpoints()})
	w.add(t)
	f := newFollower(w, "seoul", w.Cache.Wanted("seoul").Created)
	a := &told{events: eventsOf(40, 60<<10)}
	a.follow(t, &stream{f: f, host: "host1", name: "host1", own: true})
	if n := len(w.keys(t, state.EventPrefix("seoul"))); n != 40 {
		t.Errorf("%d of 40 events", n)
	}
}

// What is kept has bounds, and the newest stay.
func TestWhatIsKeptHasBounds(t *testing.T) {
	w := newWorker(t, store.Config{})
	w.add(t)
	for i := range 6 {
		x := new(store.Txn)
		x.Put(state.VersionKey("seoul", uint64(i+2)), []byte("v"))
		x.Put(state.AuditKey(state.AuditChange, fmt.Sprint(i)), []byte("{}"))
		x.Put(state.AuditKey(state.AuditRefused, fmt.Sprint(i)), []byte("{}"))
		id := fmt.Sprintf("%d", i)
		x.Put(state.TaskKey(id), state.Encode(&hanokv1.Task{Id: id, State: hanokv1.TaskState_TASK_STATE_FAILED}))
		x.Put(state.TaskKey("a"+id), state.Encode(&hanokv1.Task{Id: "a" + id, State: hanokv1.TaskState_TASK_STATE_RUNNING}))
		x.Put(state.DoneKey("p", id), []byte(fmt.Sprintf(`{"at":%q}`, time.Now().Add(-time.Duration(i)*7*time.Hour).Format(time.RFC3339))))
		w.commits(t, x)
	}
	if err := w.cleanOnce(t.Context(), bounds{events: 9, versions: 2, tasks: 3, changes: 4, refused: 1}); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string][]string{
		state.VersionPrefix("seoul"):          {state.VersionKey("seoul", 6), state.VersionKey("seoul", 7)},
		state.AuditPrefix(state.AuditChange):  {"audit/change/2", "audit/change/3", "audit/change/4", "audit/change/5"},
		state.AuditPrefix(state.AuditRefused): {"audit/refused/5"},
		state.TaskKey(""):                     {"task/3", "task/4", "task/5", "task/a0", "task/a1", "task/a2", "task/a3", "task/a4", "task/a5"},
		state.DonePrefix:                      {"done/p/0", "done/p/1", "done/p/2", "done/p/3"},
	} {
		if got := w.keys(t, prefix); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", prefix, got, want)
		}
	}
}
