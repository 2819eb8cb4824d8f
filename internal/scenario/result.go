package scenario

import "hanok.dev/hanok/internal/model"

// Outcome is pass or fail.
type Outcome string

// The outcomes of a run.
const (
	Pass Outcome = "pass"
	Fail Outcome = "fail"
)

// Result is what a run of a scenario comes to, in the JSON form of `-o json`.
// Times are seconds since the start of the scenario.
type Result struct {
	Result Outcome `json:"result"`
	// Seed makes the simulator repeat the run; 0 in the lab.
	Seed           int64               `json:"seed"`
	VirtualSeconds float64             `json:"virtualSeconds"`
	Hosts          []HostResult        `json:"hosts"`
	VMs            []VMResult          `json:"vms"`
	Recoveries     []Recovery          `json:"recoveries"`
	Violations     []Violation         `json:"violations"`
	Expectations   []ExpectationResult `json:"expectations"`
}

// HostResult is a host at the end of the run.
type HostResult struct {
	Name model.HostID `json:"name"`
	// Power is on or off.
	Power string          `json:"power"`
	Role  model.Role      `json:"role"`
	State model.HostState `json:"state"`
}

// VMResult is a VM at the end of the run.
type VMResult struct {
	Name  string        `json:"name"`
	State model.VMState `json:"state"`
	// Host is where the cluster believes it to be; empty for nowhere.
	Host model.HostID `json:"host"`
	// RunningOn is the truth: every host with a process of it.
	RunningOn []model.HostID `json:"runningOn"`
	Protected bool           `json:"protected"`
	Reason    string         `json:"reason"`
}

// Recovery is one VM that was brought back.
type Recovery struct {
	VM string `json:"vm"`
	// Fault is the text of the step that caused it, FaultAt its time.
	Fault   string       `json:"fault"`
	FaultAt float64      `json:"faultAt"`
	From    model.HostID `json:"from"`
	To      model.HostID `json:"to"`
	// Seconds from the fault until the VM ran again.
	Seconds float64 `json:"seconds"`
}

// Violation is an invariant that did not hold at some moment.
type Violation struct {
	At        float64 `json:"at"`
	Invariant string  `json:"invariant"`
	// Subject is the VM, host, datastore or lock that it is about; empty in the lab.
	Subject string `json:"subject,omitempty"`
	Detail  string `json:"detail"`
}

// ExpectationResult is what became of one expect step.
type ExpectationResult struct {
	// Line of the step in the scenario file.
	Line   int    `json:"line"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Finish sets Result from the rest, and gives empty lists instead of null.
func (r *Result) Finish() {
	r.Result = Pass
	for _, e := range r.Expectations {
		if !e.OK {
			r.Result = Fail
		}
	}
	if len(r.Violations) > 0 {
		r.Result = Fail
	}
	r.Hosts, r.VMs = notNil(r.Hosts), notNil(r.VMs)
	r.Recoveries, r.Violations, r.Expectations = notNil(r.Recoveries), notNil(r.Violations), notNil(r.Expectations)
	for i := range r.VMs {
		r.VMs[i].RunningOn = notNil(r.VMs[i].RunningOn)
	}
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
