package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// keptByHand is how credentials that were made by hand are written.
type keptByHand struct {
	Authorities string `json:"authorities"`
	Cert        string `json:"cert"`
	Key         string `json:"key"`
}

// Share gives all servers of this state the credentials that this one was given,
// so that each of them reaches the hosts, and none makes an authority that no host
// trusts. Those of a cluster whose authority is known are not needed.
func (b *Book) Share(ctx context.Context) error {
	if b.given == nil {
		return nil
	}
	var errs []error
	for _, c := range b.given() {
		if err := b.share(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("certificate made by hand for cluster %s: %w", c.Identity.Cluster, err))
		}
	}
	return errors.Join(errs...)
}

func (b *Book) share(ctx context.Context, c *pki.Credentials) error {
	id := c.Identity.Cluster
	if _, err := b.Get(ctx, id); !errors.Is(err, ErrNone) {
		return err
	}
	have, modified, err := b.shared(ctx, id)
	if err != nil || have != nil && !have.Expires.Before(c.Expires) {
		return err
	}
	authorities, cert, key, err := c.PEM()
	if err != nil {
		return err
	}
	v, err := json.Marshal(keptByHand{string(authorities), string(cert), string(key)})
	if err != nil {
		return err
	}
	at := state.ByHandKey(id)
	t := new(store.Txn).Unchanged(at, modified).Unchanged(state.TrustKey(id), 0).Put(at, v)
	if _, err := b.store.Commit(ctx, t); err != nil && !errors.Is(err, store.ErrConflict) {
		return err // of a conflict: another server was first
	}
	return nil
}

// shared are the credentials of a cluster that a server shared; nil: none.
func (b *Book) shared(ctx context.Context, clusterID string) (*pki.Credentials, int64, error) {
	it, err := b.store.Get(ctx, state.ByHandKey(clusterID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	var k keptByHand
	err = json.Unmarshal(it.Value, &k)
	if err == nil {
		var c *pki.Credentials
		if c, err = pki.Parse([]byte(k.Authorities), []byte(k.Cert), []byte(k.Key)); err == nil {
			return c, it.Modified, nil
		}
	}
	return nil, 0, fmt.Errorf("the state's %s is damaged: %w; restore a backup", it.Key, err)
}

// byHand are the credentials of a cluster that were made by hand: this server's,
// or those that another one shared; nil: none.
func (b *Book) byHand(ctx context.Context, clusterID string) (*pki.Credentials, error) {
	if b.given != nil {
		for _, c := range b.given() {
			if c.Identity.Cluster == clusterID {
				return c, nil
			}
		}
	}
	c, _, err := b.shared(ctx, clusterID)
	return c, err
}
