package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/wire"
)

// maxServers bounds the connections of servers.
const maxServers = 64

// remote serves the servers of the cluster: the local API's answers, over
// mutual TLS, for certificates that name a server. Nothing in the agent waits
// for a server, and nothing is lost while none comes. Hosts of the cluster may
// leave a word there (control.go).
type remote struct {
	self  model.HostID
	creds func() (*pki.Credentials, error)
	port  uint16
	log   *slog.Logger
	http  *http.Server

	mu      sync.Mutex
	open    map[netip.Addr]net.Listener
	members map[model.HostID]bool
	wg      sync.WaitGroup
}

// remoteHandler are the paths that a server may ask.
func (a *Agent) remoteHandler(run context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+local.PathStatus, a.serveStatus)
	mux.HandleFunc("POST "+local.PathAdmin, a.serveAdmin("through a server"))
	mux.HandleFunc("GET "+local.PathConfig, a.serveConfig)
	a.trustRoutes(mux, true)
	mux.HandleFunc("GET "+local.PathFollow, func(w http.ResponseWriter, r *http.Request) { a.serveFollow(run, w, r) })
	mux.HandleFunc("POST "+local.PathPeer, func(w http.ResponseWriter, r *http.Request) { a.servePeer(run, w, r) })
	return mux
}

// callerOf is whom the handshake of a request's connection identified.
func callerOf(r *http.Request) (pki.Identity, error) {
	c, ok := r.Context().Value(sessionKey{}).(*tls.Conn)
	if !ok {
		return pki.Identity{}, errors.New("the connection is not TLS")
	}
	return pki.PeerIdentity(c.ConnectionState())
}

// openRemote listens for servers and returns what ends it. That it cannot is
// no reason not to work: failover needs no server.
func (a *Agent) openRemote(ctx context.Context) func() {
	if a.cfg.Ports.OpenRemote == nil {
		return func() {}
	}
	r, err := a.cfg.Ports.OpenRemote(a.setup.Load().cluster, a.host, a.remoteHandler(ctx))
	if err != nil {
		a.log.Warn("a server cannot ask this host", "err", err)
	}
	if r == nil {
		return func() {}
	}
	a.servers = r
	if a.cfg.Ports.DialPeer != nil && err == nil {
		a.control = newControl(ctx, a)
	}
	return func() { _ = r.Close() }
}

// newRemote makes the listener for servers; Configure opens it. creds is asked
// at every handshake, so that a renewed certificate counts at once.
func newRemote(self model.HostID, creds func() (*pki.Credentials, error), port uint16, log *slog.Logger, h http.Handler) *remote {
	r := &remote{self: self, creds: creds, port: port, log: log, open: map[netip.Addr]net.Listener{}}
	r.http = &http.Server{Handler: r.still(h), ConnContext: withSession, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	return r
}

type sessionKey struct{}

func withSession(ctx context.Context, c net.Conn) context.Context {
	if o, ok := c.(hidden); ok {
		return context.WithValue(ctx, sessionKey{}, o.Conn)
	}
	return ctx
}

// still lets a request through only while its connection would be accepted
// anew: the peer's certificate has not ended, and its authority is trusted. A
// long answer ends with the certificate. Hosts may ask for PathPeer and nothing
// else, servers for all else.
func (r *remote) still(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		conn, ok := req.Context().Value(sessionKey{}).(*tls.Conn)
		creds, err := r.creds()
		if !ok {
			err = errors.New("the connection is not TLS")
		}
		if err != nil {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusServiceUnavailable, err, "")
			return
		}
		cs := conn.ConnectionState()
		protocol, rule := r.ruleFor(req.URL.Path == local.PathPeer)
		if err := creds.Recheck(cs, protocol, rule); err != nil {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusUnauthorized, err, "connect anew, with a certificate that this host trusts")
			return
		}
		ctx, cancel := context.WithDeadline(req.Context(), cs.PeerCertificates[0].NotAfter)
		defer cancel()
		next.ServeHTTP(w, req.WithContext(ctx))
	})
}

