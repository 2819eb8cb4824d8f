package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/api"
	"hanok.dev/hanok/internal/server/audit"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/server/work"
	"hanok.dev/hanok/internal/store"
)

// Bounds of the API.
const (
	// maxMessage is the largest request: a cluster file of its largest size as
	// JSON, with room for escapes.
	maxMessage = 16 << 20
	// stopLimit is how long requests under way may take when the server stops.
	stopLimit = 5 * time.Second
)

// Config sets a server up.
type Config struct {
	// Name tells servers apart. Default the machine's name.
	Name string
	// Store says where the state is.
	Store store.Config
	// Socket is a unix socket whose callers are taken for root. Empty: none.
	Socket string
	// Listen is an address for everybody else. Empty: none. With port 0 a free
	// one is chosen, see Server.Address.
	Listen string
	// Access finds out who calls at Listen. Default: the server's own accounts.
	Access access.Authenticator
	// Metrics is an address for metrics and health. Empty: none. With port 0 a
	// free one is chosen.
	Metrics string
	// Dial makes connections to agents. Default, with AgentPort: TLS, as the
	// server of the cluster's authority. With neither no background work is done
	// here.
	Dial work.Dial
	// DialLapsed makes connections to agents whose certificate has ended. Default,
	// with AgentPort: TLS; otherwise none.
	DialLapsed work.DialLapsed
	// AgentPort is where agents listen for servers.
	AgentPort uint16
	// Given are the server's credentials towards agents of clusters whose
	// certificates were made by hand; nil: none. Other servers get them, too.
	Given func() []*pki.Credentials
	// HostLife is the life of hosts' certificates. Default trust.HostLife.
	HostLife time.Duration
	// TrustInterval is how often each host's certificate is looked at. Default
	// 1 min.
	TrustInterval time.Duration
	// Interval is how often each cluster is asked for its account. Default 1 s.
	Interval time.Duration
	// TLS is the certificate that Listen answers with.
	TLS TLS
	// Plain leaves TLS away at Listen; for tests.
	Plain bool
	// FirstRun is given the one-time link that makes the first administrator,
	// at each start until there is a user. It is a secret, and not for logs that
	// others read.
	FirstRun func(link string)
	// Follow is how often callers of open streams are looked at again: whether what
	// they showed still counts, and what they may by now. Default 15 s.
	Follow time.Duration
	// PasswordCost is what a check of a password costs. Default account.DefaultCost.
	PasswordCost account.Cost
	Log          *slog.Logger
}

// Server is one server. Make it with New, start and stop it once.
type Server struct {
	cfg   Config
	log   *slog.Logger
	store *store.Store
	cache *state.Cache
	api   *api.API
	book  *account.Book
	trust *trust.Book
	addr  net.Addr
	meter *meter

	metricsAddr net.Addr
	// fingerprint is what callers at addr know the server by.
	fingerprint string
	ca          string // in PEM, of the address; empty with a certificate given as files

	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
	undo   []undo // named, run in reverse
}

type undo struct {
	name string
	do   func(context.Context) error
}

// New checks the configuration; nothing is opened before Start.
func New(cfg Config) (*Server, error) {
	if cfg.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("server: no name: %w", err)
		}
		cfg.Name = name
	}
	if cfg.Socket == "" && cfg.Listen == "" {
		return nil, errors.New("server: give a socket or an address to listen on")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Follow == 0 {
		cfg.Follow = 15 * time.Second
	}
	cfg.Store.Log = cfg.Log
	return &Server{cfg: cfg, log: cfg.Log, meter: newMeter(), failed: make(chan error, 4)}, nil
}

// Start opens the state and serves. When it fails everything that it opened is
// closed again.
func (s *Server) Start(ctx context.Context) (err error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop(ctx))
		}
	}()
	s.store, err = store.Open(ctx, s.cfg.Store)
	if err != nil {
		return err
	}
	s.later("store", func(context.Context) error { return s.store.Close() })
	s.goes(func() {
		select {
		case err := <-s.store.Failed():
			s.fail(fmt.Errorf("the embedded etcd ended: %w", err))
		case <-run.Done():
		}
	})
	s.cache = state.NewCache(s.store, s.log)
	if err := s.cache.Load(ctx); err != nil {
		return err
	}
	s.goes(func() { s.cache.Follow(run) })
	s.book = account.New(account.Config{Store: s.store, Cost: s.cfg.PasswordCost})
	if s.cfg.Access == nil {
		s.cfg.Access = s.book
	}
	s.trust = trust.New(trust.Config{Store: s.store, Server: s.cfg.Name, HostLife: s.cfg.HostLife, Given: s.cfg.Given})
	if err := s.trust.Share(ctx); err != nil {
		return err
	}
	if s.cfg.Dial == nil && s.cfg.AgentPort != 0 {
		s.cfg.Dial, s.cfg.DialLapsed = work.TLS(s.trust.Credentials, s.cfg.AgentPort)
	}
	s.api = api.New(s.store, s.cache, work.Ask(s.cache, s.cfg.Dial))
	if s.cfg.Dial != nil {
		s.goes(func() {
			work.Run(run, work.Config{Name: s.cfg.Name, Store: s.store, Cache: s.cache, Dial: s.cfg.Dial, DialLapsed: s.cfg.DialLapsed, Log: s.log, Interval: s.cfg.Interval,
				Trust: s.trust, TrustInterval: s.cfg.TrustInterval})
		})
	}
	if err := s.observe(); err != nil {
		return err
	}
	return s.listen(ctx, s.handler())
}

// later notes what undoes a step of Start.
func (s *Server) later(name string, do func(context.Context) error) {
	s.undo = append(s.undo, undo{name, do})
}

func (s *Server) goes(f func()) {
	s.wg.Add(1)
	go func() { defer s.wg.Done(); f() }()
}

func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default: // the first ones are enough
	}
}

// Failed delivers an error that ended the server's work.
func (s *Server) Failed() <-chan error { return s.failed }

// Stop ends requests and background work and closes the state.
func (s *Server) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	s.cancel()
	var errs []error
	waited := false
	for i := len(s.undo) - 1; i >= 0; i-- {
		u := s.undo[i]
		if u.name == "store" {
			s.wg.Wait() // nobody uses it any more
			waited = true
		}
		if err := u.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", u.name, err))
		}
	}
	if !waited {
		s.wg.Wait()
	}
	s.undo = nil
	return errors.Join(errs...)
}

// Run starts the server and stops it when ctx ends, or when it cannot go on.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	s.log.Info("the server is ready", "name", s.cfg.Name, "socket", s.cfg.Socket, "address", s.Address(), "embedded", s.store.Embedded())
	link, err := s.SetUpLink(ctx)
	if err != nil {
		return errors.Join(err, s.Stop(ctx))
	}
	if link != "" && s.cfg.FirstRun != nil {
		s.cfg.FirstRun(link)
	}
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	}
	return errors.Join(err, s.Stop(ctx))
}

// Address is where the server listens; empty without Config.Listen.
func (s *Server) Address() string {
	if s.addr == nil {
		return ""
	}
	return s.addr.String()
}

// options are what every service is made with.
func (s *Server) options() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(s.meter, access.Interceptor(&audit.Log{Store: s.store, Server: s.cfg.Name, Log: s.log}, s.cfg.Follow)),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCodec(strictJSON{}),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
			s.log.Error("a request failed inside the server", "method", spec.Procedure, "panic", p)
			return connect.NewError(connect.CodeInternal, errors.New("the server failed at this request; its log says more"))
		}),
	}
}
