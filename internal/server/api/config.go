package api

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/server/access"
	"hanok.dev/hanok/internal/server/state"
	"hanok.dev/hanok/internal/server/view"
	"hanok.dev/hanok/internal/snapshot"
	"hanok.dev/hanok/internal/store"
)

// Config is ConfigService.
type Config struct{ *API }

// GetConfig implements the service.
func (a Config) GetConfig(ctx context.Context, r *hanokv1.GetConfigRequest) (*hanokv1.GetConfigResponse, error) {
	w := a.cache.Wanted(r.Cluster)
	if w == nil {
		return nil, a.noCluster(r.Cluster)
	}
	out := &hanokv1.GetConfigResponse{Config: w.Version}
	if r.Version != 0 && r.Version != w.Version.Version {
		it, err := a.store.Get(ctx, state.VersionKey(r.Cluster, r.Version))
		if errors.Is(err, store.ErrNotFound) {
			return nil, fail(connect.CodeNotFound, "ListConfigVersions shows them", "cluster %s has no version %d", r.Cluster, r.Version)
		}
		if err != nil {
			return nil, unavailable(err)
		}
		if out.Config, err = state.DecodeConfig(it.Key, it.Value); err != nil {
			return nil, unavailable(err)
		}
	}
	for _, h := range a.cache.Hosts(r.Cluster) {
		if h.ConfigVersion >= out.Config.Version {
			out.Acknowledged = append(out.Acknowledged, h.Name)
		} else {
			out.Waiting = append(out.Waiting, h.Name)
		}
	}
	return out, nil
}

// ListConfigVersions implements the service.
func (a Config) ListConfigVersions(ctx context.Context, r *hanokv1.ListConfigVersionsRequest) (*hanokv1.ListConfigVersionsResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	if a.cache.Wanted(r.Cluster) == nil {
		return nil, a.noCluster(r.Cluster)
	}
	items, _, err := a.store.List(ctx, state.VersionPrefix(r.Cluster), store.ListOptions{})
	if err != nil {
		return nil, unavailable(err)
	}
	slices.Reverse(items)
	out := &hanokv1.ListConfigVersionsResponse{}
	for _, it := range items {
		if p.after != "" && it.Key >= p.after {
			continue
		}
		if len(out.Versions) == p.size {
			out.NextPageToken = tokenOf(state.VersionKey(r.Cluster, out.Versions[p.size-1].Version))
			break
		}
		v, err := state.DecodeConfig(it.Key, it.Value)
		if err != nil {
			return nil, unavailable(err)
		}
		v.Yaml = ""
		out.Versions = append(out.Versions, v)
	}
	return out, nil
}

// parse checks a cluster file as a whole.
func parse(yaml string) (*config.Cluster, error) {
	c, err := config.Parse([]byte(yaml))
	if err == nil {
		err = c.CheckDeployable("")
	}
	if err != nil {
		return nil, badConfig(err)
	}
	return c, nil
}

// CheckConfig implements the service.
func (a Config) CheckConfig(ctx context.Context, r *hanokv1.CheckConfigRequest) (*hanokv1.CheckConfigResponse, error) {
	out := &hanokv1.CheckConfigResponse{}
	c, err := config.Parse([]byte(r.Yaml))
	if err == nil {
		err = c.CheckDeployable("")
	}
	if err == nil && r.Cluster != "" && c.Name != r.Cluster {
		err = config.Problem{Field: "name", Text: fmt.Sprintf("is %q, not %q", c.Name, r.Cluster)}
	}
	if err != nil {
		out.Errors = fieldErrors(err)
		return out, nil
	}
	if err := mayOn(ctx, hanokv1.Role_ROLE_VIEWER, c.Name); err != nil {
		return nil, err
	}
	out.NextVersion = c.Version
	if w := a.cache.Wanted(c.Name); w != nil {
		out.CurrentVersion = w.Cluster.Version
		out.NextVersion = a.nextVersion(c.Name, w)
		out.Changes = changes(config.Diff(w.Cluster, c))
		if c.ID != w.Cluster.ID {
			out.Errors = fieldErrors(otherID(w.Cluster.ID))
		}
	}
	c.Version = out.NextVersion
	b, err := c.Marshal()
	if err != nil {
		return nil, badConfig(err)
	}
	out.Yaml = string(b)
	out.Conflicts, out.Admission = effect(c)
	if live := a.live(ctx, c, out.Yaml); live != nil {
		out.Admission = live
	}
	out.Ineffective = c.HA.Options.Ineffective()
	return out, nil
}

func otherID(id string) error {
	return config.Problem{Field: "id", Text: "the id of a cluster never changes", Remedy: "leave it " + id}
}

