package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// Trust is this host's identity and whom it believes (pki.Keeper). A server of
// the cluster renews it; what is installed counts from the next handshake on.
type Trust interface {
	Load() (*pki.Credentials, error)
	Request() ([]byte, error)
	Install(authorities, certificate []byte) (dropped bool, err error)
}

// trustRoutes are the paths for servers about trust. working says that the agent
// does: sessions to end, and a machine to tell, are there only then.
func (a *Agent) trustRoutes(mux *http.ServeMux, working bool) {
	if a.cfg.Ports.Trust == nil {
		return
	}
	mux.HandleFunc("GET "+local.PathTrust, func(w http.ResponseWriter, _ *http.Request) { a.replyTrust(w) })
	mux.HandleFunc("POST "+local.PathTrustRequest, a.serveTrustRequest)
	mux.HandleFunc("POST "+local.PathTrustInstall, func(w http.ResponseWriter, r *http.Request) { a.serveTrustInstall(w, r, working) })
}

// renewal lets servers in while this agent cannot work because its certificate
// has ended: for its status, and for another certificate.
type renewal struct {
	remote  Remote
	host    model.HostID
	version uint64 // of the cluster file
}

// open listens when why is that the certificate has ended.
func (r *renewal) open(a *Agent, why error) {
	var refused *pki.Refused
	if !errors.As(why, &refused) || refused.Reason != pki.ReasonExpired || a.cfg.Ports.OpenRemote == nil || a.cfg.Ports.Trust == nil {
		r.close()
		return
	}
	c := a.setup.Load().cluster
	if r.remote != nil && r.host == a.host && r.version == c.Version {
		return
	}
	r.close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+local.PathStatus, a.serveStatus)
	a.trustRoutes(mux, false)
	remote, err := a.cfg.Ports.OpenRemote(c, a.host, mux)
	if err != nil {
		a.log.Warn("a server cannot give this host another certificate", "err", err)
	}
	r.remote, r.host, r.version = remote, a.host, c.Version
}

func (r *renewal) close() {
	if r.remote != nil {
		_ = r.remote.Close() // whoever was in it asks again
	}
	r.remote = nil
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

func (a *Agent) serveTrustInstall(w http.ResponseWriter, r *http.Request, working bool) {
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
	if dropped && working {
		// Sessions that rest on an authority that is not trusted any more end.
		if err := a.transport.Reauthenticate(); err != nil {
			a.log.Error("the connections to the other hosts were not made anew", "err", err)
		}
	}
	if working {
		a.tellTrust(r, before, in.Certificate != "", dropped)
	} else {
		a.log.Info("a server gave this host another certificate", "ended", before.Expires)
	}
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
