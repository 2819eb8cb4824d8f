package api

import (
	"context"
	"slices"
	"strings"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/view"
)

// HA is HAService.
type HA struct{ *API }

// GetHAStatus implements the service.
func (a HA) GetHAStatus(_ context.Context, r *hanokv1.GetHAStatusRequest) (*hanokv1.GetHAStatusResponse, error) {
	w := a.cache.Wanted(r.Cluster)
	if w == nil {
		return nil, a.noCluster(r.Cluster)
	}
	seen := Account{Cluster: a.cluster(r.Cluster), Hosts: a.cache.Hosts(r.Cluster), Datastores: a.cache.Datastores(r.Cluster), VMs: a.vms(r.Cluster)}
	token := a.now()
	out := Page(w.Cluster, &seen)
	out.ResumeToken = token
	return out, nil
}

// vms are the VMs that the hosts of a cluster report.
func (a *API) vms(cluster string) []*hanokv1.VM {
	var out []*hanokv1.VM
	a.cache.VMs(cluster, "", func(v *hanokv1.VM) bool {
		out = append(out, v)
		return true
	})
	return out
}

// Account is what the hosts of a cluster report; hosts in the order of their names.
type Account struct {
	Cluster    *hanokv1.Cluster
	Hosts      []*hanokv1.Host
	Datastores []*hanokv1.Datastore
	VMs        []*hanokv1.VM
}

// AccountOf is what a host reports of its cluster, as a server has it.
func AccountOf(file *config.Cluster, s *local.Status) *Account {
	out := &Account{Cluster: view.Cluster(file.Name, s)}
	vms, now := map[model.HostID]int{}, time.Now()
	for i := range s.VMs {
		v := &s.VMs[i]
		if v.State == model.VMStarted {
			vms[v.Host]++
		}
		out.VMs = append(out.VMs, view.VM(file.Name, v, now))
	}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		x := view.Host(file.Name, h, vms[h.Name])
		if known := file.HostByName(h.Name); known != nil {
			x.Maintenance = known.Maintenance
		}
		out.Hosts = append(out.Hosts, x)
	}
	slices.SortFunc(out.Hosts, func(x, y *hanokv1.Host) int { return strings.Compare(x.Name, y.Name) })
	for i := range s.Datastores {
		out.Datastores = append(out.Datastores, view.Datastore(file.Name, &s.Datastores[i]))
	}
	return out
}

// Page is the agent status page of a cluster file and of what the hosts report.
func Page(file *config.Cluster, seen *Account) *hanokv1.GetHAStatusResponse {
	out := &hanokv1.GetHAStatusResponse{Version: file.Version, Control: control(seen.Cluster, seen.Datastores, seen.VMs), Resources: Resources(file.Name, file, seen.VMs)}
	for _, h := range seen.Hosts {
		out.Agents = append(out.Agents, agentRow(seen.Cluster, h))
	}
	for _, x := range Rules(file.Name, file) {
		switch x.Kind {
		case config.RuleNodeAffinity:
			out.NodeRules = append(out.NodeRules, x)
		case config.RuleResourceAffinity:
			out.ResourceRules = append(out.ResourceRules, x)
		default:
			out.HostRules = append(out.HostRules, x)
		}
	}
	return out
}

// The words and colours of the agent status page.
const (
	green = "green"
	amber = "amber"
	red   = "red"
	grey  = "grey"
)

// control is the row of the primary: can HA act? It can where the list of protected
// VMs of their home datastore has a current primary.
func control(c *hanokv1.Cluster, stores []*hanokv1.Datastore, vms []*hanokv1.VM) *hanokv1.ControlRow {
	out := &hanokv1.ControlRow{Node: c.Primary, Role: "CRM (master node)", Service: "Control"}
	home := map[string]bool{}
	for _, v := range vms {
		home[v.Datastore] = home[v.Datastore] || v.Protected
	}
	with, owned := 0, 0
	var missing []string
	for _, d := range stores {
		if d.Vms == 0 && !home[d.Name] {
			continue
		}
		with++
		if d.Owner == c.Primary && c.Primary != "" {
			owned++
		} else {
			missing = append(missing, d.Name)
		}
	}
	switch {
	case c.Unreachable != "":
		out.State, out.Colour, out.Reason = "No Quorum", red, c.Unreachable
	case c.Primary == "":
		out.State, out.Colour, out.Reason = "No Quorum", red, "there is no primary: HA cannot act"
	case !c.Ha:
		out.State, out.Colour, out.Reason = "partial", amber, "HA is off"
	case owned == with:
		out.State, out.Colour = "quorum OK", green
	case owned > 0:
		out.State, out.Colour, out.Reason = "partial", amber, "the primary does not own the protected list of "+strings.Join(missing, ", ")
	default:
		out.State, out.Colour, out.Reason = "No Quorum", red, "the primary owns no protected list: HA cannot act"
	}
	return out
}

// agentRow is one node's row.
func agentRow(c *hanokv1.Cluster, h *hanokv1.Host) *hanokv1.AgentRow {
	out := &hanokv1.AgentRow{Node: h.Name, Role: "LRM", Service: "active", Reason: h.Reason}
	if h.Maintenance {
		out.Service = "maintenance"
	}
	set := func(state, name, colour string) { out.State, out.Name, out.Colour = state, name, colour }
	lost := !h.Guard
	for _, l := range h.Leases {
		lost = lost || !l.Ok
	}
	switch model.HostState(h.State) {
	case model.HostPrimary, model.HostConnected, model.HostMaintenance:
		switch {
		case lost:
			set("lost_agent_lock", "lost lock", red)
			if out.Reason == "" {
				out.Reason = "its guard has no lease on every datastore"
			}
		case h.Vms > 0 && c.Ha:
			set("active", "active", green)
		default:
			set("wait_for_agent_lock", "idle", grey)
		}
	case model.HostUninitialized, model.HostElection, model.HostStandby:
		set("wait_for_agent_lock", "idle", grey)
	case model.HostFailed, model.HostPartitioned, model.HostIsolated:
		set("lost_agent_lock", "lost lock", red)
	default:
		set("error", "error", red)
	}
	if !c.Ha {
		out.Service = "HA off"
	}
	if c.Unreachable != "" {
		out.Reason = "as last reported: " + c.Unreachable
	}
	return out
}
