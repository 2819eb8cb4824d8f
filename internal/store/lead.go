package store

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/client/v3/concurrency"
)

// leaseSeconds is how long a server that vanished stays leader.
const leaseSeconds = 5

// Leadership is held by one store of an etcd at a time.
type Leadership struct {
	key      string
	revision int64
	done     <-chan struct{}
	session  *concurrency.Session
	election *concurrency.Election
}

// Lead waits until this process leads under a name, and says so with value.
func (s *Store) Lead(ctx context.Context, name, value string) (*Leadership, error) {
	session, err := concurrency.NewSession(s.client, concurrency.WithTTL(leaseSeconds), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("lead %s: %w", name, err)
	}
	e := concurrency.NewElection(session, s.key("lead/"+name))
	if err := e.Campaign(ctx, value); err != nil {
		session.Orphan()
		return nil, fmt.Errorf("lead %s: %w", name, err)
	}
	return &Leadership{key: e.Key()[len(s.cfg.Prefix):], revision: e.Rev(), done: session.Done(), session: session, election: e}, nil
}

// Lost is closed when the leadership may have gone to another.
func (l *Leadership) Lost() <-chan struct{} { return l.done }

// Fence rests a change on this leadership: it is refused with ErrConflict once
// another leads.
func (l *Leadership) Fence(t *Txn) *Txn { return t.Unchanged(l.key, l.revision) }

// Resign gives it up at once.
func (l *Leadership) Resign(ctx context.Context) {
	_ = l.election.Resign(ctx) // else its lease ends by itself
	_ = l.session.Close()
}

// Leader is the value of who leads under a name; empty: nobody.
func (s *Store) Leader(ctx context.Context, name string) (string, error) {
	items, _, err := s.List(ctx, "lead/"+name+"/", ListOptions{})
	if err != nil || len(items) == 0 {
		return "", err
	}
	first := items[0]
	for _, it := range items {
		if it.Created < first.Created {
			first = it
		}
	}
	return string(first.Value), nil
}
