package pki

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// cluster is an authority and a host that it enrolled.
type keeperRig struct {
	t      *testing.T
	ca     *Authority
	dir    string
	id     Identity
	keeper *Keeper
}

func newAuthority(t *testing.T, cluster string) *Authority {
	t.Helper()
	a, err := NewAuthority(cluster, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKeeperRig(t *testing.T) *keeperRig {
	t.Helper()
	r := &keeperRig{t: t, ca: newAuthority(t, "seoul-1"), dir: filepath.Join(t.TempDir(), "pki"), id: Identity{Cluster: "seoul-1", Host: "host1"}}
	key, request, err := NewRequest(r.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := Enrol(r.dir, EncodeCerts(r.ca.Cert), r.sign(r.ca, request, "host1"), key, r.id); err != nil {
		t.Fatal(err)
	}
	r.keeper = NewKeeper(r.dir)
	return r
}

func (r *keeperRig) sign(a *Authority, request []byte, host model.HostID) []byte {
	r.t.Helper()
	pub, err := CheckRequest(request, r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := a.Sign(pub, Identity{Host: host}, nil, time.Now().Add(time.Hour))
	if err != nil {
		r.t.Fatal(err)
	}
	return EncodeCerts(c)
}

func (r *keeperRig) request() []byte {
	r.t.Helper()
	b, err := r.keeper.Request()
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *keeperRig) install(cas []*x509.Certificate, cert []byte, dropped bool) {
	r.t.Helper()
	got, err := r.keeper.Install(EncodeCerts(cas...), cert)
	if err != nil || got != dropped {
		r.t.Fatalf("dropped %v, %v", got, err)
	}
	// What is in force is what a restarted agent reads.
	again, err := Load(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	if now := r.keeper.Current(); again.Expires != now.Expires || !again.Issuer.Equal(now.Issuer) || len(again.Authorities) != len(now.Authorities) {
		r.t.Errorf("on disk %+v, in force %+v", again, now)
	}
}

func TestAuthorityIsReplacedWithoutAGap(t *testing.T) {
	r := newKeeperRig(t)
	next := newAuthority(t, "seoul-1")
	old := r.keeper.Current()
	both := []*x509.Certificate{r.ca.Cert, next.Cert}
	r.install(both, nil, false)
	if !r.keeper.Current().Issuer.Equal(r.ca.Cert) {
		t.Error("another issuer without another certificate")
	}
	// With both, a host of either and this one believe each other.
	peer, err := next.Sign(newPublic(t), Identity{Host: "host2"}, nil, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	believes := func(c *Credentials) bool {
		_, err := verify(c.ca, []*x509.Certificate{peer}, x509.ExtKeyUsageClientAuth, time.Now())
		return err == nil
	}
	if !believes(r.keeper.Current()) || believes(old) {
		t.Error("trust in the new authority")
	}
	r.install(both, r.sign(next, r.request(), "host1"), false)
	if !r.keeper.Current().Issuer.Equal(next.Cert) {
		t.Error("the certificate is not of the new authority")
	}
	r.install([]*x509.Certificate{next.Cert}, nil, true)
	peer, _ = r.ca.Sign(newPublic(t), Identity{Host: "host2"}, nil, time.Now().Add(time.Hour))
	if believes(r.keeper.Current()) {
		t.Error("the old authority is believed still")
	}
}

func newPublic(t *testing.T) any {
	t.Helper()
	k, _, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func TestKeeperRefuses(t *testing.T) {
	r := newKeeperRig(t)
	next := newAuthority(t, "seoul-1")
	files := func() map[string]string {
		out := map[string]string{}
		for _, n := range []string{CACert, HostCert, HostKey} {
			b, err := os.ReadFile(filepath.Join(r.dir, n))
			if err != nil {
				t.Fatal(err)
			}
			out[n] = string(b)
		}
		return out
	}
	before := files()
	early := r.sign(r.ca, r.request(), "host1")
	asked := r.request()
	ended, err := r.ca.Sign(mustPublic(t, r, asked), Identity{Host: "host1"}, nil, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		cas    []*x509.Certificate
		cert   []byte
		reason Reason
	}{
		"an authority that its certificate is not of": {[]*x509.Certificate{next.Cert}, nil, ReasonForeignCA},
		"a certificate of no trusted authority":       {[]*x509.Certificate{r.ca.Cert}, r.sign(next, asked, "host1"), ReasonForeignCA},
		"another's name":                              {[]*x509.Certificate{r.ca.Cert}, r.sign(r.ca, asked, "host2"), ReasonWrongHost},
		"for an earlier request":                      {[]*x509.Certificate{r.ca.Cert}, early, ""},
		"expired":                                     {[]*x509.Certificate{r.ca.Cert}, EncodeCerts(ended), ReasonExpired},
		"no authority":                                {nil, nil, ""},
		"two certificates":                            {[]*x509.Certificate{r.ca.Cert}, append(r.sign(r.ca, asked, "host1"), early...), ""},
	} {
		_, err := r.keeper.Install(EncodeCerts(tt.cas...), tt.cert)
		var refused *Refused
		if err == nil || tt.reason != "" && (!errors.As(err, &refused) || refused.Reason != tt.reason) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n, b := range files() {
		if before[n] != b {
			t.Errorf("%s was changed by what was refused", n)
		}
	}
}

func mustPublic(t *testing.T, r *keeperRig, request []byte) any {
	t.Helper()
	pub, err := CheckRequest(request, r.id)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// A crash between the two renames of a renewal leaves a host that starts.
func TestCrashDuringRenewal(t *testing.T) {
	r := newKeeperRig(t)
	old, err := os.ReadFile(filepath.Join(r.dir, HostCert))
	if err != nil {
		t.Fatal(err)
	}
	r.install([]*x509.Certificate{r.ca.Cert}, r.sign(r.ca, r.request(), "host1"), false)
	// As if the last rename had not happened.
	if err := os.Rename(filepath.Join(r.dir, HostCert), filepath.Join(r.dir, nextCert)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, HostCert), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(r.dir); err != nil {
		t.Fatal(err)
	}
	k := NewKeeper(r.dir)
	if _, err := k.Load(); err != nil {
		t.Fatal(err)
	}
	// The next renewal leaves nothing of it.
	r.keeper = k
	r.install([]*x509.Certificate{r.ca.Cert}, r.sign(r.ca, r.request(), "host1"), false)
}

// Files put there by hand count without a restart; bad ones do not.
func TestKeeperFollowsTheFiles(t *testing.T) {
	r := newKeeperRig(t)
	first := r.keeper.Current()
	key, request, err := NewRequest(r.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := Enrol(r.dir, EncodeCerts(r.ca.Cert), r.sign(r.ca, request, "host1"), key, r.id); err != nil {
		t.Fatal(err)
	}
	second := r.keeper.Current()
	if second == first {
		t.Error("the new files do not count")
	}
	if err := os.WriteFile(filepath.Join(r.dir, HostCert), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r.keeper.Current() != second {
		t.Error("half a file took the host out")
	}
	if NewKeeper(t.TempDir()).Current() != nil {
		t.Error("credentials out of nothing")
	}
	if err := Enrol(t.TempDir(), EncodeCerts(r.ca.Cert), r.sign(r.ca, request, "host2"), key, r.id); err == nil {
		t.Error("enrolled under another name")
	}
}

func FuzzCheckRequest(f *testing.F) {
	id := Identity{Cluster: "seoul-1", Host: "host1"}
	_, good, err := NewRequest(id)
	if err != nil {
		f.Fatal(err)
	}
	_, other, err := NewRequest(Identity{Cluster: "seoul-1", Host: "host2"})
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{good, other, nil, good[:len(good)/2], append(good, good...), []byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")} {
		f.Add(b)
	}
	if _, err := CheckRequest(good, id); err != nil {
		f.Fatal(err)
	}
	var refused *Refused
	if _, err := CheckRequest(other, id); !errors.As(err, &refused) || refused.Reason != ReasonWrongHost {
		f.Fatalf("a request in another's name: %v", err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if pub, err := CheckRequest(b, id); err == nil && pub == nil {
			t.Error("no key and no error")
		}
		// Nothing that names another may pass, whatever it looks like.
		if _, err := CheckRequest(b, Identity{Cluster: "seoul-2", Host: "host9"}); err == nil {
			t.Error("a request in another's name passed")
		}
	})
}

func FuzzParseCerts(f *testing.F) {
	a, err := NewAuthority("seoul-1", time.Time{})
	if err != nil {
		f.Fatal(err)
	}
	good := EncodeCerts(a.Cert)
	for _, b := range [][]byte{good, append(good, good...), nil, good[:100], []byte("-----BEGIN X-----\n-----END X-----\n")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := ParseCerts(b)
		if err == nil && (len(certs) == 0 || len(certs) > maxCerts) {
			t.Errorf("%d certificates", len(certs))
		}
	})
}
