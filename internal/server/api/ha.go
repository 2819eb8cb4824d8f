package api

import (
	"context"
	"slices"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/server/view"
	"hanok.dev/hanok/internal/snapshot"
	"hanok.dev/hanok/internal/store"
)

// problems are what is wrong with a cluster, as its hosts would say it.
func problems(r *hanokv1.GetStatusResponse) []*hanokv1.Problem {
	var out []*hanokv1.Problem
	c := r.Cluster
	if c.Unreachable != "" {
		out = append(out, &hanokv1.Problem{Text: "The server has no present account of the hosts: " + c.Unreachable,
			Remedy: "check that the server reaches port 8183 of the hosts; failover goes on without it"})
		if c.Reported == nil {
			return out
		}
	}
	s := view.Status(r, time.Now())
	s.FindProblems()
	for _, p := range s.Problems {
		out = append(out, &hanokv1.Problem{About: p.About, Text: p.Text, Remedy: p.Remedy})
	}
	if d := c.Drift; d != nil && d.Foreign {
		out = append(out, &hanokv1.Problem{Text: d.Text, Remedy: "hanok diff shows what differs"})
	}
	return out
}

// Rules are the rules of a cluster file with their conflicts, oldest first.
func Rules(cluster string, c *config.Cluster) []*hanokv1.Rule {
	report := snapshot.Check(c, rules.Options{})
	byRule := map[string][]*hanokv1.Conflict{}
	for _, x := range report.Conflicts {
		byRule[x.Disabled] = append(byRule[x.Disabled], view.Conflict(x))
	}
	var out []*hanokv1.Rule
	for i := range c.Rules {
		r := &c.Rules[i]
		x := &hanokv1.Rule{Cluster: cluster, Name: r.Name, Kind: r.Kind, Resources: r.VMs, VmGroups: r.VMGroups, Strict: r.Strict, Policy: r.Policy,
			Scope: r.Scope, Preferred: r.Preferred, HostGroups: r.HostGroups, Must: r.Must, Avoid: r.Avoid, Conflicts: byRule[r.Name]}
		for h, weight := range r.Hosts {
			x.Nodes = append(x.Nodes, &hanokv1.NodeWeight{Node: string(h), Weight: proto.Int32(int32(weight))})
		}
		sort.Slice(x.Nodes, func(i, j int) bool {
			if a, b := x.Nodes[i].GetWeight(), x.Nodes[j].GetWeight(); a != b {
				return a > b
			}
			return x.Nodes[i].Node < x.Nodes[j].Node
		})
		out = append(out, x)
	}
	return out
}

// ListRules implements the service.
func (a HA) ListRules(_ context.Context, r *hanokv1.ListRulesRequest) (*hanokv1.ListRulesResponse, error) {
	p, err := pageOf(r.PageSize, r.PageToken)
	if err != nil {
		return nil, err
	}
	w := a.cache.Wanted(r.Cluster)
	if w == nil {
		return nil, a.noCluster(r.Cluster)
	}
	list := slices.DeleteFunc(Rules(r.Cluster, w.Cluster), func(x *hanokv1.Rule) bool { return r.Kind != "" && x.Kind != r.Kind })
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	out := &hanokv1.ListRulesResponse{Version: w.Cluster.Version}
	out.Rules, out.NextPageToken = cut(p, list, func(x *hanokv1.Rule) string { return x.Name })
	return out, nil
}

// PutRule implements the service.
func (a HA) PutRule(ctx context.Context, r *hanokv1.PutRuleRequest) (*hanokv1.PutRuleResponse, error) {
	x := r.Rule
	if x == nil || x.Name == "" {
		return nil, invalid("rule.name", "", "is required")
	}
	out := &hanokv1.PutRuleResponse{}
	return out, a.change(ctx, "PutRule", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "rule "+x.Name+" was set", func(c *config.Cluster) (*config.Cluster, error) {
			i := slices.IndexFunc(c.Rules, func(o config.Rule) bool { return o.Name == x.Name })
			if i < 0 {
				c.Rules = append(c.Rules, config.Rule{Name: x.Name})
				i = len(c.Rules) - 1
			}
			o := config.Rule{Name: x.Name, Kind: x.Kind, VMs: x.Resources, VMGroups: x.VmGroups, Strict: x.Strict, Policy: x.Policy, Scope: x.Scope,
				Preferred: x.Preferred, HostGroups: x.HostGroups, Must: x.Must, Avoid: x.Avoid}
			for _, n := range x.Nodes {
				if o.Hosts == nil {
					o.Hosts = map[model.HostID]int{}
				}
				o.Hosts[model.HostID(n.Node)] = int(n.GetWeight())
			}
			c.Rules[i] = o
			return c, nil
		})
		if err != nil {
			return nil, err
		}
		out.Version, out.Task = e.version, e.task
		out.Conflicts = conflicts(snapshot.Check(e.cluster, rules.Options{}))
		return t, nil
	})
}

// RemoveRule implements the service.
func (a HA) RemoveRule(ctx context.Context, r *hanokv1.RemoveRuleRequest) (*hanokv1.RemoveRuleResponse, error) {
	out := &hanokv1.RemoveRuleResponse{}
	return out, a.change(ctx, "RemoveRule", r.IdempotencyKey, r, out, func() (*store.Txn, error) {
		t, e, err := a.edit(ctx, r.Cluster, r.ExpectedVersion, r.Force, "rule "+r.Rule+" was removed", func(c *config.Cluster) (*config.Cluster, error) {
			i := slices.IndexFunc(c.Rules, func(o config.Rule) bool { return o.Name == r.Rule })
			if i < 0 {
				return nil, invalid("rule", "ListRules shows them", "the cluster file has no rule %q", r.Rule)
			}
			c.Rules = slices.Delete(c.Rules, i, i+1)
			return c, nil
		})
		if err != nil {
			return nil, err
		}
		out.Version, out.Task = e.version, e.task
		return t, nil
	})
}
