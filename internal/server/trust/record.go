package trust

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Phase is how far the replacement of an authority is.
type Phase string

// The phases of a replacement, in order. In all of them the first authority
// signs, and hosts are to trust the whole list.
const (
	// None: no replacement is under way.
	None Phase = ""
	// Distribute: the new authority is second; every host gets to trust it.
	Distribute Phase = "distribute"
	// Reissue: the new one is first; every host gets a certificate of it.
	Reissue Phase = "reissue"
	// Drop: the new one is alone; every host forgets the old one.
	Drop Phase = "drop"
)

// Authorities are those of a cluster.
type Authorities struct {
	// List is never empty; the first signs.
	List  []*pki.Authority
	Phase Phase

	cluster  string // id
	modified int64
}

// Modified is the revision at which they were changed last.
func (a *Authorities) Modified() int64 { return a.modified }

// Signer signs what is signed now.
func (a *Authorities) Signer() *pki.Authority { return a.List[0] }

// Certs are the certificates that hosts are to trust.
func (a *Authorities) Certs() []*x509.Certificate {
	out := make([]*x509.Certificate, len(a.List))
	for i, x := range a.List {
		out[i] = x.Cert
	}
	return out
}

// PEM is Certs as text.
func (a *Authorities) PEM() []byte { return pki.EncodeCerts(a.Certs()...) }

// Fingerprints are those of Certs.
func (a *Authorities) Fingerprints() []string {
	out := make([]string, len(a.List))
	for i, x := range a.List {
		out[i] = pki.Fingerprint(x.Cert)
	}
	return out
}

// Trusted reports whether a host that trusts those with fingerprints trusts
// exactly the list.
func (a *Authorities) Trusted(fingerprints []string) bool {
	want := a.Fingerprints()
	return len(want) == len(fingerprints) && !slices.ContainsFunc(want, func(f string) bool { return !slices.Contains(fingerprints, f) })
}

// kept is how they are written.
type kept struct {
	Authorities []keptAuthority `json:"authorities"`
	Phase       Phase           `json:"phase,omitempty"`
}

type keptAuthority struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

func (a *Authorities) encode() ([]byte, error) {
	k := kept{Phase: a.Phase}
	for _, x := range a.List {
		cert, key, err := x.PEM()
		if err != nil {
			return nil, err
		}
		k.Authorities = append(k.Authorities, keptAuthority{string(cert), string(key)})
	}
	return json.Marshal(k)
}

// put adds the change from a to next to t, resting on a as it was read.
func (a *Authorities) put(t *store.Txn, next *Authorities) error {
	b, err := next.encode()
	if err != nil {
		return err
	}
	key := state.TrustKey(a.cluster)
	t.Unchanged(key, a.modified).Put(key, b)
	return nil
}

// Begin adds to t the begin of a replacement by next.
func (a *Authorities) Begin(t *store.Txn, next *pki.Authority) error {
	if a.Phase != None {
		return errors.New("a replacement is under way")
	}
	return a.put(t, &Authorities{List: append(slices.Clone(a.List), next), Phase: Distribute})
}

// Advance adds to t the step to the next phase; the caller knows that every
// host has what the present one asks for.
func (a *Authorities) Advance(t *store.Txn) error {
	next := &Authorities{List: a.List}
	switch a.Phase {
	case Distribute:
		last := len(a.List) - 1
		next.List = append([]*pki.Authority{a.List[last]}, a.List[:last]...)
		next.Phase = Reissue
	case Reissue:
		next.List, next.Phase = a.List[:1], Drop
	case Drop:
		next.Phase = None
	default:
		return errors.New("no replacement is under way")
	}
	return a.put(t, next)
}

// Abandon adds to t the end of a replacement that has only been announced.
func (a *Authorities) Abandon(t *store.Txn) error {
	if a.Phase != Distribute {
		return errors.New("hosts have certificates of the new authority already")
	}
	return a.put(t, &Authorities{List: a.List[:len(a.List)-1]})
}

// ErrNone: the server has no authority of the cluster.
var ErrNone = errors.New("the server has no authority of this cluster")

// Get reads the authorities of a cluster; ErrNone when there are none.
func (b *Book) Get(ctx context.Context, clusterID string) (*Authorities, error) {
	it, err := b.store.Get(ctx, state.TrustKey(clusterID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	damaged := func(err error) (*Authorities, error) {
		return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", it.Key, err)
	}
	var k kept
	if err := json.Unmarshal(it.Value, &k); err != nil {
		return damaged(err)
	}
	a := &Authorities{Phase: k.Phase, cluster: clusterID, modified: it.Modified}
	for _, x := range k.Authorities {
		p, err := pki.ParseAuthority(clusterID, []byte(x.Cert), []byte(x.Key))
		if err != nil {
			return damaged(err)
		}
		a.List = append(a.List, p)
	}
	if len(a.List) == 0 {
		return damaged(errors.New("it is empty"))
	}
	return a, nil
}

// Ensure is Get, and makes the cluster's authority when there is none: unless
// its hosts have certificates that were made by hand, whose authority must be
// imported.
func (b *Book) Ensure(ctx context.Context, clusterID string) (*Authorities, error) {
	for {
		a, err := b.Get(ctx, clusterID)
		if !errors.Is(err, ErrNone) {
			return a, err
		}
		if c, err := b.byHand(ctx, clusterID); err != nil {
			return nil, err
		} else if c != nil {
			return nil, ErrByHand
		}
		made, err := pki.NewAuthority(clusterID, time.Time{})
		if err != nil {
			return nil, err
		}
		t := new(store.Txn).Unchanged(state.ByHandKey(clusterID), 0)
		if err := (&Authorities{cluster: clusterID}).put(t, &Authorities{List: []*pki.Authority{made}}); err != nil {
			return nil, err
		}
		if _, err := b.store.Commit(ctx, t); err != nil && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

// ErrByHand: the hosts' certificates were made with `hanok pki`.
var ErrByHand = errors.New("the certificates of this cluster were made by hand, and the server does not have their authority")

// Import adds to t an authority in the place of what the server has, which no
// host may trust.
func (b *Book) Import(ctx context.Context, t *store.Txn, clusterID string, a *pki.Authority) error {
	now, err := b.Get(ctx, clusterID)
	if errors.Is(err, ErrNone) {
		now, err = &Authorities{cluster: clusterID}, nil
	}
	if err != nil {
		return err
	}
	t.Delete(state.ByHandKey(clusterID)) // with the authority each server makes its own
	return now.put(t, &Authorities{List: []*pki.Authority{a}})
}
