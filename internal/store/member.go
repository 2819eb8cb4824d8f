package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// Bounds of the embedded etcd.
const (
	// quota is the most that the state may take on disk: Config.Quota's default.
	quota = 4 << 30
	// tick and election are etcd's clock in ms. A member that is alone waits for
	// an election before it can answer, and loses it to nobody: a tenth of etcd's
	// defaults for networks.
	tick, election = 20, 100
	// startLimit is how long etcd may take to be ready: Config.StartLimit's
	// default.
	startLimit = 60 * time.Second
)

// member is an etcd of one member in this process. Nobody else can talk to it:
// its sockets lie in a directory that only root can enter.
type member struct {
	etcd    *embed.Etcd
	sockets string
	lock    *os.File
	once    sync.Once
}

func startMember(ctx context.Context, cfg Config) (*member, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	sockets, err := socketDir(cfg.Dir)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	fail := func(err error) (*member, error) {
		return nil, errors.Join(err, os.RemoveAll(sockets), lock.Close())
	}
	c := embed.NewConfig()
	c.Name = "hanok"
	c.Dir = filepath.Join(cfg.Dir, "etcd")
	c.TickMs, c.ElectionMs = tick, election
	socket := func(name string) []url.URL {
		return []url.URL{{Scheme: "unix", Path: filepath.Join(sockets, name)}}
	}
	c.ListenPeerUrls, c.ListenClientUrls = socket("peer"), socket("client")
	local := []url.URL{{Scheme: "http", Host: "localhost:0"}} // never dialled: there are no others
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = local, local
	c.InitialCluster = c.Name + "=" + local[0].String()
	c.QuotaBackendBytes = cfg.Quota
	c.MaxTxnOps = 4 * MaxOps
	c.MaxRequestBytes = 8 << 20
	words := lastWords{cfg.Log, c.Dir}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(newLogCore(cfg.Log), zap.WithPanicHook(words), zap.WithFatalHook(words)))
	if err := readable(filepath.Join(c.Dir, "member", "snap", "db")); err != nil {
		return fail(err)
	}
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fail(fmt.Errorf("start the embedded etcd in %s: %w; if its files are damaged, restore a backup into a new data directory", c.Dir, err))
	}
	m := &member{etcd: e, sockets: sockets, lock: lock}
	select {
	case <-e.Server.ReadyNotify():
		return m, nil
	case err := <-e.Err():
		m.stop()
		return nil, fmt.Errorf("the embedded etcd ended: %w", err)
	case <-ctx.Done():
		m.stop()
		return nil, ctx.Err()
	case <-time.After(cfg.StartLimit):
		m.stop()
		return nil, fmt.Errorf("the embedded etcd was not ready within %v, the log says more: if its files in %s are damaged, restore a backup into a new data directory", cfg.StartLimit, c.Dir)
	}
}

// lockDir takes a data directory for this process, or says that another has it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another server works in %s: it must end first (%w)", dir, err), f.Close())
	}
	return f, nil
}

// readable refuses a database that etcd would end the process over.
func readable(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("the state in %s is damaged (%w): restore a backup into a new data directory", path, err)
	}
	return db.Close()
}

// lastWords says what to do when etcd ends the process over its files.
type lastWords struct {
	log *slog.Logger
	dir string
}

// OnWrite implements zapcore.CheckWriteHook: like the default, but in words.
func (w lastWords) OnWrite(e *zapcore.CheckedEntry, _ []zapcore.Field) {
	w.log.Error("the embedded etcd cannot go on: if its files are damaged, restore a backup into a new data directory", "dir", w.dir, "reason", e.Message)
	if e.Level == zapcore.FatalLevel {
		os.Exit(1)
	}
	panic(e.Message)
}

// maxSocketPath is what Linux takes, less the zero byte at the end (unix(7)).
const maxSocketPath = 107

// socketDir is where the sockets lie: in the data directory, where a process
// that was killed leaves nothing behind that the next one does not take over.
// Only where that path is too long for a socket is it a directory of its own.
func socketDir(data string) (string, error) {
	dir := filepath.Join(data, "sockets")
	abs, err := filepath.Abs(filepath.Join(dir, "client"))
	if err != nil {
		return "", err
	}
	if len(abs) > maxSocketPath {
		return os.MkdirTemp("", "hanok-etcd-")
	}
	return dir, os.MkdirAll(dir, 0o700)
}

func (m *member) client() *clientv3.Client { return v3client.New(m.etcd.Server) }

func (m *member) failed() <-chan error { return m.etcd.Err() }

func (m *member) stop() {
	m.once.Do(func() {
		m.etcd.Close()
		_ = os.RemoveAll(m.sockets)
		_ = m.lock.Close()
	})
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
