package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Bounds of requests.
const (
	defaultPage = 100
	// MaxPage is the largest page of a list.
	MaxPage = 5000
	maxKey  = 64
	// maxTries bounds how often a change is put together anew because the
	// state moved under it.
	maxTries = 20
)

// API implements the services.
type API struct {
	store *store.Store
	cache *state.Cache
	ask   Asker
	// rehearsing is taken by the rehearsal that is played.
	rehearsing chan struct{}
}

// New makes the services over a store and the cache that follows it.
func New(s *store.Store, c *state.Cache, ask Asker) *API {
	return &API{store: s, cache: c, ask: ask, rehearsing: make(chan struct{}, 1)}
}

// Asker asks the primary of a cluster something that changes nothing; nil: hosts
// cannot be asked.
type Asker func(ctx context.Context, cluster string, what fdm.Consideration) (fdm.AdminReply, error)

// fail makes an error of the API, with what to do if there is something.
func fail(code connect.Code, remedy, format string, args ...any) error {
	e := connect.NewError(code, fmt.Errorf(format, args...))
	if remedy != "" {
		detail(e, &hanokv1.Remedy{Text: remedy})
	}
	return e
}

func detail(e *connect.Error, m proto.Message) {
	if d, err := connect.NewErrorDetail(m); err == nil {
		e.AddDetail(d)
	}
}

// invalid is an error about one field.
func invalid(field, remedy, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	e := connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s: %s", field, text))
	detail(e, &hanokv1.FieldErrors{Errors: []*hanokv1.FieldError{{Field: field, Text: text, Remedy: remedy}}})
	return e
}

// fieldErrors are the problems of a cluster file.
func fieldErrors(err error) *hanokv1.FieldErrors {
	var list *config.Problems
	var one config.Problem
	out := &hanokv1.FieldErrors{}
	switch {
	case errors.As(err, &list):
		for _, p := range list.List {
			out.Errors = append(out.Errors, &hanokv1.FieldError{Field: p.Field, Text: p.Text, Remedy: p.Remedy})
		}
		out.More = int32(list.More)
	case errors.As(err, &one):
		out.Errors = append(out.Errors, &hanokv1.FieldError{Field: one.Field, Text: one.Text, Remedy: one.Remedy})
	default:
		out.Errors = append(out.Errors, &hanokv1.FieldError{Text: err.Error()})
	}
	return out
}

func badConfig(err error) error {
	e := connect.NewError(connect.CodeInvalidArgument, err)
	detail(e, fieldErrors(err))
	return e
}

// unavailable is an error of the store.
func unavailable(err error) error {
	var e *connect.Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) {
		return connect.NewError(connect.CodeCanceled, err)
	}
	if errors.Is(err, store.ErrFull) {
		return fail(connect.CodeUnavailable, "an external etcd: etcdctl defrag, then etcdctl alarm disarm, and look at its quota; the hosts go on by themselves", "%w", err)
	}
	return fail(connect.CodeUnavailable, "look at the server's log; the hosts go on by themselves", "the state cannot be reached: %w", err)
}

// done is a request that was carried out.
type done struct {
	Request  string    `json:"request"` // digest
	Response []byte    `json:"response"`
	At       time.Time `json:"at"`
}

// KeepDone is how long an idempotency key is remembered.
const KeepDone = 24 * time.Hour

// DoneAt is when the request of a stored value was carried out.
func DoneAt(value []byte) time.Time {
	var d done
	_ = json.Unmarshal(value, &d) // the zero time: it may go
	return d.At
}

// change carries a change out once. build puts it together from the store's
// present state and fills resp; it is called again when the state moved.
func (a *API) change(ctx context.Context, method, idempotency string, req, resp proto.Message, build func() (*store.Txn, error)) error {
	who := access.From(ctx)
	if who == nil {
		return fail(connect.CodeUnauthenticated, "hanok login", "nobody is logged in")
	}
	if len(idempotency) > maxKey {
		return invalid("idempotencyKey", "", "has %d characters; at most %d", len(idempotency), maxKey)
	}
	doneKey := state.DoneKey(who.Name, idempotency)
	digest := digestOf(method, req)
	for range maxTries {
		if idempotency != "" {
			again, err := a.again(ctx, doneKey, digest, resp)
			if again || err != nil {
				return err
			}
		}
		proto.Reset(resp)
		t, err := build()
		if err != nil {
			return err
		}
		if t == nil { // nothing changes
			return nil
		}
		if idempotency != "" {
			d := done{Request: digest, Response: state.Encode(resp), At: time.Now().UTC()}
			b, err := json.Marshal(d)
			if err != nil {
				return err
			}
			t.Absent(doneKey).Put(doneKey, b)
		}
		rev, err := a.store.Commit(ctx, t)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return unavailable(err)
		}
		a.store.Failpoint("answer.before")
		return a.cache.Wait(ctx, rev)
	}
	return fail(connect.CodeAborted, "ask again", "others change the same at the same time")
}

