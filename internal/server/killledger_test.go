package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/fakeagent"
)

// ledger is what the clients of a server that is killed were told, and so must
// be true, and what is under way.
type ledger struct {
	hosts   *fakeagent.Cluster
	step    int
	version uint64                     // of the cluster file, the newest that was answered
	want    *config.Cluster            // its content
	pending *config.Cluster            // what a request that was not answered makes of it
	tasks   map[string]string          // id by idempotency key
	events  map[string]bool            // that the hosts emitted
	ca      struct{ cert, key string } // an authority of one's own
	// authority is the fingerprint of the one that seoul has, hostToken the newest
	// token for a host, used the one that a host used.
	authority, hostToken, used string
	users                      map[string]hanokv1.Role
	secret                     map[string]string // passwords by user
	tokens                     map[string]bool   // by id: those that must work
	unsure                     map[string]bool   // users and tokens that a request was about that was not answered
	count                      map[string]int    // answers by kind
}

func newLedger(t *testing.T, hosts *fakeagent.Cluster) *ledger {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := pki.Init(dir, "seoul", pki.Options{}); err != nil {
		t.Fatal(err)
	}
	l := &ledger{hosts: hosts, tasks: map[string]string{}, events: map[string]bool{}, users: map[string]hanokv1.Role{}, secret: map[string]string{},
		tokens: map[string]bool{}, unsure: map[string]bool{}, count: map[string]int{}}
	hosts.SetRefuse(inMaintenance(false, true))
	for file, to := range map[string]*string{pki.CACert: &l.ca.cert, pki.CAKey: &l.ca.key} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		*to = string(b)
	}
	return l
}

// errNothing: there was nothing to ask for.
var errNothing = errors.New("nothing to do")

// act makes one request; false: the server died before it answered.
func (l *ledger) act(t *testing.T, v *victimServer) bool {
	t.Helper()
	key := fmt.Sprintf("k%d", l.step)
	by := model.HostID(fmt.Sprintf("host%d", l.step%3+1))
	l.events[l.hosts.Emit(by, event.Event{Severity: event.Info, Kind: event.VMUp, Text: key})] = true
	w := killWrites[l.step%len(killWrites)]
	err := w.do(t.Context(), l, v, key)
	if errors.Is(err, errNothing) {
		l.step++
		return true
	}
	if err != nil {
		if c := connect.CodeOf(err); c != connect.CodeUnavailable && c != connect.CodeUnknown && c != connect.CodeCanceled {
			t.Errorf("step %d, %s: %v", l.step, w.name, err)
		}
		return false
	}
	l.count[w.name]++
	l.step++
	return true
}

// next is the kind of request that is made next, or was not answered.
func (l *ledger) next() string { return killWrites[l.step%len(killWrites)].name }

// refuses: what is asked for next, or was not answered, is refused by the hosts.
func (l *ledger) refuses() bool { return killWrites[l.step%len(killWrites)].refuses }

// busan: the second cluster may be there.
func (l *ledger) busan() bool {
	n := l.next()
	return n == "TrustService/ReplaceAuthority" || n == "ConfigService/RemoveCluster"
}

// edit makes a change of the cluster file, and notes what it makes of it.
func (l *ledger) edit(key string, next func(*config.Cluster) (*config.Cluster, error), do func() (uint64, *hanokv1.Task, error)) error {
	var before *config.Cluster
	if l.want != nil {
		before = l.want.Clone()
	}
	c, err := next(before)
	if err != nil {
		return connect.NewError(connect.CodeInternal, err)
	}
	l.pending = c
	version, task, err := do()
	if err != nil {
		return err
	}
	if version < l.version || version == l.version && l.want != nil && len(config.Diff(l.want, c)) > 0 {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("version %d after %d", version, l.version))
	}
	l.version, l.want, l.pending = version, c, nil
	l.tasks[key] = task.GetId()
	return nil
}

// ordered notes the task of an order.
func (l *ledger) ordered(key string, task *hanokv1.Task, err error) error {
	if connect.CodeOf(err) == connect.CodeNotFound {
		return errNothing // the VM was not reported yet
	}
	if err == nil {
		l.tasks[key] = task.GetId()
	}
	return err
}

// known notes an answer about a user or token, or that there was none.
func (l *ledger) known(err error, about string, then func()) error {
	l.unsure[about] = err != nil
	if err == nil {
		then()
	}
	return err
}

// user is the user of this round: added at its beginning, removed at its end.
func (l *ledger) user() string {
	for name := range l.users {
		return name
	}
	return ""
}

func (l *ledger) token() string {
	for id, ok := range l.tokens {
		if ok {
			return id
		}
	}
	return ""
}

// login logs the user of this round in over the network.
func login(ctx context.Context, l *ledger, v *victimServer) (hanokv1connect.AuthServiceClient, error) {
	c := hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at())
	name := l.user()
	out, err := c.Login(ctx, &hanokv1.LoginRequest{User: name, Password: l.secret[name], WantToken: true})
	if err != nil {
		return nil, err
	}
	return hanokv1connect.NewAuthServiceClient(http.DefaultClient, v.at(), connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set("Authorization", "Bearer "+out.Token)
			return next(ctx, r)
		}
	}))), nil
}
