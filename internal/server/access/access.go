package access

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
)

// Principal is who makes a request.
type Principal struct {
	// Name is the user's, as tasks and the audit log show it.
	Name string
	// Role is held on everything, Clusters' roles on single clusters besides.
	Role     hanokv1.Role
	Clusters map[string]hanokv1.Role
	// Via is how they proved it: ViaSocket, ViaSession or ViaToken.
	Via string
	// Limit is the most that their token gives; unspecified: no limit.
	Limit hanokv1.Role
	// Credential is the key of the session or token in the store, CredentialID
	// its public name, and Expires its end.
	Credential, CredentialID string
	Expires                  time.Time
	// Login says that the token came from logging in (`hanok login`).
	Login bool
	// CSRF is the token that calls of the session carry.
	CSRF string
	// Renewed replaces the session's cookie; nil: it stays.
	Renewed *http.Cookie
}

// How a principal proved who they are.
const (
	ViaSocket  = "socket"
	ViaSession = "session"
	ViaToken   = "token"
)

// Local is whoever can open the server's unix socket: root on its machine. No
// user's name has an @.
var Local = &Principal{Name: "root@localhost", Role: hanokv1.Role_ROLE_ADMINISTRATOR, Via: ViaSocket}

// May reports whether the principal holds at least role on a cluster; on the
// whole when cluster is empty.
func (p *Principal) May(role hanokv1.Role, cluster string) bool {
	if p == nil {
		return false
	}
	return p.Role >= role || cluster != "" && p.Clusters[cluster] >= role
}

// mayAny reports whether the principal holds role anywhere.
func (p *Principal) mayAny(role hanokv1.Role) bool {
	if p.May(role, "") {
		return true
	}
	for c := range p.Clusters {
		if p.May(role, c) {
			return true
		}
	}
	return false
}

// An Authenticator finds out who makes a request. A request without any
// credentials is an error, too. The error is shown to the caller; it may be a
// *connect.Error.
type Authenticator interface {
	Authenticate(r *http.Request) (*Principal, error)
}

// AuthenticatorFunc is a function as an Authenticator.
type AuthenticatorFunc func(r *http.Request) (*Principal, error)

// Authenticate implements Authenticator.
func (f AuthenticatorFunc) Authenticate(r *http.Request) (*Principal, error) { return f(r) }

// AsLocal takes every caller for Local; for the unix socket.
var AsLocal Authenticator = AuthenticatorFunc(func(*http.Request) (*Principal, error) { return Local, nil })

// A Follower is an Authenticator that tells what became of somebody whom it found:
// their present roles, or why what they showed does not count any more.
type Follower interface {
	Again(ctx context.Context, p *Principal) (*Principal, error)
}

type contextKey struct{}

type caller struct {
	principal atomic.Pointer[Principal] // of streams it moves with what the caller may
	err       error
	address   string
	follow    Follower // nil: nothing changes
}

func with(ctx context.Context, c *caller, p *Principal) context.Context {
	c.principal.Store(p)
	return context.WithValue(ctx, contextKey{}, c)
}

// callerOf is who makes the request of ctx; one without anything when ctx has none.
func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(contextKey{}).(*caller); ok {
		return c
	}
	return &caller{}
}

// Identify runs the authenticator on every request. One that is refused still
// reaches the methods that anyone may call.
func Identify(a Authenticator, next http.Handler) http.Handler {
	f, _ := a.(Follower)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := a.Authenticate(r)
		if p != nil && p.Renewed != nil {
			http.SetCookie(w, p.Renewed)
		}
		next.ServeHTTP(w, r.WithContext(with(r.Context(), &caller{err: err, address: r.RemoteAddr, follow: f}, p)))
	})
}

// Address is the network address that the request of ctx came from, with its
// port; of a unix socket "@" or empty.
func Address(ctx context.Context) string { return callerOf(ctx).address }

// From is who makes the request of ctx, or nil.
func From(ctx context.Context) *Principal { return callerOf(ctx).principal.Load() }

// As returns a context of a request by p; for tests and work of the server's own.
func As(ctx context.Context, p *Principal) context.Context {
	return with(ctx, &caller{}, p)
}

// Check decides one call: whether the caller of ctx may call a method about a
// cluster.
func Check(ctx context.Context, method protoreflect.MethodDescriptor, cluster string) error {
	need := RoleOf(method)
	if need == hanokv1.Role_ROLE_ANYONE {
		return nil
	}
	c := callerOf(ctx)
	p := c.principal.Load()
	if c.err != nil || p == nil {
		if c.err == nil {
			return unknown(errors.New("nobody is logged in: hanok login"))
		}
		return unknown(c.err)
	}
	ok := p.May(need, cluster)
	if cluster == "" && need == hanokv1.Role_ROLE_VIEWER {
		ok = p.mayAny(need)
	}
	if !ok {
		where := "on the whole"
		if cluster != "" {
			where = "on cluster " + cluster
		}
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s may not do this: it needs the role %s %s", p.Name, roleName(need), where))
	}
	return nil
}

