package sim

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// Bounds of a rehearsal, in virtual time.
const (
	rehearseSettle = 3 * time.Minute // until the cluster is as it was
	rehearseLength = 2 * time.Minute // for the failed hosts' VMs to restart
)

// Rehearsal is what would happen if hosts failed now.
type Rehearsal struct {
	// Failed are the hosts that lose power at one moment.
	Failed []model.HostID `json:"failed"`
	// VMs are those that ran on them.
	VMs []RehearsedVM `json:"vms"`
	// Seconds is when the last of the VMs that restart runs again.
	Seconds float64 `json:"seconds"`
	// Down is how many do not restart within two minutes.
	Down int `json:"down"`
	// Warning says what was not in order before the loss; empty if all was.
	Warning string `json:"warning,omitempty"`
}

// RehearsedVM is a VM of the failed hosts.
type RehearsedVM struct {
	Name string       `json:"name"`
	From model.HostID `json:"from"`
	// To and Seconds say where and how soon it runs again; To is empty, and
	// Reason says why, if it does not.
	To      model.HostID `json:"to,omitempty"`
	Seconds float64      `json:"seconds,omitempty"`
	Reason  string       `json:"reason,omitempty"`
}

// Rehearse plays the loss of hosts in the cluster of a file, whose VMs run where
// it says, with exact clocks; absent are hosts that are down before. The file is
// not changed. It fails if the cluster has no such hosts, or none of failed is
// up. Several rehearsals may run at once.
func Rehearse(c *config.Cluster, absent, failed []model.HostID, seed uint64) (Rehearsal, error) {
	out := Rehearsal{Failed: failed, VMs: []RehearsedVM{}}
	lost := map[model.HostID]bool{}
	for _, h := range failed {
		if c.HostByName(h) == nil {
			return out, fmt.Errorf("hosts: the cluster has no host %q", h)
		}
		lost[h] = true
	}
	s, err := New(c, Options{Seed: seed, Drift: -1, GoOn: true})
	if err != nil {
		return out, err
	}
	for _, h := range absent {
		if lost[h] {
			return out, fmt.Errorf("hosts: %s is down already", h)
		}
		if err := s.Do(scenario.Power{Op: scenario.PowerOff, Host: h}, "down before"); err != nil {
			return out, err
		}
	}
	if !s.Settle(rehearseSettle) {
		out.Warning = "not all was in order before: " + s.unsettled()
	}
	for _, g := range s.vms {
		for _, p := range g.procs {
			if lost[p.h.name] {
				out.VMs = append(out.VMs, RehearsedVM{Name: g.name, From: p.h.name})
			}
		}
	}
	for _, h := range failed {
		if err := s.Do(scenario.Power{Op: scenario.PowerOff, Host: h}, "power-off "+string(h)); err != nil {
			return out, err
		}
	}
	s.Run(s.Now() + rehearseLength)
	r := s.Result()
	for i := range out.VMs {
		v := &out.VMs[i]
		for _, x := range r.Recoveries {
			if x.VM == v.Name {
				v.To, v.Seconds = x.To, x.Seconds
				out.Seconds = max(out.Seconds, x.Seconds)
			}
		}
		if v.To != "" {
			continue
		}
		out.Down++
		for _, x := range r.VMs {
			if x.Name == v.Name {
				v.Reason = x.Reason
			}
		}
		if v.Reason == "" {
			v.Reason = "no host is left that leads the cluster"
		}
	}
	return out, nil
}
