package account

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Bounds of what is kept.
const (
	maxUsers    = 1000
	maxTokens   = 100 // of each user
	maxSessions = 20  // of each user, and as many login tokens; a new one ends the oldest
	maxName     = 64
)

// Errors that callers decide on.
var (
	ErrNoUser    = errors.New("there is no such user")
	ErrUserIs    = errors.New("there is a user of that name already")
	ErrLastAdmin = errors.New("nobody would be administrator of the whole any more")
	ErrTooMany   = errors.New("that is the most of them")
)

// Config sets a Book up.
type Config struct {
	Store *store.Store
	// Cost of checking passwords. Default DefaultCost.
	Cost Cost
	// Now is the time. Default time.Now.
	Now func() time.Time
}

// Book keeps the accounts of one store. Make it with New.
type Book struct {
	store    *store.Store
	hasher   *hasher
	now      func() time.Time
	throttle Throttle
}

// New makes a Book.
func New(cfg Config) *Book {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Book{store: cfg.Store, hasher: newHasher(cfg.Cost), now: func() time.Time { return cfg.Now().UTC().Truncate(time.Millisecond) }}
}

// maxTries bounds how often a change is made anew because others change the
// same.
const maxTries = 20

// commit makes a change until it rests on the present state.
func (b *Book) commit(ctx context.Context, build func() (*store.Txn, error)) error {
	for range maxTries {
		t, err := build()
		if err != nil {
			return err
		}
		if _, err = b.store.Commit(ctx, t); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return errors.New("others change the same at the same time; ask again")
}

// set is all users, and the revision at which they were read.
type set struct {
	users    map[string]*user
	modified int64
}

func (b *Book) users(ctx context.Context) (*set, error) {
	s := &set{users: map[string]*user{}}
	// The mark first: a change after it makes the commit fail.
	it, err := b.store.Get(ctx, state.UsersKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	s.modified = it.Modified
	items, _, err := b.store.List(ctx, state.UserPrefix, store.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		u, err := decode[user](it)
		if err != nil {
			return nil, err
		}
		u.modified = it.Modified
		s.users[u.Name] = u
	}
	return s, nil
}

// change begins a change of the users.
func (s *set) change() *store.Txn {
	return new(store.Txn).Unchanged(state.UsersKey, s.modified).Put(state.UsersKey, []byte(random(8)))
}

// hasAdmin reports whether somebody but one is administrator of the whole.
func (s *set) hasAdmin(but string) bool {
	for name, u := range s.users {
		if name != but && u.Role == hanokv1.Role_ROLE_ADMINISTRATOR {
			return true
		}
	}
	return false
}

// changeUser changes one user.
func (b *Book) changeUser(ctx context.Context, name string, change func(s *set, u *user, t *store.Txn) error) (*hanokv1.User, error) {
	var out *hanokv1.User
	err := b.commit(ctx, func() (*store.Txn, error) {
		s, err := b.users(ctx)
		if err != nil {
			return nil, err
		}
		u := s.users[name]
		if u == nil {
			return nil, fmt.Errorf("%q: %w", name, ErrNoUser)
		}
		t := s.change()
		if err := change(s, u, t); err != nil {
			return nil, err
		}
		out = u.public()
		return t, nil
	})
	return out, err
}

// newUser checks what a user is made of.
func (b *Book) newUser(ctx context.Context, name, password string, role hanokv1.Role, grants []*hanokv1.Grant) (*user, error) {
	if err := model.ValidateName(name); err != nil || len(name) > maxName {
		return nil, &Fault{"name", fmt.Sprintf("%q is no user's name", name), fmt.Sprintf("1 to %d letters, digits, '_', '.', '+' and '-', not starting with '.' or '-'", maxName)}
	}
	if err := checkRole("role", role, true); err != nil {
		return nil, err
	}
	clusters, err := clustersOf(grants)
	if err != nil {
		return nil, err
	}
	if role == hanokv1.Role_ROLE_UNSPECIFIED && len(clusters) == 0 {
		return nil, &Fault{"role", "the user may do nothing", "give a role on the whole, or on a cluster"}
	}
	if err := checkPassword("password", name, password); err != nil {
		return nil, err
	}
	hash, err := b.hasher.hash(ctx, password)
	if err != nil {
		return nil, err
	}
	now := b.now()
	return &user{ID: random(8), Name: name, Hash: hash, Role: role, Clusters: clusters, Created: now, PasswordChanged: now}, nil
}

// Add makes a user.
func (b *Book) Add(ctx context.Context, name, password string, role hanokv1.Role, grants []*hanokv1.Grant) (*hanokv1.User, error) {
	u, err := b.newUser(ctx, name, password, role, grants)
	if err != nil {
		return nil, err
	}
	return u.public(), b.commit(ctx, func() (*store.Txn, error) {
		s, err := b.users(ctx)
		switch {
		case err != nil:
			return nil, err
		case s.users[name] != nil:
			return nil, fmt.Errorf("%q: %w", name, ErrUserIs)
		case len(s.users) >= maxUsers:
			return nil, fmt.Errorf("%d users: %w", maxUsers, ErrTooMany)
		}
		// Whoever is added by root needs no set-up link any more.
		return s.change().Put(state.UserKey(name), encode(u)).Delete(state.SetUpKey), nil
	})
}

// List is all users, by name.
func (b *Book) List(ctx context.Context) ([]*hanokv1.User, error) {
	s, err := b.users(ctx)
	if err != nil {
		return nil, err
	}
	var out []*hanokv1.User
	for _, n := range slices.Sorted(maps.Keys(s.users)) {
		out = append(out, s.users[n].public())
	}
	return out, nil
}

// Remove removes a user with their sessions and tokens.
func (b *Book) Remove(ctx context.Context, name string) error {
	_, err := b.changeUser(ctx, name, func(s *set, u *user, t *store.Txn) error {
		if !s.hasAdmin(name) {
			return ErrLastAdmin
		}
		t.Delete(state.UserKey(name)).DeleteAll(state.TokensOf(u.ID)).DeleteAll(state.SessionsOf(u.ID))
		return nil
	})
	return err
}

// SetRoles sets all roles of a user.
func (b *Book) SetRoles(ctx context.Context, name string, role hanokv1.Role, grants []*hanokv1.Grant) (*hanokv1.User, error) {
	clusters, err := clustersOf(grants)
	if err == nil {
		err = checkRole("role", role, true)
	}
	if err != nil {
		return nil, err
	}
	if role == hanokv1.Role_ROLE_UNSPECIFIED && len(clusters) == 0 {
		return nil, &Fault{"role", "the user could do nothing", "remove the user instead"}
	}
	return b.changeUser(ctx, name, func(s *set, u *user, t *store.Txn) error {
		if u.Role == hanokv1.Role_ROLE_ADMINISTRATOR && role != hanokv1.Role_ROLE_ADMINISTRATOR && !s.hasAdmin(name) {
			return ErrLastAdmin
		}
		u.Role, u.Clusters = role, clusters
		t.Put(state.UserKey(name), encode(u))
		return nil
	})
}

// SetPassword sets a user's password. Their sessions, but the one kept, and the
// tokens that came from logging in end with the old one, and so do pauses after
// guesses of it.
func (b *Book) SetPassword(ctx context.Context, name, password, keep string) error {
	if err := checkPassword("password", name, password); err != nil {
		return err
	}
	hash, err := b.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	_, err = b.changeUser(ctx, name, func(_ *set, u *user, t *store.Txn) error {
		u.Hash, u.PasswordChanged = hash, b.now()
		t.Put(state.UserKey(name), encode(u))
		sessions, err := b.secrets(ctx, state.SessionsOf(u.ID))
		if err != nil {
			return err
		}
		for _, s := range sessions {
			if s.ID != keep {
				t.Delete(s.sessionKey())
			}
		}
		tokens, err := b.secrets(ctx, state.TokensOf(u.ID))
		if err != nil {
			return err
		}
		for _, s := range tokens {
			if s.Login && s.ID != keep {
				t.Delete(s.tokenKey())
			}
		}
		return nil
	})
	if err == nil {
		b.throttle.Forget(name)
	}
	return err
}

// secrets reads tokens or sessions, the oldest first.
func (b *Book) secrets(ctx context.Context, prefix string) ([]*secret, error) {
	items, _, err := b.store.List(ctx, prefix, store.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []*secret
	for _, it := range items {
		s, err := decode[secret](it)
		if err != nil {
			return nil, err
		}
		s.modified = it.Modified
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y *secret) int {
		if c := x.Created.Compare(y.Created); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	return out, nil
}

// find reads a user; ErrNoUser when there is none.
func (b *Book) find(ctx context.Context, name string) (*user, error) {
	it, err := b.store.Get(ctx, state.UserKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%q: %w", name, ErrNoUser)
	}
	if err != nil {
		return nil, err
	}
	u, err := decode[user](it)
	if err != nil {
		return nil, err
	}
	u.modified = it.Modified
	return u, nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
