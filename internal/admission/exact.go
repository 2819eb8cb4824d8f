package admission

import (
	"fmt"
	"slices"
	"strings"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// exact: every combination of failures has a witness.
func exact(s *placement.State, p Policy) Report {
	f := placement.Failures{Hosts: p.HostFailures, Domains: p.FailureDomains, Work: p.Work}
	out := s.Survives(f)
	r := Report{Verdict: out.Verdict, Lost: out.Lost, Checked: out.Checked}
	switch out.Verdict {
	case placement.Yes:
		r.Reason = fmt.Sprintf("all VMs find places after the loss of any %s: %s", what(p), seen(out))
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

func seen(out placement.Survival) string {
	if out.Counted {
		return "counted, for there are too many combinations to look at each"
	}
	return fmt.Sprintf("a placement was found for each of %d combinations", out.Checked)
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

// helpShare is the part of the bound of a check that each attempt to find help
// may take.
const helpShare = 10

// mostRules is how many rules are tried to do without.
const mostRules = 8

// help finds what would make it a yes, by trying it.
func help(s *placement.State, p Policy, out placement.Survival) []string {
	work := p.Work
	if work <= 0 {
		work = placement.DefaultWork
	}
	h := helper{s: s, p: p, f: placement.Failures{Hosts: p.HostFailures, Domains: p.FailureDomains, Work: work / helpShare}}
	h.byMoves(out)
	h.byRules(out)
	h.byHost()
	h.byFewerFailures()
	if len(h.list) == 0 {
		h.list = []string{"stop VMs, or reserve less for them; add hosts or memory"}
	}
	return h.list
}

type helper struct {
	s    *placement.State
	p    Policy
	f    placement.Failures
	list []string
}

func (h *helper) would() bool { return h.s.Survives(h.f).Verdict == placement.Yes }

// byMoves looks for moves that make room now for what would have none then.
func (h *helper) byMoves(out placement.Survival) {
	if out.VM == "" {
		return
	}
	moves := h.movesAfter(out)
	for _, m := range moves {
		for _, vm := range m.VMs {
			_ = h.s.Run(vm, m.To) // both are known
		}
	}
	if len(moves) > 0 && h.would() {
		var parts []string
		for _, m := range moves {
			parts = append(parts, fmt.Sprintf("%s from %s to %s", strings.Join(m.VMs, " with "), m.From, m.To))
		}
		h.list = append(h.list, "move "+strings.Join(parts, ", then "))
	}
	for _, m := range slices.Backward(moves) {
		for _, vm := range m.VMs {
			_ = h.s.Run(vm, m.From)
		}
	}
}

// movesAfter are moves that make room for the VM once the hosts are lost, if all
// of them can be made before.
func (h *helper) movesAfter(out placement.Survival) []placement.Move {
	type place struct {
		vm     string
		on, to model.HostID
	}
	var was []place
	for _, vm := range h.s.VMs() {
		if on, to := h.s.On(vm); slices.Contains(out.Lost, on) || slices.Contains(out.Lost, to) {
			was = append(was, place{vm, on, to})
		}
	}
	hosts := make([]placement.Host, 0, len(out.Lost))
	for _, name := range out.Lost {
		x, _, _ := h.s.Host(name)
		hosts = append(hosts, x)
		x.Unfit = "lost"
		h.s.SetHost(x)
	}
	for _, x := range was {
		h.s.Stop(x.vm)
	}
	relief := h.s.MakeRoom(placement.Want{VM: out.VM})
	for _, x := range hosts {
		h.s.SetHost(x)
	}
	for _, x := range was {
		restore(h.s, x.vm, x.on, x.to)
	}
	return relief.Moves
}

// byRules tries to do without each hard rule about the VM that has no place, or
// if it is no single VM, without each hard rule about several.
func (h *helper) byRules(out placement.Survival) {
	all := h.s.Rules()
	tried := 0
	for i, r := range all {
		about := slices.Contains(r.VMs, out.VM) || out.VM == "" && len(r.VMs) > 1
		if !r.Hard || !about || tried == mostRules {
			continue
		}
		tried++
		h.s.SetRules(slices.Concat(all[:i], all[i+1:]))
		if h.would() {
			h.list = append(h.list, fmt.Sprintf("give up rule %s, or let it be a preference", r.Name))
		}
	}
	if tried > 0 {
		h.s.SetRules(all)
	}
}

// byHost tries one more host like the largest.
func (h *helper) byHost() {
	hosts := h.s.Hosts()
	i := 0
	for k, x := range hosts {
		if capacity(x).Memory > capacity(hosts[i]).Memory {
			i = k
		}
	}
	if len(hosts) == 0 {
		return
	}
	more := hosts[i]
	more.Name, more.Unfit, more.Maintenance, more.Quarantine, more.FailureDomain = more.Name+"-more", "", false, false, ""
	if _, _, taken := h.s.Host(more.Name); taken {
		return
	}
	h.s.SetHost(more)
	if h.would() {
		h.list = append(h.list, fmt.Sprintf("add a host like %s", hosts[i].Name))
	}
	h.s.RemoveHost(more.Name)
}

func (h *helper) byFewerFailures() {
	for h.f.Hosts > 0 {
		if h.f.Hosts--; h.would() {
			h.list = append(h.list, fmt.Sprintf("set ha.admission.hostFailures to %d", h.f.Hosts))
			return
		}
	}
}
