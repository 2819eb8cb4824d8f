package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

func authority(t *testing.T, cluster string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := Init(dir, cluster, Options{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t *testing.T, ca string, host model.HostID, opt Options) *Credentials {
	t.Helper()
	dir := filepath.Join(t.TempDir(), string(host))
	if err := Issue(ca, dir, host, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, opt); err != nil {
		t.Fatal(err)
	}
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func anyone(Identity) error { return nil }

// shake runs one handshake and returns what each side says.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

// careless is a side that accepts anybody, as an attacker would.
func careless(c *tls.Config) *tls.Config {
	c.VerifyConnection = nil
	return c
}

func TestMutualTLS(t *testing.T) {
	ca := authority(t, "seoul-1")
	h1, h2 := issue(t, ca, "host1", Options{}), issue(t, ca, "host2", Options{})
	var seen []Identity
	note := func(i Identity) error { seen = append(seen, i); return nil }
	se, ce := shake(t, h1.ServerTLS("p/1", note), h2.ClientTLS("p/1", anyone))
	if se != nil || ce != nil {
		t.Fatalf("server %v, client %v", se, ce)
	}
	if want := (Identity{Cluster: "seoul-1", Host: "host2"}); len(seen) != 1 || seen[0] != want {
		t.Errorf("identity %v, want %v", seen, want)
	}
}

func TestRefusals(t *testing.T) {
	ca := authority(t, "seoul-1")
	good := issue(t, ca, "host1", Options{})
	foreign := issue(t, authority(t, "seoul-1"), "host2", Options{})
	expired := issue(t, ca, "host2", Options{Expires: time.Now().Add(-time.Minute)})
	foreignExpired := issue(t, authority(t, "seoul-1"), "host2", Options{Expires: time.Now().Add(-time.Minute)})
	// One authority for two clusters: the name in the certificate decides.
	other := issueRaw(t, ca, "hanok://busan-1/host/host2")
	for _, tt := range []struct {
		name string
		peer *Credentials
		want Reason
	}{
		{"foreign CA", foreign, ReasonForeignCA},
		{"expired", expired, ReasonExpired},
		{"foreign and expired", foreignExpired, ReasonForeignCA},
		{"wrong cluster", other, ReasonWrongCluster},
		{"no identity", issueRaw(t, ca, ""), ReasonNoIdentity},
		{"the CA's own name", issueRaw(t, ca, "hanok://seoul-1/ca"), ReasonNoIdentity},
		{"two hosts", issueRaw(t, ca, "hanok://seoul-1/host/a", "hanok://seoul-1/host/b"), ReasonNoIdentity},
		{"illegal host", issueRaw(t, ca, "hanok://seoul-1/host/a/b"), ReasonNoIdentity},
		{"with a query", issueRaw(t, ca, "hanok://seoul-1/host/host1?x"), ReasonNoIdentity},
		{"not a member", issue(t, ca, "host3", Options{}), ReasonNotMember},
	} {
		t.Run(tt.name, func(t *testing.T) {
			member := func(i Identity) error {
				if i.Host == "host3" {
					return refuse(ReasonNotMember, "it is %s", i)
				}
				return nil
			}
			var r *Refused
			if se, _ := shake(t, good.ServerTLS("p/1", member), careless(tt.peer.ClientTLS("p/1", anyone))); !errors.As(se, &r) || r.Reason != tt.want {
				t.Errorf("as client: %v, want %s", se, tt.want)
			}
			r = nil
			if _, ce := shake(t, careless(tt.peer.ServerTLS("p/1", anyone)), good.ClientTLS("p/1", member)); !errors.As(ce, &r) || r.Reason != tt.want {
				t.Errorf("as server: %v, want %s", ce, tt.want)
			}
		})
	}
	t.Run("other protocol", func(t *testing.T) {
		conf := careless(good.ClientTLS("p/1", anyone))
		conf.NextProtos = nil // as GnuTLS in libvirt
		var r *Refused
		if se, _ := shake(t, good.ServerTLS("p/1", anyone), conf); !errors.As(se, &r) || r.Reason != ReasonProtocol {
			t.Errorf("got %v", se)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		conf := good.ClientTLS("p/1", anyone)
		conf.Certificates = nil
		if se, _ := shake(t, good.ServerTLS("p/1", anyone), conf); se == nil {
			t.Error("accepted")
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		conf := good.ClientTLS("p/1", anyone)
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if se, _ := shake(t, good.ServerTLS("p/1", anyone), conf); se == nil {
			t.Error("accepted")
		}
	})
}

// The end of a certificate is forgiven where somebody knows that very one, and
// nothing else about it is.
func TestLapsed(t *testing.T) {
	ca := authority(t, "seoul-1")
	server := issue(t, ca, "control", Options{})
	ended := Options{Expires: time.Now().Add(-time.Minute)}
	host := issue(t, ca, "host1", ended)
	only := func(id Identity) error {
		if id.Host != "host1" {
			return refuse(ReasonWrongHost, "it is %s", id)
		}
		return nil
	}
	last := func(c *x509.Certificate) bool { return c.Equal(host.Certificate()) }
	all := func(*x509.Certificate) bool { return true }
	for name, tt := range map[string]struct {
		peer  *Credentials
		known func(*x509.Certificate) bool
		want  Reason
	}{
		"the one that is known": {host, last, ""},
		"an earlier one":        {issue(t, ca, "host1", Options{Expires: time.Now().Add(-time.Hour)}), last, ReasonExpired},
		"another host's":        {issue(t, ca, "host2", ended), all, ReasonWrongHost},
		"a foreign CA's":        {issue(t, authority(t, "seoul-1"), "host1", ended), all, ReasonForeignCA},
		"one that has not ended": {issue(t, ca, "host1", Options{}), func(*x509.Certificate) bool {
			t.Error("somebody was asked")
			return false
		}, ""},
	} {
		var r *Refused
		_, ce := shake(t, careless(tt.peer.ServerTLS("p/1", anyone)), server.LapsedTLS("p/1", only, tt.known))
		if tt.want == "" && ce != nil || tt.want != "" && (!errors.As(ce, &r) || r.Reason != tt.want) {
			t.Errorf("%s: %v, want %q", name, ce, tt.want)
		}
	}
	// The authority's own end is not forgiven.
	old := authority(t, "seoul-1")
	under := issue(t, old, "host1", ended)
	text, err := os.ReadFile(filepath.Join(old, CACert))
	if err != nil {
		t.Fatal(err)
	}
	former, err := ParseCerts(text)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		end  time.Time
		want Reason
	}{"lasts": {former[0].NotAfter, ""}, "ended": {time.Now().Add(-time.Second), ReasonForeignCA}} {
		former[0].NotAfter = tt.end
		both := *server
		both.Authorities, both.ca = append(slices.Clone(server.Authorities), former[0]), server.ca.Clone()
		both.ca.AddCert(former[0])
		var r *Refused
		_, ce := shake(t, careless(under.ServerTLS("p/1", anyone)), both.LapsedTLS("p/1", only, all))
		if tt.want == "" && ce != nil || tt.want != "" && (!errors.As(ce, &r) || r.Reason != tt.want) {
			t.Errorf("an authority that %s: %v, want %q", name, ce, tt.want)
		}
	}
	// Who shows it as a client is refused all the same.
	var r *Refused
	if se, _ := shake(t, server.ServerTLS("p/1", anyone), careless(host.ClientTLS("p/1", anyone))); !errors.As(se, &r) || r.Reason != ReasonExpired {
		t.Errorf("as a client: %v", se)
	}
}

// issueRaw makes credentials with given URI names, which Issue would not.
func issueRaw(t *testing.T, caDir string, uris ...string) *Credentials {
	t.Helper()
	a, err := LoadAuthority(caDir)
	if err != nil {
		t.Fatal(err)
	}
	key, serial, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, NotBefore: validFrom, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, u := range uris {
		if u != "" {
			tmpl.URIs = append(tmpl.URIs, parseURL(t, u))
		}
	}
	leaf := sign(t, tmpl, a.Cert, key, a.key)
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return &Credentials{ca: pool, Identity: Identity{Cluster: "seoul-1"},
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
}

// A server's certificate proves a server, which no host's does.
func TestServerIdentity(t *testing.T) {
	ca := authority(t, "seoul-1")
	dir := filepath.Join(t.TempDir(), "s")
	if err := IssueServer(ca, dir, "control", Options{}); err != nil {
		t.Fatal(err)
	}
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Identity{Cluster: "seoul-1", Server: "control"}); c.Identity != want || want.URI() != "hanok://seoul-1/server/control" {
		t.Errorf("identity %v, want %v", c.Identity, want)
	}
	for _, bad := range []string{"", "a/b", "../x"} {
		if err := IssueServer(ca, filepath.Join(t.TempDir(), "x"), bad, Options{}); err == nil {
			t.Errorf("a server named %q", bad)
		}
	}
}

func TestFilesAreNeverOverwritten(t *testing.T) {
	ca := authority(t, "c")
	before, _ := os.ReadFile(filepath.Join(ca, CAKey))
	if err := Init(ca, "c", Options{}); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("Init again: %v", err)
	}
	out := HostDir(ca, "host1")
	for i, opt := range []Options{{}, {}, {Force: true}} {
		err := Issue(ca, out, "host1", nil, opt)
		if (i == 1) != errors.Is(err, fs.ErrExist) || i != 1 && err != nil {
			t.Errorf("Issue %d: %v", i, err)
		}
	}
	after, _ := os.ReadFile(filepath.Join(ca, CAKey))
	if string(before) != string(after) {
		t.Error("the CA's key changed")
	}
	for path, want := range map[string]os.FileMode{ca: 0o700, out: 0o700, filepath.Join(ca, CAKey): 0o600, filepath.Join(out, HostKey): 0o600, filepath.Join(out, CACert): 0o644} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, mode %v, want %v", path, err, st.Mode().Perm(), want)
		}
	}
	if id, err := ClusterID(ca); err != nil || id != "c" {
		t.Errorf("ClusterID: %q, %v", id, err)
	}
}

func TestCertificateContents(t *testing.T) {
	ca := authority(t, "seoul_1+x")
	out := HostDir(ca, "host1.example")
	if err := Issue(ca, out, "host1.example", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, Options{}); err != nil {
		t.Fatal(err)
	}
	c, err := Load(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Identity{Cluster: "seoul_1+x", Host: "host1.example"}); c.Identity != want {
		t.Errorf("identity %v, want %v", c.Identity, want)
	}
	leaf := c.cert.Leaf
	if leaf.URIs[0].String() != "hanok://seoul_1+x/host/host1.example" || leaf.VerifyHostname("host1.example") != nil ||
		leaf.VerifyHostname("10.0.0.1") != nil || leaf.VerifyHostname("fd00::1") != nil {
		t.Errorf("names: %v %v %v", leaf.URIs, leaf.DNSNames, leaf.IPAddresses)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || len(leaf.ExtKeyUsage) != 2 {
		t.Errorf("usage %v %v", leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	if years := time.Until(leaf.NotAfter).Hours() / 24 / 365; years < 4.9 || years > 5.1 {
		t.Errorf("valid for %.1f years", years)
	}
	if c.Check(time.Now()) != nil || c.Check(leaf.NotAfter.Add(time.Second)) == nil {
		t.Error("Check")
	}
}

func TestBadInput(t *testing.T) {
	ca := authority(t, "c")
	for _, id := range []string{"", "a/b", "..", strings.Repeat("x", 64)} {
		if err := Init(filepath.Join(t.TempDir(), "x"), id, Options{}); err == nil {
			t.Errorf("Init accepted cluster id %q", id)
		}
	}
	for _, h := range []model.HostID{"", "a/b", "../x"} {
		if err := Issue(ca, t.TempDir(), h, nil, Options{}); err == nil {
			t.Errorf("Issue accepted host %q", h)
		}
	}
	if err := Issue(t.TempDir(), t.TempDir(), "a", nil, Options{}); err == nil || !strings.Contains(err.Error(), "hanok pki init") {
		t.Errorf("without a CA: %v", err)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	ca, ca2 := authority(t, "c"), authority(t, "c")
	for _, tt := range []struct {
		name, want string
		harm       func(dir, other string)
	}{
		{"key of another", "does not belong", func(d, o string) { copyFile(t, o, d, HostKey) }},
		{"CA of another", "did not sign it", func(d, o string) { copyFile(t, ca2, d, CACert) }},
		{"readable key", "mode 0640", func(d, o string) { os.Chmod(filepath.Join(d, HostKey), 0o640) }},
		{"no key", "no such file", func(d, o string) { os.Remove(filepath.Join(d, HostKey)) }},
		{"empty certificate", "no PEM block", func(d, o string) { os.WriteFile(filepath.Join(d, HostCert), nil, 0o600) }},
		{"broken certificate", "host.crt", func(d, o string) {
			os.WriteFile(filepath.Join(d, HostCert), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, other := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
			for d, h := range map[string]model.HostID{dir: "a", other: "b"} {
				if err := Issue(ca, d, h, nil, Options{}); err != nil {
					t.Fatal(err)
				}
			}
			tt.harm(dir, other)
			if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
