package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/trust"
	"hanok.dev/hanok/internal/store"
)

// Trust is TrustService.
type Trust struct {
	*API
	Book *trust.Book
	// Reach is where hosts reach this server, and the fingerprint that it shows
	// there; empty when it listens for root only.
	Reach func() (address, fingerprint string)
}

// TaskReplaceAuthority is the kind of the task that replaces an authority; its
// target is the fingerprint of the new one.
const TaskReplaceAuthority = "replaceAuthority"

func trustError(err error) error {
	var soon *account.TooSoon
	var refused *pki.Refused
	switch {
	case errors.Is(err, trust.ErrNone):
		return fail(connect.CodeFailedPrecondition, "hanok host token HOST makes one; hanok cluster trust import takes one over", "%w", err)
	case errors.Is(err, trust.ErrByHand):
		return fail(connect.CodeFailedPrecondition, "hanok cluster trust import --cert ca.crt --key ca.key, from where hanok pki made them", "%w", err)
	case errors.Is(err, trust.ErrToken):
		return fail(connect.CodeUnauthenticated, "hanok host token HOST makes a new one", "%w", err)
	case errors.Is(err, trust.ErrUsed), errors.Is(err, trust.ErrExpired), errors.Is(err, trust.ErrOtherHost):
		return fail(connect.CodePermissionDenied, "hanok host token HOST makes a new one", "%w", err)
	case errors.As(err, &soon):
		return fail(connect.CodeResourceExhausted, "", "%w", err)
	case errors.As(err, &refused):
		return fail(connect.CodePermissionDenied, "", "%w", err)
	}
	return unavailable(err)
}

// cluster is a cluster file by its name.
func (a Trust) cluster(name string) (*state.Wanted, error) {
	if name == "" {
		return nil, invalid("cluster", "hanok cluster list shows them", "is missing")
	}
	w := a.cache.Wanted(name)
	if w == nil {
		return nil, a.noCluster(name)
	}
	return w, nil
}

// CreateHostToken implements the service.
func (a Trust) CreateHostToken(ctx context.Context, r *hanokv1.CreateHostTokenRequest) (*hanokv1.CreateHostTokenResponse, error) {
	w, err := a.cluster(r.Cluster)
	if err != nil {
		return nil, err
	}
	c := w.Cluster
	if c.HostByName(model.HostID(r.Host)) == nil {
		return nil, invalid("host", "add it to the cluster file first: hanok apply -f FILE", "cluster %s has no host %q", r.Cluster, r.Host)
	}
	life := trust.TokenLife
	if r.Seconds != 0 {
		if r.Seconds < 0 || r.Seconds > int64(trust.TokenMost/time.Second) {
			return nil, invalid("seconds", "", "%d: must be from 1 to %d", r.Seconds, int64(trust.TokenMost/time.Second))
		}
		life = time.Duration(r.Seconds) * time.Second
	}
	if _, err := a.Book.Ensure(ctx, c.ID); err != nil {
		return nil, trustError(err)
	}
	t := new(store.Txn).Unchanged(state.ConfigKey(r.Cluster), w.Modified)
	text, expires, err := a.Book.NewToken(t, r.Cluster, c.ID, model.HostID(r.Host), access.From(ctx).Name, life)
	if err != nil {
		return nil, unavailable(err)
	}
	audit(ctx, t, newID(time.Now()), r.Cluster, "", r.Host, "made a token with which "+r.Host+" can be enrolled")
	if err := a.commit(ctx, t); err != nil {
		return nil, err
	}
	out := &hanokv1.CreateHostTokenResponse{Token: text, Expires: timestamppb.New(expires)}
	out.Server, out.Fingerprint = a.Reach()
	return out, nil
}

// commit carries out a change that rests on what was just read.
func (a *API) commit(ctx context.Context, t *store.Txn) error {
	rev, err := a.store.Commit(ctx, t)
	if errors.Is(err, store.ErrConflict) {
		return fail(connect.CodeAborted, "ask again", "others change the same at the same time")
	}
	if err != nil {
		return unavailable(err)
	}
	return a.cache.Wait(ctx, rev)
}

