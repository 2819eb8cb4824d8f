package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/store"
)

// Life times of certificates.
const (
	// HostLife is that of a host's certificate unless told otherwise. It is
	// renewed when a third of it is left, so that failover needs no server for a
	// month, and a host may be off as long.
	HostLife = 90 * 24 * time.Hour
	// LapsedLimit is how long after its end, at most, the certificate that a host
	// had last is enough for the server to give it another.
	LapsedLimit = 90 * 24 * time.Hour
	// identityLife is that of the server's identity towards agents, identityTurn
	// when it is replaced by a new key.
	identityLife = 48 * time.Hour
	identityTurn = 24 * time.Hour
)

// Config sets a Book up.
type Config struct {
	Store *store.Store
	// Server is this server's name, as agents see it.
	Server string
	// HostLife is the life of hosts' certificates. Default HostLife.
	HostLife time.Duration
	// Given are the credentials that were made by hand with `hanok pki issue
	// --server`, one for each cluster; nil: none.
	Given func() []*pki.Credentials
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// Book keeps the authorities of all clusters. Safe for concurrent use.
type Book struct {
	store    *store.Store
	server   string
	life     time.Duration
	given    func() []*pki.Credentials
	now      func() time.Time
	throttle account.Throttle

	mu         sync.Mutex
	identities map[string]*identity // by cluster id
}

// identity is the server's towards the agents of one cluster.
type identity struct {
	creds *pki.Credentials
	of    int64 // revision of the authorities
	turn  time.Time
}

// New makes a book.
func New(c Config) *Book {
	if c.HostLife <= 0 {
		c.HostLife = HostLife
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if model.HostID(c.Server).Validate() != nil {
		c.Server = "server" // agents let in every server's name
	}
	return &Book{store: c.Store, server: c.Server, life: c.HostLife, given: c.Given, now: c.Now, identities: map[string]*identity{}}
}

// Credentials are the server's towards the agents of a cluster: of the cluster's
// authority, with a key that is replaced every day; or those made by hand, which
// this server or another one was given.
func (b *Book) Credentials(ctx context.Context, clusterID string) (*pki.Credentials, error) {
	a, err := b.Get(ctx, clusterID)
	if errors.Is(err, ErrNone) {
		if c, herr := b.byHand(ctx, clusterID); c != nil {
			return c, nil
		} else if herr != nil {
			err = herr
		}
	}
	if err != nil {
		return nil, fmt.Errorf("towards the hosts of cluster %s: %w", clusterID, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if i := b.identities[clusterID]; i != nil && i.of == a.modified && now.Before(i.turn) {
		return i.creds, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := a.Signer().Sign(key.Public(), pki.Identity{Server: b.server}, nil, now.Add(identityLife))
	if err != nil {
		return nil, err
	}
	creds, err := pki.NewCredentials(a.Certs(), leaf, key)
	if err != nil {
		return nil, err
	}
	b.identities[clusterID] = &identity{creds, a.modified, now.Add(identityTurn)}
	return creds, nil
}

// Issue signs the certificate that a host of a cluster file requests (PEM). A
// request in another's name is [*pki.Refused].
func (b *Book) Issue(a *Authorities, c *config.Cluster, host model.HostID, request []byte) (certificate []byte, expires time.Time, err error) {
	pub, err := pki.CheckRequest(request, pki.Identity{Cluster: c.ID, Host: host})
	if err != nil {
		return nil, time.Time{}, err
	}
	h := c.HostByName(host)
	if h == nil {
		return nil, time.Time{}, fmt.Errorf("cluster %s has no host %q", c.Name, host)
	}
	var addrs []netip.Addr
	for _, n := range c.Networks {
		if x := h.AddressOf(n.Name); x.IsValid() {
			addrs = append(addrs, x)
		}
	}
	expires = b.now().Add(b.life).Truncate(time.Second)
	leaf, err := a.Signer().Sign(pub, pki.Identity{Host: host}, addrs, expires)
	if err != nil {
		return nil, time.Time{}, err
	}
	return pki.EncodeCerts(leaf), expires, nil
}

// Forgiven reports whether a host's certificate that has ended is enough to give
// that host another: it is the one that the host had last, by its end, and ended
// no longer ago than certificates last; LapsedLimit where they last longer.
func (b *Book) Forgiven(cert *x509.Certificate, last time.Time) bool {
	return cert.NotAfter.Equal(last) && b.now().Sub(last) <= min(b.life, LapsedLimit)
}

// Due reports whether a host's certificate is to be renewed: a third of its life
// is left, or up to a tenth more, by the host's name, so that not all are renewed
// at once; or it lasts longer than those that this server makes, because it was
// made by hand.
func (b *Book) Due(host model.HostID, expires time.Time) bool {
	sum := sha256.Sum256([]byte(host)) // spreads names that differ in a digit
	early := time.Duration(float64(b.life) / 10 * float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32))
	left := expires.Sub(b.now())
	return left < b.life/3+early || left > b.life+time.Hour
}
