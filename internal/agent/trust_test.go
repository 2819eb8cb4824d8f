package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
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

// renewalRig is an agent with real TLS and certificates that a server renews.
type renewalRig struct {
	*rig
	ca     *pki.Authority
	keeper *pki.Keeper
	addr   netip.AddrPort
}

func newRenewalRig(t *testing.T) *renewalRig {
	t.Helper()
	rr := newRenewalRigFor(t, time.Hour)
	rr.started()
	return rr
}

// newRenewalRigFor is a rig whose certificate lasts for life; the agent may not
// work yet.
func newRenewalRigFor(t *testing.T, life time.Duration) *renewalRig {
	t.Helper()
	rr := &renewalRig{}
	var err error
	if rr.ca, err = pki.NewAuthority("test", time.Time{}); err != nil {
		t.Fatal(err)
	}
	id := pki.Identity{Cluster: "test", Host: "host1"}
	key, request, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.Enrol(dir, pki.EncodeCerts(rr.ca.Cert), rr.sign(t, rr.ca, request, "host1", life), key, id); err != nil {
		t.Fatal(err)
	}
	rr.keeper = pki.NewKeeper(dir)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rr.addr = netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	rr.rig = newRig(t, func(r *rig) {
		r.write("cluster.yaml", strings.ReplaceAll(clusterYAML, "10.0.0.1", "127.0.0.1"))
		r.trust = rr.keeper
		r.certified = func() error { return rr.keeper.Current().Check(time.Now()) }
		r.remote = func(c *config.Cluster, self model.HostID, h http.Handler) (Remote, error) {
			x := newRemote(self, rr.keeper.Load, rr.addr.Port(), slog.New(slog.DiscardHandler), h)
			return x, x.Configure(c)
		}
	})
	return rr
}

