package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
)

// requestBlock is the PEM type of a request for a certificate.
const requestBlock = "CERTIFICATE REQUEST"

// NewRequest makes a key, which stays where it is made, and the request (PEM,
// PKCS 10) for the certificate of id.
func NewRequest(id Identity) (key *ecdsa.PrivateKey, request []byte, err error) {
	if err := id.validate(); err != nil {
		return nil, nil, err
	}
	uri, err := url.Parse(id.URI())
	if err != nil {
		return nil, nil, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

// CheckRequest reads a request for the certificate of id: it must be signed by
// its own key, of the kind that Hanok uses, and name id and nothing else. A
// request in another's name is [*Refused] with ReasonWrongHost.
func CheckRequest(text []byte, id Identity) (crypto.PublicKey, error) {
	fail := func(err error) (crypto.PublicKey, error) {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	if len(text) > maxFile {
		return fail(fmt.Errorf("it has %d bytes; at most %d", len(text), maxFile))
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != requestBlock || len(rest) > 0 {
		return fail(fmt.Errorf("it is no PEM block %q", requestBlock))
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fail(err)
	}
	if err := r.CheckSignature(); err != nil {
		return fail(err)
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return fail(errors.New("its key is not ECDSA on P-256"))
	}
	if len(r.URIs) != 1 || r.URIs[0].String() != id.URI() || len(r.DNSNames)+len(r.IPAddresses)+len(r.EmailAddresses) > 0 {
		return fail(refuse(ReasonWrongHost, "it asks for %v and only %s is permitted", r.URIs, id.URI()))
	}
	return key, nil
}
