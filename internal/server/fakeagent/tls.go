package fakeagent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// Serve answers a server at an address as the agent of a real host does: over
// mutual TLS, with the host's certificate of SetTrust, which must be there. What
// is returned ends it.
func (f *Cluster) Serve(host model.HostID, at netip.AddrPort) (io.Closer, error) {
	a := &Agent{f: f, host: host}
	k, err := a.keeper()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := k.Current()
		if c == nil {
			if c, err = k.Load(); err != nil {
				return nil, err
			}
		}
		return c.ServerTLS(local.RemoteProtocol, func(id pki.Identity) error {
			if id.Server == "" {
				return &pki.Refused{Reason: pki.ReasonNotMember, Detail: id.String() + " is no server"}
			}
			return nil
		}), nil
	}}
	s := &http.Server{Handler: a.remoteHandler(), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.Serve(tlsListener{ln, conf}) }()
	return s, nil
}

// tlsListener gives connections of which net/http does not see that they are TLS:
// the protocol is none that it knows.
type tlsListener struct {
	net.Listener
	conf *tls.Config
}

func (l tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{tls.Server(c, l.conf)}, nil
}

// remoteHandler serves what local.Client asks.
func (a *Agent) remoteHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+local.PathStatus, func(w http.ResponseWriter, r *http.Request) {
		s, err := a.Status(r.Context())
		say(w, s, err)
	})
	mux.HandleFunc("GET "+local.PathConfig, func(w http.ResponseWriter, r *http.Request) {
		b, err := a.Config(r.Context())
		if err != nil {
			say(w, nil, err)
			return
		}
		_, _ = w.Write(b)
	})
	mux.HandleFunc("POST "+local.PathAdmin, func(w http.ResponseWriter, r *http.Request) {
		var req fdm.AdminRequest
		var rep fdm.AdminReply
		err := json.NewDecoder(r.Body).Decode(&req)
		if err == nil {
			rep, err = a.Admin(r.Context(), req)
		}
		say(w, rep, err)
	})
	mux.HandleFunc("GET "+local.PathTrust, func(w http.ResponseWriter, r *http.Request) {
		t, err := a.Trust(r.Context())
		say(w, t, err)
	})
	mux.HandleFunc("POST "+local.PathTrustRequest, func(w http.ResponseWriter, r *http.Request) {
		b, err := a.RequestCertificate(r.Context())
		say(w, local.TrustRequest{Request: string(b)}, err)
	})
	mux.HandleFunc("POST "+local.PathTrustInstall, func(w http.ResponseWriter, r *http.Request) {
		var in local.TrustInstall
		var t *local.Trust
		err := json.NewDecoder(r.Body).Decode(&in)
		if err == nil {
			t, err = a.InstallTrust(r.Context(), in)
		}
		say(w, t, err)
	})
	mux.HandleFunc("GET "+local.PathFollow, a.serveFollow)
	return mux
}

func say(w http.ResponseWriter, v any, err error) {
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		v = local.Failure{Error: err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v)
}

// serveFollow writes events as they come, and signs of life in between.
func (a *Agent) serveFollow(w http.ResponseWriter, r *http.Request) {
	after := r.URL.Query().Get("after")
	if !a.f.knows(a.host, after) {
		w.Header().Set(local.HeaderGap, "1")
	}
	ctx, cancel := context.WithCancel(r.Context())
	lines, done := make(chan *event.Event), make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Follow(ctx, after, r.URL.Query().Get("own") != "", func() {}, func(e *event.Event) error {
			select {
			case lines <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	defer func() { cancel(); <-done }()
	out, enc := http.NewResponseController(w), json.NewEncoder(w)
	beat := time.NewTicker(local.FollowBeat)
	defer beat.Stop()
	_, err := w.Write([]byte{'\n'}) // that it follows
	for errors.Join(err, out.Flush()) == nil {
		select {
		case e := <-lines:
			err = enc.Encode(e)
		case <-beat.C:
			_, err = w.Write([]byte{'\n'})
		case <-done:
			return
		}
	}
}

// knows tells whether a host still has the event to follow from.
func (f *Cluster) knows(host model.HostID, after string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return after == "" || slices.ContainsFunc(f.events[host], func(e event.Event) bool { return e.ID == after })
}
