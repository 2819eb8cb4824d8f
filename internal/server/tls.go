package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// TLS is the certificate that the server shows at its address.
type TLS struct {
	// Cert and Key are PEM files of the administrator's own; they are read
	// anew when they change. Empty: a certificate of the server's own CA.
	Cert, Key string
	// Names are DNS names and addresses besides the machine's own that the
	// server is reached under.
	Names []string
}

// Certificates of the server's own CA live in memory only, and are made anew
// after two thirds of their life.
const addressLife = 90 * 24 * time.Hour

// storedAuthority is how an authority is kept.
type storedAuthority struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// authority is the CA of the servers' addresses: made at the first start, then
// the same for all servers over one store.
func (s *Server) authority(ctx context.Context) (*pki.Authority, error) {
	for {
		it, err := s.store.Get(ctx, state.AuthorityKey)
		if err == nil {
			var a storedAuthority
			if err := json.Unmarshal(it.Value, &a); err != nil {
				return nil, fmt.Errorf("the state's %s is damaged: %w; restore a backup", it.Key, err)
			}
			return pki.ParseAuthority("", []byte(a.Cert), []byte(a.Key))
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		made, err := pki.NewAuthority("", time.Time{})
		if err != nil {
			return nil, err
		}
		cert, key, err := made.PEM()
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(storedAuthority{string(cert), string(key)})
		if err != nil {
			return nil, err
		}
		if _, err := s.store.Commit(ctx, new(store.Txn).Absent(state.AuthorityKey).Put(state.AuthorityKey, b)); err != nil && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

func (s *Server) tlsConfig(ctx context.Context) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if s.cfg.TLS.Cert != "" || s.cfg.TLS.Key != "" {
		f := &fileCert{cert: s.cfg.TLS.Cert, key: s.cfg.TLS.Key}
		c, err := f.get(nil)
		if err != nil {
			return nil, err
		}
		leaf := c.Leaf
		s.fingerprint = pki.Fingerprint(leaf)
		conf.GetCertificate = f.get
		return conf, nil
	}
	a, err := s.authority(ctx)
	if err != nil {
		return nil, err
	}
	s.fingerprint, s.ca = pki.Fingerprint(a.Cert), string(pki.EncodeCerts(a.Cert))
	o := &ownCert{authority: a, names: s.cfg.TLS.Names, listen: s.addr}
	if _, err := o.get(nil); err != nil {
		return nil, err
	}
	conf.GetCertificate = o.get
	return conf, nil
}

// Fingerprint names the certificate by which callers of Address know the
// server: its CA's, or its own if that was given as files.
func (s *Server) Fingerprint() string { return s.fingerprint }

// ownCert makes certificates of the server's own CA.
type ownCert struct {
	authority *pki.Authority
	names     []string
	listen    net.Addr

	mu   sync.Mutex
	cert *tls.Certificate
	next time.Time
}

func (o *ownCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.cert != nil && now.Before(o.next) {
		return o.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	names, addrs := reachedUnder(o.names, o.listen)
	leaf, err := o.authority.SignAddress(key.Public(), names, addrs, now.Add(addressLife))
	if err != nil {
		return nil, err
	}
	// The CA goes with it, so that a client that knows its fingerprint can
	// check the rest.
	o.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw, o.authority.Cert.Raw}, PrivateKey: key, Leaf: leaf}
	o.next = now.Add(addressLife * 2 / 3)
	return o.cert, nil
}

// reachedUnder are the names and addresses of this machine.
func reachedUnder(more []string, listen net.Addr) (names []string, addrs []netip.Addr) {
	names = []string{"localhost"}
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	if t, ok := listen.(*net.TCPAddr); ok && !t.IP.IsUnspecified() {
		addrs = append(addrs, t.AddrPort().Addr().Unmap().WithZone(""))
	} else if all, err := net.InterfaceAddrs(); err == nil {
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				addrs = append(addrs, p.Addr().Unmap().WithZone(""))
			}
		}
	}
	for _, m := range more {
		if a, err := netip.ParseAddr(m); err == nil {
			addrs = append(addrs, a)
		} else {
			names = append(names, m)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	slices.Sort(names)
	return slices.Compact(names), slices.Compact(addrs)
}

// fileCert reads a certificate from files, anew when they changed.
type fileCert struct {
	cert, key string

	mu   sync.Mutex
	have *tls.Certificate
	at   [2]time.Time
}

func (f *fileCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at [2]time.Time
	for i, name := range []string{f.cert, f.key} {
		st, err := os.Stat(name)
		if err != nil {
			return f.orHave(fmt.Errorf("--tls-cert and --tls-key: %w", err))
		}
		at[i] = st.ModTime()
	}
	if f.have != nil && at == f.at {
		return f.have, nil
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return f.orHave(fmt.Errorf("--tls-cert and --tls-key: %w", err))
	}
	if c.Leaf == nil {
		if c.Leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return f.orHave(err)
		}
	}
	f.have, f.at = &c, at
	return f.have, nil
}

// orHave goes on with the certificate before while new files are half there.
func (f *fileCert) orHave(err error) (*tls.Certificate, error) {
	if f.have != nil {
		return f.have, nil
	}
	return nil, err
}
