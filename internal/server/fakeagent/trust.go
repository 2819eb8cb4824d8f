package fakeagent

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/work"
)

var errNoTrust = errors.New("this agent has no certificate")

// SetTrust makes a host keep a real certificate in a directory.
func (f *Cluster) SetTrust(host model.HostID, k *pki.Keeper) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trust == nil {
		f.trust = map[model.HostID]*pki.Keeper{}
	}
	f.trust[host] = k
}

// SetAway makes one agent unreachable, or reachable again.
func (f *Cluster) SetAway(host model.HostID, away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away == nil {
		f.away = map[model.HostID]bool{}
	}
	f.away[host] = away
}

func (a *Agent) keeper() (*pki.Keeper, error) {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	switch k := a.f.trust[a.host]; {
	case a.f.down || a.f.away[a.host]:
		return nil, errDown
	case k == nil:
		return nil, errNoTrust
	default:
		// What a handshake would say.
		if c := k.Current(); c != nil && time.Now().After(c.Expires) && (a.known == nil || !a.known(c.Certificate())) {
			return nil, &pki.Refused{Reason: pki.ReasonExpired, Detail: "it has ended"}
		}
		return k, nil
	}
}

// DialLapsed is work.DialLapsed for a set of clusters.
func DialLapsed(find func(cluster string) *Cluster) work.DialLapsed {
	return func(c *config.Cluster, host model.HostID, known func(*x509.Certificate) bool) (work.Agent, error) {
		return &Agent{find(c.ID), host, known}, nil
	}
}

// Trust implements work.Agent.
func (a *Agent) Trust(context.Context) (*local.Trust, error) {
	k, err := a.keeper()
	if err != nil {
		return nil, err
	}
	c, err := k.Load()
	if err != nil {
		return nil, err
	}
	t := &local.Trust{Host: c.Identity.Host, Expires: c.Expires, Issuer: pki.Fingerprint(c.Issuer)}
	for _, ca := range c.Authorities {
		t.Authorities = append(t.Authorities, pki.Fingerprint(ca))
	}
	return t, nil
}

// RequestCertificate implements work.Agent.
func (a *Agent) RequestCertificate(context.Context) ([]byte, error) {
	k, err := a.keeper()
	if err != nil {
		return nil, err
	}
	return k.Request()
}

// InstallTrust implements work.Agent.
func (a *Agent) InstallTrust(ctx context.Context, in local.TrustInstall) (*local.Trust, error) {
	k, err := a.keeper()
	if err != nil {
		return nil, err
	}
	if _, err := k.Install([]byte(in.Authorities), []byte(in.Certificate)); err != nil {
		return nil, err
	}
	return a.Trust(ctx)
}
