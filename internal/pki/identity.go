package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

const uriScheme = "hanok"

// Identity is who a certificate speaks for: a host, or a server.
type Identity struct {
	Cluster string
	Host    model.HostID
	// Server is a server's name; Host is empty then, so that no server passes
	// for a member.
	Server string
}

// URI is the form of the identity in a certificate.
func (i Identity) URI() string {
	path := "/host/" + string(i.Host)
	if i.Server != "" {
		path = "/server/" + i.Server
	}
	return (&url.URL{Scheme: uriScheme, Host: i.Cluster, Path: path}).String()
}

func (i Identity) String() string {
	if i.Server != "" {
		return "server " + i.Server + " of cluster " + i.Cluster
	}
	return string(i.Host) + " of cluster " + i.Cluster
}

// validate reports whether the identity names one host or one server.
func (i Identity) validate() error {
	if i.Server == "" {
		return i.Host.Validate()
	}
	return model.HostID(i.Server).Validate()
}

// Reason says in one word why a certificate was refused; it names a counter.
type Reason string

// The reasons for refusing a certificate.
const (
	ReasonNoCertificate Reason = "noCertificate"
	ReasonForeignCA     Reason = "foreignCA"
	ReasonExpired       Reason = "expired"
	ReasonNotYetValid   Reason = "notYetValid"
	ReasonUsage         Reason = "usage"
	ReasonNoIdentity    Reason = "noIdentity"
	ReasonWrongCluster  Reason = "wrongCluster"
	ReasonWrongHost     Reason = "wrongHost"
	ReasonNotMember     Reason = "notMember"
	ReasonProtocol      Reason = "protocol"
)

// Refused is the error of a certificate that was not accepted.
type Refused struct {
	Reason Reason
	Detail string
}

func (r *Refused) Error() string { return "certificate refused: " + r.Detail }

func refuse(r Reason, format string, args ...any) error {
	return &Refused{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// identityOf reads the identity out of a certificate.
func identityOf(cert *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Identity{}, refuse(ReasonNoIdentity, "it has %d hanok:// names instead of one (subject %q); issue it with `hanok pki issue`", len(found), cert.Subject)
	}
	id := Identity{Cluster: found[0].Host}
	if host, ok := strings.CutPrefix(found[0].Path, "/host/"); ok {
		id.Host = model.HostID(host)
	} else {
		id.Server = strings.TrimPrefix(found[0].Path, "/server/")
	}
	if id.Cluster == "" || id.validate() != nil || id.URI() != found[0].String() {
		return Identity{}, refuse(ReasonNoIdentity, "its name %q is not of the form hanok://CLUSTER/host/HOST or hanok://CLUSTER/server/NAME", found[0])
	}
	return id, nil
}

// verify checks a peer's chain against the authority and returns whom it
// identifies. usage is what the peer used the certificate for.
func verify(ca *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, refuse(ReasonNoCertificate, "none was sent")
	}
	leaf := chain[0]
	// The times are looked at apart, because the library's message does not
	// say whose clock may be wrong, and first against the authority: only of a
	// certificate that is ours otherwise is "expired" worth saying.
	at := now
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: ca, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return Identity{}, refuse(ReasonUsage, "it may not be used as client and server alike")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return Identity{}, refuse(ReasonExpired, "the cluster's CA certificate is not valid at %s; make a new one with `hanok pki init`", now.UTC().Format(time.RFC3339))
	case err != nil:
		return Identity{}, refuse(ReasonForeignCA, "the cluster's CA did not sign it (issuer %q): %v", leaf.Issuer, err)
	case now.Before(leaf.NotBefore):
		return Identity{}, refuse(ReasonNotYetValid, "it is valid from %s and this host's clock says %s", leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return Identity{}, refuse(ReasonExpired, "it expired at %s and this host's clock says %s; enrol that host anew (`hanok host token`), or `hanok pki issue --force`",
			leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return identityOf(leaf)
}
