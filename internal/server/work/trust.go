package work

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
)

// Bounds of looking after the hosts' certificates.
const (
	// trustLook is how often it is looked whether there is something to do.
	trustLook = time.Second
	// trustAgain is the pause before a host is looked after again that has a
	// problem, or is new: it was away, or was enrolled a moment ago.
	trustAgain = 5 * time.Second
	// trustHosts is how many hosts are looked after at a time.
	trustHosts = 8
)

// keepTrust looks after whom the hosts of a cluster trust and that their
// certificates do not end, until ctx ends.
func (f *follower) keepTrust(ctx context.Context) {
	select { // before, no host could be asked
	case <-f.dialled:
	case <-ctx.Done():
		return
	}
	var at int64
	var last, again time.Time
	for ctx.Err() == nil {
		w := f.w.Cache.Wanted(f.name)
		if w == nil {
			return
		}
		a, err := f.w.Trust.Ensure(ctx, w.Cluster.ID)
		switch {
		case errors.Is(err, trust.ErrByHand): // until it is imported
		case err != nil:
			f.w.Log.Warn("the authority of a cluster cannot be read", "cluster", f.name, "err", err)
		case a.Phase != trust.None || a.Modified() != at || time.Since(last) >= f.w.TrustInterval:
			at, last = a.Modified(), time.Now()
			f.trustRound(ctx, w.Cluster, a, func(model.HostID) bool { return true })
			again = time.Now()
		case time.Since(again) >= trustAgain:
			f.trustRound(ctx, w.Cluster, a, f.unsettled)
			again = time.Now()
		}
		pause(ctx, min(trustLook, f.w.TrustInterval))
	}
}

// unsettled reports whether a host has a problem, or was not asked yet.
func (f *follower) unsettled(host model.HostID) bool {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	h := f.trust[host]
	return h == nil || h.Problem != ""
}

// trustRound looks once after every host that needs it.
func (f *follower) trustRound(ctx context.Context, c *config.Cluster, a *trust.Authorities, needs func(model.HostID) bool) {
	var wg sync.WaitGroup
	places := make(chan struct{}, trustHosts)
	for i := range c.Hosts {
		h := c.Hosts[i].Name
		if !needs(h) {
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			f.noteTrust(ctx, h, f.hostTrust(ctx, c, a, h))
		})
	}
	wg.Wait()
}

