package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// newSerial draws a positive serial number of at most 127 bits.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// maxFile bounds what is read of a key or certificate file.
const maxFile = 64 << 10

// Credentials are a host's identity and what it needs to prove it and to check
// others. Immutable; safe for concurrent use.
type Credentials struct {
	// Identity is whom the certificate speaks for.
	Identity Identity
	// Expires is the end of the certificate's validity, or of the authority's
	// when that is earlier.
	Expires time.Time
	// Authorities are those whose certificates are accepted; Issuer is the one
	// that signed this certificate.
	Authorities []*x509.Certificate
	Issuer      *x509.Certificate

	cert tls.Certificate
	key  *ecdsa.PrivateKey
	ca   *x509.CertPool
}

// Current is c itself: credentials that never change.
func (c *Credentials) Current() *Credentials { return c }

// Load reads ca.crt, host.crt and host.key of a host (paths.PKIDir) and checks
// that they belong together. An expired certificate loads, so that the daemon
// starts and can say so: see [Credentials.Check].
func Load(dir string) (*Credentials, error) {
	fail := func(err error) (*Credentials, error) {
		return nil, fmt.Errorf("host certificate in %s: %w", dir, err)
	}
	text, err := readBounded(filepath.Join(dir, CACert))
	if err != nil {
		return fail(err)
	}
	cas, err := ParseCerts(text)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", CACert, err))
	}
	leaf, err := readCert(filepath.Join(dir, HostCert))
	if err != nil {
		return fail(err)
	}
	key, err := readKey(filepath.Join(dir, HostKey))
	if err != nil {
		return fail(err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		// A renewal that a crash interrupted, see writeHost.
		next, err := readCert(filepath.Join(dir, nextCert))
		if err != nil || !key.PublicKey.Equal(next.PublicKey) {
			return fail(fmt.Errorf("%s does not belong to %s; enrol the host anew (`hanok host enrol`), or copy both from one `hanok pki issue`", HostKey, HostCert))
		}
		leaf = next
	}
	c, err := NewCredentials(cas, leaf, key)
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// NewCredentials are those of a certificate and its key among authorities, one
// of which signed it. It may be expired.
func NewCredentials(authorities []*x509.Certificate, leaf *x509.Certificate, key *ecdsa.PrivateKey) (*Credentials, error) {
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	pool := x509.NewCertPool()
	c := &Credentials{ca: pool, Authorities: authorities, Expires: leaf.NotAfter, key: key,
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}
	for _, ca := range authorities {
		if !ca.IsCA {
			return nil, fmt.Errorf("%q is no CA certificate", ca.Subject)
		}
		pool.AddCert(ca)
		if c.Issuer == nil && leaf.CheckSignatureFrom(ca) == nil {
			c.Issuer = ca
		}
	}
	if c.Issuer != nil && c.Issuer.NotAfter.Before(c.Expires) {
		c.Expires = c.Issuer.NotAfter
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		var err error
		if c.Identity, err = verify(pool, []*x509.Certificate{leaf}, usage, c.Expires); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Check reports whether the certificate is expired at now.
func (c *Credentials) Check(now time.Time) error {
	if now.After(c.Expires) {
		return refuse(ReasonExpired, "this host's certificate expired at %s and its clock says %s; enrol it anew: `hanok host token` on the server, or `hanok pki issue --force`",
			c.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// ServerTLS returns the configuration of a listener: TLS 1.3, the peer proves
// an identity of this cluster, and member consents to it. The handshake's error
// is or wraps [*Refused] when the peer's certificate is the cause.
func (c *Credentials) ServerTLS(protocol string, member func(Identity) error) *tls.Config {
	conf := c.base(protocol)
	conf.ClientAuth = tls.RequireAnyClientCert // verified below, for one set of reasons
	conf.SessionTicketsDisabled = true         // every session checks membership anew
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		return c.check(cs, x509.ExtKeyUsageClientAuth, protocol, member)
	}
	return conf
}

// ClientTLS returns the configuration of a dialler; the peer must prove the
// identity that expect consents to. A server that refuses this host's own
// certificate shows only at the first read.
func (c *Credentials) ClientTLS(protocol string, expect func(Identity) error) *tls.Config {
	conf := c.base(protocol)
	conf.InsecureSkipVerify = true // names and addresses prove nothing; verified below
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		return c.check(cs, x509.ExtKeyUsageServerAuth, protocol, expect)
	}
	return conf
}

// LapsedTLS is ClientTLS for a peer whose certificate may have ended: known is
// asked whether the end of that very certificate is forgiven. Nothing else about
// it is; an authority that has ended vouches for nobody.
func (c *Credentials) LapsedTLS(protocol string, expect func(Identity) error, known func(*x509.Certificate) bool) *tls.Config {
	conf := c.ClientTLS(protocol, expect)
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		now, ca := time.Now(), c.ca
		if len(cs.PeerCertificates) > 0 {
			if leaf := cs.PeerCertificates[0]; now.After(leaf.NotAfter) && known(leaf) {
				now, ca = leaf.NotAfter, c.lasting(now)
			}
		}
		return c.checkAt(cs, ca, x509.ExtKeyUsageServerAuth, protocol, expect, now)
	}
	return conf
}

// lasting are the authorities that have not ended at now.
func (c *Credentials) lasting(now time.Time) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range c.Authorities {
		if !now.After(ca.NotAfter) {
			pool.AddCert(ca)
		}
	}
	return pool
}

// PEM is what Parse reads: the authorities, the certificate, and its key.
func (c *Credentials) PEM() (authorities, certificate, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, nil, nil, err
	}
	return EncodeCerts(c.Authorities...), EncodeCerts(c.cert.Leaf), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Parse reads credentials that PEM wrote.
func Parse(authorities, certificate, key []byte) (*Credentials, error) {
	cas, err := ParseCerts(authorities)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	certs, err := ParseCerts(certificate)
	if err != nil || len(certs) != 1 {
		return nil, errors.Join(errors.New("certificate: there must be one"), err)
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	k, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("key: it is no ECDSA key")
	}
	return NewCredentials(cas, certs[0], k)
}

// Certificate is the host's or server's own.
func (c *Credentials) Certificate() *x509.Certificate { return c.cert.Leaf }

func (c *Credentials) base(protocol string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.cert}, NextProtos: []string{protocol}}
}

