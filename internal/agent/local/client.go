package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/pki"
)

// ErrUnreachable: no agent answers on the socket.
var ErrUnreachable = errors.New("no agent answers")

// RequestError is a refusal by the agent.
type RequestError struct {
	Status int
	Failure
}

// Error is the agent's sentence, with the remedy.
func (e *RequestError) Error() string {
	if e.Remedy != "" {
		return e.Failure.Error + "; " + e.Remedy
	}
	return e.Failure.Error
}

// Client asks the agent of this host. It may be used concurrently.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client for the agent at a unix socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: 2 * time.Second}
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// remote reports whether this client asks over TLS.
func (c *Client) remote() bool {
	t, ok := c.http.Transport.(*http.Transport)
	return ok && t.DialTLSContext != nil
}

// Status asks what the host knows of its cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.do(ctx, http.MethodGet, PathStatus, nil, &s)
}

// Admin hands a request to the cluster and waits for the answer.
func (c *Client) Admin(ctx context.Context, req fdm.AdminRequest) (fdm.AdminReply, error) {
	var r fdm.AdminReply
	return r, c.do(ctx, http.MethodPost, PathAdmin, req, &r)
}

// Config returns the cluster file that the host keeps.
func (c *Client) Config(ctx context.Context) ([]byte, error) {
	body, err := c.open(ctx, http.MethodGet, PathConfig, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, MaxBody))
}

// Events gives each event to fn, oldest first; with Follow until ctx ends or fn
// fails.
func (c *Client) Events(ctx context.Context, q EventQuery, fn func(event.Event) error) error {
	v := url.Values{}
	if q.Failover != "" {
		v.Set("failover", q.Failover)
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	body, err := c.open(ctx, http.MethodGet, PathEvents+"?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 128<<10)
	for lines.Scan() {
		var e event.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("event from the agent: %w", err)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, MaxBody)).Decode(out); err != nil {
		return fmt.Errorf("answer of the agent to %s: %w", path, err)
	}
	return nil
}

// open sends a request and returns the body of a good answer.
func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	resp, err := c.answer(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (c *Client) answer(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	scheme := "http" // a unix socket
	if c.remote() {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://agent"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		var refused *pki.Refused // of one of its addresses; says more than that another is not there
		if errors.As(err, &op) && op.Op == "dial" && !errors.As(err, &refused) {
			return nil, fmt.Errorf("%w on %s: %w", ErrUnreachable, c.socket, op.Err)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("%w on %s in time: it hangs or is stopped: %w", ErrUnreachable, c.socket, context.DeadlineExceeded)
		}
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &RequestError{Status: resp.StatusCode}
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(&e.Failure); err != nil || e.Failure.Error == "" {
		e.Failure.Error = "the agent answered " + resp.Status
	}
	return nil, e
}
