package account

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Life times.
const (
	// SetUpLife is how long a set-up link works.
	SetUpLife = 24 * time.Hour
	// sessionLife is the longest a session lasts, sessionIdle how long without
	// use, sessionTurn after which time of use its secret is replaced, and
	// sessionOverlap how long the old one counts then, for calls under way.
	sessionLife    = 12 * time.Hour
	sessionIdle    = time.Hour
	sessionTurn    = 10 * time.Minute
	sessionOverlap = time.Minute
	// loginTokenLife is that of the token of `hanok login`.
	loginTokenLife = 12 * time.Hour
	// tokenLife is that of an API token unless told otherwise, tokenMost the longest.
	tokenLife = 90 * 24 * time.Hour
	tokenMost = 2 * 365 * 24 * time.Hour
)

// Cookie is the name of the session's cookie. The prefix makes browsers insist
// on Secure, on the path / and on no domain, so that no neighbour can set it.
const Cookie = "__Host-hanok"

// HeaderCSRF must carry the session's token on each call that a cookie proves,
// unless it is a GET: another site can make a browser send the cookie, but
// cannot set this.
const HeaderCSRF = "X-Hanok-CSRF"

// tokenPrefix begins each API token, so that scanners for leaked secrets know it.
const tokenPrefix = "hanok_"

// ErrDenied is the error of a wrong name or password; it does not say which.
var ErrDenied = errors.New("the name or the password is wrong")

// TooSoon is the error of an attempt that came too soon after failed ones.
type TooSoon struct{ Wait time.Duration }

func (e *TooSoon) Error() string {
	return fmt.Sprintf("too many failed attempts; wait %v", e.Wait.Round(time.Second)+time.Second)
}

// Address is a caller's network address, of the form that requests carry.
func Address(remote string) netip.Addr {
	if p, err := netip.ParseAddrPort(remote); err == nil {
		return p.Addr().Unmap()
	}
	return netip.Addr{}
}

// verify checks a password, slowed down.
func (b *Book) verify(ctx context.Context, name, password string) (*user, error) {
	if len(name) > maxName || len(password) > maxPassword {
		return nil, ErrDenied
	}
	from := Address(access.Address(ctx))
	if wait := b.throttle.Begin(name, from, b.now()); wait > 0 {
		return nil, &TooSoon{wait}
	}
	u, err := b.find(ctx, name)
	if err != nil && !errors.Is(err, ErrNoUser) {
		return nil, err
	}
	hash := ""
	if u != nil {
		hash = u.Hash
	}
	ok, err := b.hasher.matches(ctx, hash, password)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrDenied
	}
	b.throttle.Succeeded(name, from, b.now())
	return u, nil
}

// Session is a new or renewed session of a browser.
type Session struct {
	User    *hanokv1.User
	Cookie  *http.Cookie
	CSRF    string
	Expires time.Time
}