// EnrolHost implements the service.
func (a Trust) EnrolHost(ctx context.Context, r *hanokv1.EnrolHostRequest) (*hanokv1.EnrolHostResponse, error) {
	from := account.Address(access.Address(ctx))
	t := new(store.Txn)
	token, clusterID, err := a.Book.Redeem(ctx, t, r.Token, model.HostID(r.Host), from)
	if err != nil {
		return nil, trustError(err)
	}
	w := a.cache.Wanted(token.Cluster)
	if w == nil || w.Cluster.ID != clusterID || w.Cluster.HostByName(token.Host) == nil {
		return nil, fail(connect.CodeFailedPrecondition, "add it to the cluster file: hanok apply -f FILE", "%s is no host of cluster %s any more", token.Host, token.Cluster)
	}
	auth, err := a.Book.Get(ctx, clusterID)
	if err != nil {
		return nil, trustError(err)
	}
	cert, expires, err := a.Book.Issue(auth, w.Cluster, token.Host, []byte(r.Request))
	if err != nil {
		var no *pki.Refused
		if errors.As(err, &no) {
			return nil, trustError(err)
		}
		return nil, invalid("request", "", "%v", err)
	}
	id := newID(time.Now())
	e := &hanokv1.Event{Id: "server-" + id, Cluster: token.Cluster, Time: timestamppb.Now(), By: "server", Severity: "info", Kind: "admin", Host: string(token.Host),
		Text: fmt.Sprintf("%s was enrolled from %s", token.Host, from), Cause: "with a token that " + token.By + " made", Principal: token.By}
	t.Put(state.EventKey(token.Cluster, e.Id), state.Encode(e))
	// From now on no certificate before this one is the host's last.
	t.Put(state.HostTrustKey(token.Cluster, string(token.Host)), state.Encode(&hanokv1.HostTrust{Host: string(token.Host),
		Expires: timestamppb.New(expires), Issuer: auth.Fingerprints()[0], Authorities: auth.Fingerprints()}))
	if err := a.commit(ctx, t); err != nil {
		return nil, err
	}
	return &hanokv1.EnrolHostResponse{Certificate: string(cert), Authorities: string(auth.PEM()), Expires: timestamppb.New(expires), Yaml: w.Version.Yaml}, nil
}

