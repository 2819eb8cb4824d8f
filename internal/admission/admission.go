package admission

import (
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// Kind is a policy of admission control.
type Kind string

// The policies; the words are those of the cluster file.
const (
	Exact      Kind = "exact"
	Percentage Kind = "percentage"
	Slots      Kind = "slots"
	Dedicated  Kind = "dedicated"
	Off        Kind = "off"
)

// Policy is what admission control is to keep.
type Policy struct {
	Kind Kind
	// HostFailures is the number of hosts that may fail at the same time.
	HostFailures int
	// FailureDomains is the number of failure domains that may fail at the same
	// time; exact only.
	FailureDomains int
	// CPUPercent and MemoryPercent stay unreserved (percentage); 0 is computed:
	// the share that the HostFailures largest hosts have.
	CPUPercent, MemoryPercent int
	// MinCPU and MinMemory are the least that a VM counts for (slots,
	// percentage). vSphere's defaults are 32 MHz and 0.
	MinCPU    model.MHz
	MinMemory model.MiB
	// SlotCPU and SlotMemory bound the size of a slot from above; 0 is no bound.
	SlotCPU    model.MHz
	SlotMemory model.MiB
	// Degradation is by how many percent VMs may get less than they use now
	// after the failures before it is warned of; 100 never warns. 0 warns of any.
	Degradation int
	// Work bounds the search of exact; see placement.Failures.
	Work int
}

// Action is what an administrator wants to do.
type Action string

// The actions.
const (
	// PowerOn of Request.VM.
	PowerOn Action = "powerOn"
	// Adopt Request.VM, which runs on Request.Host already, if that is set.
	Adopt Action = "adopt"
	// Reserve for a VM what Request.VM says.
	Reserve Action = "reserve"
	// Maintenance of Request.Host, whose VMs move elsewhere.
	Maintenance Action = "maintenance"
	// Leave and Remove are the shutdown of Request.Host in order and its removal
	// from the cluster: the same but for the word.
	Leave  Action = "leave"
	Remove Action = "remove"
	// Restart of Request.VM by HA: always allowed.
	Restart Action = "restart"
)

// Request is what an administrator wants.
type Request struct {
	Action Action
	// VM as it will be; it may be new to the State.
	VM placement.VM
	// Host is where a VM is adopted or is to start, "" anywhere; or the host
	// that is to go into maintenance.
	Host model.HostID
}

// Report tells whether the policy is kept.
type Report struct {
	Policy  Kind              `json:"policy"`
	Verdict placement.Verdict `json:"-"`
	// Answer is the verdict as a word: yes, no, unknown.
	Answer string `json:"verdict"`
	// Reason says why, with the figures.
	Reason string `json:"reason"`
	// Help is what would make it a yes, each way by itself.
	Help []string `json:"help,omitempty"`
	// Warnings refuse nothing.
	Warnings []string `json:"warnings,omitempty"`
	// Lost are the hosts whose loss cannot be survived, or was not decided.
	Lost []model.HostID `json:"lost,omitempty"`
	// Checked counts combinations of lost hosts with a witness (exact).
	Checked int `json:"checked,omitempty"`
}

// Decision is the answer to a Request.
type Decision struct {
	Allowed bool `json:"allowed"`
	Report
	// Host is where a VM that is powered on would go.
	Host model.HostID `json:"host,omitempty"`
}

// Check tells whether the policy is kept as things are.
func Check(s *placement.State, p Policy) Report {
	r := keep(s, p)
	r.Policy = p.Kind
	r.Warnings = append(r.Warnings, degradation(s, p)...)
	r.Answer = r.Verdict.String()
	return r
}

func keep(s *placement.State, p Policy) Report {
	switch p.Kind {
	case Off, "":
		return Report{Verdict: placement.Yes, Reason: "admission control is off"}
	case Slots:
		return slots(s, p)
	case Percentage:
		return percentage(s, p)
	case Dedicated:
		return dedicated(s, p)
	case Exact:
		return exact(s, p)
	}
	return Report{Verdict: placement.Unknown, Reason: fmt.Sprintf("unknown policy %q", p.Kind),
		Help: []string{"set ha.admission.policy to exact, percentage, slots, dedicated or off"}}
}

// Decide tells whether a request may be carried out.
func Decide(s *placement.State, p Policy, r Request) Decision {
	d := Decision{Allowed: true}
	d.Policy, d.Verdict, d.Answer = p.Kind, placement.Yes, placement.Yes.String()
	switch {
	case r.Action == Restart:
		d.Reason = "a restart is never refused: the room is kept for it"
		return d
	case p.Kind == Off || p.Kind == "":
		d.Reason = "admission control is off"
		return d
	}
	undo, host, refused := apply(s, r)
	defer undo()
	d.Host = host
	if refused != nil {
		refused.Policy = p.Kind
		d.Allowed, d.Report = false, *refused
		d.Answer = d.Verdict.String()
		return d
	}
	d.Report = Check(s, p)
	if d.Verdict != placement.Yes && r.Action == PowerOn && r.Host == "" && host != "" {
		elsewhere(s, p, r.VM.Name, &d)
	}
	d.judge(words(r))
	return d
}

// elsewhere looks for another host than the best one on which the VM's start keeps
// the policy. No stays no only if it is no on all of them.
func elsewhere(s *placement.State, p Policy, vm string, d *Decision) {
	first := d.Host
	s.Stop(vm)
	w := placement.Want{VM: vm, Purpose: placement.PowerOn}
	refused := map[model.HostID]bool{first: true}
	for _, r := range s.WhyNot(w) {
		refused[r.Host] = !r.Busy
	}
	hosts := s.Hosts()
	if p.Work <= 0 {
		p.Work = placement.DefaultWork
	}
	p.Work = max(p.Work/max(len(hosts)-len(refused), 1), 1)
	for _, h := range hosts {
		if refused[h.Name] || s.Run(vm, h.Name) != nil {
			continue
		}
		r := keep(s, p)
		if r.Verdict == placement.Yes {
			d.Host, d.Report = h.Name, Check(s, p)
			return
		}
		if r.Verdict == placement.Unknown && d.Verdict == placement.No {
			d.Report = r
			d.Policy, d.Answer = p.Kind, r.Verdict.String()
		}
	}
	_ = s.Run(vm, first) // it could run there before
}

// words is a request for people.
func words(r Request) string {
	switch r.Action {
	case PowerOn:
		return "the start of " + r.VM.Name
	case Adopt:
		return "the adoption of " + r.VM.Name
	case Reserve:
		return "a reservation of " + amount(r.VM.Need()) + " for " + r.VM.Name
	case Maintenance:
		return "maintenance of " + string(r.Host)
	case Leave:
		return "the shutdown of " + string(r.Host)
	case Remove:
		return "the removal of " + string(r.Host)
	}
	return string(r.Action)
}

func amount(r placement.Resources) string {
	switch {
	case r.CPU == 0:
		return fmt.Sprintf("%d MiB", r.Memory)
	case r.Memory == 0:
		return fmt.Sprintf("%d MHz", r.CPU)
	}
	return fmt.Sprintf("%d MHz and %d MiB", r.CPU, r.Memory)
}

// apply makes the State what it would be; undo makes it what it was. A request
// that cannot be carried out at all is refused.
func apply(s *placement.State, r Request) (undo func(), host model.HostID, refused *Report) {
	switch r.Action {
	case Maintenance, Leave, Remove:
		return maintain(s, r)
	case PowerOn, Adopt, Reserve:
		return change(s, r)
	}
	return func() {}, "", &Report{Verdict: placement.No, Reason: fmt.Sprintf("unknown request %q", r.Action)}
}

// change applies a request about a VM.
func change(s *placement.State, r Request) (undo func(), host model.HostID, refused *Report) {
	before, known := s.VM(r.VM.Name)
	on, to := s.On(r.VM.Name)
	undo = func() {
		s.Stop(r.VM.Name)
		if !known {
			s.RemoveVM(r.VM.Name)
			return
		}
		s.SetVM(before)
		restore(s, r.VM.Name, on, to)
	}
	s.SetVM(r.VM)
	switch r.Action {
	case Reserve:
		return undo, on, onHost(s, r.VM.Name, on, to)
	case Adopt:
		if r.Host == "" || on != "" {
			return undo, on, nil
		}
		if err := s.Run(r.VM.Name, r.Host); err != nil {
			return undo, "", &Report{Verdict: placement.No, Reason: err.Error()}
		}
		return undo, r.Host, nil
	}
	if on != "" {
		return undo, on, nil
	}
	c := s.Place(placement.Want{VM: r.VM.Name, Purpose: placement.PowerOn, Only: r.Host})
	if c.Host == "" && !c.Busy {
		return undo, "", &Report{Verdict: placement.No, Reason: fmt.Sprintf("no host can take %s: %s", r.VM.Name, placement.DescribeRefusals(c.Refusals))}
	}
	if c.Host != "" {
		_ = s.Run(r.VM.Name, c.Host) // both are known: Place just said so
	}
	return undo, c.Host, nil
}

// onHost refuses a reservation that the VM's own host does not have.
func onHost(s *placement.State, vm string, on, to model.HostID) *Report {
	if on == "" {
		return nil
	}
	s.Stop(vm)
	c := s.Place(placement.Want{VM: vm, Only: on})
	restore(s, vm, on, to)
	if c.Host != "" || c.Busy {
		return nil
	}
	for _, x := range c.Refusals {
		if x.Host == on {
			return &Report{Verdict: placement.No, Reason: fmt.Sprintf("%s cannot reserve that where it runs: %s: %s", vm, on, x.Reason),
				Help: []string{fmt.Sprintf("stop %s and start it where there is room, or stop other VMs of %s", vm, on)}}
		}
	}
	return nil
}

func restore(s *placement.State, vm string, on, to model.HostID) {
	if on != "" {
		_ = s.Run(vm, on) // it was there
	}
	if to != "" {
		_ = s.Move(vm, to)
	}
}

// maintain takes a host out, its VMs moved elsewhere.
func maintain(s *placement.State, r Request) (undo func(), host model.HostID, refused *Report) {
	name := r.Host
	h, _, ok := s.Host(name)
	if !ok {
		return func() {}, "", &Report{Verdict: placement.No, Reason: fmt.Sprintf("no host %q is known", name)}
	}
	type place struct {
		vm     string
		on, to model.HostID
	}
	var moved []place
	var wants []placement.Want
	for _, vm := range s.VMs() {
		if on, to := s.On(vm); on == name {
			moved = append(moved, place{vm, on, to})
			wants = append(wants, placement.Want{VM: vm, Purpose: placement.PowerOn})
		}
	}
	undo = func() {
		s.SetHost(h)
		for _, m := range moved {
			restore(s, m.vm, m.on, m.to)
		}
	}
	out := h
	switch r.Action {
	case Leave:
		out.Unfit = "it is being shut down"
	case Remove:
		out.Unfit = "it is being removed"
	default:
		out.Maintenance = true
	}
	s.SetHost(out)
	plan := s.PlaceAll(wants)
	for _, c := range plan.Choices {
		if c.Host == "" {
			verdict := placement.No
			if !plan.Proven {
				verdict = placement.Unknown
			}
			others := slices.DeleteFunc(c.Refusals, func(r placement.Refusal) bool { return r.Host == name })
			return undo, "", &Report{Verdict: verdict, Reason: fmt.Sprintf("%s would have to leave %s and has no place: %s", c.VM, name, placement.DescribeRefusals(others)),
				Help: []string{fmt.Sprintf("stop %s, or make room for it elsewhere, first", c.VM)}}
		}
		_ = s.Run(c.VM, c.Host) // both are known: PlaceAll just said so
	}
	return undo, "", nil
}
