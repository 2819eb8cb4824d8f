package event

import (
	"cmp"
	"fmt"
	"sort"
	"strings"
)

type phase struct {
	kind Kind
	name string
}

// phaseNames are the columns of a timeline's table, in the order in which the
// phases happen.
var phaseNames = []phase{
	{ClusterStart, "CLUSTER START"}, {LastHeartbeat, "LAST HEARTBEAT"}, {Silence, "SILENCE"}, {Verdict, "VERDICT"},
	{StartIssued, "START ISSUED"}, {LockTaken, "LOCK TAKEN"},
	{DomainRunning, "RUNNING"}, {GuestAlive, "GUEST ALIVE"},
}

// phases are those that a failover of this cause can have.
func (t Timeline) phases() []phase {
	if t.Cause == CauseStart {
		return append([]phase{phaseNames[0]}, phaseNames[4:]...)
	}
	return phaseNames[1:]
}

// Heading is the first line of a timeline for people.
func (t Timeline) Heading() string {
	what, since := "a VM went down", "last sign of life"
	switch {
	case t.Cause == CauseStart:
		what, since = "the whole cluster started", "first primary"
	case t.Host != "":
		what = "lost " + string(t.Host)
	}
	s := fmt.Sprintf("Failover %s: %s; %s %s, told by %s", t.Failover, what, since,
		t.Began.UTC().Format("2006-01-02 15:04:05.000 UTC"), t.By)
	if !t.Done {
		s += "; under way"
	}
	return s
}

// Findings are the lines that say what was seen and decided; translate says each
// text in the reader's language.
func (t Timeline) Findings(translate func(string) string) []string {
	var out []string
	for _, s := range t.Steps {
		line := fmt.Sprintf("%8.3f s  %s", s.Since, translate(s.Text))
		if s.Cause != "" {
			line += ": " + translate(s.Cause)
		}
		keys := make([]string, 0, len(s.Evidence))
		for k := range s.Evidence {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for i, k := range keys {
			keys[i] = translate(k) + " " + translate(s.Evidence[k])
		}
		if len(keys) > 0 {
			line += " [" + strings.Join(keys, ", ") + "]"
		}
		out = append(out, line)
	}
	return out
}

// Table returns header and rows, one for each VM: seconds since the last
// heartbeat, in brackets those since the previous phase, "~" before figures
// that rest on two hosts' wall clocks.
func (t Timeline) Table() (header []string, rows [][]string) {
	header = []string{"VM", "FROM", "TO"}
	phases := t.phases()
	for _, p := range phases {
		header = append(header, p.name)
	}
	header = append(header, "TRIES", "OUTCOME")
	for _, v := range t.VMs {
		row := []string{v.VM, cmp.Or(string(v.From), "-"), cmp.Or(string(v.To), "-")}
		for _, p := range phases {
			row = append(row, cell(p.kind, t.Steps, v.Steps))
		}
		outcome := v.Outcome
		if v.Reason != "" {
			outcome += ": " + v.Reason
		}
		rows = append(rows, append(row, fmt.Sprint(v.Attempts), outcome))
	}
	return header, rows
}

// Conclusion is the last line of a timeline for people.
func (t Timeline) Conclusion() string {
	switch {
	case len(t.VMs) == 0:
		return "No VM had to be restarted."
	case t.LastRunning == nil:
		n := 0
		for _, v := range t.VMs {
			if v.find(DomainRunning) == nil {
				n++
			}
		}
		return fmt.Sprintf("Of %d VMs of this failover, %d do not run yet.", len(t.VMs), n)
	case t.LastAlive == nil:
		return fmt.Sprintf("The last of %d VMs ran after %.3f s; not every guest has answered yet.", len(t.VMs), *t.LastRunning)
	default:
		return fmt.Sprintf("The last of %d VMs ran after %.3f s, the last guest answered after %.3f s.", len(t.VMs), *t.LastRunning, *t.LastAlive)
	}
}

func cell(kind Kind, lists ...[]Step) string {
	out := "-"
	for _, steps := range lists {
		for _, s := range steps {
			if s.Kind != kind {
				continue
			}
			out = fmt.Sprintf("%.3f", s.Since)
			if s.Delta != 0 {
				out += fmt.Sprintf(" (+%.3f)", s.Delta)
			}
			if s.Approximate {
				out = "~" + out
			}
		}
	}
	return out
}