// effect is what a cluster file means for rules and failover capacity.
func effect(c *config.Cluster) ([]*hanokv1.Conflict, *hanokv1.AdmissionEffect) {
	report := snapshot.Check(c, rules.Options{})
	p := snapshot.Policy(c)
	e := &hanokv1.AdmissionEffect{Policy: string(p.Kind), Ok: true, Text: "admission control is off"}
	if p.Kind != admission.Off {
		r := admission.Check(snapshot.State(c, report.Active), p)
		e = view.Admission(r)
	}
	return conflicts(report), e
}

func conflicts(r rules.Report) []*hanokv1.Conflict {
	var out []*hanokv1.Conflict
	for _, c := range r.Conflicts {
		out = append(out, view.Conflict(c))
	}
	return out
}

func changes(list []config.Change) []*hanokv1.Change {
	out := make([]*hanokv1.Change, 0, len(list))
	for _, c := range list {
		out = append(out, &hanokv1.Change{Field: c.Field, Old: c.Old, New: c.New, Op: c.Op})
	}
	return out
}

// nextVersion is above all that is wanted or seen.
func (a *API) nextVersion(cluster string, now *state.Wanted) uint64 {
	v := max(now.Cluster.Version, now.Version.RefusedAbove)
	if seen := a.cache.Account(cluster); seen != nil {
		v = max(v, seen.ObservedVersion)
	}
	if f := a.cache.Foreign(cluster); f != nil {
		v = max(v, f.Version)
	}
	return v + 1
}

// edited is the outcome of a change of the wanted configuration.
type edited struct {
	version uint64
	changes []*hanokv1.Change
	task    *hanokv1.Task
	cluster *config.Cluster
}

// edit puts a change of the wanted configuration together: from the version
// that is expected (0: whichever is the newest) to what next makes of it.
func (a *API) edit(ctx context.Context, cluster string, expected uint64, force bool, text string, next func(*config.Cluster) (*config.Cluster, error)) (*store.Txn, *edited, error) {
	it, err := a.store.Get(ctx, state.ConfigKey(cluster))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, a.noCluster(cluster)
	}
	if err != nil {
		return nil, nil, unavailable(err)
	}
	w, err := state.ReadWanted(it)
	if err != nil {
		return nil, nil, unavailable(err)
	}
	if expected != 0 && expected != w.Cluster.Version {
		return nil, nil, a.stale(ctx, cluster, expected, w)
	}
	c, err := next(w.Cluster.Clone())
	if err != nil {
		return nil, nil, err
	}
	diff := config.Diff(w.Cluster, c)
	if len(diff) == 0 {
		return nil, &edited{version: w.Cluster.Version, cluster: w.Cluster}, nil
	}
	if c.ID != w.Cluster.ID {
		return nil, nil, badConfig(otherID(w.Cluster.ID))
	}
	if c.Name != w.Cluster.Name {
		return nil, nil, badConfig(config.Problem{Field: "name", Text: "the server knows a cluster by its name: it cannot be changed here", Remedy: "leave it " + w.Cluster.Name})
	}
	c.Version = a.nextVersion(cluster, w)
	t := new(store.Txn).Unchanged(it.Key, it.Modified)
	e, err := a.put(ctx, t, c, made{from: w.Cluster.Version, was: w.Cluster, diff: diff, text: text, force: force})
	return t, e, err
}

// made is how a version came about.
type made struct {
	from  uint64          // the version before; 0: the first
	was   *config.Cluster // of that version; nil: the first
	diff  []config.Change
	text  string
	force bool
}

// put adds a new version of the wanted configuration to a change.
func (a *API) put(ctx context.Context, t *store.Txn, c *config.Cluster, how made) (*edited, error) {
	b, err := c.Marshal()
	if err != nil {
		return nil, badConfig(err)
	}
	if c, err = parse(string(b)); err != nil { // as a whole, as hosts will
		return nil, err
	}
	if how.from > 0 && !how.force {
		if err := a.refused(ctx, c, string(b)); err != nil {
			return nil, err
		}
	}
	v := &hanokv1.ConfigVersion{Version: c.Version, Yaml: string(b), Digest: c.Digest(), Principal: access.From(ctx).Name,
		Created: timestamppb.Now(), MadeFrom: how.from, Changes: changes(how.diff), Forced: how.force}
	value := state.EncodeConfig(v)
	if len(value) > store.MaxValue {
		return nil, badConfig(fmt.Errorf("the cluster file takes %d bytes compressed; at most %d can be kept", len(value), store.MaxValue))
	}
	task := newTask(ctx, "applyConfig", c.Name, "")
	task.ConfigVersion = c.Version
	// What others write beside it must not be lost: two versions of one number
	// cannot be.
	t.Put(state.ConfigKey(c.Name), value).Absent(state.VersionKey(c.Name, c.Version)).Put(state.VersionKey(c.Name, c.Version), value)
	t.Put(state.TaskKey(task.Id), state.Encode(task)).Delete(state.ForeignKey(c.Name))
	if err := a.newcomers(ctx, t, how.was, c); err != nil {
		return nil, err
	}
	audit(ctx, t, task.Id, c.Name, "", "", fmt.Sprintf("version %d of the cluster file: %s", c.Version, how.text+forced(how.force)))
	return &edited{version: c.Version, changes: v.Changes, task: task, cluster: c}, nil
}

