package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// settleLimit is how long a cluster may take until its VMs are protected.
const settleLimit = 3 * time.Minute

// lookPeriod is the pause between two looks at an expectation.
const lookPeriod = 100 * time.Millisecond

// Play runs a scenario. The error says why there is no result; a failed
// expectation is a result.
func Play(sc *scenario.Scenario, o Options) (scenario.Result, error) {
	s, err := New(sc.Cluster, o)
	if err != nil {
		return scenario.Result{}, err
	}
	return s.Play(sc)
}

// Play brings the cluster to where all its VMs are protected, carries the steps
// out at their times and judges what they expect.
func (s *Sim) Play(sc *scenario.Scenario) (scenario.Result, error) {
	if !s.Settle(settleLimit) && len(s.check.found) == 0 {
		return scenario.Result{}, fmt.Errorf("the cluster did not protect its VMs within %v of virtual time: %s", settleLimit, s.unsettled())
	}
	s.recover = recoveries{}
	s.told = nil
	var results []scenario.ExpectationResult
	var failed error
	end := time.Duration(0)
	for _, step := range sc.Steps {
		if e, ok := step.Action.(scenario.Expect); ok {
			end = max(end, step.At+e.Within)
			s.At(step.At, func() { s.expect(step, e, step.At+e.Within, &results) })
			continue
		}
		end = max(end, step.At)
		s.At(step.At, func() {
			if err := s.Do(step.Action, step.Text); err != nil && failed == nil {
				failed = fmt.Errorf("line %d: %s: %w", step.Line, step.Text, err)
				s.stopped = true
			}
		})
	}
	s.Run(max(end, sc.End()) + time.Millisecond)
	if failed != nil {
		return scenario.Result{}, failed
	}
	r := s.Result()
	slices.SortFunc(results, func(a, b scenario.ExpectationResult) int { return a.Line - b.Line })
	for _, step := range sc.Steps {
		if _, ok := step.Action.(scenario.Expect); ok && !slices.ContainsFunc(results, func(x scenario.ExpectationResult) bool { return x.Line == step.Line }) {
			results = append(results, scenario.ExpectationResult{Line: step.Line, Detail: step.Text + ": not judged, a violation ended the run"})
		}
	}
	r.Expectations = results
	r.Finish()
	return r, nil
}

// unsettled says what keeps VMs from being protected.
func (s *Sim) unsettled() string {
	v, ok := s.View()
	if !ok {
		return "no host leads"
	}
	for i := range v.VMs {
		if x := &v.VMs[i]; !x.Protected {
			return fmt.Sprintf("%s is %s on %s: %s", x.Name, x.State, x.Host, x.Reason)
		}
	}
	return fmt.Sprintf("the primary shows %d VMs of %d", len(v.VMs), len(s.vms))
}

// Result is the state now, what was violated and what recovered.
func (s *Sim) Result() scenario.Result {
	r := scenario.Result{Seed: int64(s.opts.Seed), VirtualSeconds: s.Now().Seconds(), Recoveries: s.recover.done, Violations: s.check.found}
	view, _ := s.View()
	for _, h := range s.hosts {
		x := scenario.HostResult{Name: h.name, Power: "off", Role: model.RoleNone, State: model.HostUninitialized}
		if h.on {
			x.Power = "on"
		}
		for i := range view.Hosts {
			if view.Hosts[i].Name == h.name {
				x.Role, x.State = view.Hosts[i].Role, view.Hosts[i].State
			}
		}
		r.Hosts = append(r.Hosts, x)
	}
	for _, g := range s.vms {
		x := scenario.VMResult{Name: g.name, State: model.VMStopped}
		for i := range view.VMs {
			if v := &view.VMs[i]; v.ID == g.id {
				x.State, x.Host, x.Protected, x.Reason = v.State, v.Host, v.Protected, v.Reason
			}
		}
		for _, p := range g.procs {
			x.RunningOn = append(x.RunningOn, p.h.name)
		}
		r.VMs = append(r.VMs, x)
	}
	r.Finish()
	return r
}

