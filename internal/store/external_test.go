package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/store/etcdtest"
)

func openAt(t *testing.T, cfg Config) *Store {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// again commits until it is taken.
func again(t *testing.T, s *Store, x *Txn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		_, err := s.Commit(ctx, x)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// A cluster of three goes on while one member is away, also for a store that is
// opened then, and a member that leads may be it.
func TestOneOfThreeMembersMayBeAway(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	s := openAt(t, Config{Endpoints: c.Endpoints(), Timeout: 5 * time.Second})
	commit(t, s, new(Txn).Put("k", []byte("1")))
	l, err := s.Lead(t.Context(), "work", "s")
	if err != nil {
		t.Fatal(err)
	}
	away := c.Leader()
	c.Stop(away)
	again(t, s, l.Fence(new(Txn).Put("k", []byte("2"))))
	select {
	case <-l.Lost():
		t.Error("the leadership did not last")
	default:
	}
	other := openAt(t, Config{Endpoints: c.Endpoints(), Timeout: 5 * time.Second})
	if it, err := other.Get(t.Context(), "k"); err != nil || string(it.Value) != "2" || other.ID() != s.ID() {
		t.Errorf("%v, %v", it, err)
	}
	c.Start(away)
	again(t, s, new(Txn).Put("k", []byte("3")))
}

// All of etcd is away for a while: what is asked meanwhile fails within the
// timeout, and afterwards a Watch has missed nothing.
func TestEtcdComesBack(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	s := openAt(t, Config{Endpoints: c.Endpoints(), Timeout: time.Second})
	from := commit(t, s, new(Txn).Put("w/0", nil))
	seen := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() {
		watched <- s.Watch(ctx, "w/", from, func(b Batch) error {
			for _, e := range b.Events {
				seen <- e.Key
			}
			return nil
		})
	}()
	commit(t, s, new(Txn).Put("w/1", nil))
	if k := <-seen; k != "w/1" {
		t.Fatal(k)
	}
	c.Stop(0)
	began := time.Now()
	if _, err := s.Commit(t.Context(), new(Txn).Put("w/lost", nil)); err == nil {
		t.Error("a change without etcd")
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("that took %v", d)
	}
	c.Start(0)
	again(t, s, new(Txn).Put("w/2", nil))
	if k := <-seen; k != "w/2" {
		t.Errorf("after the return %s was seen", k)
	}
	cancel()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended: %v", err)
	}
}

func TestTLSForEtcd(t *testing.T) {
	ours, foreign := etcdtest.NewCertificates(t), etcdtest.NewCertificates(t)
	c := etcdtest.Start(t, etcdtest.Options{TLS: ours})
	good := TLSFiles{CA: ours.CA, Cert: ours.ClientCert, Key: ours.ClientKey}
	s := openAt(t, Config{Endpoints: c.Endpoints(), TLS: &good})
	commit(t, s, new(Txn).Put("k", []byte("v")))
	at := c.Endpoints()[0]
	for name, tt := range map[string]struct {
		endpoint string
		files    TLSFiles
		want     string
	}{
		"another authority":     {at, TLSFiles{CA: foreign.CA, Cert: ours.ClientCert, Key: ours.ClientKey}, at + ": tls: failed to verify certificate"},
		"a foreign certificate": {at, TLSFiles{CA: ours.CA, Cert: foreign.ClientCert, Key: foreign.ClientKey}, at + ": remote error: tls: "},
		"no certificate":        {at, TLSFiles{CA: ours.CA}, at + ": remote error: tls: certificate required"},
		"certificate, no key":   {at, TLSFiles{CA: ours.CA, Cert: ours.ClientCert}, "belong together"},
		"no such file":          {at, TLSFiles{CA: ours.CA + "x"}, "no such file"},
		"without encryption":    {strings.Replace(at, "https", "http", 1), good, "would be spoken to without TLS"},
		"nobody there":          {"https://127.0.0.1:1", good, "https://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"},
	} {
		_, err := Open(t.Context(), Config{Endpoints: []string{tt.endpoint}, TLS: &tt.files, Timeout: 500 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// An external etcd at its quota refuses, and says so; it is its administrator's.
func TestAFullExternalEtcdIsTold(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Quota: 1 << 20})
	s := openAt(t, Config{Endpoints: c.Endpoints()})
	err := fill(t, s, func() bool { return false })
	if !errors.Is(err, ErrFull) {
		t.Fatalf("at the quota: %v", err)
	}
	if _, err := s.Commit(t.Context(), new(Txn).Delete("fill/1")); err != nil {
		t.Errorf("what makes room is refused, too: %v", err)
	}
}

// fill writes one key again and again, until it is refused or enough says so.
// etcd compares its size with the quota ten times a second: on a fast disk much
// more than the quota is taken first.
func fill(t *testing.T, s *Store, enough func() bool) error {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if enough() {
			return nil
		}
		if _, err := s.Commit(t.Context(), new(Txn).Put("fill/1", make([]byte, 100<<10))); err != nil {
			return err
		}
	}
	t.Fatal("30 s of writing filled nothing")
	return nil
}