// again answers a request that was carried out before.
func (a *API) again(ctx context.Context, key, digest string, resp proto.Message) (bool, error) {
	it, err := a.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, unavailable(err)
	}
	var d done
	if err := json.Unmarshal(it.Value, &d); err != nil {
		return false, unavailable(fmt.Errorf("%s: %w", key, err))
	}
	if d.Request != digest {
		return false, fail(connect.CodeAlreadyExists, "take a new key for a new request", "the idempotency key was used for another request")
	}
	return true, proto.Unmarshal(d.Response, resp)
}

func digestOf(method string, req proto.Message) string {
	sum := sha256.Sum256(append([]byte(method+"\n"), state.Encode(req)...))
	return hex.EncodeToString(sum[:])
}

// newID makes an id that sorts by time.
func newID(now time.Time) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	return fmt.Sprintf("%016x-%s", now.UnixNano(), hex.EncodeToString(b[:]))
}

// newTask is a task that the leader will carry out.
func newTask(ctx context.Context, kind, cluster, target string) *hanokv1.Task {
	now := time.Now().UTC()
	return &hanokv1.Task{Id: newID(now), Kind: kind, Cluster: cluster, Target: target, State: hanokv1.TaskState_TASK_STATE_QUEUED,
		Message: "waiting to begin", Principal: access.From(ctx).Name, Created: timestamppb.New(now)}
}

// audit is the event that says who changed what.
func audit(ctx context.Context, t *store.Txn, id, cluster, vm, host, text string) {
	e := &hanokv1.Event{Id: "server-" + id, Cluster: cluster, Time: timestamppb.Now(), By: "server", Severity: "info", Kind: "admin",
		Host: host, Vm: vm, Text: text, Principal: access.From(ctx).Name}
	t.Put(state.EventKey(cluster, e.Id), state.Encode(e))
}

// page is one page of a list.
type page struct {
	size  int
	after string
}

func pageOf(size int32, token string) (page, error) {
	p := page{size: int(size)}
	switch {
	case size < 0 || size > MaxPage:
		return p, invalid("pageSize", "", "%d: must be from 1 to %d", size, MaxPage)
	case size == 0:
		p.size = defaultPage
	}
	if token != "" {
		b, err := hex.DecodeString(token)
		if err != nil || len(b) > 1024 {
			return p, invalid("pageToken", "give the token of the page before", "is none of this list")
		}
		p.after = string(b)
	}
	return p, nil
}

func tokenOf(after string) string { return hex.EncodeToString([]byte(after)) }

// cut takes the page out of a list that is ordered by name, rising.
func cut[T any](p page, list []T, name func(T) string) (out []T, next string) {
	for _, v := range list {
		if p.after != "" && name(v) <= p.after {
			continue
		}
		if len(out) == p.size {
			return out, tokenOf(name(out[len(out)-1]))
		}
		out = append(out, v)
	}
	return out, ""
}

// resumeToken names a moment of the state.
func (a *API) resumeToken(rev int64) string { return fmt.Sprintf("%s.%x", a.store.ID(), rev) }

func (a *API) now() string { return a.resumeToken(a.cache.Revision()) }

// resumeAt reads a token; the newest revision for none.
func (a *API) resumeAt(token string) (int64, error) {
	if token == "" {
		return a.cache.Revision(), nil
	}
	id, hexa, ok := strings.Cut(token, ".")
	var rev int64
	if _, err := fmt.Sscanf(hexa, "%x", &rev); !ok || err != nil || rev < 0 || fmt.Sprintf("%x", rev) != hexa {
		return 0, invalid("resumeToken", "give the token of a list or of a change", "is none of this API")
	}
	if id != a.store.ID() {
		return 0, tooOld(errors.New("the token is of another state: it was restored meanwhile, or this is another server"))
	}
	return rev, nil
}

func tooOld(err error) error {
	return fail(connect.CodeOutOfRange, "list again, and go on from the token of that list", "%w", err)
}

// mayView reports whether the caller may see a cluster.
func mayView(ctx context.Context, cluster string) bool {
	return access.From(ctx).May(hanokv1.Role_ROLE_VIEWER, cluster)
}

// mayOn refuses callers without a role on a cluster that the request does not name
// itself, but a file or a task in it: the interceptor could not look at that one.
func mayOn(ctx context.Context, role hanokv1.Role, cluster string) error {
	if p := access.From(ctx); !p.May(role, cluster) {
		return fail(connect.CodePermissionDenied, "", "%s may not do this on cluster %s", p.Name, cluster)
	}
	return nil
}

// clusters are those that a list is about: the named one, or all that the
// caller may see.
func (a *API) clusters(ctx context.Context, name string) ([]string, error) {
	if name != "" {
		if a.cache.Wanted(name) == nil {
			return nil, a.noCluster(name)
		}
		return []string{name}, nil
	}
	var out []string
	for _, n := range a.cache.Names() {
		if mayView(ctx, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (a *API) noCluster(name string) error {
	remedy := "hanok apply -f FILE adds one"
	if near := config.Nearest(name, a.cache.Names()); len(near) > 0 {
		remedy = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fail(connect.CodeNotFound, remedy, "no cluster %q is known to this server", name)
}
