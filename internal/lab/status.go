package lab

import (
	"context"
	"slices"
	"sync"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	labdisk "hanok.dev/hanok/internal/lab/disk"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// agentTimeout bounds the question to each host's agent.
const agentTimeout = 3 * time.Second

// HostStatus is a host as the lab knows it and as it sees itself.
type HostStatus struct {
	supervisor.Host
	// Role and State are what the host's own agent says; "none" and
	// "disconnected" if it does not answer.
	Role  model.Role      `json:"role"`
	State model.HostState `json:"state"`
	// Error says why the agent's view is missing.
	Error string `json:"error,omitempty"`
	// Seen and SeenReason are what the primary says of the host; of several
	// primaries the one that owns the most lists. Empty without a primary.
	Seen       model.HostState `json:"seen,omitempty"`
	SeenReason string          `json:"seenReason,omitempty"`
}

// VMStatus is a VM: what the cluster says of it, and where it really is.
type VMStatus struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// State, Host, Protected and Reason are what the primary's agent says, or
	// any other that answers. In a bare lab they follow from the instances.
	State     model.VMState `json:"state"`
	Host      string        `json:"host,omitempty"`
	Protected bool          `json:"protected"`
	Reason    string        `json:"reason,omitempty"`
	// RunningOn is the truth: the hosts that have an instance of it which can
	// run or could again, from their processes.
	RunningOn []string `json:"runningOn"`
	// Instances say more of each.
	Instances []observer.Instance `json:"instances,omitempty"`
	// Disk is the verdict on its data disk, if asked for.
	Disk *labdisk.Report `json:"disk,omitempty"`
	// DiskError says why there is no verdict.
	DiskError string `json:"diskError,omitempty"`
}

// Violation is one breach of an invariant.
type Violation struct {
	Invariant string `json:"invariant"`
	Detail    string `json:"detail"`
}

// Status is a lab as `hanok lab status` shows it.
type Status struct {
	Lab        string       `json:"lab"`
	Hosts      []HostStatus `json:"hosts"`
	VMs        []VMStatus   `json:"vms"`
	Violations []Violation  `json:"violations"`
}

// The invariants that the lab watches.
const (
	InvariantOnce     = "a VM never runs twice"
	InvariantDisk     = "a disk has one writer and loses nothing"
	InvariantObserver = "the observer watches"
)

// Status collects the truth and what the hosts say; disks asks for a verdict
// on every data disk too.
func (c *Client) Status(ctx context.Context, disks bool) (Status, error) {
	s, err := c.State(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{Lab: s.Lab, Violations: []Violation{}, VMs: []VMStatus{}}
	views := make([]local.Status, len(s.Hosts))
	var wg sync.WaitGroup
	for i, h := range s.Hosts {
		out.Hosts = append(out.Hosts, HostStatus{Host: h, Role: model.RoleNone, State: model.HostDisconnected})
		if s.Bare || h.Power != "on" || h.Frozen {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, agentTimeout)
			defer cancel()
			view, err := c.agent(ctx, h.Name)
			if err != nil {
				out.Hosts[i].Error = err.Error()
				return
			}
			views[i] = view
			for _, seen := range view.Hosts {
				if string(seen.Name) == h.Name {
					out.Hosts[i].Role, out.Hosts[i].State = seen.Role, seen.State
				}
			}
		})
	}
	wg.Wait()
	view := best(views)
	if view.Role == model.RolePrimary {
		for i := range out.Hosts {
			if seen := view.HostByName(model.HostID(out.Hosts[i].Name)); seen != nil {
				out.Hosts[i].Seen, out.Hosts[i].SeenReason = seen.State, seen.Reason
			}
		}
	}
	for _, v := range s.VMs {
		out.VMs = append(out.VMs, vmStatus(s, v, view, disks))
	}
	out.addViolations(s)
	return out, nil
}

// best is the view of the primary, of several the one that owns the most lists,
// or without one the view of any host that knows the most VMs.
func best(views []local.Status) local.Status {
	var found local.Status
	most := -1
	for _, v := range views {
		if v.Role != model.RolePrimary {
			if most < 0 && len(v.VMs) > len(found.VMs) {
				found = v
			}
			continue
		}
		owned := 0
		for _, d := range v.Datastores {
			if d.Owner == v.Host {
				owned++
			}
		}
		if owned > most {
			found, most = v, owned
		}
	}
	return found
}

func vmStatus(s supervisor.State, v supervisor.VM, view local.Status, disks bool) VMStatus {
	out := VMStatus{Name: v.Name, ID: v.ID, State: model.VMStopped, RunningOn: []string{}}
	for _, i := range s.Instances {
		if i.VM == v.ID {
			out.Instances = append(out.Instances, i)
			out.RunningOn = append(out.RunningOn, i.Host)
			out.State, out.Host = model.VMStarted, i.Host
			if i.Frozen {
				out.State = model.VMFrozen
			}
		}
	}
	for _, seen := range view.VMs {
		if seen.Name == v.Name {
			out.State, out.Host, out.Protected, out.Reason = seen.State, string(seen.Host), seen.Protected, seen.Reason
		}
	}
	if disks {
		report, err := labdisk.CheckFile(v.Disk)
		if err != nil {
			out.DiskError = err.Error()
		} else {
			out.Disk = &report
		}
	}
	return out
}

func (s *Status) addViolations(st supervisor.State) {
	for _, v := range st.Violations {
		s.Violations = append(s.Violations, Violation{InvariantOnce, v})
	}
	if st.ObserverError != "" {
		s.Violations = append(s.Violations, Violation{InvariantObserver, st.ObserverError})
	}
	for _, v := range s.VMs {
		if v.DiskError != "" {
			s.Violations = append(s.Violations, Violation{InvariantDisk, v.Name + ": " + v.DiskError})
		}
		if v.Disk != nil {
			for _, d := range v.Disk.Violations {
				s.Violations = append(s.Violations, Violation{InvariantDisk, v.Name + ": " + d})
			}
		}
	}
}

// VM returns the named VM's status, or nil.
func (s *Status) VM(name string) *VMStatus {
	if i := slices.IndexFunc(s.VMs, func(v VMStatus) bool { return v.Name == name }); i >= 0 {
		return &s.VMs[i]
	}
	return nil
}
