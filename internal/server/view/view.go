package view

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

// Conflict is a contradiction between rules.
func Conflict(c rules.Conflict) *hanokv1.Conflict {
	return &hanokv1.Conflict{Rules: c.Rules, Vms: c.VMs, Text: c.Reason, Disabled: c.Disabled, Lost: names(c.Lost)}
}

// Admission is what admission control found.
func Admission(r admission.Report) *hanokv1.AdmissionEffect {
	return &hanokv1.AdmissionEffect{Policy: string(r.Policy), Ok: r.Answer == placement.Yes.String(), Text: r.Reason, Verdict: r.Answer, Help: r.Help,
		Warnings: r.Warnings, Lost: names(r.Lost), Checked: int32(r.Checked)}
}

func names(list []model.HostID) []string {
	var out []string
	for _, h := range list {
		out = append(out, string(h))
	}
	return out
}

func ids(list []string) []model.HostID {
	var out []model.HostID
	for _, h := range list {
		out = append(out, model.HostID(h))
	}
	return out
}

// Cluster is a host's account of its cluster as a whole; hostsOK are the states
// in which nothing is wrong with a host.
func Cluster(name string, s *local.Status) *hanokv1.Cluster {
	c := &hanokv1.Cluster{Name: name, Primary: string(s.Primary), Ha: s.HA, HostMonitoring: s.HostMonitoring, ObservedVersion: s.ConfigVersion,
		Software: s.Software, ToldBy: string(s.Host), Hosts: int32(len(s.Hosts)), Vms: int32(len(s.VMs))}
	for _, x := range s.DisabledRules {
		c.DisabledRules = append(c.DisabledRules, Conflict(x))
	}
	if s.Admission != nil {
		c.Admission = Admission(*s.Admission)
	}
	for _, h := range s.Hosts {
		switch h.State {
		case model.HostPrimary, model.HostConnected, model.HostMaintenance, model.HostStandby:
			c.HostsOk++
		}
	}
	for _, v := range s.VMs {
		if v.State == model.VMStarted {
			c.VmsRunning++
		}
		if v.Protected {
			c.VmsProtected++
		}
	}
	return c
}

// Host is a host's account.
func Host(cluster string, h *local.Host, vms int) *hanokv1.Host {
	out := &hanokv1.Host{Cluster: cluster, Name: string(h.Name), Role: string(h.Role), State: string(h.State), Reason: h.Reason,
		Armed: h.Armed, ArmedWhy: h.ArmedWhy, Hook: h.Hook, Guard: h.Guard, Hypervisor: h.Hypervisor, ConfigVersion: h.ConfigVersion,
		MemoryMib: int64(h.Memory), MemoryUsedMib: int64(h.MemoryUsed), Vms: int32(vms), Warnings: h.Warnings}
	for _, d := range h.HeartbeatDatastores {
		out.HeartbeatDatastores = append(out.HeartbeatDatastores, string(d))
	}
	for _, n := range h.HeartbeatNetworks {
		out.HeartbeatNetworks = append(out.HeartbeatNetworks, &hanokv1.HeartbeatNetwork{Name: n.Name, Ok: n.OK, Used: n.Used})
	}
	for _, l := range h.Leases {
		out.Leases = append(out.Leases, &hanokv1.Lease{Datastore: string(l.Datastore), Ok: l.OK, Kind: l.Kind, Problem: l.Problem})
	}
	return out
}

// VM is the account of a VM at now. When its next attempt is due is rounded, so
// that it does not change by itself.
func VM(cluster string, v *local.VM, now time.Time) *hanokv1.VM {
	out := &hanokv1.VM{Cluster: cluster, Name: v.Name, Id: string(v.ID), State: string(v.State), Host: string(v.Host), Datastore: string(v.Datastore),
		Protected: v.Protected, Reason: v.Reason, Epoch: uint64(v.Epoch), Alive: v.Alive, Priority: string(v.Priority), Attempts: int32(v.Attempts),
		Order: int32(v.Order), Ready: v.Ready, WaitsFor: v.WaitsFor, Origin: string(v.Origin)}
	if v.RetryInSeconds > 0 {
		out.RetryAt = timestamppb.New(now.Add(time.Duration(v.RetryInSeconds * float64(time.Second))).Round(5 * time.Second))
	}
	return out
}

