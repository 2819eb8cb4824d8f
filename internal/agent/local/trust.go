package local

import (
	"context"
	"net/http"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Paths that only servers may ask, over TLS.
const (
	PathTrust        = "/v1/trust"
	PathTrustRequest = "/v1/trust/request"
	PathTrustInstall = "/v1/trust/install"
)

// Trust is whom a host trusts, and what it is trusted by.
type Trust struct {
	Host model.HostID `json:"host"`
	// Expires is the end of the host's certificate.
	Expires time.Time `json:"expires"`
	// Issuer is the fingerprint of the authority that signed it, Authorities
	// are those whose certificates the host accepts.
	Issuer      string   `json:"issuer"`
	Authorities []string `json:"authorities"`
}

// TrustRequest is the answer to PathTrustRequest.
type TrustRequest struct {
	// Request is for a certificate of a key that the host has just made, PEM.
	Request string `json:"request"`
}

// TrustInstall is what a host is to use from now on.
type TrustInstall struct {
	// Authorities to trust, all of them, PEM.
	Authorities string `json:"authorities"`
	// Certificate for the last request, PEM; empty: the present one stays.
	Certificate string `json:"certificate,omitempty"`
}

// Trust asks whom the host trusts.
func (c *Client) Trust(ctx context.Context) (*Trust, error) {
	var t Trust
	return &t, c.do(ctx, http.MethodGet, PathTrust, nil, &t)
}

// RequestCertificate has the host make a key and a request for its certificate.
func (c *Client) RequestCertificate(ctx context.Context) ([]byte, error) {
	var r TrustRequest
	err := c.do(ctx, http.MethodPost, PathTrustRequest, struct{}{}, &r)
	return []byte(r.Request), err
}

// InstallTrust gives the host authorities to trust and, unless it is empty, its
// certificate, and returns what the host has then.
func (c *Client) InstallTrust(ctx context.Context, in TrustInstall) (*Trust, error) {
	var t Trust
	return &t, c.do(ctx, http.MethodPost, PathTrustInstall, in, &t)
}