func (c *Credentials) check(cs tls.ConnectionState, usage x509.ExtKeyUsage, protocol string, accept func(Identity) error) error {
	return c.checkAt(cs, c.ca, usage, protocol, accept, time.Now())
}

func (c *Credentials) checkAt(cs tls.ConnectionState, ca *x509.CertPool, usage x509.ExtKeyUsage, protocol string, accept func(Identity) error, now time.Time) error {
	id, err := verify(ca, cs.PeerCertificates, usage, now)
	if err != nil {
		return err
	}
	if id.Cluster != c.Identity.Cluster {
		return refuse(ReasonWrongCluster, "it is for cluster %q and this is %q", id.Cluster, c.Identity.Cluster)
	}
	// The same certificates serve libvirt: a connection made for libvirt must
	// not be taken for one of ours.
	if cs.NegotiatedProtocol != protocol {
		return refuse(ReasonProtocol, "the peer speaks %q, not %q", cs.NegotiatedProtocol, protocol)
	}
	return accept(id)
}

// Recheck reports whether a session that was accepted as a server's or host's
// would be accepted still: authorities go, and certificates end.
func (c *Credentials) Recheck(cs tls.ConnectionState, protocol string, accept func(Identity) error) error {
	return c.check(cs, x509.ExtKeyUsageClientAuth, protocol, accept)
}

// PeerIdentity returns whom a finished handshake identified.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, refuse(ReasonNoCertificate, "none was sent")
	}
	return identityOf(cs.PeerCertificates[0])
}

// readBounded reads a file of at most a byte more than maxFile.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if len(data) > maxFile || block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no PEM block %q", path, kind)
	}
	if extra, _ := pem.Decode(rest); extra != nil {
		return nil, fmt.Errorf("%s holds more than one PEM block; keep one", path)
	}
	return block.Bytes, nil
}

func readCert(path string) (*x509.Certificate, error) {
	der, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: others than root can read the key; issue a new one, or chmod 0600 it if nobody did", path, st.Mode().Perm())
	}
	der, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New(path + " holds no ECDSA key")
	}
	return key, nil
}
