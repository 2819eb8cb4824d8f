package sim

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// offs switch one feature off each, at the machines' borders. A scenario names
// its own in its file `off`.
var offs = map[string]func() Tamper{
	"restart": func() Tamper { return Tamper{Agent: dropAsk(func(r *lease.Request) bool { return r.Claim != nil })} },
	"lists": func() Tamper { // a list is claimed once, never by another host
		first := map[model.DatastoreName]model.HostID{}
		return Tamper{Agent: func(h model.HostID, e fdm.Effect) fdm.Effect {
			if a, ok := e.(fdm.AskGuard); ok && a.Request.ClaimList != nil {
				ds := a.Request.ClaimList.Datastore
				if first[ds] == "" {
					first[ds] = h
				}
				if first[ds] != h {
					return nil
				}
			}
			return e
		}}
	},
	"retry": func() Tamper { // each VM is started once
		started := map[model.VMID]bool{}
		return Tamper{Agent: dropAsk(func(r *lease.Request) bool {
			if r.Claim == nil {
				return false
			}
			was := started[r.Claim.VM.ID]
			started[r.Claim.VM.ID] = true
			return was
		})}
	},
	"admin": func() Tamper {
		return Tamper{AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
			if _, ok := ev.(fdm.AdminAsked); ok {
				return nil
			}
			return ev
		}}
	},
	"stopped": func() Tamper { // that a user stopped it is not recorded
		return Tamper{Agent: func(_ model.HostID, e fdm.Effect) fdm.Effect {
			if a, ok := e.(fdm.AskGuard); ok && a.Request.Release != nil {
				r := *a.Request.Release
				r.Reason = model.ReasonCrashed
				a.Request.Release = &r
				return a
			}
			if w, ok := e.(fdm.WriteList); ok {
				w.List.VMs = append([]model.ProtectedVM(nil), w.List.VMs...)
				for i := range w.List.VMs {
					w.List.VMs[i].Requested = model.RequestedStarted
				}
				return w
			}
			return e
		}, AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
			if a, ok := ev.(fdm.AdminAsked); ok && a.Request.Shutdown != nil {
				return nil
			}
			return ev
		}}
	},
	"crash-cause":    func() Tamper { return cause(fdm.StopGuestShutdown) },
	"shutdown-cause": func() Tamper { return cause(fdm.StopCrashed) },
	"slots": func() Tamper { // what hosts write on datastores is not read
		return Tamper{AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
			if r, ok := ev.(fdm.SlotsRead); ok {
				r.Slots, r.Kind, r.Err = nil, "lost", "switched off"
				return r
			}
			return ev
		}}
	},
	"isolation": func() Tamper { // an isolation address always answers
		return Tamper{AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
			if r, ok := ev.(fdm.AddressesPinged); ok {
				r.Asked, r.Answered = 1, "gateway"
				return r
			}
			return ev
		}}
	},
	"free-lists": func() Tamper { // to a host that finds itself alone, lists nobody holds seem held
		alone := map[model.HostID]bool{}
		return Tamper{AgentEvent: func(h model.HostID, ev fdm.Event) fdm.Event {
			switch e := ev.(type) {
			case fdm.AddressesPinged:
				alone[h] = e.Answered == ""
			case fdm.ListRead:
				if alone[h] && e.Kind == "" {
					e.Lock.Owner, e.Lock.State = "host9", model.LockHeld
				}
				return e
			}
			return ev
		}}
	},
	"hand-on": func() Tamper {
		return Tamper{Agent: func(_ model.HostID, e fdm.Effect) fdm.Effect {
			if m, ok := e.(fdm.SendMessage); ok && m.Message.Config != nil {
				return nil
			}
			return e
		}}
	},
	"second-network": func() Tamper {
		return Tamper{Agent: func(_ model.HostID, e fdm.Effect) fdm.Effect {
			if b, ok := e.(*fdm.SendHeartbeat); ok && b.Network != "mgmt" {
				return nil
			}
			return e
		}}
	},
	"ha-switch":         func() Tamper { return Tamper{Config: func(c *fdm.Cluster) { c.Enabled = true }} },
	"monitoring-switch": func() Tamper { return Tamper{Config: func(c *fdm.Cluster) { c.HostMonitoring = true }} },
	"maintenance": func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) {
			for i := range c.Hosts {
				c.Hosts[i].Maintenance = false
			}
		}}
	},
	"admission-control": func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) { c.Admission.Kind = admission.Off }}
	},
	"dedicated": func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) {
			for i := range c.Hosts {
				c.Hosts[i].Spec.DedicatedFailover = false
			}
		}}
	},
	"mass-failure": func() Tamper { return Tamper{Config: func(c *fdm.Cluster) { c.MassFailure = 0 }} },
	"memory": func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) {
			for i := range c.Hosts {
				c.Hosts[i].Memory = 1 << 20
			}
		}}
	},
	"priority": func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) {
			for n, v := range c.VMs {
				v.Priority = model.PriorityMedium
				c.VMs[n] = v
			}
		}}
	},
	"dependencies":   settings(func(v *fdm.VMSettings) { v.DependsOn = nil }),
	"infrastructure": settings(func(v *fdm.VMSettings) { v.Infrastructure = false }),
	"timeout":        settings(func(v *fdm.VMSettings) { v.Timeout = time.Hour }),
	"requested":      settings(func(v *fdm.VMSettings) { v.Requested = model.RequestedStarted }),
	"limits":         settings(func(v *fdm.VMSettings) { v.Limits = nil }),
	"rules":          func() Tamper { return Tamper{Config: func(c *fdm.Cluster) { c.Rules = nil }} },
	"per-host":       func() Tamper { return Tamper{Config: func(c *fdm.Cluster) { c.PerHost = 32 }} },
	"backoff": func() Tamper { // what a primary reads tells nothing of failed attempts
		return Tamper{AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
			if r, ok := ev.(fdm.ListRead); ok {
				r.List.VMs = append([]model.ProtectedVM(nil), r.List.VMs...)
				for i := range r.List.VMs {
					if d := r.List.VMs[i].Down; d != nil {
						r.List.VMs[i].Down = &model.DownState{Cause: d.Cause, Failover: d.Failover}
					}
				}
				return r
			}
			return ev
		}}
	},
	"fence": func() Tamper { // owners are believed dead by their silence alone
		return Tamper{Unfenced: true, Config: func(c *fdm.Cluster) {
			for i := range c.Datastores {
				c.Datastores[i].Unfenced = true
			}
		}}
	},
	"thaw": func() Tamper {
		return Tamper{Guard: func(_ model.HostID, e *lease.Effect) bool { return e.Kind != lease.EffThaw }}
	},
	"pet": func() Tamper {
		fed := map[model.HostID]int{}
		return Tamper{Guard: func(h model.HostID, e *lease.Effect) bool {
			if e.Kind == lease.EffPet {
				fed[h]++
			}
			return e.Kind != lease.EffPet || fed[h] < 80
		}}
	},
	"freeze":    func() Tamper { return Tamper{NoFreeze: true} },
	"reset":     func() Tamper { return Tamper{NoReset: true} },
	"slotcheck": func() Tamper { return Tamper{NoSlotCheck: true} },
	"respawn":   func() Tamper { return Tamper{NoRespawn: true} },
}