// GetTrust implements the service.
func (a Trust) GetTrust(ctx context.Context, r *hanokv1.GetTrustRequest) (*hanokv1.GetTrustResponse, error) {
	w, err := a.cluster(r.Cluster)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.GetTrustResponse{}
	auth, err := a.Book.Get(ctx, w.Cluster.ID)
	switch {
	case errors.Is(err, trust.ErrNone):
	case err != nil:
		return nil, unavailable(err)
	default:
		out.Phase = string(auth.Phase)
		for i, x := range auth.List {
			out.Authorities = append(out.Authorities, &hanokv1.Authority{Fingerprint: pki.Fingerprint(x.Cert), Subject: x.Cert.Subject.String(),
				Expires: timestamppb.New(x.Cert.NotAfter), Signs: i == 0})
		}
	}
	have, err := a.hostTrust(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	for i := range w.Cluster.Hosts {
		name := string(w.Cluster.Hosts[i].Name)
		h := have[name]
		if h == nil {
			h = &hanokv1.HostTrust{Host: name}
		}
		out.Hosts = append(out.Hosts, h)
	}
	return out, nil
}

// hostTrust is what hosts said of their trust, by name.
func (a *API) hostTrust(ctx context.Context, cluster string) (map[string]*hanokv1.HostTrust, error) {
	items, _, err := a.store.List(ctx, state.HostTrustPrefix(cluster), store.ListOptions{})
	if err != nil {
		return nil, unavailable(err)
	}
	out := map[string]*hanokv1.HostTrust{}
	for _, it := range items {
		h, err := state.Decode[hanokv1.HostTrust](it.Key, it.Value)
		if err != nil {
			return nil, unavailable(err)
		}
		out[h.Host] = h
	}
	return out, nil
}

// given is an authority from a request.
func given(c *config.Cluster, certificate, key string) (*pki.Authority, error) {
	p, err := pki.ParseAuthority(c.ID, []byte(certificate), []byte(key))
	if err != nil {
		return nil, invalid("certificate", "give PEM files of one CA certificate and its key, without a passphrase", "%v", err)
	}
	return p, nil
}

// ImportAuthority implements the service.
func (a Trust) ImportAuthority(ctx context.Context, r *hanokv1.ImportAuthorityRequest) (*hanokv1.ImportAuthorityResponse, error) {
	w, err := a.cluster(r.Cluster)
	if err != nil {
		return nil, err
	}
	next, err := given(w.Cluster, r.Certificate, r.Key)
	if err != nil {
		return nil, err
	}
	for range importAttempts - 1 {
		out, err := a.importAuthority(ctx, r.Cluster, w, next)
		if connect.CodeOf(err) != connect.CodeAborted {
			return out, err
		}
		// The authority of a new cluster was being made at this moment.
		if w, err = a.cluster(r.Cluster); err != nil {
			return nil, err
		}
	}
	return a.importAuthority(ctx, r.Cluster, w, next)
}

// importAttempts is how often an import is tried when something it rests on was
// changed at the same time.
const importAttempts = 3

func (a Trust) importAuthority(ctx context.Context, cluster string, w *state.Wanted, next *pki.Authority) (*hanokv1.ImportAuthorityResponse, error) {
	out := &hanokv1.ImportAuthorityResponse{Fingerprint: pki.Fingerprint(next.Cert)}
	now, err := a.Book.Get(ctx, w.Cluster.ID)
	if err == nil {
		have, err := a.hostTrust(ctx, cluster)
		if err != nil {
			return nil, err
		}
		for _, h := range have {
			if slices.Contains(now.Fingerprints(), h.Issuer) {
				return nil, fail(connect.CodeFailedPrecondition, "hanok cluster trust replace --cert FILE --key FILE", "%s has a certificate of the authority that the server has already", h.Host)
			}
		}
	} else if !errors.Is(err, trust.ErrNone) {
		return nil, unavailable(err)
	}
	t := new(store.Txn).Unchanged(state.ConfigKey(cluster), w.Modified)
	if err := a.Book.Import(ctx, t, w.Cluster.ID, next); err != nil {
		return nil, unavailable(err)
	}
	audit(ctx, t, newID(time.Now()), cluster, "", "", "gave the server the authority "+out.Fingerprint)
	return out, a.commit(ctx, t)
}

// ReplaceAuthority implements the service.
func (a Trust) ReplaceAuthority(ctx context.Context, r *hanokv1.ReplaceAuthorityRequest) (*hanokv1.ReplaceAuthorityResponse, error) {
	out := &hanokv1.ReplaceAuthorityResponse{}
	return out, a.change(ctx, "ReplaceAuthority", r.IdempotencyKey, r, out, func() (t *store.Txn, err error) {
		t, out.Task, err = a.replace(ctx, r)
		return t, err
	})
}

func (a Trust) replace(ctx context.Context, r *hanokv1.ReplaceAuthorityRequest) (*store.Txn, *hanokv1.Task, error) {
	w, err := a.cluster(r.Cluster)
	if err != nil {
		return nil, nil, err
	}
	auth, err := a.Book.Get(ctx, w.Cluster.ID)
	if err != nil {
		return nil, nil, trustError(err)
	}
	for _, t := range a.cache.Tasks() {
		if t.Kind == TaskReplaceAuthority && t.Cluster == r.Cluster && !state.Ended(t) {
			return nil, nil, fail(connect.CodeFailedPrecondition, "hanok task wait "+t.Id, "a replacement is under way: task %s", t.Id)
		}
	}
	t := new(store.Txn).Unchanged(state.ConfigKey(r.Cluster), w.Modified)
	list := auth.Fingerprints()
	target, text := list[0], "goes on with the replacement of the authority" // Reissue and Drop: the new one is the first
	if auth.Phase == trust.Distribute {
		target = list[len(list)-1]
	}
	switch {
	case auth.Phase != trust.None && r.Certificate != "":
		return nil, nil, fail(connect.CodeFailedPrecondition, "hanok cluster trust replace, without a certificate, goes on with it", "a replacement by another authority has begun")
	case auth.Phase == trust.None:
		next, err := pki.NewAuthority(w.Cluster.ID, time.Time{})
		if r.Certificate != "" || r.Key != "" {
			next, err = given(w.Cluster, r.Certificate, r.Key)
		}
		if err != nil {
			return nil, nil, err
		}
		if target = pki.Fingerprint(next.Cert); slices.Contains(list, target) {
			return nil, nil, invalid("certificate", "", "it is the authority that the cluster has already")
		}
		if err := auth.Begin(t, next); err != nil {
			return nil, nil, err
		}
		text = "replaces the authority by " + target
	}
	task := newTask(ctx, TaskReplaceAuthority, r.Cluster, target)
	t.Put(state.TaskKey(task.Id), state.Encode(task))
	audit(ctx, t, task.Id, r.Cluster, "", "", text)
	return t, task, nil
}
