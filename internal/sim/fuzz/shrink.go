package fuzz

import (
	"time"

	"hanok.dev/hanok/internal/scenario"
)

// after is how long a shortened run goes on after the violation it looks for.
const after = 5 * time.Second

// Shrink takes steps out of a scenario as long as the same invariant breaks
// (delta debugging: halves, quarters, ... single steps), at most tries runs, and
// returns the shortest with its outcome. Everything after the violation goes
// first; the steps that heal everything at the end stay, if they came before it:
// a cluster that is left broken breaks what it promises for other reasons.
func Shrink(seed uint64, sc *scenario.Scenario, length time.Duration, found *Outcome, tries int) (*scenario.Scenario, *Outcome) {
	best, outcome := *sc, found
	try := func(steps []scenario.Step) bool {
		if tries <= 0 {
			return false
		}
		tries--
		next := best
		next.Steps = steps
		o, err := Play(seed, &next, length)
		if err != nil || o.Violation == nil || o.Violation.Invariant != found.Violation.Invariant {
			return false
		}
		best, outcome = next, o
		return true
	}
	var before []scenario.Step
	for _, st := range best.Steps {
		if st.At.Seconds() <= found.Violation.At {
			before = append(before, st)
		}
	}
	if len(before) < len(best.Steps) {
		try(before)
	}
	faults := func() int { // the steps before the healing
		n := 0
		for n < len(best.Steps) && best.Steps[n].At < length-Quiet {
			n++
		}
		return n
	}
	for size := max(1, faults()/2); ; size /= 2 {
		for from := 0; from < faults(); {
			steps := append([]scenario.Step(nil), best.Steps[:from]...)
			steps = append(steps, best.Steps[min(faults(), from+size):]...)
			if !try(steps) {
				from += size
			}
		}
		if size <= 1 {
			break
		}
	}
	// A step that only lets time pass, so that replaying reaches the violation.
	at := time.Duration(outcome.Violation.At*float64(time.Second)) + after
	best.Steps = append(best.Steps, scenario.Step{At: at, Text: "expect all running", Action: scenario.Expect{All: true, Condition: scenario.Running}})
	return &best, outcome
}
