package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// Bounds of the embedded etcd.
const (
	// quota is the most that the state may take on disk; at it etcd refuses
	// writes.
	quota = 4 << 30
	// tick and election are etcd's clock in ms. A member that is alone waits for
	// an election before it can answer, and loses it to nobody: a tenth of etcd's
	// defaults for networks.
	tick, election = 20, 100
	// history is how long changes can be resumed.
	history = "1h"
	// startLimit is how long etcd may take to be ready.
	startLimit = 60 * time.Second
)

// member is an etcd of one member in this process. Nobody else can talk to it:
// its sockets lie in a directory that only root can enter.
type member struct {
	etcd    *embed.Etcd
	sockets string
	once    sync.Once
}

func startMember(ctx context.Context, cfg Config) (*member, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	sockets, err := socketDir(cfg.Dir)
	if err != nil {
		return nil, err
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
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, history
	c.QuotaBackendBytes = quota
	c.MaxTxnOps = 4 * MaxOps
	c.MaxRequestBytes = 8 << 20
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(newLogCore(cfg.Log)))
	fail := func(err error) (*member, error) { return nil, errors.Join(err, os.RemoveAll(sockets)) }
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fail(fmt.Errorf("start the embedded etcd in %s: %w", c.Dir, err))
	}
	m := &member{etcd: e, sockets: sockets}
	select {
	case <-e.Server.ReadyNotify():
		return m, nil
	case err := <-e.Err():
		m.stop()
		return nil, fmt.Errorf("the embedded etcd ended: %w", err)
	case <-ctx.Done():
		m.stop()
		return nil, ctx.Err()
	case <-time.After(startLimit):
		m.stop()
		return nil, fmt.Errorf("the embedded etcd was not ready within %v: is another server using %s?", startLimit, cfg.Dir)
	}
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
	})
}

// dial connects to an external etcd.
func dial(cfg Config) (*clientv3.Client, error) {
	c := clientv3.Config{Endpoints: cfg.Endpoints, DialTimeout: cfg.Timeout, Logger: zap.New(newLogCore(cfg.Log)),
		MaxCallSendMsgSize: 8 << 20, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second, RejectOldCluster: true}
	if f := cfg.TLS; f != nil {
		info := transport.TLSInfo{TrustedCAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key}
		conf, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("TLS for etcd: %w", err)
		}
		c.TLS = conf
	}
	return clientv3.New(c)
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}
