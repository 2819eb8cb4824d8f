package fuzz

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/scenario"
)

// after is how long a shortened run goes on after the violation it looks for.
const after = 5 * time.Second

// Shrink takes steps out of a scenario as long as the same invariant breaks for
// the same subject (delta debugging: halves, quarters, ... single steps), at most
// tries runs, and returns the shortest with its outcome. What follows the
// violation goes first. A step that ends a fault stays as long as the fault does: a
// cluster that is left broken breaks what it promises for other reasons.
func Shrink(seed uint64, sc *scenario.Scenario, length time.Duration, found *Outcome, tries int) (*scenario.Scenario, *Outcome) {
	return shrink(sc, found, tries, func(sc *scenario.Scenario) (*Outcome, error) { return Play(seed, sc, length) })
}

func shrink(sc *scenario.Scenario, found *Outcome, tries int, play func(*scenario.Scenario) (*Outcome, error)) (*scenario.Scenario, *Outcome) {
	best, outcome := *sc, found
	try := func(steps []scenario.Step) bool {
		if tries <= 0 || len(steps) == len(best.Steps) {
			return false
		}
		tries--
		next := best
		next.Steps = steps
		o, err := play(&next)
		if err != nil || o.Violation == nil || o.Violation.Invariant != found.Violation.Invariant || o.Violation.Subject != found.Violation.Subject {
			return false
		}
		best, outcome = next, o
		return true
	}
	try(until(best.Steps, outcome))
	try(without(best.Steps, func(i int) bool { return idle(best.Steps, i) }))
	for size := max(1, len(best.Steps)/2); ; size = max(1, size/2) {
		shorter := false
		for from := 0; from < len(best.Steps); {
			if try(without(best.Steps, func(i int) bool { return i >= from && i < from+size })) {
				shorter = true
			} else {
				from += size
			}
		}
		if size == 1 && (!shorter || tries <= 0) {
			break
		}
	}
	try(until(best.Steps, outcome))
	// A step that only lets time pass, so that replaying reaches the violation.
	at := time.Duration(outcome.Violation.At*float64(time.Second)) + after
	best.Steps = append(slices.Clone(best.Steps), scenario.Step{At: at, Text: "expect all running", Action: scenario.Expect{All: true, Condition: scenario.Running}})
	slices.SortStableFunc(best.Steps, func(a, b scenario.Step) int { return int(a.At - b.At) })
	return &best, outcome
}

// until are the steps before a violation.
func until(steps []scenario.Step, o *Outcome) []scenario.Step {
	n := 0
	for n < len(steps) && steps[n].At.Seconds() <= o.Violation.At {
		n++
	}
	return steps[:n:n]
}

// without leaves steps out, but none that ends a fault which stays.
func without(steps []scenario.Step, drop func(i int) bool) []scenario.Step {
	var out []scenario.Step
	for i := range steps {
		if !drop(i) || slices.ContainsFunc(out, func(s scenario.Step) bool { return ends(steps[i].Action, s.Action) }) {
			out = append(out, steps[i])
		}
	}
	return out
}

// idle tells whether a step is one that ends faults and there is none before it.
func idle(steps []scenario.Step, i int) bool {
	return heals(steps[i].Action) && !slices.ContainsFunc(steps[:i], func(s scenario.Step) bool { return ends(steps[i].Action, s.Action) })
}

// heals tells whether an action ends something rather than begins it.
func heals(a scenario.Action) bool {
	switch a := a.(type) {
	case scenario.Power:
		return a.Op == scenario.PowerOn || a.Op == scenario.Thaw
	case scenario.StorageFault:
		return a.Fault == scenario.FaultNone
	case scenario.Process:
		return a.Op == scenario.Cont
	case scenario.Maintenance:
		return !a.On
	case scenario.Slow:
		return a.By == 0
	case scenario.Clock:
		return a.PPM == 0
	case scenario.Network:
		return a.Permille == 0 && a.Latency == 0
	case scenario.VM:
		return a.Op == scenario.VMRestore || a.Op == scenario.VMStart
	case scenario.Datastore:
		return a.Op == scenario.DatastoreRepair
	case scenario.Leave:
		return a.Cancel
	case scenario.Heal:
		return true
	}
	return false
}

// ends tells whether what a does ends what an earlier action began. A host that
// is powered on again may have been reset for anything that happened to it.
func ends(a, begun scenario.Action) bool {
	if !heals(a) || heals(begun) {
		return false
	}
	switch a := a.(type) {
	case scenario.Power:
		p, power := begun.(scenario.Power)
		if a.Op == scenario.PowerOn {
			return slices.Contains(touches(begun), string(a.Host))
		}
		return power && p.Host == a.Host && (p.Op == scenario.Freeze || p.Op == scenario.Suspend)
	case scenario.Heal:
		switch begun.(type) {
		case scenario.Cut, scenario.Partition:
			return slices.Contains(touches(begun), string(a.Host))
		}
	case scenario.StorageFault:
		f, ok := begun.(scenario.StorageFault)
		return ok && f.Host == a.Host && f.Datastore == a.Datastore
	case scenario.Process:
		p, ok := begun.(scenario.Process)
		return ok && p.Op == scenario.Stop && p.Name == a.Name && p.Host == a.Host
	case scenario.Maintenance:
		m, ok := begun.(scenario.Maintenance)
		return ok && m.Host == a.Host
	case scenario.Slow:
		s, ok := begun.(scenario.Slow)
		return ok && s.Host == a.Host
	case scenario.Clock:
		c, ok := begun.(scenario.Clock)
		return ok && c.Host == a.Host
	case scenario.Network:
		n, ok := begun.(scenario.Network)
		return ok && n.What == a.What
	case scenario.VM:
		v, ok := begun.(scenario.VM)
		return ok && v.VM == a.VM && (v.Op == scenario.VMDelete) == (a.Op == scenario.VMRestore)
	case scenario.Datastore:
		d, ok := begun.(scenario.Datastore)
		return ok && d.Datastore == a.Datastore && d.Op != scenario.DatastoreSnapshot
	case scenario.Leave:
		l, ok := begun.(scenario.Leave)
		return ok && l.Host == a.Host
	}
	return false
}

// touches are the hosts that an action may harm.
func touches(a scenario.Action) []string {
	switch a := a.(type) {
	case scenario.Power:
		return []string{string(a.Host)}
	case scenario.Cut:
		return []string{string(a.Host)}
	case scenario.StorageFault:
		return []string{string(a.Host)}
	case scenario.Process:
		return []string{string(a.Host)}
	case scenario.Stall:
		return []string{string(a.Host)}
	case scenario.Slow:
		return []string{string(a.Host)}
	case scenario.Clock:
		return []string{string(a.Host)}
	case scenario.Leave:
		return []string{string(a.Host)}
	case scenario.Partition:
		var out []string
		for _, g := range a.Groups {
			for _, h := range g {
				out = append(out, string(h))
			}
		}
		return out
	}
	return nil
}