// newcomers adds to a change that nothing counts that was known of a former host of
// a name that joins: neither its token nor its ended certificate is the new one's.
func (a *API) newcomers(ctx context.Context, t *store.Txn, was, now *config.Cluster) error {
	var names []string
	for i := range now.Hosts {
		if h := now.Hosts[i].Name; was == nil || was.HostByName(h) == nil {
			names = append(names, string(h))
		}
	}
	if len(names) == 0 {
		return nil
	}
	old := map[string]bool{}
	for _, prefix := range []string{state.HostTrustPrefix(now.Name), state.EnrolPrefixOf(now.ID)} {
		items, _, err := a.store.List(ctx, prefix, store.ListOptions{KeysOnly: true})
		if err != nil {
			return unavailable(err)
		}
		for _, it := range items {
			old[it.Key] = true
		}
	}
	left := 0
	for _, h := range names {
		for _, key := range []string{state.HostTrustKey(now.Name, h), state.EnrolKey(now.ID, h)} {
			if old[key] {
				t.Delete(key)
				left++
			}
		}
	}
	if left > store.MaxOps/2 {
		return invalid("hosts", "add them in two steps", "too many hosts come back at once")
	}
	return nil
}

// forced is what the audit log adds.
func forced(force bool) string {
	if force {
		return ", by force"
	}
	return ""
}

// stale refuses a change that was made from another version than the newest.
func (a *API) stale(ctx context.Context, cluster string, expected uint64, w *state.Wanted) error {
	e := connect.NewError(connect.CodeAborted, fmt.Errorf("the change was made from version %d, and version %d is the newest: %s changed it", expected, w.Cluster.Version, w.Version.Principal))
	s := &hanokv1.Stale{ExpectedVersion: expected, CurrentVersion: w.Cluster.Version, CurrentYaml: w.Version.Yaml}
	if it, err := a.store.Get(ctx, state.VersionKey(cluster, expected)); err == nil {
		if old, err := state.DecodeConfig(it.Key, it.Value); err == nil {
			if was, err := config.Parse([]byte(old.Yaml)); err == nil {
				s.Changes = changes(config.Diff(was, w.Cluster))
			}
		}
	}
	detail(e, s)
	detail(e, &hanokv1.Remedy{Text: "look at what changed, and make the change again from the newest version"})
	return e
}

// ApplyConfig implements the service.
func (a Config) ApplyConfig(ctx context.Context, r *hanokv1.ApplyConfigRequest) (*hanokv1.ApplyConfigResponse, error) {
	c, err := parse(r.Yaml)
	if err != nil {
		return nil, err
	}
	if r.Cluster != "" && r.Cluster != c.Name {
		return nil, badConfig(config.Problem{Field: "name", Text: fmt.Sprintf("is %q, and the request is about %q", c.Name, r.Cluster)})
	}
	if err := mayOn(ctx, hanokv1.Role_ROLE_ADMINISTRATOR, c.Name); err != nil {
		return nil, err
	}
	out := &hanokv1.ApplyConfigResponse{}
	return out, a.change(ctx, "ApplyConfig", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.applied(ctx, c, r.ExpectedVersion, r.Force)
		if err != nil {
			return nil, err
		}
		out.Version, out.Changes, out.Task = e.version, e.changes, e.task
		return t, nil
	})
}

func (a *API) applied(ctx context.Context, c *config.Cluster, expected uint64, force bool) (*store.Txn, *edited, error) {
	_, err := a.store.Get(ctx, state.ConfigKey(c.Name))
	switch {
	case errors.Is(err, store.ErrNotFound) && expected == 0:
		t := new(store.Txn).Absent(state.ConfigKey(c.Name))
		e, err := a.put(ctx, t, c, made{text: "the cluster was added", force: force})
		return t, e, err
	case err == nil && expected == 0:
		w := a.cache.Wanted(c.Name)
		if w == nil {
			return nil, nil, fail(connect.CodeUnavailable, "ask again", "the server is just starting")
		}
		return nil, nil, a.stale(ctx, c.Name, 0, w)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return nil, nil, unavailable(err)
	}
	return a.edit(ctx, c.Name, expected, force, "a file was applied", func(now *config.Cluster) (*config.Cluster, error) { return c.Clone(), nil })
}