// Datastore is the account of a datastore.
func Datastore(cluster string, d *local.Datastore) *hanokv1.Datastore {
	return &hanokv1.Datastore{Cluster: cluster, Name: string(d.Name), Owner: string(d.Owner), Term: uint64(d.Term), Vms: int32(d.VMs), Problem: d.Problem}
}

// Status is the account of a cluster as a host would give it, from the API.
func Status(r *hanokv1.GetStatusResponse, now time.Time) *local.Status {
	c := r.Cluster
	s := &local.Status{Host: model.HostID(c.ToldBy), Cluster: c.Name, Software: c.Software, Primary: model.HostID(c.Primary), HA: c.Ha,
		HostMonitoring: c.HostMonitoring, ConfigVersion: c.ObservedVersion, Hosts: []local.Host{}, VMs: []local.VM{}, Datastores: []local.Datastore{},
		Local: local.Local{Guard: true, Hypervisor: true, Armed: true, HookSeen: true}}
	for _, x := range c.DisabledRules {
		s.DisabledRules = append(s.DisabledRules, rules.Conflict{Rules: x.Rules, Disabled: x.Disabled, Lost: ids(x.Lost), VMs: x.Vms, Reason: x.Text})
	}
	if a := c.Admission; a != nil {
		s.Admission = &admission.Report{Policy: admission.Kind(a.Policy), Answer: a.Verdict, Reason: a.Text, Help: a.Help, Warnings: a.Warnings, Lost: ids(a.Lost), Checked: int(a.Checked)}
	}
	if c.Reported != nil {
		s.AgeSeconds = max(0, now.Sub(c.Reported.AsTime()).Seconds())
	}
	for _, h := range r.Hosts {
		x := local.Host{Name: model.HostID(h.Name), Role: model.Role(h.Role), State: model.HostState(h.State), Reason: h.Reason, Armed: h.Armed, ArmedWhy: h.ArmedWhy,
			Hook: h.Hook, Guard: h.Guard, Hypervisor: h.Hypervisor, ConfigVersion: h.ConfigVersion, Memory: model.MiB(h.MemoryMib), MemoryUsed: model.MiB(h.MemoryUsedMib), Warnings: h.Warnings}
		for _, d := range h.HeartbeatDatastores {
			x.HeartbeatDatastores = append(x.HeartbeatDatastores, model.DatastoreName(d))
		}
		for _, n := range h.HeartbeatNetworks {
			x.HeartbeatNetworks = append(x.HeartbeatNetworks, fdm.NetworkStatus{Name: n.Name, OK: n.Ok, Used: n.Used})
		}
		for _, l := range h.Leases {
			x.Leases = append(x.Leases, local.Lease{Datastore: model.DatastoreName(l.Datastore), OK: l.Ok, Kind: l.Kind, Problem: l.Problem})
		}
		if x.Name == s.Host {
			s.Role, s.State = x.Role, x.State
		}
		s.Hosts = append(s.Hosts, x)
	}
	for _, v := range r.Vms {
		x := local.VM{Name: v.Name, ID: model.VMID(v.Id), State: model.VMState(v.State), Host: model.HostID(v.Host), Datastore: model.DatastoreName(v.Datastore),
			Protected: v.Protected, Reason: v.Reason, Epoch: model.Epoch(v.Epoch), Alive: v.Alive, Priority: model.Priority(v.Priority), Attempts: int(v.Attempts),
			Order: int(v.Order), Ready: v.Ready, WaitsFor: v.WaitsFor, Origin: model.HostID(v.Origin)}
		if v.RetryAt != nil {
			x.RetryInSeconds = max(0, v.RetryAt.AsTime().Sub(now).Seconds())
		}
		s.VMs = append(s.VMs, x)
	}
	for _, d := range r.Datastores {
		s.Datastores = append(s.Datastores, local.Datastore{Name: model.DatastoreName(d.Name), Owner: model.HostID(d.Owner), Term: model.Term(d.Term), VMs: int(d.Vms), Problem: d.Problem})
	}
	return s
}
