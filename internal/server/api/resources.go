package api

import (
	"context"
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/store"
)

// Resources are the VMs of a cluster file and those that its hosts report, by
// name.
func Resources(cluster string, c *config.Cluster, seen []*hanokv1.VM) []*hanokv1.Resource {
	byName := map[string]*hanokv1.Resource{}
	for i := range c.VMs {
		v := &c.VMs[i]
		byName[v.Name] = &hanokv1.Resource{Cluster: cluster, Id: v.Type + ":" + v.Name, Node: string(v.Host), Type: v.Type, Name: v.Name, State: string(v.Requested),
			Requested: string(v.Requested), MaxRestart: proto.Int32(int32(v.Restart.MaxRestart)), MaxRelocate: proto.Int32(int32(v.Restart.MaxRelocate)), Failback: proto.Bool(v.Restart.Failback),
			Priority: string(v.Restart.Priority), Datastore: string(v.Datastore), Configured: true}
	}
	for _, v := range seen {
		r := byName[v.Name]
		if r == nil {
			r = &hanokv1.Resource{Cluster: cluster, Id: "vm:" + v.Name, Type: "vm", Name: v.Name, Requested: string(model.RequestedStarted), MaxRestart: proto.Int32(config.NoLimit), MaxRelocate: proto.Int32(config.NoLimit), Failback: proto.Bool(false),
				Priority: v.Priority, Datastore: v.Datastore}
			byName[v.Name] = r
		}
		r.Node, r.State, r.Reason = v.Host, v.State, v.Reason
	}
	out := make([]*hanokv1.Resource, 0, len(byName))
	for _, r := range byName {
		out = append(out, r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// ListResources implements the service.
func (a HA) ListResources(_ context.Context, r *hanokv1.ListResourcesRequest) (*hanokv1.ListResourcesResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	w := a.cache.Wanted(r.Cluster)
	if w == nil {
		return nil, a.noCluster(r.Cluster)
	}
	out := &hanokv1.ListResourcesResponse{Version: w.Cluster.Version}
	out.Resources, out.NextPageToken = cut(p, Resources(r.Cluster, w.Cluster, a.vms(r.Cluster)), func(x *hanokv1.Resource) string { return x.Name })
	return out, nil
}

// PutResource implements the service.
func (a HA) PutResource(ctx context.Context, r *hanokv1.PutResourceRequest) (*hanokv1.PutResourceResponse, error) {
	x := r.Resource
	if x == nil || x.Name == "" {
		return nil, invalid("resource.name", "", "is required")
	}
	if err := checkDefaults(r); err != nil {
		return nil, err
	}
	out := &hanokv1.PutResourceResponse{}
	return out, a.change(ctx, "PutResource", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "resource "+x.Name+" was set", func(c *config.Cluster) (*config.Cluster, error) { return a.withResource(c, r) })
		if err != nil {
			return nil, err
		}
		out.Version, out.Task = e.version, e.task
		return t, nil
	})
}

// checkDefaults checks the names of the fields that get their default back.
func checkDefaults(r *hanokv1.PutResourceRequest) error {
	x := r.Resource
	set := map[string]bool{"requested": x.Requested != "", "priority": x.Priority != "", "maxRestart": x.MaxRestart != nil, "maxRelocate": x.MaxRelocate != nil, "failback": x.Failback != nil}
	for i, f := range r.Defaults {
		at := fmt.Sprintf("defaults[%d]", i)
		switch also, known := set[f]; {
		case !known:
			return invalid(at, "requested, priority, maxRestart, maxRelocate or failback", "%q is unknown", f)
		case also:
			return invalid(at, "leave one of them out", "%s is set besides", f)
		}
	}
	return nil
}

// withResource sets a VM's part of a cluster file.
func (a *API) withResource(c *config.Cluster, r *hanokv1.PutResourceRequest) (*config.Cluster, error) {
	x := r.Resource
	v := c.VMByName(x.Name)
	switch {
	case v == nil:
		n := config.NewVM(x.Name)
		if seen := a.cache.VM(r.Cluster, x.Name); seen != nil {
			n.ID, n.Datastore = model.VMID(seen.Id), model.DatastoreName(seen.Datastore)
		}
		if x.Type != "" {
			n.Type = x.Type
		}
		c.VMs = append(c.VMs, n)
		v = &c.VMs[len(c.VMs)-1]
	case x.Type != "" && x.Type != v.Type:
		return nil, invalid("resource.type", "remove it, and add it as the other", "%s is %s, not %s: the id of a resource is fixed", x.Name, v.Type, x.Type)
	}
	if x.Id != "" && x.Id != v.Type+":"+v.Name {
		return nil, invalid("resource.id", "leave the id out, or TYPE:NAME", "%q does not belong to %s %s: the id of a resource is fixed", x.Id, v.Type, v.Name)
	}
	if x.Datastore != "" {
		v.Datastore = model.DatastoreName(x.Datastore)
	}
	set(&v.Requested, model.Requested(x.Requested))
	set(&v.Restart.Priority, model.Priority(x.Priority))
	if x.MaxRestart != nil {
		v.Restart.MaxRestart = int(*x.MaxRestart)
	}
	if x.MaxRelocate != nil {
		v.Restart.MaxRelocate = int(*x.MaxRelocate)
	}
	if x.Failback != nil {
		v.Restart.Failback = *x.Failback
	}
	giveDefaults(v, r.Defaults)
	return c, nil
}

// set sets a field to a value that is not left out.
func set[T ~string](field *T, value T) {
	if value != "" {
		*field = value
	}
}

// giveDefaults gives fields of a resource their defaults back.
func giveDefaults(v *config.VM, fields []string) {
	d := config.NewVM(v.Name)
	for _, f := range fields {
		switch f {
		case "requested":
			v.Requested = d.Requested
		case "priority":
			v.Restart.Priority = d.Restart.Priority
		case "maxRestart":
			v.Restart.MaxRestart = d.Restart.MaxRestart
		case "maxRelocate":
			v.Restart.MaxRelocate = d.Restart.MaxRelocate
		case "failback":
			v.Restart.Failback = d.Restart.Failback
		}
	}
}

// RemoveResource implements the service.
func (a HA) RemoveResource(ctx context.Context, r *hanokv1.RemoveResourceRequest) (*hanokv1.RemoveResourceResponse, error) {
	out := &hanokv1.RemoveResourceResponse{}
	return out, a.change(ctx, "RemoveResource", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "resource "+r.Resource+" was removed", func(c *config.Cluster) (*config.Cluster, error) {
			i := slices.IndexFunc(c.VMs, func(v config.VM) bool { return v.Name == r.Resource })
			if i < 0 {
				return nil, invalid("resource", "ListResources shows them", "the cluster file has no VM %q", r.Resource)
			}
			c.VMs = slices.Delete(c.VMs, i, i+1)
			return c, nil
		})
		if err != nil {
			return nil, err
		}
		out.Version, out.Task = e.version, e.task
		return t, nil
	})
}