// SetFields implements the service.
func (a Config) SetFields(ctx context.Context, r *hanokv1.SetFieldsRequest) (*hanokv1.SetFieldsResponse, error) {
	if len(r.Fields) == 0 || len(r.Fields) > 100 {
		return nil, invalid("fields", "", "%d fields: must be from 1 to 100", len(r.Fields))
	}
	out := &hanokv1.SetFieldsResponse{}
	return out, a.change(ctx, "SetFields", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "fields were set", func(c *config.Cluster) (*config.Cluster, error) {
			for i, f := range r.Fields {
				next, err := c.With(f.Field, f.Value)
				if err != nil {
					return nil, invalid(fmt.Sprintf("fields[%d]", i), "", "%v", err)
				}
				c = next
			}
			return c, nil
		})
		if err != nil {
			return nil, err
		}
		out.Version, out.Changes, out.Task = e.version, e.changes, e.task
		return t, nil
	})
}

// AdoptConfig implements the service.
func (a Config) AdoptConfig(ctx context.Context, r *hanokv1.AdoptConfigRequest) (*hanokv1.AdoptConfigResponse, error) {
	out := &hanokv1.AdoptConfigResponse{}
	return out, a.change(ctx, "AdoptConfig", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		f := a.cache.Foreign(r.Cluster)
		if f == nil {
			return nil, fail(connect.CodeFailedPrecondition, "hanok diff shows what differs", "the hosts of %s have nothing that is not wanted", r.Cluster)
		}
		theirs, err := parse(f.Yaml)
		if err != nil {
			return nil, err
		}
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "what was changed on a host was taken over", func(*config.Cluster) (*config.Cluster, error) { return theirs, nil })
		if err != nil {
			return nil, err
		}
		out.Version, out.Changes, out.Task = e.version, e.changes, e.task
		return t, nil
	})
}

// RemoveCluster implements the service.
func (a Config) RemoveCluster(ctx context.Context, r *hanokv1.RemoveClusterRequest) (*hanokv1.RemoveClusterResponse, error) {
	out := &hanokv1.RemoveClusterResponse{}
	return out, a.change(ctx, "RemoveCluster", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		it, err := a.store.Get(ctx, state.ConfigKey(r.Cluster))
		if errors.Is(err, store.ErrNotFound) {
			return nil, a.noCluster(r.Cluster)
		}
		if err != nil {
			return nil, unavailable(err)
		}
		w, err := state.ReadWanted(it)
		if err != nil {
			return nil, unavailable(err)
		}
		if r.ExpectedVersion != w.Cluster.Version {
			return nil, a.stale(ctx, r.Cluster, r.ExpectedVersion, w)
		}
		t := new(store.Txn).Unchanged(it.Key, it.Modified)
		state.Forget(t, r.Cluster)
		audit(ctx, t, newID(timestamppb.Now().AsTime()), "-", "", "", "cluster "+r.Cluster+" was removed from the server")
		return t, nil
	})
}

// drift is what the hosts of a cluster have other than wanted; nil: nothing.
func (a *API) drift(name string, w *state.Wanted, c *hanokv1.Cluster) *hanokv1.Drift {
	d := &hanokv1.Drift{}
	if c.Reported == nil {
		return nil
	}
	for _, h := range a.cache.Hosts(name) {
		if h.ConfigVersion != w.Cluster.Version && h.ConfigVersion > 0 {
			d.Hosts = append(d.Hosts, h.Name)
		}
	}
	f := a.cache.Foreign(name)
	switch {
	case f != nil:
		d.Foreign = true
		d.Text = fmt.Sprintf("the hosts work with version %d, which was made on a host: adopt it, or apply the wanted one again", f.Version)
		if theirs, err := config.Parse([]byte(f.Yaml)); err == nil {
			d.Changes = changes(config.Diff(w.Cluster, theirs))
		}
	case c.ObservedVersion < w.Cluster.Version:
		d.Text = fmt.Sprintf("the primary still works with version %d; version %d is handed to it", c.ObservedVersion, w.Cluster.Version)
	case len(d.Hosts) > 0:
		d.Text = "some hosts have not acknowledged the wanted version yet"
	default:
		return nil
	}
	return d
}
