package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Keeper holds a host's credentials while the files under it change: what was
// installed, or put there by hand, counts from the next handshake on. Safe for
// concurrent use.
type Keeper struct {
	dir string

	mu      sync.Mutex
	have    *Credentials
	at      [3]time.Time
	pending *ecdsa.PrivateKey // of the request under way
}

// NewKeeper keeps the credentials in dir, which may be empty yet.
func NewKeeper(dir string) *Keeper { return &Keeper{dir: dir} }

// Load is the present credentials. Files that cannot be used are an error only
// while there are no older ones.
func (k *Keeper) Load() (*Credentials, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.load()
}

// Current is Load without its error: nil when there is nothing to use.
func (k *Keeper) Current() *Credentials {
	c, _ := k.Load() // the caller has none then
	return c
}

func (k *Keeper) load() (*Credentials, error) {
	var at [3]time.Time
	for i, name := range []string{CACert, HostCert, HostKey} {
		if st, err := os.Stat(filepath.Join(k.dir, name)); err == nil {
			at[i] = st.ModTime()
		}
	}
	if k.have != nil && at == k.at {
		return k.have, nil
	}
	c, err := Load(k.dir)
	if err != nil {
		if k.have != nil {
			return k.have, nil // half replaced; looked at again next time
		}
		return nil, err
	}
	k.have, k.at = c, at
	return c, nil
}

// Request makes a new key, in memory, and the request for a certificate in this
// host's present name. A later one takes its place.
func (k *Keeper) Request() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.load()
	if err != nil {
		return nil, err
	}
	key, request, err := NewRequest(c.Identity)
	if err != nil {
		return nil, err
	}
	k.pending = key
	return request, nil
}

// Install takes the authorities to trust from now on and, unless it is empty,
// the certificate that the last Request asked for (both PEM). Both are checked
// first: what would leave this host with a certificate that its own authorities
// do not vouch for, or under another name, changes nothing. dropped says that an
// authority is not trusted any more.
func (k *Keeper) Install(authorities, certificate []byte) (dropped bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, err := k.load()
	if err != nil {
		return false, err
	}
	cas, err := ParseCerts(authorities)
	if err != nil {
		return false, fmt.Errorf("authorities: %w", err)
	}
	leaf, key := now.cert.Leaf, now.key
	if len(certificate) > 0 {
		certs, err := ParseCerts(certificate)
		if err != nil || len(certs) != 1 {
			return false, errors.Join(errors.New("certificate: there must be one"), err)
		}
		leaf, key = certs[0], k.pending
		if key == nil || !key.PublicKey.Equal(leaf.PublicKey) {
			return false, errors.New("certificate: it is not for the key of the last request")
		}
	}
	next, err := NewCredentials(cas, leaf, key)
	if err != nil {
		return false, err
	}
	if next.Identity != now.Identity {
		return false, refuse(ReasonWrongHost, "it is for %s and this is %s", next.Identity, now.Identity)
	}
	if err := next.Check(time.Now()); err != nil && len(certificate) > 0 {
		return false, err
	}
	for _, old := range now.Authorities {
		dropped = dropped || !slices.ContainsFunc(cas, old.Equal)
	}
	if err := writeAuthorities(k.dir, cas); err != nil {
		return false, err
	}
	if len(certificate) > 0 {
		if err := writeHost(k.dir, leaf, key); err != nil {
			return false, err
		}
		k.pending = nil
	}
	k.have, k.at = next, [3]time.Time{} // read anew at the next look
	return dropped, nil
}

// Enrol writes the files of a host that has just got its certificate; what was
// there before is replaced. The daemons take them up by themselves.
func Enrol(dir string, authorities, certificate []byte, key *ecdsa.PrivateKey, id Identity) error {
	cas, err := ParseCerts(authorities)
	if err != nil {
		return fmt.Errorf("authorities: %w", err)
	}
	certs, err := ParseCerts(certificate)
	if err != nil || len(certs) != 1 {
		return errors.Join(errors.New("certificate: there must be one"), err)
	}
	c, err := NewCredentials(cas, certs[0], key)
	if err != nil {
		return err
	}
	if c.Identity != id {
		return refuse(ReasonWrongHost, "it is for %s and %s was asked for", c.Identity, id)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	if err := writeAuthorities(dir, cas); err != nil {
		return err
	}
	return writeHost(dir, certs[0], key)
}

func writeAuthorities(dir string, cas []*x509.Certificate) error {
	return writeFile(filepath.Join(dir, CACert), EncodeCerts(cas...), 0o644)
}

// nextCert is the certificate that belongs to a key which took its place first.
const nextCert = HostCert + ".new"

// writeHost replaces key and certificate. A crash in between leaves the new key
// with the new certificate in nextCert, where Load finds it.
func writeHost(dir string, leaf *x509.Certificate, key *ecdsa.PrivateKey) error {
	next := filepath.Join(dir, nextCert)
	if err := writeFile(next, EncodeCerts(leaf), 0o644); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, HostKey), "PRIVATE KEY", der, 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(dir, HostCert))
}
