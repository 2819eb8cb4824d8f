package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// remoteRig is an agent that servers may ask, on a free port of loopback.
type remoteRig struct {
	*rig
	ca   string
	addr netip.AddrPort
}

func newRemoteRig(t *testing.T) *remoteRig { return newRemoteRigWith(t, nil) }

func newRemoteRigWith(t *testing.T, prepare func(*rig)) *remoteRig {
	t.Helper()
	rr := &remoteRig{ca: filepath.Join(t.TempDir(), "ca")}
	if err := pki.Init(rr.ca, "test", pki.Options{}); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rr.addr = netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	host := rr.credentials(t, "host1", "")
	rr.rig = newRig(t, func(r *rig) {
		r.write("cluster.yaml", strings.ReplaceAll(clusterYAML, "10.0.0.1", "127.0.0.1"))
		r.remote = func(c *config.Cluster, self model.HostID, h http.Handler) (Remote, error) {
			x := newRemote(self, func() (*pki.Credentials, error) { return host, nil }, rr.addr.Port(), slog.New(slog.DiscardHandler), h)
			return x, x.Configure(c)
		}
		if prepare != nil {
			prepare(r)
		}
	})
	rr.started()
	return rr
}

func (r *remoteRig) credentials(t *testing.T, host model.HostID, server string) *pki.Credentials {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "c")
	err := pki.Issue(r.ca, dir, host, nil, pki.Options{})
	if server != "" {
		err = pki.IssueServer(r.ca, dir, server, pki.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (r *remoteRig) at() []netip.AddrPort { return []netip.AddrPort{r.addr} }

func (r *remoteRig) ask(t *testing.T, creds *pki.Credentials, host model.HostID) *local.Client {
	c := local.NewRemoteClient(func() (*pki.Credentials, error) { return creds, nil }, host, []netip.AddrPort{r.addr})
	t.Cleanup(c.Close)
	return c
}

func TestServersAskOverTLS(t *testing.T) {
	r := newRemoteRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := r.ask(t, r.credentials(t, "", "control"), "host1")
	if s, err := c.Status(ctx); err != nil || s.Host != "host1" || len(s.VMs) != 1 {
		t.Fatalf("status: %+v, %v", s, err)
	}
	if b, err := c.Config(ctx); err != nil || !strings.Contains(string(b), "version: 3") {
		t.Errorf("cluster file: %s, %v", b, err)
	}
	// A host may not ask, nor does a server take one host for another.
	if _, err := r.ask(t, r.credentials(t, "host2", ""), "host1").Status(ctx); err == nil {
		t.Error("a host's certificate was let in")
	}
	var refused *pki.Refused
	if _, err := r.ask(t, r.credentials(t, "", "control"), "host2").Status(ctx); !errors.As(err, &refused) || refused.Reason != pki.ReasonWrongHost {
		t.Errorf("host1 passed for host2: %v", err)
	}
}

func TestServersFollowEventsWithoutGap(t *testing.T) {
	r := newRemoteRig(t)
	c := r.ask(t, r.credentials(t, "", "control"), "host1")
	emit := func(n int) {
		for i := range n {
			r.core.do(fdm.Emit{Event: event.Event{Kind: event.Admin, Text: fmt.Sprint(i)}})
		}
	}
	enough := errors.New("enough")
	after, seen := "", map[string]bool{}
	follow := func(want int, gap func()) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := c.Follow(ctx, after, true, gap, func(e *event.Event) error {
			if e == nil {
				return nil
			}
			if seen[e.ID] {
				t.Errorf("%s came twice", e.ID)
			}
			seen[e.ID], after = true, e.ID
			if len(seen) == want {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("after %d events: %v", len(seen), err)
		}
	}
	noGap := func() { t.Error("a gap where there is none") }
	emit(3)
	follow(3, noGap)
	emit(700) // nobody listens meanwhile; more than a page
	follow(500, noGap)
	follow(703, noGap)
	gap := false
	after = "unknown-1"
	clear(seen)
	follow(703, func() { gap = true })
	if !gap {
		t.Error("the gap was not told")
	}
}
