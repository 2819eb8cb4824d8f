package wire

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// changing are credentials that a test replaces.
type changing struct {
	atomic.Pointer[pki.Credentials]
}

func (c *changing) Current() *pki.Credentials { return c.Load() }

// of are credentials of a host that one authority signed and that trusts several.
func of(t *testing.T, signer *pki.Authority, host model.HostID, life time.Duration, trusts ...*pki.Authority) *pki.Credentials {
	t.Helper()
	id := pki.Identity{Cluster: "test", Host: host}
	key, _, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := signer.Sign(key.Public(), id, nil, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	var certs []byte
	for _, a := range trusts {
		certs = append(certs, pki.EncodeCerts(a.Cert)...)
	}
	list, err := pki.ParseCerts(certs)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.NewCredentials(list, leaf, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func authorityOf(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority("test", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Two hosts go through each step of a replacement in turn, at each of which one
// is ahead of the other, and are never strangers to each other.
func TestAuthorityIsReplacedBetweenRunningHosts(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	old, next := authorityOf(t), authorityOf(t)
	creds := map[model.HostID]*changing{}
	for _, h := range c.hosts {
		creds[h] = &changing{}
		creds[h].Store(of(t, old, h, time.Hour, old))
		c.start(h, func(cfg *Config) { cfg.Credentials, cfg.Rekey = creds[h], 150*time.Millisecond })
	}
	c.waitKeys()
	for _, step := range []func(h model.HostID) *pki.Credentials{
		func(h model.HostID) *pki.Credentials { return of(t, old, h, time.Hour, old, next) },
		func(h model.HostID) *pki.Credentials { return of(t, next, h, time.Hour, next, old) },
		func(h model.HostID) *pki.Credentials { return of(t, next, h, time.Hour, next) },
	} {
		for _, h := range c.hosts {
			creds[h].Store(step(h))
			done := c.stat(h, "handshakesDone")
			c.waitStat(h, "handshakesDone", done+3) // keys are made anew with what is in force now
		}
	}
	c.noRefusals(c.hosts...)
	creds["host1"].Store(of(t, old, "host1", time.Hour, old, next)) // a host that fell behind
	c.waitStat("host2", "refusedForeignCA", 1)
}

// A certificate that ends while the agents run takes messages away, not the
// heartbeats: nobody is called silent for it.
func TestHeartbeatsOutliveTheCertificate(t *testing.T) {
	c := newCluster(t, "host1", "host2")
	ca := authorityOf(t)
	for _, h := range c.hosts {
		life := time.Hour
		if h == "host2" {
			life = 3 * time.Second
		}
		creds := of(t, ca, h, life, ca)
		c.start(h, func(cfg *Config) {
			cfg.Credentials, cfg.Rekey, cfg.Idle = creds, 200*time.Millisecond, 200*time.Millisecond
		})
	}
	c.waitKeys()
	c.waitStat("host1", "refusedExpired", 3)
	for _, h := range c.hosts {
		other := c.hosts[0]
		if other == h {
			other = c.hosts[1]
		}
		c.datagram(h, other, c.addrs(h)[0].Network, "after the end")
	}
}

// FuzzReceive: whatever comes by UDP is counted as refused and reaches nobody.
func FuzzReceive(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "ca")
	if err := pki.Init(dir, "test", pki.Options{}); err != nil {
		f.Fatal(err)
	}
	n := &Node{handler: nothing{}}
	n.keys.init()
	for _, b := range [][]byte{nil, {datagramMagic, datagramFormat}, append([]byte{datagramMagic, datagramFormat}, make([]byte, headerSize+tagSize)...), []byte(strings.Repeat("x", largestPacket+1))} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := n.Stats()
		n.receive("mgmt", b)
		sum := func(m map[string]uint64) (out uint64) {
			for k, v := range m {
				if strings.HasPrefix(k, "refused") {
					out += v
				}
			}
			return out
		}
		if after := n.Stats(); after["datagramsReceived"] != 0 || sum(after) != sum(before)+1 {
			t.Errorf("not refused: %v", after)
		}
	})
}
