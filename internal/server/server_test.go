package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/api/gen/hanok/v1/hanokv1connect"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/store"
)

// start runs a server with both listeners. Callers at its address are who
// says the header "As".
func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	dir := t.TempDir()
	if cfg.Store.Dir == "" && len(cfg.Store.Endpoints) == 0 {
		cfg.Store.Dir = filepath.Join(dir, "data")
	}
	cfg.Socket, cfg.Listen, cfg.Metrics = filepath.Join(dir, "s"), "127.0.0.1:0", "127.0.0.1:0"
	cfg.Plain = true
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Access = access.AuthenticatorFunc(func(r *http.Request) (*access.Principal, error) {
		switch r.Header.Get("As") {
		case "viewer":
			return &access.Principal{Name: "v", Role: hanokv1.Role_ROLE_VIEWER}, nil
		case "administrator":
			return &access.Principal{Name: "a", Role: hanokv1.Role_ROLE_ADMINISTRATOR}, nil
		}
		return nil, errors.New("say who you are")
	})
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func overSocket(s *Server) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.cfg.Socket)
	}}}
}

func post(t testing.TB, s *Server, method, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest("POST", "http://"+s.Address()+"/hanok.v1."+method, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestWhoMayCall(t *testing.T) {
	s := start(t, Config{Name: "s1"})
	for _, tt := range []struct {
		name, method, body string
		header             []string
		status             int
		contains           string
	}{
		{"without a login", "SystemService/GetServer", "{}", nil, 401, "say who you are"},
		{"viewer reads", "SystemService/GetServer", "{}", []string{"As", "viewer"}, 200, `"name":"s1"`},
		{"viewer takes a backup", "SystemService/Backup", "\x00\x00\x00\x00\x02{}", []string{"As", "viewer", "Content-Type", "application/connect+json"}, 200, "permission_denied"},
		{"another site in a browser", "SystemService/GetServer", "{}", []string{"As", "administrator", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 403, "cross-origin"},
		{"unknown method", "SystemService/../../etc/passwd", "{}", []string{"As", "administrator"}, 404, ""},
		{"unknown field", "SystemService/GetServer", `{"nmae":1}`, []string{"As", "viewer"}, 400, "nmae"},
		{"too large", "SystemService/GetServer", `{"x":"` + strings.Repeat("a", maxMessage) + `"}`, []string{"As", "viewer"}, 429, "larger"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body := post(t, s, tt.method, tt.body, tt.header...)
			if status != tt.status || !strings.Contains(body, tt.contains) {
				t.Errorf("%d %.200s, want %d with %q", status, body, tt.status, tt.contains)
			}
		})
	}
}

func TestAllProtocolsAnswer(t *testing.T) {
	s := start(t, Config{Name: "s1"})
	for name, opts := range map[string][]connect.ClientOption{"connect": nil, "json": {connect.WithProtoJSON()}, "grpc-web": {connect.WithGRPCWeb()}} {
		c := hanokv1connect.NewSystemServiceClient(overSocket(s), "http://server", opts...)
		if r, err := c.GetServer(t.Context(), &hanokv1.GetServerRequest{}); err != nil || r.Name != "s1" || !r.EmbeddedStore {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	h2 := overSocket(s)
	h2.Transport.(*http.Transport).Protocols = new(http.Protocols)
	h2.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	c := hanokv1connect.NewSystemServiceClient(h2, "http://server", connect.WithGRPC())
	if r, err := c.GetServer(t.Context(), &hanokv1.GetServerRequest{}); err != nil || r.Name != "s1" {
		t.Errorf("grpc: %v, %v", r, err)
	}
}

func TestHalfAStartLeavesNothing(t *testing.T) {
	s := start(t, Config{})
	dir := t.TempDir()
	second, err := New(Config{Store: store.Config{Dir: dir}, Socket: s.cfg.Socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(t.Context()); err == nil {
		t.Fatal("two servers on one socket")
	}
	// Its store is free again.
	st, err := store.Open(t.Context(), store.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_ = st.Close()
}
