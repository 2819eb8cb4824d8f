package trust

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// Life times of a host's token.
const (
	TokenLife = time.Hour
	TokenMost = 7 * 24 * time.Hour
)

// tokenPrefix begins each token, so that scanners for leaked secrets know it.
const tokenPrefix = "hanok-host"

// Token is a host's one-time token as it is kept: without its secret.
type Token struct {
	Cluster string       `json:"cluster"` // name
	Host    model.HostID `json:"host"`
	Digest  string       `json:"digest"`
	By      string       `json:"by"`
	Created time.Time    `json:"created"`
	Expires time.Time    `json:"expires"`
	// Used is when, and From the address from which.
	Used time.Time `json:"used,omitzero"`
	From string    `json:"from,omitempty"`
}

// Over reports whether a kept token can be forgotten: a while after its end, in
// which whoever comes with it is told why it does not work.
func Over(value []byte, now time.Time) bool {
	var t Token
	return json.Unmarshal(value, &t) != nil || now.Sub(t.Expires) > 24*time.Hour
}

// Errors of Redeem.
var (
	// ErrToken does not say what is wrong: who asks has not proven to know one.
	ErrToken = errors.New("the token is not valid")
	// ErrUsed, ErrExpired and ErrOtherHost are told to whoever has the secret.
	ErrUsed      = errors.New("the token was used already")
	ErrExpired   = errors.New("the token has expired")
	ErrOtherHost = errors.New("the token is for another host")
)

// SplitToken reads which host of which cluster, by its id, a token is for.
func SplitToken(token string) (clusterID string, host model.HostID, err error) {
	c, h, _, err := split(token)
	return c, h, err
}

func split(token string) (clusterID string, host model.HostID, secret string, err error) {
	p := strings.Split(token, ":")
	if len(token) > 512 || len(p) != 4 || p[0] != tokenPrefix || model.ValidateName(p[1]) != nil || model.HostID(p[2]).Validate() != nil || p[3] == "" {
		return "", "", "", ErrToken
	}
	return p[1], model.HostID(p[2]), p[3], nil
}

func digest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// NewToken adds to t a token for a host, in the place of its token before, and
// returns its text.
func (b *Book) NewToken(t *store.Txn, clusterName, clusterID string, host model.HostID, by string, life time.Duration) (text string, expires time.Time, err error) {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", time.Time{}, err
	}
	hexa := hex.EncodeToString(secret[:])
	now := b.now().UTC()
	k := Token{Cluster: clusterName, Host: host, Digest: digest(hexa), By: by, Created: now, Expires: now.Add(life)}
	v, err := json.Marshal(k)
	if err != nil {
		return "", time.Time{}, err
	}
	t.Put(state.EnrolKey(clusterID, string(host)), v)
	return strings.Join([]string{tokenPrefix, clusterID, string(host), hexa}, ":"), k.Expires, nil
}

// Redeem checks the token of a host that calls itself host, and adds to t that
// it is used: of two that come with the same one only one change can be
// committed. from is the caller's address.
func (b *Book) Redeem(ctx context.Context, t *store.Txn, token string, host model.HostID, from netip.Addr) (*Token, string, error) {
	id, of, secret, err := split(token)
	if err != nil {
		return nil, "", err
	}
	if wait := b.throttle.Begin("host "+string(of), from, b.now()); wait > 0 {
		return nil, "", &account.TooSoon{Wait: wait}
	}
	key := state.EnrolKey(id, string(of))
	it, err := b.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, "", ErrToken
	}
	if err != nil {
		return nil, "", err
	}
	var k Token
	if err := json.Unmarshal(it.Value, &k); err != nil {
		return nil, "", fmt.Errorf("the state's %s is damaged: %w", key, err)
	}
	if subtle.ConstantTimeCompare([]byte(k.Digest), []byte(digest(secret))) != 1 {
		return nil, "", ErrToken
	}
	b.throttle.Succeeded("host "+string(of), from, b.now())
	switch {
	case !k.Used.IsZero():
		return nil, "", fmt.Errorf("%w, %s from %s", ErrUsed, k.Used.Format(time.RFC3339), k.From)
	case !b.now().Before(k.Expires):
		return nil, "", fmt.Errorf("%w, %s", ErrExpired, k.Expires.Format(time.RFC3339))
	case host != k.Host:
		return nil, "", fmt.Errorf("%w: it is for %s, and this one calls itself %s", ErrOtherHost, k.Host, host)
	}
	k.Used, k.From = b.now().UTC(), from.String()
	v, err := json.Marshal(k)
	if err != nil {
		return nil, "", err
	}
	t.Unchanged(key, it.Modified).Put(key, v)
	return &k, id, nil
}
