package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// DefaultCADir is where `hanok pki` keeps the authority unless told otherwise.
// It belongs on one machine, off the hosts' backups: whoever has ca.key can be
// any host.
const DefaultCADir = "/etc/hanok/ca"

// The names of the files.
const (
	CACert   = "ca.crt"
	CAKey    = "ca.key"
	HostCert = "host.crt"
	HostKey  = "host.key"
)

// Validity of certificates that are made by hand. Long, because nobody renews
// them and an expired certificate silences a host as surely as a cut cable. A
// server's own are short (package trust).
const (
	CAValidity   = 20 * 365 * 24 * time.Hour
	HostValidity = 5 * 365 * 24 * time.Hour
)

// validFrom is the begin of every certificate's validity. A host whose clock
// fell back to years ago must still fail over: nothing in the design needs
// clocks that agree.
var validFrom = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Options vary how certificates are made; the zero value is right for all but
// tests and replacements.
type Options struct {
	// Force overwrites existing files.
	Force bool
	// Expires is the end of validity; default now plus CAValidity or
	// HostValidity.
	Expires time.Time
}

// Init makes a cluster's authority in dir: ca.crt and ca.key. It refuses to
// overwrite, because that would make strangers of all hosts.
func Init(dir, clusterID string, opt Options) error {
	if err := model.ValidateName(clusterID); err != nil {
		return fmt.Errorf("make a CA: cluster id: %w", err)
	}
	if err := refuseExisting(opt.Force, filepath.Join(dir, CACert), filepath.Join(dir, CAKey)); err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	a, err := NewAuthority(clusterID, opt.Expires)
	if err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	if err := writePair(dir, CACert, a.Cert.Raw, CAKey, a.key); err != nil {
		return fmt.Errorf("make a CA: %w", err)
	}
	return nil
}

// clusterOf reads back which cluster an authority is for.
func clusterOf(der []byte) (string, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	for _, u := range cert.URIs {
		if u.Scheme == uriScheme && u.Path == "/ca" && u.Host != "" {
			return u.Host, nil
		}
	}
	return "", errors.New("it names no cluster; make it with `hanok pki init`")
}

// Issue makes a host's certificate with the authority in caDir and puts ca.crt,
// host.crt and host.key into outDir, ready to be copied to /etc/hanok/pki of
// the host. addresses are those under which libvirt will be reached for
// migration; agents do not look at them.
func Issue(caDir, outDir string, host model.HostID, addresses []netip.Addr, opt Options) error {
	return issueTo(caDir, outDir, Identity{Host: host}, string(host), addresses, opt)
}

// IssueServer makes a server's certificate, in files of the same names: with it
// the server asks the agents of the cluster.
func IssueServer(caDir, outDir, name string, opt Options) error {
	return issueTo(caDir, outDir, Identity{Server: name}, name, nil, opt)
}

func issueTo(caDir, outDir string, id Identity, name string, addresses []netip.Addr, opt Options) error {
	fail := func(err error) error { return fmt.Errorf("issue a certificate for %s: %w", name, err) }
	if err := id.validate(); err != nil {
		return fail(err)
	}
	a, err := LoadAuthority(caDir)
	if err != nil {
		return fail(err)
	}
	if err := refuseExisting(opt.Force, filepath.Join(outDir, HostCert), filepath.Join(outDir, HostKey)); err != nil {
		return fail(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	cert, err := a.Sign(key.Public(), id, addresses, opt.Expires)
	if err != nil {
		return fail(err)
	}
	if err := writePair(outDir, HostCert, cert.Raw, HostKey, key); err != nil {
		return fail(err)
	}
	if err := writePEM(filepath.Join(outDir, CACert), "CERTIFICATE", a.Cert.Raw, 0o644); err != nil {
		return fail(err)
	}
	return nil
}

// HostDir is where `hanok pki issue` puts a host's files below the authority's
// directory.
func HostDir(caDir string, host model.HostID) string {
	return filepath.Join(caDir, "hosts", string(host))
}

// ClusterID tells which cluster the authority in caDir is for.
func ClusterID(caDir string) (string, error) {
	cert, err := readCert(filepath.Join(caDir, CACert))
	if err != nil {
		return "", err
	}
	return clusterOf(cert.Raw)
}

// LoadAuthority reads what Init made.
func LoadAuthority(dir string) (*Authority, error) {
	cert, err := readCert(filepath.Join(dir, CACert))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; make the CA first with `hanok pki init`", err)
	}
	if err != nil {
		return nil, err
	}
	cluster, err := clusterOf(cert.Raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, CACert), err)
	}
	key, err := readKey(filepath.Join(dir, CAKey))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to %s; restore both from one backup", filepath.Join(dir, CAKey), CACert)
	}
	return &Authority{Cluster: cluster, Cert: cert, key: key}, nil
}

func orDefault(t time.Time, validity time.Duration) time.Time {
	if !t.IsZero() {
		return t
	}
	return time.Now().Add(validity).Truncate(time.Second)
}

func clipTo(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return strings.TrimSpace(s)
}

func writePair(dir, certName string, der []byte, keyName string, key any) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, keyName), "PRIVATE KEY", keyDER, 0o600); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, certName), "CERTIFICATE", der, 0o644)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// writeFile replaces a file whole, so that a crash leaves the old or the new.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// syncDir makes renames in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func refuseExisting(force bool, files ...string) error {
	if force {
		return nil
	}
	for _, f := range files {
		if _, err := os.Lstat(f); err == nil {
			return fmt.Errorf("%s %w; use --force to replace it", f, fs.ErrExist)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, *big.Int, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	return key, serial, err
}
