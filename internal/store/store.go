package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	// ErrConflict: what a Commit rests on does not hold any more.
	ErrConflict = errors.New("it was changed meanwhile")
	// ErrNotFound: there is no such key.
	ErrNotFound = errors.New("there is no such key")
	// ErrCompacted: a Watch was to begin at a revision whose history is gone, or
	// a List was to read at one.
	ErrCompacted = errors.New("the history goes not back that far")
)

// MaxValue bounds one value. External etcd takes requests of 1.5 MiB by
// default, so that callers compress what may be larger.
const MaxValue = 1 << 20

// MaxOps bounds the writes of one Commit: etcd's default limit is 128
// operations, nested ones counted apart.
const MaxOps = 100

// Config says where the state is. One of Dir and Endpoints is required.
type Config struct {
	// Dir holds the embedded etcd. It is made with mode 0700.
	Dir string
	// Endpoints are those of an external cluster, TLS what it wants to see.
	Endpoints []string
	TLS       *TLSFiles
	// Prefix comes before all keys. Default "/hanok/".
	Prefix string
	// Timeout bounds each operation. Default 10 s.
	Timeout time.Duration
	// StartLimit is how long the embedded etcd may take to be ready. Default 60 s.
	StartLimit time.Duration
	// Quota is the most bytes that the embedded etcd's file may have, at which
	// room is made or writes are refused. Default 4 GiB.
	Quota int64
	Log   *slog.Logger
	// Failpoint is called at named moments between which a crash must do no
	// harm; tests end the process there. Default: nothing.
	Failpoint func(name string)
}

// TLSFiles are PEM files for an external cluster.
type TLSFiles struct{ CA, Cert, Key string }

// Store is an open store; its methods may be called concurrently.
type Store struct {
	cfg    Config
	client *clientv3.Client
	member *member // nil with an external cluster
	id     string
	room   sync.Mutex // held while room is made
}

// Item is a key with its value.
type Item struct {
	Key   string
	Value []byte
	// Created and Modified are revisions: when the key was made, and last
	// changed.
	Created, Modified int64
}

// Open starts the embedded etcd, or connects to the external one.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if (cfg.Dir == "") == (len(cfg.Endpoints) == 0) {
		return nil, errors.New("store: give a directory for the embedded etcd, or the endpoints of an external one")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "/hanok/"
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.StartLimit <= 0 {
		cfg.StartLimit = startLimit
	}
	if cfg.Quota <= 0 {
		cfg.Quota = quota
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Failpoint == nil {
		cfg.Failpoint = func(string) {}
	}
	s := &Store{cfg: cfg}
	if err := s.open(ctx); err != nil {
		if s.client != nil {
			_ = s.Close()
		}
		return nil, fmt.Errorf("store: %w", err)
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if len(s.cfg.Endpoints) > 0 {
		var conf *tls.Config
		if s.client, conf, err = dial(s.cfg); err != nil {
			return err
		}
		if s.id, err = s.identify(ctx); err != nil {
			return unanswered(ctx, s.cfg.Endpoints, conf, err)
		}
		return s.whole(ctx)
	}
	if s.member, err = startMember(ctx, s.cfg); err != nil {
		return err
	}
	s.client = s.member.client()
	if err := s.tidy(ctx); err != nil {
		return err
	}
	if s.id, err = s.identify(ctx); err != nil {
		return err
	}
	// Whoever led in this directory is gone: this process has it alone.
	if _, err := s.Commit(ctx, new(Txn).DeleteAll("lead/")); err != nil {
		return err
	}
	return s.whole(ctx)
}

// Close ends the connection and the embedded etcd.
func (s *Store) Close() error {
	err := s.client.Close()
	if s.member != nil {
		s.member.stop()
		err = nil // its client has no connection to close
	}
	return err
}

// Embedded reports whether etcd runs in this process.
func (s *Store) Embedded() bool { return s.member != nil }

// Failed is closed when the embedded etcd ended by itself.
func (s *Store) Failed() <-chan error {
	if s.member == nil {
		return nil
	}
	return s.member.failed()
}

// ID identifies this store's history: revisions of stores with different ids
// have nothing to do with each other.
func (s *Store) ID() string { return s.id }

// Failpoint passes a named moment (Config.Failpoint).
func (s *Store) Failpoint(name string) { s.cfg.Failpoint(name) }

func (s *Store) identify(ctx context.Context) (string, error) {
	for {
		it, err := s.Get(ctx, "store/id")
		if err == nil {
			return string(it.Value), nil
		}
		if !errors.Is(err, ErrNotFound) {
			return "", err
		}
		_, err = s.Commit(ctx, new(Txn).Absent("store/id").Put("store/id", []byte(randomID())))
		if err != nil && !errors.Is(err, ErrConflict) {
			return "", err
		}
	}
}

func (s *Store) key(k string) string { return s.cfg.Prefix + k }

func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.Timeout)
}

// Get reads one key; ErrNotFound when it is not there.
func (s *Store) Get(ctx context.Context, key string) (Item, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, s.key(key))
	if err != nil {
		return Item{}, fmt.Errorf("read %s: %w", key, err)
	}
	if len(r.Kvs) == 0 {
		return Item{}, fmt.Errorf("read %s: %w", key, ErrNotFound)
	}
	kv := r.Kvs[0]
	return Item{Key: key, Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision}, nil
}

// ListOptions select and order what List returns.
type ListOptions struct {
	// Limit is the most items; 0: all. After is the key to begin behind.
	Limit int64
	After string
	// NewestFirst orders by Created, falling; After does not apply then.
	NewestFirst bool
	// CreatedBefore and CreatedAfter keep items of those revisions, exclusive;
	// 0: all.
	CreatedBefore, CreatedAfter int64
	// KeysOnly leaves the values out.
	KeysOnly bool
	// Revision is the moment to read at; 0: now.
	Revision int64
}

// List returns the items whose keys begin with prefix, by key, and the revision
// at which they were read.
func (s *Store) List(ctx context.Context, prefix string, o ListOptions) ([]Item, int64, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	from, end := s.key(prefix), clientv3.GetPrefixRangeEnd(s.key(prefix))
	if o.After != "" {
		from = s.key(o.After) + "\x00"
	}
	opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(o.Limit)}
	if o.NewestFirst {
		opts = append(opts, clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	}
	if o.CreatedBefore > 0 {
		opts = append(opts, clientv3.WithMaxCreateRev(o.CreatedBefore-1))
	}
	if o.CreatedAfter > 0 {
		opts = append(opts, clientv3.WithMinCreateRev(o.CreatedAfter+1))
	}
	if o.KeysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	if o.Revision > 0 {
		opts = append(opts, clientv3.WithRev(o.Revision))
	}
	r, err := s.client.Get(ctx, from, opts...)
	if err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, compacted(err))
	}
	out := make([]Item, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		out = append(out, Item{Key: strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), Value: kv.Value, Created: kv.CreateRevision, Modified: kv.ModRevision})
	}
	return out, r.Header.Revision, nil
}