// settings changes what the cluster file says of every VM.
func settings(change func(*fdm.VMSettings)) func() Tamper {
	return func() Tamper {
		return Tamper{Config: func(c *fdm.Cluster) {
			for n, v := range c.VMs {
				change(&v)
				c.VMs[n] = v
			}
		}}
	}
}

func dropAsk(which func(*lease.Request) bool) func(model.HostID, fdm.Effect) fdm.Effect {
	return func(_ model.HostID, e fdm.Effect) fdm.Effect {
		if a, ok := e.(fdm.AskGuard); ok && which(&a.Request) {
			return nil
		}
		return e
	}
}

// cause changes why libvirt says that domains stopped.
func cause(c fdm.StopCause) Tamper {
	return Tamper{AgentEvent: func(_ model.HostID, ev fdm.Event) fdm.Event {
		switch e := ev.(type) {
		case fdm.DomainChanged:
			if !e.Domain.Active && e.Domain.Cause != fdm.StopUnknown {
				e.Domain.Cause = c
			}
			return e
		case fdm.DomainsListed:
			for i := range e.Domains {
				if !e.Domains[i].Active && e.Domains[i].Cause != fdm.StopUnknown {
					e.Domains[i].Cause = c
				}
			}
			return e
		}
		return ev
	}}
}

// TestScenariosGoRed switches the feature of each scenario off: it must fail.
func TestScenariosGoRed(t *testing.T) {
	used := map[string]bool{}
	for _, file := range files(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			sc, err := scenario.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimSpace(string(sc.Files["off"]))
			off := offs[name]
			if off == nil {
				t.Fatalf("its file `off` says %q, which is no switch of red_test.go", name)
			}
			used[name] = true
			r, err := Play(sc, Options{Seed: 1, Off: off()})
			switch {
			case err != nil:
				t.Errorf("with %s switched off it does not even begin: %v", name, err)
			case r.Result == scenario.Pass:
				t.Errorf("it passes with %s switched off: it proves nothing", name)
			}
		})
	}
	for name := range offs {
		if !used[name] {
			t.Errorf("no scenario uses the switch %s", name)
		}
	}
}