// hostTrust brings one host to what the authorities ask for, and tells what it
// has then.
func (f *follower) hostTrust(ctx context.Context, c *config.Cluster, a *trust.Authorities, host model.HostID) *hanokv1.HostTrust {
	f.w.mu.Lock()
	agent := f.agents[host]
	f.w.mu.Unlock()
	out := &hanokv1.HostTrust{Host: string(host)}
	if agent == nil {
		out.Problem = "the server has no connection to it"
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	t, err := agent.Trust(ctx)
	var ended *local.Trust // what the host had, when that has ended
	var refused *pki.Refused
	if errors.As(err, &refused) && refused.Reason == pki.ReasonExpired && f.w.DialLapsed != nil {
		if agent, err = f.w.DialLapsed(c, host, f.forgiven(ctx, host)); err == nil {
			defer agent.Close()
			t, err = agent.Trust(ctx)
			ended = t
		}
	}
	if err == nil && t.Host != host {
		err = fmt.Errorf("it calls itself %s", t.Host)
	}
	if err != nil {
		out.Problem = err.Error()
		return out
	}
	for _, step := range []struct {
		needed func() bool
		do     func() (*local.Trust, error)
	}{
		{func() bool { return !a.Trusted(t.Authorities) }, func() (*local.Trust, error) {
			return agent.InstallTrust(ctx, local.TrustInstall{Authorities: string(a.PEM())})
		}},
		{func() bool { return t.Issuer != a.Fingerprints()[0] || f.w.Trust.Due(host, t.Expires) }, func() (*local.Trust, error) {
			request, err := agent.RequestCertificate(ctx)
			if err != nil {
				return nil, err
			}
			cert, expires, err := f.w.Trust.Issue(a, c, host, request)
			if err != nil {
				return nil, err
			}
			f.w.Log.Info("a host's certificate is renewed", "cluster", f.name, "host", host, "expires", expires)
			return agent.InstallTrust(ctx, local.TrustInstall{Authorities: string(a.PEM()), Certificate: string(cert)})
		}},
	} {
		if !step.needed() {
			continue
		}
		next, err := step.do()
		if err != nil {
			out.Problem = err.Error()
			break
		}
		t = next
	}
	if ended != nil && t.Expires.After(ended.Expires) {
		f.tellLapsed(ctx, host, ended.Expires, t.Expires)
	}
	out.Expires, out.Issuer, out.Authorities = timestamppb.New(t.Expires), t.Issuer, t.Authorities
	return out
}

// tellLapsed is the event that says that a host has another certificate for one
// that had ended.
func (f *follower) tellLapsed(ctx context.Context, host model.HostID, ended, expires time.Time) {
	e := &hanokv1.Event{Id: fmt.Sprintf("server-lapsed-%s-%d", host, expires.Unix()), Cluster: f.name, Time: timestamppb.Now(), By: "server", Severity: "warning",
		Kind: string(event.Security), Host: string(host), Text: fmt.Sprintf("%s was given another certificate: its last one had ended", host),
		Cause: fmt.Sprintf("no server renewed it until %s", ended.UTC().Format(time.RFC3339))}
	if _, err := f.commit(ctx, new(store.Txn).PutIfNew(state.EventKey(f.name, e.Id), state.Encode(e))); err != nil && ctx.Err() == nil && !errors.Is(err, errDeposed) && !errors.Is(err, errRemoved) {
		f.w.Log.Warn("an event was not written down", "cluster", f.name, "host", host, "text", e.Text, "err", err)
	}
}

// forgiven is which ended certificate of a host is forgiven.
func (f *follower) forgiven(ctx context.Context, host model.HostID) func(*x509.Certificate) bool {
	last, err := f.lastTrust(ctx, host)
	return func(cert *x509.Certificate) bool {
		if err != nil || last == nil || !f.w.Trust.Forgiven(cert, last.Expires.AsTime()) {
			return false
		}
		f.w.Log.Warn("the certificate of a host has ended; it was the host's last, and is enough to give it another",
			"cluster", f.name, "host", host, "ended", cert.NotAfter)
		return true
	}
}

// lastTrust is what a host said last; nil when it never spoke.
func (f *follower) lastTrust(ctx context.Context, host model.HostID) (*hanokv1.HostTrust, error) {
	key := state.HostTrustKey(f.name, string(host))
	it, err := f.w.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := state.Decode[hanokv1.HostTrust](key, it.Value)
	if err != nil || h.Expires == nil {
		return nil, err
	}
	return h, nil
}

// noteTrust keeps a host's account, and writes it down when it changed and the
// host is a member still. A host that does not answer keeps what it said last.
func (f *follower) noteTrust(ctx context.Context, host model.HostID, h *hanokv1.HostTrust) {
	f.w.mu.Lock()
	if f.trust == nil {
		f.trust = map[model.HostID]*hanokv1.HostTrust{}
	}
	f.trust[host] = h
	f.w.mu.Unlock()
	key := state.HostTrustKey(f.name, string(host))
	it, err := f.w.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return // in the next round
	}
	if h.Issuer == "" && it.Value != nil {
		if old, err := state.Decode[hanokv1.HostTrust](key, it.Value); err == nil {
			if old.Problem != "" {
				return // the reason may vary; the first one stays
			}
			old.Problem = h.Problem
			h = old
		}
	}
	v := state.Encode(h)
	if bytes.Equal(v, it.Value) {
		return
	}
	w := f.w.Cache.Wanted(f.name)
	if w == nil || w.Cluster.HostByName(host) == nil {
		return
	}
	_, err = f.w.commit(ctx, new(store.Txn).Unchanged(state.ConfigKey(f.name), w.Modified).Put(key, v))
	if errors.Is(err, store.ErrConflict) { // a new version meanwhile: soon again
		f.w.mu.Lock()
		delete(f.trust, host)
		f.w.mu.Unlock()
	} else if err != nil && ctx.Err() == nil && !errors.Is(err, errDeposed) {
		f.w.Log.Warn("a host's trust was not written down", "cluster", f.name, "host", host, "err", err)
	}
}

