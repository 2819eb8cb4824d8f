package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"
)

// Authority signs certificates: of one cluster's hosts and servers, or, without
// a cluster, of the addresses that servers are reached under.
type Authority struct {
	// Cluster is whose authority it is; empty for that of servers' addresses.
	Cluster string
	Cert    *x509.Certificate
	key     crypto.Signer
}

// Fingerprint names a certificate: sha256: and the hexadecimal digest of its
// bytes.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// NewAuthority makes the authority of a cluster, or that of servers' addresses.
func NewAuthority(clusterID string, expires time.Time) (*Authority, error) {
	name := "Hanok server CA"
	var uris []*url.URL
	if clusterID != "" {
		if len(clusterID) > 63 {
			return nil, fmt.Errorf("cluster id %q has %d characters; at most 63 fit into certificates", clusterID, len(clusterID))
		}
		name = "Hanok CA " + clusterID
		uris = []*url.URL{{Scheme: uriScheme, Host: clusterID, Path: "/ca"}}
	}
	key, serial, err := newKey()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"Hanok"}, CommonName: clipTo(name, 64)}, URIs: uris,
		NotBefore: validFrom, NotAfter: orDefault(expires, CAValidity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if clusterID != "" {
		if _, err := clusterOf(der); err != nil {
			return nil, fmt.Errorf("cluster id %q does not fit into a certificate: %w", clusterID, err)
		}
	}
	return &Authority{Cluster: clusterID, Cert: cert, key: key}, nil
}

// ParseAuthority reads an authority, such as an intermediate of an organisation's
// own, from PEM. Hosts then trust this very certificate, and nothing above it.
func ParseAuthority(clusterID string, certPEM, keyPEM []byte) (*Authority, error) {
	certs, err := ParseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("certificate: there are %d; give the one that signs, without those above it", len(certs))
	}
	cert := certs[0]
	switch {
	case !cert.IsCA || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("certificate: it may not sign others (CA:TRUE and certSign)")
	case !time.Now().Before(cert.NotAfter):
		return nil, fmt.Errorf("certificate: it expired at %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if other, err := clusterOf(cert.Raw); err == nil && other != clusterID {
		return nil, fmt.Errorf("certificate: it is the CA of cluster %q, not of %q", other, clusterID)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("key: it does not belong to the certificate")
	}
	return &Authority{Cluster: clusterID, Cert: cert, key: key}, nil
}

// parseKey reads a private key: PKCS 8, or the older forms of openssl.
func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if len(text) > maxFile || block == nil {
		return nil, errors.New("it holds no PEM block")
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("a key of type %T cannot sign", key)
}

// maxCerts bounds a bundle.
const maxCerts = 8

// ParseCerts reads the certificates of a PEM text.
func ParseCerts(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has %d bytes; at most %d", len(text), maxFile)
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a PEM block %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if out = append(out, c); len(out) > maxCerts {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCerts)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no PEM block \"CERTIFICATE\"")
	}
	return out, nil
}

// EncodeCerts is the reverse of ParseCerts.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// PEM is the authority as text, the key with it.
func (a *Authority) PEM() (cert, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, nil, err
	}
	return EncodeCerts(a.Cert), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Sign makes the certificate of a host or server for a public key. Addresses are
// those under which libvirt is reached for migration; agents do not look at them.
//
// Key usage is "digital signature" and "key encipherment". The second means
// nothing for ECDSA, but libvirt 9.0 and QEMU 7.2 refuse a certificate with a
// critical key-usage extension without it.
func (a *Authority) Sign(pub crypto.PublicKey, id Identity, addresses []netip.Addr, expires time.Time) (*x509.Certificate, error) {
	if err := id.validate(); err != nil {
		return nil, err
	}
	id.Cluster = a.Cluster
	uri, err := url.Parse(id.URI())
	if err != nil {
		return nil, err
	}
	name := string(id.Host)
	if id.Server != "" {
		name = id.Server
	}
	tmpl := &x509.Certificate{Subject: pkix.Name{Organization: []string{"Hanok"}, OrganizationalUnit: []string{a.Cluster}, CommonName: clipTo(name, 64)},
		URIs: []*url.URL{uri}, DNSNames: []string{name}, NotBefore: validFrom, NotAfter: orDefault(expires, HostValidity),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, ip := range addresses {
		if !ip.IsValid() || ip.Zone() != "" || ip.IsUnspecified() {
			return nil, fmt.Errorf("address %v: must be the host's own address, without a zone", ip)
		}
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	return a.sign(pub, tmpl)
}

// SignAddress makes the certificate of a server's address for browsers and the
// command line.
func (a *Authority) SignAddress(pub crypto.PublicKey, names []string, addresses []netip.Addr, expires time.Time) (*x509.Certificate, error) {
	tmpl := &x509.Certificate{Subject: pkix.Name{Organization: []string{"Hanok"}, CommonName: "Hanok server"}, DNSNames: names,
		NotBefore: validFrom, NotAfter: expires, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, ip := range addresses {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	return a.sign(pub, tmpl)
}

func (a *Authority) sign(pub crypto.PublicKey, tmpl *x509.Certificate) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl.SerialNumber, tmpl.BasicConstraintsValid = serial, true
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.Cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