func cookie(value string, life time.Duration) *http.Cookie {
	return &http.Cookie{Name: Cookie, Value: value, Path: "/", MaxAge: int(life / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// NoCookie removes the cookie from a browser.
func NoCookie() *http.Cookie {
	c := cookie("", 0)
	c.MaxAge = -1
	return c
}

// Login checks a password and begins a session.
func (b *Book) Login(ctx context.Context, name, password string) (*Session, error) {
	u, err := b.verify(ctx, name, password)
	if err != nil {
		return nil, err
	}
	now, value := b.now(), random(32)
	s := &secret{ID: random(8), UserID: u.ID, User: u.Name, Digest: digest(value), Created: now, Rotated: now, Expires: now.Add(sessionLife), CSRF: random(32)}
	old, err := b.secrets(ctx, state.SessionsOf(u.ID))
	if err != nil {
		return nil, err
	}
	t := new(store.Txn).Unchanged(state.UserKey(u.Name), u.modified).Put(s.sessionKey(), encode(s))
	for len(old) >= maxSessions && t.Len() < store.MaxOps {
		t.Delete(old[0].sessionKey())
		old = old[1:]
	}
	if _, err := b.store.Commit(ctx, t); err != nil {
		return nil, err
	}
	return &Session{User: u.public(), Cookie: cookie(u.ID+"."+s.ID+"."+value, sessionLife), CSRF: s.CSRF, Expires: s.Expires}, nil
}

// LoginToken checks a password and makes a token that lasts for a working day.
func (b *Book) LoginToken(ctx context.Context, name, password string) (*hanokv1.User, string, time.Time, error) {
	u, err := b.verify(ctx, name, password)
	if err != nil {
		return nil, "", time.Time{}, err
	}
	t, text, err := b.makeToken(ctx, u, &secret{Note: "hanok login", Login: true, Expires: b.now().Add(loginTokenLife)})
	if err != nil {
		return nil, "", time.Time{}, err
	}
	return u.public(), text, t.Expires.AsTime(), nil
}

// CreateToken makes an API token of a user. by is who asks; a token never gives
// more, or longer, than the API token that it was made with.
func (b *Book) CreateToken(ctx context.Context, by *access.Principal, name, note string, limit hanokv1.Role, expires time.Time) (*hanokv1.Token, string, error) {
	now := b.now()
	if expires.IsZero() {
		expires = now.Add(tokenLife)
	}
	if err := checkRole("limit", limit, true); err != nil {
		return nil, "", err
	}
	switch {
	case len(note) > 200:
		return nil, "", &Fault{"note", "has more than 200 bytes", ""}
	case !expires.After(now):
		return nil, "", &Fault{"expires", "is in the past", ""}
	case expires.Sub(now) > tokenMost:
		return nil, "", &Fault{"expires", "is more than two years away", "make a new token in time"}
	}
	if by.Name == name {
		if by.Limit != hanokv1.Role_ROLE_UNSPECIFIED && (limit == hanokv1.Role_ROLE_UNSPECIFIED || limit > by.Limit) {
			limit = by.Limit
		}
		if by.Via == access.ViaToken && !by.Login && expires.After(by.Expires) {
			expires = by.Expires
		}
	}
	u, err := b.find(ctx, name)
	if err != nil {
		return nil, "", err
	}
	return b.makeToken(ctx, u, &secret{Note: note, Limit: limit, Expires: expires.UTC()})
}

func (b *Book) makeToken(ctx context.Context, u *user, s *secret) (*hanokv1.Token, string, error) {
	value := random(32)
	s.ID, s.UserID, s.User, s.Digest, s.Created = random(8), u.ID, u.Name, digest(value), b.now()
	old, err := b.secrets(ctx, state.TokensOf(u.ID))
	if err != nil {
		return nil, "", err
	}
	t := new(store.Txn).Unchanged(state.UserKey(u.Name), u.modified).Put(s.tokenKey(), encode(s))
	left := len(old)
	if s.Login { // as of sessions, a new one ends the oldest
		logins := slices.DeleteFunc(slices.Clone(old), func(o *secret) bool { return !o.Login })
		for _, o := range logins[:max(0, len(logins)+1-maxSessions)] {
			t.Delete(o.tokenKey())
			left--
			old = slices.DeleteFunc(old, func(x *secret) bool { return x == o })
		}
	}
	for _, o := range old {
		if left >= maxTokens && (o.Login || o.over(b.now())) && t.Len() < store.MaxOps {
			t.Delete(o.tokenKey())
			left--
		}
	}
	if left >= maxTokens {
		return nil, "", fmt.Errorf("%d tokens of %s: %w", maxTokens, u.Name, ErrTooMany)
	}
	if _, err := b.store.Commit(ctx, t); err != nil {
		return nil, "", err
	}
	return s.public(), tokenPrefix + u.ID + "_" + s.ID + "_" + value, nil
}

// Tokens lists the tokens of a user, or of everybody.
func (b *Book) Tokens(ctx context.Context, name string) ([]*hanokv1.Token, error) {
	prefix := state.TokenPrefix
	if name != "" {
		u, err := b.find(ctx, name)
		if err != nil {
			return nil, err
		}
		prefix = state.TokensOf(u.ID)
	}
	list, err := b.secrets(ctx, prefix)
	var out []*hanokv1.Token
	for _, s := range list {
		if !s.over(b.now()) {
			out = append(out, s.public())
		}
	}
	return out, err
}

// RevokeToken ends a token, of a user or, without a name, of anybody. It reports
// whether there was one.
func (b *Book) RevokeToken(ctx context.Context, name, id string) (bool, error) {
	prefix := state.TokenPrefix
	if name != "" {
		u, err := b.find(ctx, name)
		if err != nil {
			return false, err
		}
		prefix = state.TokensOf(u.ID)
	}
	list, err := b.secrets(ctx, prefix)
	if err != nil {
		return false, err
	}
	for _, s := range list {
		if s.ID == id {
			_, err := b.store.Commit(ctx, new(store.Txn).Delete(s.tokenKey()))
			return true, err
		}
	}
	return false, nil
}

// Logout ends what a call was made with.
func (b *Book) Logout(ctx context.Context, p *access.Principal) error {
	if p == nil || p.Credential == "" {
		return nil
	}
	_, err := b.store.Commit(ctx, new(store.Txn).Delete(p.Credential))
	return err
}

// ChangePassword sets the caller's own password.
func (b *Book) ChangePassword(ctx context.Context, p *access.Principal, old, next string) error {
	if err := checkPassword("newPassword", p.Name, next); err != nil {
		return err
	}
	if _, err := b.verify(ctx, p.Name, old); err != nil {
		return err
	}
	return b.SetPassword(ctx, p.Name, next, p.CredentialID)
}

// SetUpToken makes the one-time token of the first administrator, if no user
// exists; empty if one does. It voids the one before.
func (b *Book) SetUpToken(ctx context.Context) (string, error) {
	value := random(32)
	there := false
	err := b.commit(ctx, func() (*store.Txn, error) {
		s, err := b.users(ctx)
		if err != nil {
			return nil, err
		}
		there = len(s.users) > 0
		t := new(store.Txn).Unchanged(state.UsersKey, s.modified)
		if there {
			return t, nil
		}
		return t.Put(state.SetUpKey, encode(oneTime{digest(value), b.now().Add(SetUpLife)})), nil
	})
	if there || err != nil {
		return "", err
	}
	return value, nil
}

// ErrSetUp is the error of a set-up link that does not work.
var ErrSetUp = errors.New("the set-up link was used already, has expired, or was replaced by a newer one")

// SetUp makes the first administrator. The token works once.
func (b *Book) SetUp(ctx context.Context, token, name, password string) error {
	check := func() (int64, error) {
		it, err := b.store.Get(ctx, state.SetUpKey)
		if errors.Is(err, store.ErrNotFound) {
			return 0, ErrSetUp
		}
		if err != nil {
			return 0, err
		}
		o, err := decode[oneTime](it)
		if err != nil {
			return 0, err
		}
		if subtle.ConstantTimeCompare([]byte(o.Digest), []byte(digest(token))) != 1 || !b.now().Before(o.Expires) {
			return 0, ErrSetUp
		}
		return it.Modified, nil
	}
	// Before the password is hashed, which costs.
	if _, err := check(); err != nil {
		return err
	}
	u, err := b.newUser(ctx, name, password, hanokv1.Role_ROLE_ADMINISTRATOR, nil)
	if err != nil {
		return err
	}
	return b.commit(ctx, func() (*store.Txn, error) {
		s, err := b.users(ctx)
		if err != nil {
			return nil, err
		}
		rev, err := check()
		if err == nil && len(s.users) > 0 {
			err = ErrSetUp
		}
		if err != nil {
			return nil, err
		}
		return s.change().Unchanged(state.SetUpKey, rev).Delete(state.SetUpKey).Put(state.UserKey(name), encode(u)), nil
	})
}

// Empty reports whether no user exists.
func (b *Book) Empty(ctx context.Context) (bool, error) {
	items, _, err := b.store.List(ctx, state.UserPrefix, store.ListOptions{Limit: 1, KeysOnly: true})
	return len(items) == 0, err
}

// part splits what a secret is made of; false for what was never one of ours.
func parts(s, sep string) (userID, id, value string, ok bool) {
	p := strings.Split(s, sep)
	if len(p) != 3 || len(p[0]) != 16 || len(p[1]) != 16 || len(p[2]) != 64 {
		return "", "", "", false
	}
	return p[0], p[1], p[2], true
}
