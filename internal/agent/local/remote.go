package local

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// Bounds of a remote client.
const (
	dialLimit = 2 * time.Second
	// MaxEventLine is the longest event that is read.
	MaxEventLine = 128 << 10
)

// NewRemoteClient returns a client for a host's agent, for a server whose
// credentials are asked for at each handshake. The addresses are tried in order.
// It keeps one idle connection; close it with Close.
func NewRemoteClient(credentials func() (*pki.Credentials, error), host model.HostID, addresses []netip.AddrPort) *Client {
	return newRemoteClient(credentials, RemoteProtocol, host, addresses, false, nil)
}

// NewLapsedClient is NewRemoteClient for a host whose certificate has ended, to
// give it another: known is asked whether the end of the one that it shows is
// forgiven.
func NewLapsedClient(credentials func() (*pki.Credentials, error), host model.HostID, addresses []netip.AddrPort, known func(*x509.Certificate) bool) *Client {
	return newRemoteClient(credentials, RemoteProtocol, host, addresses, false, known)
}

// NewPeerClient returns a client for a host's agent, for another host of its
// cluster: it may Tell. It keeps no connection.
func NewPeerClient(credentials func() (*pki.Credentials, error), host model.HostID, addresses []netip.AddrPort) *Client {
	return newRemoteClient(credentials, PeerProtocol, host, addresses, true, nil)
}

func newRemoteClient(credentials func() (*pki.Credentials, error), protocol string, host model.HostID, addresses []netip.AddrPort, once bool, known func(*x509.Certificate) bool) *Client {
	expect := func(id pki.Identity) error {
		if id.Host != host {
			return &pki.Refused{Reason: pki.ReasonWrongHost, Detail: fmt.Sprintf("%s answers where %s was expected", id, host)}
		}
		return nil
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		creds, err := credentials()
		if err != nil {
			return nil, err
		}
		conf := creds.ClientTLS(protocol, expect)
		if known != nil {
			conf = creds.LapsedTLS(protocol, expect, known)
		}
		errs := []error{ErrUnreachable}
		for _, a := range addresses {
			c, err := dialTLS(ctx, a, conf)
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		if len(addresses) == 0 {
			errs = append(errs, errors.New("the cluster file has no address for "+string(host)))
		}
		return nil, errors.Join(errs...)
	}
	return &Client{socket: string(host), http: http.Client{Transport: &http.Transport{DialTLSContext: dial, MaxIdleConnsPerHost: 1,
		DisableKeepAlives: once, IdleConnTimeout: time.Minute, ReadBufferSize: 2 << 10, WriteBufferSize: 2 << 10}}}
}

// Tell gives another host of the cluster a word.
func (c *Client) Tell(ctx context.Context, w Word) (WordAnswer, error) {
	var a WordAnswer
	return a, c.do(ctx, http.MethodPost, PathPeer, w, &a)
}

func dialTLS(ctx context.Context, a netip.AddrPort, conf *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	d := tls.Dialer{Config: conf}
	return d.DialContext(ctx, "tcp", a.String())
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Follow gives the events behind the one with an ID to each, then new ones,
// until ctx ends, each fails or the connection does; each of nil is a sign of
// life. With own only those that the host itself emitted. gap is called when the
// host does not know the ID any more.
func (c *Client) Follow(ctx context.Context, after string, own bool, gap func(), each func(*event.Event) error) error {
	v := url.Values{}
	if after != "" {
		v.Set("after", after)
	}
	if own {
		v.Set("own", "1")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Three missed signs of life end it.
	silence := time.AfterFunc(3*FollowBeat, cancel)
	defer silence.Stop()
	resp, err := c.answer(ctx, http.MethodGet, PathFollow+"?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Header.Get(HeaderGap) != "" {
		gap()
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 1024), MaxEventLine)
	for lines.Scan() {
		silence.Reset(3 * FollowBeat)
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			if err := each(nil); err != nil {
				return err
			}
			continue
		}
		var e event.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("event of %s: %w", c.socket, err)
		}
		if err := each(&e); err != nil {
			return err
		}
	}
	return lines.Err()
}
