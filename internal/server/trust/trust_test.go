package trust

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/store"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func book(t *testing.T) (*Book, *clock) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	c := &clock{t: time.Now()}
	return New(Config{Store: s, Server: "s1", Now: c.now}), c
}

var here = netip.MustParseAddr("10.0.0.9")

func (b *Book) token(t *testing.T, host model.HostID) string {
	t.Helper()
	x := new(store.Txn)
	text, _, err := b.NewToken(x, "seoul", "seoul-1", host, "admin", TokenLife)
	if err == nil {
		_, err = b.store.Commit(t.Context(), x)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (b *Book) redeem(ctx context.Context, token string, host model.HostID) error {
	x := new(store.Txn)
	_, _, err := b.Redeem(ctx, x, token, host, here)
	if err == nil {
		_, err = b.store.Commit(ctx, x)
	}
	return err
}

func TestATokenEnrolsOneHostOnce(t *testing.T) {
	b, clock := book(t)
	ctx := t.Context()
	token := b.token(t, "host1")
	for name, tt := range map[string]struct {
		token string
		host  model.HostID
		want  error
	}{
		"none":                             {"", "host1", ErrToken},
		"a guess":                          {"hanok-host:seoul-1:host1:" + strings.Repeat("0", 64), "host1", ErrToken},
		"of a host without a token":        {strings.Replace(token, ":host1:", ":host2:", 1), "host2", ErrToken},
		"of another cluster":               {strings.Replace(token, "seoul-1", "busan", 1), "host1", ErrToken},
		"a path":                           {strings.Replace(token, "seoul-1", "../user", 1), "host1", ErrToken},
		"for another host than it is for":  {token, "host2", ErrOtherHost},
		"too long":                         {token + strings.Repeat("x", 1000), "host1", ErrToken},
		"with something behind the secret": {token + ":x", "host1", ErrToken},
	} {
		if err := b.redeem(ctx, tt.token, tt.host); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.redeem(ctx, token, "host1"); err != nil {
		t.Fatal(err)
	}
	if err := b.redeem(ctx, token, "host1"); !errors.Is(err, ErrUsed) || !strings.Contains(err.Error(), "10.0.0.9") {
		t.Errorf("again: %v", err)
	}
	old := b.token(t, "host1")
	fresh := b.token(t, "host1")
	if err := b.redeem(ctx, old, "host1"); !errors.Is(err, ErrToken) {
		t.Errorf("one that a newer took the place of: %v", err)
	}
	clock.pass(TokenLife)
	if err := b.redeem(ctx, fresh, "host1"); !errors.Is(err, ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
}

// Of two that come with one token at the same moment one gets the certificate.
func TestATokenIsNotUsedTwiceAtOnce(t *testing.T) {
	b, _ := book(t)
	token := b.token(t, "host1")
	first, second := new(store.Txn), new(store.Txn)
	for _, x := range []*store.Txn{first, second} {
		if _, _, err := b.Redeem(t.Context(), x, token, "host1", here); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.store.Commit(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Commit(t.Context(), second); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the second: %v", err)
	}
}

func TestGuessesAreSlowedDown(t *testing.T) {
	b, _ := book(t)
	b.token(t, "host1")
	var soon *account.TooSoon
	for range 50 {
		if err := b.redeem(t.Context(), "hanok-host:seoul-1:host1:x", "host1"); errors.As(err, &soon) {
			return
		}
	}
	t.Error("50 guesses in a moment")
}

func TestServersIdentityIsRotated(t *testing.T) {
	b, clock := book(t)
	ctx := t.Context()
	if _, err := b.Credentials(ctx, "seoul-1"); !errors.Is(err, ErrNone) {
		t.Fatalf("without an authority: %v", err)
	}
	a, err := b.Ensure(ctx, "seoul-1")
	if err != nil {
		t.Fatal(err)
	}
	get := func() *pki.Credentials {
		t.Helper()
		c, err := b.Credentials(ctx, "seoul-1")
		if err != nil {
			t.Fatal(err)
		}
		if c.Identity != (pki.Identity{Cluster: "seoul-1", Server: "s1"}) || c.Expires.Sub(clock.now()) < identityLife-identityTurn-time.Second {
			t.Errorf("%v until %v", c.Identity, c.Expires)
		}
		return c
	}
	first := get()
	clock.pass(identityTurn - time.Minute)
	if get() != first {
		t.Error("rotated early")
	}
	clock.pass(time.Minute)
	second := get()
	if second == first || second.Expires.Equal(first.Expires) {
		t.Error("not rotated after a day")
	}
	// Another step of the authorities makes another identity at once.
	x := new(store.Txn)
	next, err := pki.NewAuthority("seoul-1", time.Time{})
	if err == nil {
		err = a.Begin(x, next)
	}
	if err == nil {
		_, err = b.store.Commit(ctx, x)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c := get(); c == second || len(c.Authorities) != 2 || !c.Issuer.Equal(a.Signer().Cert) {
		t.Error("the identity does not follow the authorities")
	}
}

func TestPhasesOfAReplacement(t *testing.T) {
	b, _ := book(t)
	ctx := t.Context()
	a, err := b.Ensure(ctx, "seoul-1")
	if err != nil {
		t.Fatal(err)
	}
	old := pki.Fingerprint(a.Signer().Cert)
	made, err := pki.NewAuthority("seoul-1", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	next := pki.Fingerprint(made.Cert)
	step := func(do func(*Authorities, *store.Txn) error, phase Phase, want ...string) {
		t.Helper()
		x := new(store.Txn)
		err := do(a, x)
		if err == nil {
			_, err = b.store.Commit(ctx, x)
		}
		if err != nil {
			t.Fatal(err)
		}
		// A change from what was read before is refused.
		x = new(store.Txn)
		if err := do(a, x); err == nil {
			if _, err := b.store.Commit(ctx, x); !errors.Is(err, store.ErrConflict) {
				t.Errorf("the same step twice: %v", err)
			}
		}
		if a, err = b.Get(ctx, "seoul-1"); err != nil {
			t.Fatal(err)
		}
		if got := a.Fingerprints(); a.Phase != phase || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("phase %q with %v, want %q with %v", a.Phase, got, phase, want)
		}
	}
	begin := func(a *Authorities, x *store.Txn) error { return a.Begin(x, made) }
	step(begin, Distribute, old, next)
	step((*Authorities).Abandon, None, old)
	step(begin, Distribute, old, next)
	step((*Authorities).Advance, Reissue, next, old)
	if a.Abandon(new(store.Txn)) == nil || a.Begin(new(store.Txn), made) == nil {
		t.Error("given up, or begun anew, after certificates were reissued")
	}
	step((*Authorities).Advance, Drop, next)
	step((*Authorities).Advance, None, next)
	if a.Advance(new(store.Txn)) == nil {
		t.Error("a step without a replacement")
	}
	if a.Trusted([]string{old, next}) || a.Trusted(nil) || !a.Trusted([]string{next}) {
		t.Error("who trusts what is asked for")
	}
}

func TestCertificatesOfHosts(t *testing.T) {
	b, clock := book(t)
	a, err := b.Ensure(t.Context(), "seoul-1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse([]byte("version: 1\nname: seoul\nid: seoul-1\nnetworks: [{name: mgmt, heartbeat: true}]\nhosts:\n- {name: host1, address: {mgmt: 10.0.0.1}, memory: 1GiB}\n- {name: host2, address: {mgmt: 10.0.0.2}, memory: 1GiB}\n"))
	if err != nil {
		t.Fatal(err)
	}
	request := func(cluster string, host model.HostID) []byte {
		_, r, err := pki.NewRequest(pki.Identity{Cluster: cluster, Host: host})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	text, expires, err := b.Issue(a, c, "host1", request("seoul-1", "host1"))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCerts(text)
	if err != nil || len(certs[0].IPAddresses) != 1 || certs[0].IPAddresses[0].String() != "10.0.0.1" || !certs[0].NotAfter.Equal(expires) {
		t.Errorf("%v, %+v", err, certs)
	}
	if got := expires.Sub(clock.now()); got < HostLife-time.Minute || got > HostLife {
		t.Errorf("lasts %v", got)
	}
	var refused *pki.Refused
	for name, r := range map[string][]byte{"another host": request("seoul-1", "host2"), "another cluster": request("busan", "host1")} {
		if _, _, err := b.Issue(a, c, "host1", r); !errors.As(err, &refused) || refused.Reason != pki.ReasonWrongHost {
			t.Errorf("a request for %s: %v", name, err)
		}
	}
	if _, _, err := b.Issue(a, c, "host9", request("seoul-1", "host9")); err == nil {
		t.Error("a certificate for a host that is not in the cluster file")
	}
	for left, want := range map[time.Duration]bool{HostLife: false, HostLife * 44 / 100: false, HostLife/3 - 1: true, -time.Hour: true, 5 * 365 * 24 * time.Hour: true} {
		if got := b.Due("host1", clock.now().Add(left)); got != want {
			t.Errorf("with %v left: due %v", left, got)
		}
	}
	at := map[bool]int{}
	for _, h := range []model.HostID{"host1", "host2", "host3", "host4", "host5", "host6", "host7", "host8"} {
		at[b.Due(h, clock.now().Add(HostLife/3+HostLife/20))]++
	}
	if at[true] == 0 || at[false] == 0 {
		t.Errorf("all hosts are renewed at one moment: %v", at)
	}
}

// Only the certificate that a host had last is enough to renew it after its end,
// and not for ever.
func TestWhichEndIsForgiven(t *testing.T) {
	b, clock := book(t)
	end := clock.now().Add(-time.Second).Truncate(time.Second)
	cert := &x509.Certificate{NotAfter: end}
	if !b.Forgiven(cert, end) || b.Forgiven(cert, end.Add(time.Second)) || b.Forgiven(cert, time.Time{}) {
		t.Error("not the last one, or another")
	}
	clock.pass(LapsedLimit - 10*time.Second)
	if !b.Forgiven(cert, end) {
		t.Error("too early an end")
	}
	clock.pass(time.Minute)
	if b.Forgiven(cert, end) {
		t.Error("forgiven for ever")
	}
	short := New(Config{Store: b.store, Server: "s1", HostLife: 24 * time.Hour, Now: clock.now})
	for ago, want := range map[time.Duration]bool{23 * time.Hour: true, 25 * time.Hour: false} {
		if end := clock.now().Add(-ago).Truncate(time.Second); short.Forgiven(&x509.Certificate{NotAfter: end}, end) != want {
			t.Errorf("where certificates last a day, %v after the end: %v", ago, !want)
		}
	}
}

// Whose certificates were made by hand gets no authority that no host trusts.
func TestByHand(t *testing.T) {
	b, _ := book(t)
	mine, err := pki.NewAuthority("seoul-1", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := pki.NewRequest(pki.Identity{Cluster: "seoul-1", Server: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := mine.Sign(key.Public(), pki.Identity{Server: "s1"}, nil, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	creds, err := pki.NewCredentials([]*x509.Certificate{mine.Cert}, leaf, key)
	if err != nil {
		t.Fatal(err)
	}
	b.given = func() []*pki.Credentials { return []*pki.Credentials{creds} }
	// Another server over the same state needs no certificate of its own.
	other := New(Config{Store: b.store, Server: "s2"})
	for range 2 {
		if err := b.Share(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Ensure(t.Context(), "seoul-1"); !errors.Is(err, ErrByHand) {
		t.Errorf("made by another server: %v", err)
	}
	if c, err := other.Credentials(t.Context(), "seoul-1"); err != nil || !c.Certificate().Equal(leaf) || c.Identity.Server != "s1" {
		t.Errorf("another server's: %+v, %v", c, err)
	}
	if _, err := b.Ensure(t.Context(), "seoul-1"); !errors.Is(err, ErrByHand) {
		t.Errorf("made: %v", err)
	}
	if c, err := b.Credentials(t.Context(), "seoul-1"); err != nil || c != creds {
		t.Errorf("%v, %v", c, err)
	}
	x := new(store.Txn)
	if err := b.Import(t.Context(), x, "seoul-1", mine); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Commit(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	if c, err := b.Credentials(t.Context(), "seoul-1"); err != nil || c == creds || !c.Issuer.Equal(mine.Cert) {
		t.Errorf("after the import: %v, %v", c, err)
	}
	// With the authority in the state each makes an identity and a key of its own.
	if c, err := other.Credentials(t.Context(), "seoul-1"); err != nil || c.Identity.Server != "s2" || !c.Issuer.Equal(mine.Cert) {
		t.Errorf("another server's after the import: %v, %v", c, err)
	}
	if c, _, err := other.shared(t.Context(), "seoul-1"); c != nil || err != nil {
		t.Errorf("the one made by hand stays: %v, %v", c, err)
	}
	if err := b.Share(t.Context()); err != nil {
		t.Error(err)
	}
	if c, _, _ := other.shared(t.Context(), "seoul-1"); c != nil {
		t.Error("shared again, beside the authority")
	}
	if _, err := b.Ensure(t.Context(), "busan"); err != nil {
		t.Error(err)
	}
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"hanok-host:seoul-1:host1:00", "", "hanok-host:::", "hanok-host:../x:host1:0", "hanok_x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, host, secret, err := split(s)
		if err == nil && (model.ValidateName(id) != nil || host.Validate() != nil || secret == "") {
			t.Errorf("%q: %q %q %q", s, id, host, secret)
		}
	})
}
