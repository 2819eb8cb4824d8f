package admission

import (
	"fmt"
	"strings"

	"hanok.dev/hanok/internal/placement"
)

// Ask is a question with all that its answer needs, so that it can be answered
// elsewhere than where it was put together. Whoever makes one gives the State
// away.
type Ask struct {
	State  *placement.State
	Policy Policy
	// Pending are VMs that HA is about to restart, in the order of restart: they
	// get their places first, so that nothing else takes them.
	Pending []placement.Want
	// Requests are carried out one after the other, and are judged together; none
	// asks whether the policy is kept as things are.
	Requests []Request
}

// Answer answers the question. The State is not fit for another one then.
func (a *Ask) Answer() Decision {
	for _, c := range a.State.PlaceAll(a.Pending).Choices {
		if c.Host != "" {
			_ = a.State.Run(c.VM, c.Host) // both are known: PlaceAll just said so
		}
	}
	if len(a.Requests) == 1 {
		return Decide(a.State, a.Policy, a.Requests[0])
	}
	if len(a.Requests) > 0 {
		return decideAll(a.State, a.Policy, a.Requests)
	}
	r := Check(a.State, a.Policy)
	return Decision{Allowed: r.Verdict == placement.Yes, Report: r}
}

// decideAll tells whether all requests together may be carried out.
func decideAll(s *placement.State, p Policy, list []Request) Decision {
	d := Decision{Allowed: true}
	d.Policy, d.Verdict, d.Answer = p.Kind, placement.Yes, placement.Yes.String()
	if p.Kind == Off || p.Kind == "" {
		d.Reason = "admission control is off"
		return d
	}
	var what []string
	for _, r := range list {
		undo, _, refused := apply(s, r)
		defer undo()
		if refused != nil {
			refused.Policy, refused.Answer = p.Kind, refused.Verdict.String()
			return Decision{Report: *refused}
		}
		what = append(what, words(r))
	}
	d.Report = Check(s, p)
	d.judge(strings.Join(what, ", ") + map[bool]string{true: " together"}[len(list) > 1])
	return d
}

// judge makes a Decision of a Report on the State after what.
func (d *Decision) judge(what string) {
	d.Allowed = d.Verdict == placement.Yes
	switch d.Verdict {
	case placement.No:
		d.Reason = fmt.Sprintf("after %s: %s", what, d.Reason)
	case placement.Unknown:
		d.Reason = fmt.Sprintf("whether the cluster could still lose hosts after %s was not decided, which counts as no: %s", what, d.Reason)
	}
}
