package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/supervisor"
)

// ErrNotUp is returned for a lab whose supervisor does not answer.
var ErrNotUp = errors.New("the lab is not up")

// Client talks to the supervisor of one lab. Its methods may be called from
// several goroutines, but for UseServer; each ends with its context.
type Client struct {
	layout layout.Lab
	http   *http.Client
	// serverBinary is what UseServer chose; empty: the lab's own.
	serverBinary string
}

// Open returns a client of the named lab. It does not talk to it yet.
func Open(name string) (*Client, error) {
	l, err := layout.New(name)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Socket())
	}
	return &Client{layout: l, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Layout names the lab's files.
func (c *Client) Layout() layout.Lab { return c.layout }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(body).Decode(out)
}

func (c *Client) request(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var data bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&data).Encode(in); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, &data)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("lab %s: %w: start it with `hanok lab up`", c.layout.Name(), ErrNotUp)
	case errors.Is(err, os.ErrPermission):
		return nil, errors.New("a lab belongs to root: run the command as root")
	case err != nil:
		return nil, fmt.Errorf("lab %s: %w", c.layout.Name(), err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var f supervisor.Failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("lab %s: %s %s: %s", c.layout.Name(), method, path, resp.Status)
	}
	return nil, errors.New(f.Error)
}

// State returns the truth about hosts and instances.
func (c *Client) State(ctx context.Context) (supervisor.State, error) {
	var s supervisor.State
	err := c.call(ctx, http.MethodGet, "/state", nil, &s)
	return s, err
}

// PowerOn boots a host, without a watchdog if so asked.
func (c *Client) PowerOn(ctx context.Context, host string, noWatchdog bool) error {
	return c.call(ctx, http.MethodPost, "/power", supervisor.PowerRequest{Host: host, Action: supervisor.PowerOn, NoWatchdog: noWatchdog}, nil)
}

// Power does one of the supervisor's power actions on a host.
func (c *Client) Power(ctx context.Context, host, action string) error {
	return c.call(ctx, http.MethodPost, "/power", supervisor.PowerRequest{Host: host, Action: action}, nil)
}

// PowerOff takes a host's power away: its networks fall silent, then all its
// processes and I/O end. It returns when nothing of the host is left.
func (c *Client) PowerOff(ctx context.Context, host string) error {
	return c.Power(ctx, host, supervisor.PowerOff)
}

// Freeze stops all processes of a host; Thaw lets them go on.
func (c *Client) Freeze(ctx context.Context, host string) error {
	return c.Power(ctx, host, supervisor.Freeze)
}

// Thaw ends a Freeze.
func (c *Client) Thaw(ctx context.Context, host string) error {
	return c.Power(ctx, host, supervisor.Thaw)
}

// Cut cuts a host off a network, or off all if network is empty; direction is
// in, out or both, as the host sees it.
func (c *Client) Cut(ctx context.Context, host, network, direction string) error {
	return c.call(ctx, http.MethodPost, "/cut", supervisor.CutRequest{Host: host, Network: network, Direction: direction}, nil)
}

// Partition lets only hosts of one group hear each other, on all networks,
// until they are healed. Hosts in no group are not touched.
func (c *Client) Partition(ctx context.Context, groups [][]string) error {
	return c.call(ctx, http.MethodPost, "/partition", supervisor.PartitionRequest{Groups: groups}, nil)
}

// ClusterFile returns the cluster file that the lab was brought up with.
func (c *Client) ClusterFile() ([]byte, error) { return os.ReadFile(c.layout.ClusterFile()) }

// Heal ends all network and storage faults of a host.
func (c *Client) Heal(ctx context.Context, host string) error {
	return c.call(ctx, http.MethodPost, "/heal", supervisor.HealRequest{Host: host}, nil)
}

// Storage sets the fault of a host's path to a datastore (package fusefs).
func (c *Client) Storage(ctx context.Context, host, datastore, fault string) error {
	return c.call(ctx, http.MethodPost, "/storage", supervisor.StorageRequest{Host: host, Datastore: datastore, Fault: fault}, nil)
}

// Observe calls handle for every event from now on, first for an empty one
// that says that nothing is missed any more, until the context ends or handle
// returns false.
func (c *Client) Observe(ctx context.Context, handle func(journal.Event) bool) error {
	body, err := c.request(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for in := json.NewDecoder(body); ; {
		var e journal.Event
		if err := in.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("lab %s: the event stream ended: %w", c.layout.Name(), err)
		}
		if !handle(e) {
			return nil
		}
	}
}

// WaitState returns when ok holds for the state, which is read anew after
// every event.
func (c *Client) WaitState(ctx context.Context, what string, ok func(supervisor.State) bool) error {
	var last error
	err := c.Observe(ctx, func(journal.Event) bool {
		s, err := c.State(ctx)
		last = err
		return err == nil && !ok(s)
	})
	if err = errors.Join(err, last); err != nil {
		return fmt.Errorf("waiting until %s: %w", what, err)
	}
	return nil
}

// waitUp waits for a supervisor that has just been started.
func (c *Client) waitUp(ctx context.Context, died <-chan error) error {
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if _, err := c.State(ctx); err == nil {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
		case err := <-died:
			return fmt.Errorf("the supervisor ended: %w; see %s", err, c.layout.SupervisorLog())
		case <-ctx.Done():
			return fmt.Errorf("the supervisor does not answer: %w; see %s", ctx.Err(), c.layout.SupervisorLog())
		}
	}
}
