package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/pki"
)

// Trust is this host's identity and whom it believes (pki.Keeper). A server of
// the cluster renews it; what is installed counts from the next handshake on.
type Trust interface {
	Load() (*pki.Credentials, error)
	Request() ([]byte, error)
	Install(authorities, certificate []byte) (dropped bool, err error)
}

// trustRoutes are the paths for servers about trust.
func (a *Agent) trustRoutes(mux *http.ServeMux) {
	if a.cfg.Ports.Trust == nil {
		return
	}
	mux.HandleFunc("GET "+local.PathTrust, func(w http.ResponseWriter, _ *http.Request) { a.replyTrust(w) })
	mux.HandleFunc("POST "+local.PathTrustRequest, a.serveTrustRequest)
	mux.HandleFunc("POST "+local.PathTrustInstall, a.serveTrustInstall)
}

func (a *Agent) replyTrust(w http.ResponseWriter) {
	c, err := a.cfg.Ports.Trust.Load()
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err, "hanok pki show")
		return
	}
	t := local.Trust{Host: c.Identity.Host, Expires: c.Expires.UTC(), Issuer: pki.Fingerprint(c.Issuer)}
	for _, ca := range c.Authorities {
		t.Authorities = append(t.Authorities, pki.Fingerprint(ca))
	}
	reply(w, t)
}

func (a *Agent) serveTrustRequest(w http.ResponseWriter, _ *http.Request) {
	b, err := a.cfg.Ports.Trust.Request()
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err, "hanok pki show")
		return
	}
	reply(w, local.TrustRequest{Request: string(b)})
}

func (a *Agent) serveTrustInstall(w http.ResponseWriter, r *http.Request) {
	var in local.TrustInstall
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, local.MaxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("request: %w", err), "")
		return
	}
	before, err := a.cfg.Ports.Trust.Load()
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err, "hanok pki show")
		return
	}
	dropped, err := a.cfg.Ports.Trust.Install([]byte(in.Authorities), []byte(in.Certificate))
	if err != nil {
		var no *pki.Refused
		status := http.StatusUnprocessableEntity
		if errors.As(err, &no) {
			a.log.Warn("a certificate was not installed", "err", err)
		}
		refuse(w, status, err, "")
		return
	}
	if dropped {
		// Sessions that rest on an authority that is not trusted any more end.
		if err := a.transport.Reauthenticate(); err != nil {
			a.log.Error("the connections to the other hosts were not made anew", "err", err)
		}
	}
	a.tellTrust(r, before, in.Certificate != "", dropped)
	a.replyTrust(w)
}

// tellTrust says what was installed.
func (a *Agent) tellTrust(r *http.Request, before *pki.Credentials, renewed, dropped bool) {
	now, err := a.cfg.Ports.Trust.Load()
	if err != nil {
		return
	}
	e := event.Event{Severity: event.Info, Kind: event.Security, Host: a.host,
		Evidence: map[string]string{"issuer": pki.Fingerprint(now.Issuer), "expires": now.Expires.UTC().Format(time.RFC3339)}}
	switch {
	case renewed:
		e.Text = fmt.Sprintf("%s has a new certificate, until %s", a.host, now.Expires.UTC().Format(time.RFC3339))
		e.Cause = "a server renewed it; the one before ended " + before.Expires.UTC().Format(time.RFC3339)
	case dropped:
		e.Text = fmt.Sprintf("%s does not trust the former authority of the cluster any more", a.host)
		e.Cause = "the authority was replaced"
	case len(now.Authorities) > len(before.Authorities):
		e.Text = fmt.Sprintf("%s trusts a further authority of the cluster", a.host)
		e.Cause = "the authority is being replaced"
	default:
		return
	}
	a.tell(r.Context(), e)
}