// unknown is the error of an authenticator as one of the API.
func unknown(err error) error {
	var e *connect.Error
	if errors.As(err, &e) {
		return e
	}
	return connect.NewError(connect.CodeUnauthenticated, err)
}

// RoleOf is the role that a method needs; administrator when it does not say.
func RoleOf(method protoreflect.MethodDescriptor) hanokv1.Role {
	if o, ok := method.Options().(*descriptorpb.MethodOptions); ok && proto.HasExtension(o, hanokv1.E_Role) {
		if r, ok := proto.GetExtension(o, hanokv1.E_Role).(hanokv1.Role); ok && r != hanokv1.Role_ROLE_UNSPECIFIED {
			return r
		}
	}
	return hanokv1.Role_ROLE_ADMINISTRATOR
}

func roleName(r hanokv1.Role) string {
	switch r {
	case hanokv1.Role_ROLE_VIEWER:
		return "viewer"
	case hanokv1.Role_ROLE_OPERATOR:
		return "operator"
	}
	return "administrator"
}

// clusterOf is the field `cluster` of a request.
func clusterOf(msg any) string {
	m, ok := msg.(proto.Message)
	if !ok {
		return ""
	}
	r := m.ProtoReflect()
	f := r.Descriptor().Fields().ByName("cluster")
	if f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
		return ""
	}
	return r.Get(f).String()
}

// A Recorder keeps account of calls that change something.
type Recorder interface {
	// Begin is asked before a call that is permitted is carried out; without
	// its consent it is not. The function that it returns is told the outcome: the
	// answer, nil of a stream, or the error.
	Begin(ctx context.Context, method protoreflect.MethodDescriptor, cluster string, msg any) (func(answer any, err error), error)
	// Refused is told of a call that was not permitted.
	Refused(ctx context.Context, method protoreflect.MethodDescriptor, cluster string, msg any, err error)
}

// Interceptor applies Check to every call, and tells the recorder of it. The caller
// of a stream is looked at again at each interval, by a [Follower]: the stream shows
// what they may see by then, and ends when they may not call it any more.
func Interceptor(r Recorder, interval time.Duration) connect.Interceptor {
	return interceptor{r, interval}
}

type interceptor struct {
	record   Recorder
	interval time.Duration
}

func descriptorOf(s connect.Spec) (protoreflect.MethodDescriptor, error) {
	if d, ok := s.Schema.(protoreflect.MethodDescriptor); ok {
		return d, nil
	}
	return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("%s has no schema", s.Procedure))
}

// enter decides a call, and returns who is to be told how it ended.
func (i interceptor) enter(ctx context.Context, d protoreflect.MethodDescriptor, msg any) (func(any, error), error) {
	cluster := clusterOf(msg)
	if err := Check(ctx, d, cluster); err != nil {
		i.record.Refused(ctx, d, cluster, msg, err)
		return nil, err
	}
	return i.record.Begin(ctx, d, cluster, msg)
}

// WrapUnary implements connect.Interceptor.
func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		d, err := descriptorOf(req.Spec())
		if err != nil {
			return nil, err
		}
		ended, err := i.enter(ctx, d, req.Any())
		if err != nil {
			return nil, err
		}
		resp, err := next(ctx, req)
		var answer any
		if err == nil {
			answer = resp.Any()
		}
		ended(answer, err)
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		d, err := descriptorOf(conn.Spec())
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		c := &checked{StreamingHandlerConn: conn, ctx: ctx, cancel: cancel, method: d, by: i}
		err = next(ctx, c)
		cancel()
		c.followed.Wait()
		if c.lost != nil {
			err = c.lost
		}
		if c.ended != nil {
			c.ended(nil, err)
		}
		return err
	}
}

// checked decides when the request of a stream was read.
type checked struct {
	connect.StreamingHandlerConn
	ctx      context.Context
	cancel   context.CancelFunc
	method   protoreflect.MethodDescriptor
	by       interceptor
	ended    func(any, error)
	followed sync.WaitGroup
	lost     error // why the caller may not call it any more
}

func (c *checked) Receive(msg any) error {
	if err := c.StreamingHandlerConn.Receive(msg); err != nil {
		return err
	}
	ended, err := c.by.enter(c.ctx, c.method, msg)
	if c.ended == nil {
		c.ended = ended
		if err == nil {
			c.follow(clusterOf(msg))
		}
	}
	return err
}

// follow ends the stream when its caller may not call it any more.
func (c *checked) follow(cluster string) {
	who := callerOf(c.ctx)
	p := who.principal.Load()
	if who.follow == nil || p == nil {
		return
	}
	c.followed.Go(func() {
		tick := time.NewTicker(c.by.interval)
		defer tick.Stop()
		for {
			select {
			case <-c.ctx.Done():
				return
			case <-tick.C:
			}
			now, err := who.follow.Again(c.ctx, p)
			if connect.CodeOf(err) == connect.CodeUnavailable || c.ctx.Err() != nil {
				continue // what was proven holds until it is known not to
			}
			if err != nil {
				err = unknown(err)
			} else {
				who.principal.Store(now)
				err = Check(c.ctx, c.method, cluster)
			}
			if err != nil {
				c.lost = err
				c.cancel()
				return
			}
		}
	})
}
