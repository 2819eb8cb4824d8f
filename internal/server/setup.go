package server

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strings"
)

// setupPage is where the set-up link leads. The token is in the link's fragment,
// which browsers send to nobody.
//
//go:embed setup.html
var setupPage string

// pagePolicy lets the page run its own script and style and nothing else.
var pagePolicy = func() string {
	hash := func(tag string) string {
		_, rest, _ := strings.Cut(setupPage, "<"+tag+">")
		text, _, _ := strings.Cut(rest, "</"+tag+">")
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
		"; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}()

func serveSetup(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(setupPage))
}

// SetUpLink makes the link that sets the first administrator up; empty when
// there are users. It voids the link before.
func (s *Server) SetUpLink(ctx context.Context) (string, error) {
	if s.addr == nil || s.cfg.Plain {
		return "", nil
	}
	token, err := s.book.SetUpToken(ctx)
	if err != nil || token == "" {
		return "", err
	}
	return fmt.Sprintf("https://%s/setup#setup=%s&fingerprint=%s", s.reachable(), token, s.fingerprint), nil
}

// reach is what a host needs to find this server and to know it.
func (s *Server) reach() (address, fingerprint string) {
	if s.addr == nil || s.cfg.Plain {
		return "", ""
	}
	return "https://" + s.reachable(), s.fingerprint
}

// reachable is an address to put into a link.
func (s *Server) reachable() string {
	host, port, err := net.SplitHostPort(s.addr.String())
	if err != nil {
		return s.addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = s.cfg.Name
		if len(s.cfg.TLS.Names) > 0 {
			host = s.cfg.TLS.Names[0]
		}
	}
	return net.JoinHostPort(host, port)
}
