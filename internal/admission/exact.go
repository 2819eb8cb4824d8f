package admission

import (
	"fmt"
	"strings"

	"hanok.dev/hanok/internal/placement"
)

// exact: every combination of failures has a witness.
func exact(s *placement.State, p Policy) Report {
	f := placement.Failures{Hosts: p.HostFailures, Domains: p.FailureDomains, Work: p.Work}
	out := s.Survives(f)
	r := Report{Verdict: out.Verdict, Lost: out.Lost, Checked: out.Checked}
	switch out.Verdict {
	case placement.Yes:
		r.Reason = fmt.Sprintf("all VMs find places after the loss of any %s: %d combinations looked at", what(p), out.Checked)
		return r
	case placement.Unknown:
		r.Reason = fmt.Sprintf("it was not decided whether all VMs find places after the loss of %s: %s", hostList(out), out.Reason)
		r.Help = []string{"keep more room: the closer the cluster is to full, the longer is the search", "lower ha.admission.hostFailures"}
		return r
	}
	r.Reason = fmt.Sprintf("without %s %s", hostList(out), out.Reason)
	if len(out.Refusals) > 0 {
		r.Reason += ": " + placement.DescribeRefusals(out.Refusals)
	}
	r.Help = help(s, p, out)
	return r
}

func what(p Policy) string {
	var parts []string
	add := func(n int, what string) {
		switch {
		case n == 1:
			parts = append(parts, "one "+what)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %ss", n, what))
		}
	}
	add(p.HostFailures, "host")
	add(p.FailureDomains, "failure domain")
	if len(parts) == 0 {
		return "0 hosts"
	}
	return strings.Join(parts, ", and of any ")
}

func hostList(out placement.Survival) string {
	names := make([]string, 0, len(out.Lost))
	for _, h := range out.Lost {
		names = append(names, string(h))
	}
	if len(names) == 0 {
		return "hosts"
	}
	return strings.Join(names, " and ")
}

// help finds what would do, by trying it.
func help(s *placement.State, p Policy, out placement.Survival) []string {
	var list []string
	if p.HostFailures > 1 {
		list = append(list, "lower ha.admission.hostFailures")
	}
	list = append(list, "add a host, or memory; stop VMs that can be done without")
	return list
}
