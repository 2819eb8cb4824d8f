package work

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/store"
)

// takeBack makes the version before wanted again, as the primary has refused the
// newest. The refused one stays in the history, with the reason.
func (f *follower) takeBack(ctx context.Context, why string) error {
	w := f.wanted.Version
	before, err := f.versionBefore(ctx, w)
	if err != nil {
		return err
	}
	before.RefusedAbove = max(w.Version, before.RefusedAbove)
	bad := proto.Clone(w).(*hanokv1.ConfigVersion)
	bad.Refused = why
	t := new(store.Txn).Unchanged(state.ConfigKey(f.name), f.wanted.Modified)
	t.Put(state.ConfigKey(f.name), state.EncodeConfig(before)).Put(state.VersionKey(f.name, w.Version), state.EncodeConfig(bad))
	e := &hanokv1.Event{Id: fmt.Sprintf("server-refused-%d", w.Version), Cluster: f.name, Time: timestamppb.Now(), By: "server", Severity: "warning", Kind: "admin",
		Text: fmt.Sprintf("version %d of the cluster file was refused: version %d is wanted again", w.Version, before.Version), Cause: why, Principal: w.Principal}
	t.Put(state.EventKey(f.name, e.Id), state.Encode(e))
	if _, err := f.w.commit(ctx, t); err != nil && !errors.Is(err, store.ErrConflict) {
		return err // after a conflict somebody wants another version
	}
	return nil
}

// versionBefore is what was wanted before a version; for the first, what the hosts
// work with.
func (f *follower) versionBefore(ctx context.Context, w *hanokv1.ConfigVersion) (*hanokv1.ConfigVersion, error) {
	if w.MadeFrom > 0 {
		it, err := f.w.Store.Get(ctx, state.VersionKey(f.name, w.MadeFrom))
		if err != nil {
			return nil, err
		}
		return state.DecodeConfig(it.Key, it.Value)
	}
	a, _, err := f.agent()
	if err != nil {
		return nil, err
	}
	b, err := a.Config(ctx)
	if err != nil {
		return nil, err
	}
	c, err := config.Parse(b)
	if err != nil {
		return nil, err
	}
	return &hanokv1.ConfigVersion{Version: c.Version, Yaml: string(b), Digest: c.Digest(), Principal: w.Principal, Created: timestamppb.Now()}, nil
}

// refusedWhy is why a version was refused; "" if it was not.
func (w *worker) refusedWhy(ctx context.Context, cluster string, version uint64) string {
	it, err := w.Store.Get(ctx, state.VersionKey(cluster, version))
	if err != nil {
		return ""
	}
	v, err := state.DecodeConfig(it.Key, it.Value)
	if err != nil {
		return ""
	}
	return v.Refused
}
