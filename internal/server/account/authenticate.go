package account

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// The errors of requests without a valid login.
var (
	errNobody  = errors.New("nobody is logged in: hanok login")
	errToken   = errors.New("the token is wrong, was revoked or has expired: hanok login, or hanok token create")
	errSession = errors.New("the session has ended: log in again")
	errCSRF    = connect.NewError(connect.CodePermissionDenied, errors.New("the header "+HeaderCSRF+" is missing or wrong: another site may have sent this"))
)

// Authenticate implements access.Authenticator: an API token in the header
// Authorization, or the cookie of a session.
func (b *Book) Authenticate(r *http.Request) (*access.Principal, error) {
	if h := r.Header.Get("Authorization"); h != "" {
		return b.byToken(r.Context(), h)
	}
	c, err := r.Cookie(Cookie)
	if err != nil {
		return nil, errNobody
	}
	return b.bySession(r, c.Value)
}

func (b *Book) byToken(ctx context.Context, header string) (*access.Principal, error) {
	text, ok := strings.CutPrefix(header, "Bearer "+tokenPrefix)
	userID, id, value, whole := parts(text, "_")
	if !ok || !whole {
		return nil, errToken
	}
	s, u, err := b.proven(ctx, state.TokenKey(userID, id), value)
	if err != nil || u == nil {
		return nil, errors.Join(err, errToken)
	}
	return principal(u, s, access.ViaToken, s.tokenKey()), nil
}

// Again implements access.Follower: by what they showed, as it is now.
func (b *Book) Again(ctx context.Context, p *access.Principal) (*access.Principal, error) {
	s, u, err := b.kept(ctx, p.Credential)
	switch {
	case err != nil:
		return nil, err
	case u == nil && p.Via == access.ViaSession:
		return nil, errSession
	case u == nil:
		return nil, errToken
	}
	return principal(u, s, p.Via, p.Credential), nil
}

func (b *Book) bySession(r *http.Request, text string) (*access.Principal, error) {
	ctx := r.Context()
	userID, id, value, whole := parts(text, ".")
	if !whole {
		return nil, errSession
	}
	s, u, err := b.proven(ctx, state.SessionKey(userID, id), value)
	if err != nil || u == nil {
		return nil, errors.Join(err, errSession)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !same(r.Header.Get(HeaderCSRF), s.CSRF) {
		return nil, errCSRF
	}
	p := principal(u, s, access.ViaSession, s.sessionKey())
	if now := b.now(); now.Sub(s.Rotated) >= sessionTurn && same(digest(value), s.Digest) {
		next := random(32)
		n := *s
		n.Old, n.OldUntil, n.Digest, n.Rotated = s.Digest, now.Add(sessionOverlap), digest(next), now
		_, err := b.store.Commit(ctx, new(store.Txn).Unchanged(s.sessionKey(), s.modified).Put(s.sessionKey(), encode(&n)))
		switch {
		case err == nil:
			p.Renewed = cookie(userID+"."+id+"."+next, s.Expires.Sub(now))
		case !errors.Is(err, store.ErrConflict): // a call beside this one was faster
			return nil, err
		}
	}
	return p, nil
}

func principal(u *user, s *secret, via, key string) *access.Principal {
	p := &access.Principal{Name: u.Name, Role: u.Role, Clusters: map[string]hanokv1.Role{}, Via: via, Credential: key, CredentialID: s.ID, Expires: s.Expires,
		Login: s.Login, Limit: s.Limit, CSRF: s.CSRF}
	most := hanokv1.Role_ROLE_ADMINISTRATOR
	if s.Limit != hanokv1.Role_ROLE_UNSPECIFIED {
		most = s.Limit
	}
	p.Role = min(p.Role, most)
	for c, r := range u.Clusters {
		p.Clusters[c] = min(r, most)
	}
	return p
}

// proven is the token or session whose secret is value, with its user; nil
// without an error when it does not count.
func (b *Book) proven(ctx context.Context, key, value string) (*secret, *user, error) {
	s, u, err := b.kept(ctx, key)
	if d := digest(value); u == nil || !same(d, s.Digest) && (s.Old == "" || !same(d, s.Old) || !b.now().Before(s.OldUntil)) {
		return nil, nil, err
	}
	return s, u, err
}

// kept is the token or session of a key, with its user; nil without an error when
// there is none that counts.
func (b *Book) kept(ctx context.Context, key string) (*secret, *user, error) {
	it, err := b.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, unavailable(err)
	}
	s, err := decode[secret](it)
	if err != nil {
		return nil, nil, unavailable(err)
	}
	s.modified = it.Modified
	if s.over(b.now()) {
		return nil, nil, nil
	}
	u, err := b.find(ctx, s.User)
	switch {
	case errors.Is(err, ErrNoUser):
		return nil, nil, nil
	case err != nil:
		return nil, nil, unavailable(err)
	case u.ID != s.UserID: // a later user of the same name
		return nil, nil, nil
	}
	return s, u, nil
}

func unavailable(err error) error { return connect.NewError(connect.CodeUnavailable, err) }