// An agent that starts with a certificate that has ended cannot work. A server may
// give it another then, and ask for its status, and nothing else; it works at once.
func TestEndedCertificateIsRenewedBeforeTheAgentWorks(t *testing.T) {
	r := newRenewalRigFor(t, -time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	trusts := pki.EncodeCerts(r.ca.Cert)
	usual := r.server(t, r.ca, trusts, time.Hour)
	var refused *pki.Refused
	for { // until it listens
		_, err := usual.Trust(ctx)
		if errors.As(err, &refused) {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	if refused.Reason != pki.ReasonExpired {
		t.Fatal(refused)
	}
	last := r.keeper.Current().Expires
	lapsed := local.NewLapsedClient(r.serverCredentials(t, r.ca, trusts, time.Hour), "host1", []netip.AddrPort{r.addr},
		func(c *x509.Certificate) bool { return c.NotAfter.Equal(last) })
	t.Cleanup(lapsed.Close)
	if s, err := lapsed.Status(ctx); err != nil || !strings.Contains(s.Local.Error, "expired") {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := lapsed.Config(ctx); err == nil {
		t.Error("it answers more than it must")
	}
	request, err := lapsed.RequestCertificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lapsed.InstallTrust(ctx, local.TrustInstall{Authorities: string(trusts), Certificate: string(r.sign(t, r.ca, request, "host1", time.Hour))}); err != nil {
		t.Fatal(err)
	}
	r.started()
	for { // until it listens again, for all
		if _, err := usual.Config(ctx); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func (r *renewalRig) sign(t *testing.T, ca *pki.Authority, request []byte, host model.HostID, life time.Duration) []byte {
	t.Helper()
	pub, err := pki.CheckRequest(request, pki.Identity{Cluster: "test", Host: "host1"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ca.Sign(pub, pki.Identity{Host: host}, nil, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	return pki.EncodeCerts(c)
}

// server is a client with the certificate of a server, which lasts for life.
func (r *renewalRig) server(t *testing.T, ca *pki.Authority, trusts []byte, life time.Duration) *local.Client {
	t.Helper()
	c := local.NewRemoteClient(r.serverCredentials(t, ca, trusts, life), "host1", []netip.AddrPort{r.addr})
	t.Cleanup(c.Close)
	return c
}

func (r *renewalRig) serverCredentials(t *testing.T, ca *pki.Authority, trusts []byte, life time.Duration) func() (*pki.Credentials, error) {
	t.Helper()
	key, _, err := pki.NewRequest(pki.Identity{Cluster: "test", Server: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Sign(key.Public(), pki.Identity{Server: "s1"}, nil, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCerts(trusts)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := pki.NewCredentials(append(certs, ca.Cert), leaf, key)
	if err != nil {
		t.Fatal(err)
	}
	return func() (*pki.Credentials, error) { return creds, nil }
}

// A running agent takes a renewed certificate and another authority without a
// restart, and what rests on the former authority ends, open connections
// included.
func TestTrustIsRenewedWhileTheAgentRuns(t *testing.T) {
	r := newRenewalRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	old := pki.EncodeCerts(r.ca.Cert)
	first := r.server(t, r.ca, old, time.Hour)
	before, err := first.Trust(ctx)
	if err != nil || before.Host != "host1" || before.Issuer != pki.Fingerprint(r.ca.Cert) || len(before.Authorities) != 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	request, err := first.RequestCertificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Refused: another's name. The agent goes on with what it has.
	var refused *local.RequestError
	if _, err := first.InstallTrust(ctx, local.TrustInstall{Authorities: string(old), Certificate: string(r.sign(t, r.ca, request, "host2", time.Hour))}); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("a certificate of host2: %v", err)
	}
	after, err := first.InstallTrust(ctx, local.TrustInstall{Authorities: string(old), Certificate: string(r.sign(t, r.ca, request, "host1", 2*time.Hour))})
	if err != nil || !after.Expires.After(before.Expires) {
		t.Fatalf("renewed: %+v, %v", after, err)
	}
	if e := r.nextEvent(); e.Kind != event.Security || !strings.Contains(e.Text, "host1 has a new certificate") {
		t.Errorf("%+v", e)
	}
	// The new authority, then its certificate, then it alone.
	next, err := pki.NewAuthority("test", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	fresh := pki.EncodeCerts(next.Cert)
	both := append(append([]byte(nil), old...), fresh...)
	if _, err := r.server(t, next, both, time.Hour).Trust(ctx); err == nil {
		t.Error("a server of an authority that is not trusted yet")
	}
	if _, err := first.InstallTrust(ctx, local.TrustInstall{Authorities: string(fresh)}); err == nil {
		t.Error("the agent dropped the authority of its own certificate")
	}
	if _, err := first.InstallTrust(ctx, local.TrustInstall{Authorities: string(both)}); err != nil {
		t.Fatal(err)
	}
	second := r.server(t, next, both, time.Hour)
	if request, err = second.RequestCertificate(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := second.InstallTrust(ctx, local.TrustInstall{Authorities: string(both), Certificate: string(r.sign(t, next, request, "host1", time.Hour))}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Trust(ctx); err != nil {
		t.Errorf("both are trusted: %v", err)
	}
	if r.net.anew.Load() != 0 {
		t.Error("sessions were made anew although nothing was dropped")
	}
	if _, err := second.InstallTrust(ctx, local.TrustInstall{Authorities: string(fresh)}); err != nil {
		t.Fatal(err)
	}
	if r.net.anew.Load() != 1 {
		t.Error("sessions of the former authority go on")
	}
	if _, err := first.Trust(ctx); err == nil {
		t.Error("an open connection of the former authority is answered")
	}
	if now, err := second.Trust(ctx); err != nil || len(now.Authorities) != 1 || now.Issuer != pki.Fingerprint(next.Cert) {
		t.Errorf("%+v, %v", now, err)
	}
}

// A server's identity that has ended is refused on an open connection, too.
func TestServersIdentityEnds(t *testing.T) {
	r := newRenewalRig(t)
	c := r.server(t, r.ca, pki.EncodeCerts(r.ca.Cert), 2*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.Trust(ctx); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil {
		if _, err := c.Trust(ctx); err != nil {
			if !strings.Contains(err.Error(), "expired") {
				t.Errorf("refused because of %v", err)
			}
			return
		}
	}
	t.Error("it is answered after its end")
}

// A member may send anything: what it sends must never end another's agent.
func FuzzFromMember(f *testing.F) {
	add := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(fdm.Heartbeat{Kind: fdm.BeatPrimary, Datastores: 2, Primary: "host2", Round: 1 << 63, ConfigVersion: 3, Start: 7, Stamp: -1, Echo: 1 << 62})
	add(fdm.Heartbeat{Kind: fdm.BeatSecondary, Primary: "host1", Vouches: true, VouchAge: -1})
	add(fdm.Message{Report: &fdm.Report{Host: "host2", Boot: "b", Memory: -5, VMs: []fdm.LocalVM{{ID: "x"}}}})
	add(fdm.Message{Welcome: &fdm.Welcome{}, Command: &fdm.Command{}, Progress: &fdm.Progress{}, Config: &fdm.ConfigOffer{Version: 1 << 63, File: []byte("x")}})
	add(fdm.Message{Admin: &fdm.AdminRelay{}, Answer: &fdm.AnswerRelay{}, Events: &fdm.EventShare{Events: []event.Event{{}}}, View: &fdm.ClusterView{}})
	for _, s := range []string{"", "{}", "null", `{"command":{"start":{}}}`, `{"report":{"host":"../x","datastores":[{}],"losses":[{}],"networks":[{}]}}`, `{"events":{"events":[{"failover":"f","kind":"failover.done"}]}}`} {
		f.Add([]byte(s))
	}
	c, err := config.Parse([]byte(strings.ReplaceAll(clusterYAML, "%DIR%", "/srv")))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, role := range []fdm.Heartbeat{{Kind: fdm.BeatPrimary, Datastores: 9, Primary: "host2", Start: 5}, {Kind: fdm.BeatSecondary, Primary: "host1", Start: 5}} {
			m := fdm.New(fdm.Config{Self: "host1", Boot: "boot", Start: 1})
			now := time.Duration(0)
			step := func(ev fdm.Event) {
				now += 100 * time.Millisecond
				m.Step(now, ev)
				m.View(now)
			}
			step(fdm.ConfigLoaded{Config: ClusterOf(c, "host1")})
			step(fdm.LinkChanged{Host: "host2", Up: true})
			for range 3 {
				step(fdm.HeartbeatReceived{From: "host2", Network: "mgmt", Beat: role})
				step(fdm.Tick{})
			}
			var b fdm.Heartbeat
			if json.Unmarshal(data, &b) == nil {
				step(fdm.HeartbeatReceived{From: "host2", Network: "mgmt", Beat: b})
				step(fdm.HeartbeatReceived{From: "host9", Network: "nowhere", Beat: b})
			}
			var msg fdm.Message
			if json.Unmarshal(data, &msg) == nil {
				step(fdm.MessageReceived{From: "host2", Message: msg})
				step(fdm.MessageReceived{From: "host9", Message: msg})
			}
			for range 40 {
				step(fdm.Tick{})
			}
		}
	})
}
