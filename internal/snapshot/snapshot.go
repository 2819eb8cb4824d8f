// Package snapshot is a cluster file in the terms of placement, rules and
// admission: who asks them about a file, the agent and the command line, asks
// through it.
package snapshot

import (
	"slices"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

// Hosts are the hosts of the file.
func Hosts(c *config.Cluster) []placement.Host {
	out := make([]placement.Host, 0, len(c.Hosts))
	for i := range c.Hosts {
		h := &c.Hosts[i]
		out = append(out, placement.Host{
			Name: h.Name, CPU: h.CPU.Capacity(), Memory: h.Memory, Reserved: placement.Resources(h.Reserved), MaxVMs: h.MaxVMs,
			StartLimit: c.HA.Options.Int("das.perHostConcurrentFailoversLimit"),
			Datastores: h.Datastores, Networks: networks(h), CPUFeatures: h.CPU.Features, Hypervisor: version(h.Hypervisor),
			FailureDomain: h.FailureDomain, Maintenance: h.Maintenance, Quarantine: h.Quarantine, DedicatedFailover: h.DedicatedFailover,
		})
	}
	return out
}

func networks(h *config.Host) []string {
	out := slices.Clone(h.Networks)
	for n := range h.Address {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// version of a file that was read is valid.
func version(s string) int {
	n, _ := config.ParseVersion(s)
	return n
}

// VM is a VM of the file.
func VM(v *config.VM) placement.VM {
	out := placement.VM{
		Name: v.Name, Reservation: placement.Resources(v.Reservation), Overhead: placement.Resources(v.Overhead), Usage: placement.Resources(v.Usage),
		Datastores: append([]model.DatastoreName{v.Datastore}, v.DisksOn...), Networks: v.Networks, CPUFeatures: v.CPUFeatures,
		MinHypervisor: version(v.MinHypervisor),
		NoRestart:     v.Restart.Priority == model.PriorityDisabled || v.Requested != model.RequestedStarted,
	}
	if out.Reservation.Memory == 0 {
		out.Reservation.Memory = v.Memory
	}
	return out
}

// VMs are the VMs of the file.
func VMs(c *config.Cluster) []placement.VM {
	out := make([]placement.VM, 0, len(c.VMs))
	for i := range c.VMs {
		out = append(out, VM(&c.VMs[i]))
	}
	return out
}

// Rules are the rules of the file, oldest first, with groups resolved.
func Rules(c *config.Cluster) []rules.Rule {
	hosts, vms := map[string][]model.HostID{}, map[string][]string{}
	for i := range c.Hosts {
		for _, g := range c.Hosts[i].Groups {
			hosts[g] = append(hosts[g], c.Hosts[i].Name)
		}
	}
	for i := range c.VMs {
		for _, g := range c.VMs[i].Groups {
			vms[g] = append(vms[g], c.VMs[i].Name)
		}
	}
	out := make([]rules.Rule, 0, len(c.Rules))
	for i := range c.Rules {
		out = append(out, rule(&c.Rules[i], hosts, vms))
	}
	return out
}

func rule(r *config.Rule, hostGroups map[string][]model.HostID, vmGroups map[string][]string) rules.Rule {
	out := rules.Rule{Name: r.Name, VMs: slices.Clone(r.VMs)}
	for _, g := range r.VMGroups {
		out.VMs = append(out.VMs, vmGroups[g]...)
	}
	out.VMs = distinct(out.VMs)
	switch r.Kind {
	case config.RuleNodeAffinity:
		out.Kind, out.Hard = rules.OnHosts, r.Strict
		for h, w := range r.Hosts {
			out.Hosts = append(out.Hosts, rules.HostWeight{Host: h, Weight: w})
		}
	case config.RuleVMHost:
		out.Kind, out.Hard = rules.OnHosts, r.Must
		if r.Avoid {
			out.Kind = rules.OffHosts
		}
		for _, g := range r.HostGroups {
			for _, h := range hostGroups[g] {
				out.Hosts = append(out.Hosts, rules.HostWeight{Host: h})
			}
		}
	case config.RuleResourceAffinity:
		out.Kind, out.Hard = rules.Together, !r.Preferred
		if r.Policy == "apart" {
			out.Kind, out.Domains = rules.Apart, r.Scope == "failureDomain"
		}
	}
	slices.SortFunc(out.Hosts, func(a, b rules.HostWeight) int {
		switch {
		case a.Host < b.Host:
			return -1
		case a.Host > b.Host:
			return 1
		}
		return 0
	})
	out.Hosts = slices.Compact(out.Hosts)
	return out
}

// distinct keeps the first of equal names, in order.
func distinct(names []string) []string {
	seen := make(map[string]bool, len(names))
	return slices.DeleteFunc(names, func(n string) bool {
		was := seen[n]
		seen[n] = true
		return was
	})
}

// Universe is what the rules of the file are about.
func Universe(c *config.Cluster) rules.Universe {
	var u rules.Universe
	for i := range c.Hosts {
		u.Hosts = append(u.Hosts, rules.Host{Name: c.Hosts[i].Name, FailureDomain: c.Hosts[i].FailureDomain})
	}
	vms := VMs(c)
	able := placement.New(Hosts(c), vms, nil).Able()
	for i := range vms {
		u.VMs = append(u.VMs, rules.VM{Name: vms[i].Name, Hosts: able(vms[i].Name)})
	}
	return u
}

// Check checks the rules of the file; the report has those in force.
func Check(c *config.Cluster, o rules.Options) rules.Report {
	return rules.Check(Rules(c), Universe(c), o)
}

// ForRestart is the rules in force as restarts respect them: an administrator
// may have allowed restarts to put VMs together that should be apart, or to
// ignore what rules between VMs and hosts prefer.
func ForRestart(active []rules.Rule, o config.Options) []rules.Rule {
	out := make([]rules.Rule, 0, len(active))
	for _, r := range active {
		host := r.Kind == rules.OnHosts || r.Kind == rules.OffHosts
		if host && !r.Hard && !o.Bool("das.respectVmHostSoftAffinityRules") {
			continue
		}
		if r.Kind == rules.Apart && !o.Bool("das.respectVmVmAntiAffinityRules") {
			r.Hard = false
		}
		out = append(out, r)
	}
	return out
}

// Policy is the file's admission control.
func Policy(c *config.Cluster) admission.Policy {
	a, o := c.HA.Admission, c.HA.Options
	return admission.Policy{
		Kind: admission.Kind(a.Policy), HostFailures: a.HostFailures, FailureDomains: a.FailureDomains,
		CPUPercent: a.CPUPercent, MemoryPercent: a.MemoryPercent, Degradation: a.Degradation,
		MinCPU: model.MHz(o.Int("das.vmCpuMinMHz")), MinMemory: model.MiB(o.Int("das.vmMemoryMinMB")),
		SlotCPU: model.MHz(o.Int("das.slotCpuInMHz")), SlotMemory: model.MiB(o.Int("das.slotMemInMB")),
	}
}

// State is the file as a State: VMs that are to be started run where it says.
func State(c *config.Cluster, active []rules.Rule) *placement.State {
	s := placement.New(Hosts(c), VMs(c), active)
	for i := range c.VMs {
		if v := &c.VMs[i]; v.Host != "" && v.Requested == model.RequestedStarted {
			_ = s.Run(v.Name, v.Host) // a file that was read names no unknown host
		}
	}
	return s
}
