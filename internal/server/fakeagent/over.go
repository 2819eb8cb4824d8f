package fakeagent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/work"
)

// Handler serves the agents of the cluster to servers in other processes, below
// /HOST.
func (f *Cluster) Handler() http.Handler {
	mux := http.NewServeMux()
	agent := func(r *http.Request) *Agent { return &Agent{f: f, host: model.HostID(r.PathValue("host"))} }
	answer := func(w http.ResponseWriter, v any, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /{host}"+local.PathStatus, func(w http.ResponseWriter, r *http.Request) {
		s, err := agent(r).Status(r.Context())
		answer(w, s, err)
	})
	mux.HandleFunc("GET /{host}"+local.PathConfig, func(w http.ResponseWriter, r *http.Request) {
		b, err := agent(r).Config(r.Context())
		answer(w, b, err)
	})
	mux.HandleFunc("POST /{host}"+local.PathAdmin, func(w http.ResponseWriter, r *http.Request) {
		var req fdm.AdminRequest
		err := json.NewDecoder(r.Body).Decode(&req)
		var rep fdm.AdminReply
		if err == nil {
			rep, err = agent(r).Admin(r.Context(), req)
		}
		answer(w, rep, err)
	})
	mux.HandleFunc("GET /{host}"+local.PathTrust, func(w http.ResponseWriter, r *http.Request) {
		t, err := agent(r).Trust(r.Context())
		answer(w, t, err)
	})
	mux.HandleFunc("POST /{host}"+local.PathTrustRequest, func(w http.ResponseWriter, r *http.Request) {
		b, err := agent(r).RequestCertificate(r.Context())
		answer(w, b, err)
	})
	mux.HandleFunc("POST /{host}"+local.PathTrustInstall, func(w http.ResponseWriter, r *http.Request) {
		var in local.TrustInstall
		err := json.NewDecoder(r.Body).Decode(&in)
		var t *local.Trust
		if err == nil {
			t, err = agent(r).InstallTrust(r.Context(), in)
		}
		answer(w, t, err)
	})
	mux.HandleFunc("GET /{host}"+local.PathFollow, func(w http.ResponseWriter, r *http.Request) {
		out := http.NewResponseController(w)
		_ = out.Flush()
		_ = agent(r).Follow(r.Context(), r.URL.Query().Get("after"), r.URL.Query().Get("own") != "", func() {}, func(e *event.Event) error {
			if err := json.NewEncoder(w).Encode(e); err != nil {
				return err
			}
			return out.Flush()
		})
	})
	return mux
}

// Over dials agents that a Handler serves at base.
func Over(c *http.Client, base string) work.Dial {
	return func(_ *config.Cluster, host model.HostID) (work.Agent, error) {
		return &remote{c, base + "/" + string(host)}, nil
	}
}

type remote struct {
	http *http.Client
	base string
}

// Close implements work.Agent.
func (*remote) Close() {}

func (r *remote) do(ctx context.Context, method, path string, in any, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer %s", resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// Status implements work.Agent.
func (r *remote) Status(ctx context.Context) (*local.Status, error) {
	s := new(local.Status)
	return s, r.do(ctx, http.MethodGet, local.PathStatus, nil, s)
}

// Config implements work.Agent.
func (r *remote) Config(ctx context.Context) (b []byte, err error) {
	err = r.do(ctx, http.MethodGet, local.PathConfig, nil, &b)
	return b, err
}

// Admin implements work.Agent.
func (r *remote) Admin(ctx context.Context, q fdm.AdminRequest) (rep fdm.AdminReply, err error) {
	err = r.do(ctx, http.MethodPost, local.PathAdmin, q, &rep)
	return rep, err
}

// Follow implements work.Agent.
func (r *remote) Follow(ctx context.Context, after string, own bool, _ func(), each func(*event.Event) error) error {
	v := url.Values{"after": {after}}
	if own {
		v.Set("own", "1")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+local.PathFollow+"?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var e event.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		if err := each(&e); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), io.EOF)
}

// Trust implements work.Agent.
func (r *remote) Trust(ctx context.Context) (*local.Trust, error) {
	t := new(local.Trust)
	return t, r.do(ctx, http.MethodGet, local.PathTrust, nil, t)
}

// RequestCertificate implements work.Agent.
func (r *remote) RequestCertificate(ctx context.Context) (b []byte, err error) {
	err = r.do(ctx, http.MethodPost, local.PathTrustRequest, struct{}{}, &b)
	return b, err
}

// InstallTrust implements work.Agent.
func (r *remote) InstallTrust(ctx context.Context, in local.TrustInstall) (*local.Trust, error) {
	t := new(local.Trust)
	return t, r.do(ctx, http.MethodPost, local.PathTrustInstall, in, t)
}
