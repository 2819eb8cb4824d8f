package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hanok.dev/hanok/internal/server/access"
)

// Bounds of connections at Listen.
const (
	maxConns        = 4096
	maxConnsAddress = 256 // of one address, a proxy's included
	headerLimit     = 10 * time.Second
	bodyLimit       = time.Minute // to send a request whole
	maxBody         = maxMessage + 64<<10
)

// listen serves the handler on the socket and on the address.
func (s *Server) listen(ctx context.Context, h http.Handler) error {
	if s.cfg.Socket != "" {
		ln, err := listenUnix(s.cfg.Socket)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", s.cfg.Socket, err)
		}
		s.serve("socket", ln, access.Identify(access.AsLocal, h))
	}
	if s.cfg.Listen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Listen, err)
	}
	s.addr = ln.Addr()
	ln = &bounded{Listener: ln, from: map[netip.Addr]int{}}
	if !s.cfg.Plain {
		conf, err := s.tlsConfig(ctx)
		if err != nil {
			return errors.Join(fmt.Errorf("listen on %s: %w", s.cfg.Listen, err), ln.Close())
		}
		ln = tls.NewListener(ln, conf)
	}
	// A browser that is logged in must not be made to act by another site.
	guarded := http.NewCrossOriginProtection().Handler(access.Identify(s.cfg.Access, h))
	s.serve("address", ln, hardened(guarded, bodyLimit))
	return nil
}

// hardened puts the bounds and headers of a public address around a handler; a
// request has limit to arrive.
func hardened(next http.Handler, limit time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if r.Body != nil && r.Body != http.NoBody {
			c := http.NewResponseController(w)
			if err := c.SetReadDeadline(time.Now().Add(limit)); err == nil {
				r.Body = &patient{http.MaxBytesReader(w, r.Body, maxBody), c}
			} else {
				r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			}
		}
		next.ServeHTTP(w, r)
	})
}

// patient ends the time limit of a request's body with the body: streams of
// answers last longer. After a failure it stays: what net/http still reads of the
// body, before it lets the connection go, is bounded by it, too.
type patient struct {
	io.ReadCloser
	c *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if errors.Is(err, io.EOF) {
		_ = p.c.SetReadDeadline(time.Time{}) // it fails when the connection ended
	}
	return n, err
}

// bounded is a listener with a bound on its connections, in all and of one
// address. Those above are closed at once.
type bounded struct {
	net.Listener
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var a netip.Addr
		if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			a = t.AddrPort().Addr().Unmap()
		}
		if b.enter(a) {
			return &counted{Conn: c, leave: func() { b.leave(a) }}, nil
		}
		_ = c.Close()
	}
}

func (b *bounded) enter(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= maxConns || b.from[a] >= maxConnsAddress {
		return false
	}
	b.all++
	b.from[a]++
	return true
}

func (b *bounded) leave(a netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.from[a]--; b.from[a] <= 0 {
		delete(b.from, a)
	}
}

type counted struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, errors.New("another server answers there")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func (s *Server) serve(name string, ln net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerLimit, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // gRPC over the socket
	s.goes(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("serve on %s: %w", ln.Addr(), err))
		}
	})
	s.later(name, func(ctx context.Context) error {
		if err := srv.Shutdown(ctx); err != nil {
			return srv.Close() // streams that did not end
		}
		return nil
	})
}
