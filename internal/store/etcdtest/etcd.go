package etcdtest

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// Cluster is an etcd cluster in this process.
type Cluster struct {
	t       testing.TB
	configs []*embed.Config
	members []*embed.Etcd // nil: stopped
}

// Options of a cluster.
type Options struct {
	// Members is how many. Default 1.
	Members int
	// TLS lets clients in by certificate only; nil: without TLS.
	TLS *Certificates
	// Quota is etcd's own, in bytes; 0: its default.
	Quota int64
}

// Start runs a cluster until the test ends.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	n := max(o.Members, 1)
	c := &Cluster{t: t, members: make([]*embed.Etcd, n)}
	dir, initial := t.TempDir(), ""
	for i := range n {
		x := embed.NewConfig()
		x.Name, x.Dir, x.LogLevel = fmt.Sprintf("m%d", i), filepath.Join(dir, fmt.Sprint(i)), "panic"
		x.QuotaBackendBytes = o.Quota
		peer, client := free(t, "http"), free(t, "http")
		if o.TLS != nil {
			client.Scheme = "https"
			x.ClientTLSInfo = transport.TLSInfo{TrustedCAFile: o.TLS.CA, CertFile: o.TLS.ServerCert, KeyFile: o.TLS.ServerKey, ClientCertAuth: true}
		}
		x.ListenPeerUrls, x.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		x.ListenClientUrls, x.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		x.TickMs, x.ElectionMs = 50, 500
		initial += fmt.Sprintf(",%s=%s", x.Name, peer.String())
		c.configs = append(c.configs, x)
	}
	for _, x := range c.configs {
		x.InitialCluster = initial[1:]
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.Stop(i)
		}
	})
	for i := range n {
		c.launch(i)
	}
	c.ready()
	return c
}

// free is an address of loopback that nobody listens at.
func free(t testing.TB, scheme string) url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return url.URL{Scheme: scheme, Host: ln.Addr().String()}
}

func (c *Cluster) launch(i int) {
	c.t.Helper()
	e, err := embed.StartEtcd(c.configs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	c.members[i] = e
}

func (c *Cluster) ready() {
	for _, e := range c.members {
		if e != nil {
			<-e.Server.ReadyNotify()
		}
	}
}

// Endpoints are where its members listen for clients.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, x := range c.configs {
		out = append(out, x.ListenClientUrls[0].String())
	}
	return out
}

// Leader is the member that leads, or -1.
func (c *Cluster) Leader() int {
	for i, e := range c.members {
		if e != nil && e.Server.Leader() == e.Server.MemberID() {
			return i
		}
	}
	return -1
}

// Stop ends a member; what it has stays.
func (c *Cluster) Stop(i int) {
	if e := c.members[i]; e != nil {
		c.members[i] = nil
		e.Close()
	}
}

// Start runs a stopped member again, with what it had.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	c.configs[i].ClusterState = embed.ClusterStateFlagExisting
	c.launch(i)
	c.ready()
}