// serverOnly is the rule of who may ask.
func serverOnly(id pki.Identity) error {
	if id.Server == "" {
		return &pki.Refused{Reason: pki.ReasonNotMember, Detail: fmt.Sprintf("%s is a host, not a server", id.Host)}
	}
	return nil
}

// ruleFor are the protocol and the rule of who may ask, for hosts or for servers.
func (r *remote) ruleFor(hosts bool) (string, func(pki.Identity) error) {
	if hosts {
		return local.PeerProtocol, r.memberOnly
	}
	return local.RemoteProtocol, serverOnly
}

// memberOnly is the rule of who may leave a word.
func (r *remote) memberOnly(id pki.Identity) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.members[id.Host] {
		return &pki.Refused{Reason: pki.ReasonNotMember, Detail: fmt.Sprintf("%s is not another host of this cluster", id)}
	}
	return nil
}

// Configure listens on this host's own addresses of a cluster file.
func (r *remote) Configure(c *config.Cluster) error {
	_, own := wire.Members(c, r.self)
	want := map[netip.Addr]bool{}
	for _, a := range own {
		want[a.Addr.Unmap()] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = map[model.HostID]bool{}
	for i := range c.Hosts {
		r.members[c.Hosts[i].Name] = c.Hosts[i].Name != r.self
	}
	for addr, ln := range r.open {
		if !want[addr] {
			ln.Close()
			delete(r.open, addr)
		}
	}
	var errs []error
	for addr := range want {
		if r.open[addr] != nil {
			continue
		}
		ln, err := (&net.ListenConfig{Control: freebind}).Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, r.port).String())
		if err != nil {
			errs = append(errs, fmt.Errorf("listen for servers: %w", err))
			continue
		}
		r.open[addr] = ln
		r.wg.Go(func() {
			r.serve(opaque{tls.NewListener(limitListener(ln, maxServers), &tls.Config{GetConfigForClient: r.config, MinVersion: tls.VersionTLS13})})
		})
	}
	return errors.Join(errs...)
}

// opaque hides from net/http that a connection is TLS: it would look for a
// handler of our protocol's name instead of speaking HTTP.
type opaque struct{ net.Listener }

func (o opaque) Accept() (net.Conn, error) {
	c, err := o.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return hidden{c}, nil
}

type hidden struct{ net.Conn }

// config is how one handshake is made.
func (r *remote) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	creds, err := r.creds()
	if err != nil {
		return nil, err
	}
	protocol, rule := r.ruleFor(slices.Contains(hello.SupportedProtos, local.PeerProtocol))
	return creds.ServerTLS(protocol, rule), nil
}

// openHostRemote is Ports.OpenRemote of a real host.
func openHostRemote(keeper *pki.Keeper, c *config.Cluster, self model.HostID, h http.Handler, log *slog.Logger) (Remote, error) {
	r := newRemote(self, keeper.Load, local.RemotePort, log, h)
	return r, r.Configure(c)
}

func (r *remote) serve(ln net.Listener) {
	if err := r.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		r.log.Error("servers are not served any more", "address", ln.Addr(), "err", err)
	}
}

// Close ends all connections.
func (r *remote) Close() error {
	// An answer that is being written is let go: the server that replaced an ended
	// certificate must hear that it did.
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = r.http.Shutdown(ctx) // streams do not end by themselves
	err := r.http.Close()
	r.mu.Lock()
	for _, ln := range r.open {
		ln.Close() // one that is not served yet
	}
	r.mu.Unlock()
	r.wg.Wait()
	return err
}

// closeLimit is how long a request under way may keep the listener.
const closeLimit = 500 * time.Millisecond

// freebind lets an address be listened on before it is there: an agent must
// start while a network is down.
func freebind(network, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		if network == "tcp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	})
	return errors.Join(cerr, err)
}