// trusting are the hosts that have what the authorities ask for, and the others
// with the reason.
func (f *follower) trusting(c *config.Cluster, a *trust.Authorities) (ready int, waiting []string) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for i := range c.Hosts {
		name := c.Hosts[i].Name
		h := f.trust[name]
		switch {
		case h == nil:
			waiting = append(waiting, string(name)+": not asked yet")
		case h.Problem != "":
			waiting = append(waiting, string(name)+": "+h.Problem)
		case !a.Trusted(h.Authorities) || h.Issuer != a.Fingerprints()[0]:
			waiting = append(waiting, string(name)+": under way")
		default:
			ready++
		}
	}
	slices.Sort(waiting)
	return ready, waiting
}

// steps are the phases of a replacement for people.
var steps = map[trust.Phase]struct {
	number int
	text   string
}{
	trust.Distribute: {0, "step 1 of 3, hosts trust the new authority"},
	trust.Reissue:    {1, "step 2 of 3, hosts have certificates of the new authority"},
	trust.Drop:       {2, "step 3 of 3, hosts forget the old authority"},
}

// replaceAuthority takes a replacement from phase to phase. It waits for every
// host of the cluster file, however long that takes.
func (r *running) replaceAuthority(ctx context.Context, t *hanokv1.Task) error {
	for {
		ended, err := r.replaceStep(ctx, t)
		if ended || err != nil {
			return err
		}
		pause(ctx, trustLook/2)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (r *running) replaceStep(ctx context.Context, t *hanokv1.Task) (ended bool, err error) {
	w, f := r.w.Cache.Wanted(t.Cluster), r.w.follower(t.Cluster)
	if w == nil {
		return true, r.end(ctx, cancelled, "the cluster was removed from the server")
	}
	if f == nil {
		return false, nil // not yet
	}
	a, err := r.w.Trust.Get(ctx, w.Cluster.ID)
	if err != nil {
		return false, err
	}
	if a.Phase == trust.None {
		// This server, or one before it, got here and could not say so.
		if a.Fingerprints()[0] != t.Target {
			return true, r.end(ctx, cancelled, "given up; hosts forget the new authority again")
		}
		return true, r.end(ctx, succeeded, "every host trusts the new authority, and it alone")
	}
	now := r.w.Cache.Task(r.id)
	if now == nil {
		return true, nil
	}
	change := new(store.Txn)
	if now.CancelRequested && a.Phase == trust.Distribute {
		err = a.Abandon(change)
	} else {
		ready, waiting := f.trusting(w.Cluster, a)
		s := steps[a.Phase]
		all := max(1, len(w.Cluster.Hosts))
		text := fmt.Sprintf("%s: %d of %d", s.text, ready, len(w.Cluster.Hosts))
		if len(waiting) > 0 {
			text += "; waiting for " + strings.Join(waiting[:min(3, len(waiting))], "; ")
			if now.CancelRequested {
				text += " (too late to give it up)"
			}
			return false, r.say(ctx, (100*s.number+100*ready/all)/3, "%s", text)
		}
		err = a.Advance(change)
	}
	if err != nil {
		return false, err
	}
	r.w.Store.Failpoint("trust.advance")
	if _, err = r.w.commit(ctx, change); errors.Is(err, store.ErrConflict) {
		return false, nil // looked at again
	}
	return false, err
}