// expect judges an expectation until it holds or its time is over.
func (s *Sim) expect(step scenario.Step, e scenario.Expect, until time.Duration, out *[]scenario.ExpectationResult) {
	why := s.judge(e)
	if why != "" && s.Now() < until {
		s.after(min(lookPeriod, until-s.Now()), func() { s.expect(step, e, until, out) })
		return
	}
	r := scenario.ExpectationResult{Line: step.Line, OK: why == "", Detail: step.Text}
	if why != "" {
		r.Detail += ": " + why
		s.trace(nil, "FAILED %s", r.Detail)
	}
	*out = append(*out, r)
}

// judge returns "" if the expectation holds now, else what is different.
func (s *Sim) judge(e scenario.Expect) string {
	switch e.Condition {
	case scenario.Told:
		for i := range s.told {
			if strings.Contains(s.told[i].text, e.Because) {
				return ""
			}
		}
		return "no such event was told"
	case scenario.PowerIs:
		if h := s.byName[e.Host]; h.on != (e.State == "on") {
			return fmt.Sprintf("its power is on: %v", h.on)
		}
		return ""
	case scenario.Primary:
		for _, h := range s.hosts {
			leads := h.agent.runs() && h.agent.m.Role() == model.RolePrimary
			if leads != (h.name == e.Host) {
				return fmt.Sprintf("%s leads: %v", h.name, leads)
			}
		}
		return ""
	}
	view, ok := s.View()
	if e.Condition == scenario.HostState {
		if !ok {
			return "no host leads"
		}
		for i := range view.Hosts {
			if h := &view.Hosts[i]; h.Name == e.Host {
				if h.State != e.State {
					return fmt.Sprintf("%s is %s: %s", h.Name, h.State, h.Reason)
				}
				if !strings.Contains(h.Reason, e.Because) {
					return fmt.Sprintf("%s: the reason is %q", h.Name, h.Reason)
				}
			}
		}
		return ""
	}
	for _, g := range s.vms {
		v := s.cluster.VMByName(g.name)
		if e.All && (v == nil || v.Requested != model.RequestedStarted) || !e.All && g.name != e.VM {
			continue
		}
		if why := judgeVM(g, e, &view); why != "" {
			return why
		}
	}
	return ""
}

func judgeVM(g *guest, e scenario.Expect, view *fdm.ClusterView) string {
	var x fdm.VMView
	for i := range view.VMs {
		if view.VMs[i].ID == g.id {
			x = view.VMs[i]
		}
	}
	where := func() string {
		if len(g.procs) == 0 {
			return fmt.Sprintf("%s has no instance; it is %s: %s", g.name, x.State, x.Reason)
		}
		text := g.name + " has instances"
		for _, p := range g.procs {
			text += fmt.Sprintf(" %s (runs: %v, frozen: %v)", p.h.name, p.runs(), p.frozen)
		}
		return text
	}
	runs := len(g.procs) == 1 && g.procs[0].runs()
	bad := false
	switch e.Condition {
	case scenario.OnHost:
		bad = !runs || g.procs[0].h.name != e.Host
	case scenario.NotOn:
		bad = !runs || g.procs[0].h.name == e.Host
	case scenario.Running:
		bad = !runs
	case scenario.Down:
		bad = len(g.procs) > 0
	case scenario.Frozen:
		bad = len(g.procs) != 1 || !g.procs[0].frozen
	case scenario.Protected:
		if !x.Protected {
			return fmt.Sprintf("%s is not protected: %s", g.name, x.Reason)
		}
	case scenario.Unprotected:
		if x.Protected {
			return g.name + " is protected"
		}
	}
	if bad {
		return where()
	}
	if !strings.Contains(x.Reason, e.Because) {
		return fmt.Sprintf("%s: the reason is %q", g.name, x.Reason)
	}
	return ""
}
