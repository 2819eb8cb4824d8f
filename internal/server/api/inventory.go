package api

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/state"
)

// Inventory is InventoryService.
type Inventory struct{ *API }

// ListClusters implements the service.
func (a Inventory) ListClusters(ctx context.Context, r *hanokv1.ListClustersRequest) (*hanokv1.ListClustersResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	names, err := a.clusters(ctx, "")
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListClustersResponse{ResumeToken: a.now()}
	names, out.NextPageToken = cut(p, names, func(s string) string { return s })
	for _, n := range names {
		if c := a.cluster(n); c != nil {
			out.Clusters = append(out.Clusters, c)
		}
	}
	return out, nil
}

// cluster is what is shown of a cluster; nil when it is gone.
func (a *API) cluster(name string) *hanokv1.Cluster {
	w := a.cache.Wanted(name)
	if w == nil {
		return nil
	}
	c := &hanokv1.Cluster{Unreachable: "no host has reported yet"}
	if seen := a.cache.Account(name); seen != nil {
		c = proto.Clone(seen).(*hanokv1.Cluster)
	}
	c.Name, c.Id, c.DesiredVersion = name, w.Cluster.ID, w.Cluster.Version
	c.Drift = a.drift(name, w, c)
	return c
}

// GetCluster implements the service.
func (a Inventory) GetCluster(_ context.Context, r *hanokv1.GetClusterRequest) (*hanokv1.GetClusterResponse, error) {
	c := a.cluster(r.Cluster)
	if c == nil {
		return nil, a.noCluster(r.Cluster)
	}
	return &hanokv1.GetClusterResponse{Cluster: c}, nil
}

// GetStatus implements the service.
func (a Inventory) GetStatus(_ context.Context, r *hanokv1.GetStatusRequest) (*hanokv1.GetStatusResponse, error) {
	out := &hanokv1.GetStatusResponse{ResumeToken: a.now(), Cluster: a.cluster(r.Cluster)}
	if out.Cluster == nil {
		return nil, a.noCluster(r.Cluster)
	}
	out.Hosts, out.Datastores = a.cache.Hosts(r.Cluster), a.cache.Datastores(r.Cluster)
	a.cache.VMs(r.Cluster, "", func(v *hanokv1.VM) bool { out.Vms = append(out.Vms, v); return true })
	out.Problems = problems(out)
	return out, nil
}

// ListHosts implements the service.
func (a Inventory) ListHosts(ctx context.Context, r *hanokv1.ListHostsRequest) (*hanokv1.ListHostsResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	names, err := a.clusters(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListHostsResponse{ResumeToken: a.now()}
	var all []*hanokv1.Host
	for _, n := range names {
		all = append(all, a.cache.Hosts(n)...)
	}
	out.Hosts, out.NextPageToken = cut(p, all, func(h *hanokv1.Host) string { return h.Cluster + "\x00" + h.Name })
	return out, nil
}

// GetHost implements the service.
func (a Inventory) GetHost(_ context.Context, r *hanokv1.GetHostRequest) (*hanokv1.GetHostResponse, error) {
	if a.cache.Wanted(r.Cluster) == nil {
		return nil, a.noCluster(r.Cluster)
	}
	h := a.cache.Host(r.Cluster, r.Host)
	if h == nil {
		return nil, fail(connect.CodeNotFound, "hanok host list shows them", "cluster %s has no host %q", r.Cluster, r.Host)
	}
	return &hanokv1.GetHostResponse{Host: h}, nil
}

// ListVMs implements the service.
func (a Inventory) ListVMs(ctx context.Context, r *hanokv1.ListVMsRequest) (*hanokv1.ListVMsResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	names, err := a.clusters(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListVMsResponse{ResumeToken: a.now()}
	from, after, _ := strings.Cut(p.after, "\x00")
	for _, n := range names {
		if n < from {
			continue
		}
		begin := ""
		if n == from {
			begin = after
		}
		a.cache.VMs(n, begin, func(v *hanokv1.VM) bool {
			if r.Host != "" && v.Host != r.Host || r.State != "" && v.State != r.State || !strings.Contains(v.Name, r.NameContains) {
				return true
			}
			if len(out.Vms) == p.size {
				last := out.Vms[len(out.Vms)-1]
				out.NextPageToken = tokenOf(last.Cluster + "\x00" + state.VMOrder(last))
				return false
			}
			out.Vms = append(out.Vms, v)
			return true
		})
		if out.NextPageToken != "" {
			break
		}
	}
	return out, nil
}

// GetVM implements the service.
func (a Inventory) GetVM(_ context.Context, r *hanokv1.GetVMRequest) (*hanokv1.GetVMResponse, error) {
	v, err := a.vm(r.Cluster, r.Vm)
	return &hanokv1.GetVMResponse{Vm: v}, err
}

func (a *API) vm(cluster, ref string) (*hanokv1.VM, error) {
	if a.cache.Wanted(cluster) == nil {
		return nil, a.noCluster(cluster)
	}
	v := a.cache.VM(cluster, ref)
	if v == nil {
		return nil, fail(connect.CodeNotFound, "hanok vm list shows them", "cluster %s has no VM %q", cluster, ref)
	}
	return v, nil
}

// ListDatastores implements the service.
func (a Inventory) ListDatastores(ctx context.Context, r *hanokv1.ListDatastoresRequest) (*hanokv1.ListDatastoresResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	names, err := a.clusters(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListDatastoresResponse{ResumeToken: a.now()}
	var all []*hanokv1.Datastore
	for _, n := range names {
		all = append(all, a.cache.Datastores(n)...)
	}
	out.Datastores, out.NextPageToken = cut(p, all, func(d *hanokv1.Datastore) string { return d.Cluster + "\x00" + d.Name })
	return out, nil
}

// ListNetworks implements the service.
func (a Inventory) ListNetworks(ctx context.Context, r *hanokv1.ListNetworksRequest) (*hanokv1.ListNetworksResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	names, err := a.clusters(ctx, r.Cluster)
	if err != nil {
		return nil, err
	}
	out := &hanokv1.ListNetworksResponse{}
	var all []*hanokv1.Network
	for _, n := range names {
		if w := a.cache.Wanted(n); w != nil {
			for _, x := range w.Cluster.Networks { // their order means something
				all = append(all, &hanokv1.Network{Cluster: n, Name: x.Name, Heartbeat: x.Heartbeat})
			}
		}
	}
	place := map[*hanokv1.Network]string{}
	for i, x := range all {
		place[x] = fmt.Sprintf("%s\x00%06d", x.Cluster, i)
	}
	out.Networks, out.NextPageToken = cut(p, all, func(x *hanokv1.Network) string { return place[x] })
	return out, nil
}

// Drifts reports whether hosts of a cluster work with what is not wanted.
func (a *API) Drifts(cluster string) bool {
	w, acc := a.cache.Wanted(cluster), a.cache.Account(cluster)
	return w != nil && acc != nil && a.drift(cluster, w, acc) != nil
}
