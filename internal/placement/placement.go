package placement

import "hanok.dev/hanok/internal/model"

// Host is a host that might take VMs.
type Host struct {
	Name model.HostID
	// CPU and Memory are the capacity for VMs; what the host itself needs is
	// taken off by the caller, or is in Reserved.
	CPU    model.MHz
	Memory model.MiB
	// Reserved is what is taken by something that is not a VM of the State.
	Reserved Resources
	// MaxVMs is the most VMs that may run here; 0 is no limit.
	MaxVMs int
	// Starting is the number of starts under way, StartLimit the most at a time;
	// 0 is no limit. Only [State.Place] heeds them: a plan may queue.
	Starting, StartLimit int

	Datastores []model.DatastoreName
	Networks   []string
	// CPUFeatures are the names of processor features that guests can have here.
	CPUFeatures []string
	// Hypervisor is its version as one number that grows, as libvirt counts:
	// major × 1,000,000 + minor × 1,000 + release.
	Hypervisor int
	// FailureDomain is its rack, room or site; "" is a domain of its own.
	FailureDomain string

	// Unfit is why the host takes no VM at all, for people; "" if it may.
	Unfit string
	// Maintenance: it takes no VM.
	Maintenance bool
	// Quarantine: its hardware is degraded; it takes a VM only if no other can.
	Quarantine bool
	// DedicatedFailover: kept free for restarts; nothing else starts here.
	DedicatedFailover bool
}

// Resources is an amount of processor and memory.
type Resources struct {
	CPU    model.MHz
	Memory model.MiB
}

func (r Resources) plus(o Resources) Resources {
	return Resources{r.CPU + o.CPU, r.Memory + o.Memory}
}

// VM is a VM to be placed, or placed.
type VM struct {
	// Name identifies it in the State and in rules.
	Name string
	// Reservation is what must be free for it; Overhead is what its hypervisor
	// process takes on top.
	Reservation, Overhead Resources
	// Usage is what it really uses, for warnings; it limits nothing.
	Usage Resources

	// Datastores are all that hold disks of it, Networks all that it is
	// connected to, CPUFeatures all that its guest needs.
	Datastores  []model.DatastoreName
	Networks    []string
	CPUFeatures []string
	// MinHypervisor is the oldest hypervisor that can run it (see
	// [Host.Hypervisor]); 0 is any.
	MinHypervisor int

	// NoRestart: it is not restarted when its host fails; [State.Survives]
	// does not look for a place for it.
	NoRestart bool
}

// Need is what must be free on a host for it: reservation and overhead.
func (v VM) Need() Resources { return v.Reservation.plus(v.Overhead) }

// Purpose is what a VM is placed for.
type Purpose int

// The purposes.
const (
	// Restart of what HA wants running: dedicated failover hosts first.
	Restart Purpose = iota
	// PowerOn, or move, that an administrator or a balancer wants: never onto a
	// dedicated failover host.
	PowerOn
)

// Want is one VM that wants a place.
type Want struct {
	VM      string
	Purpose Purpose
	// Only, if set, is the one host that can take it: the holder of its lock.
	Only model.HostID
	// Prefer, if set, is taken before any other host, if it can take the VM and
	// the VM has not failed there.
	Prefer model.HostID
	// Failed counts earlier failures of this VM by host: hosts with fewer come
	// first.
	Failed map[model.HostID]int
	// Class orders VMs in [State.PlaceAll]: a VM of a lower Class is never left
	// out for the sake of those of higher ones. The caller numbers its priority
	// classes from 0, the first to be restarted.
	Class int
}

// Refusal says why one host cannot take a VM.
type Refusal struct {
	Host   model.HostID
	Reason string
	// Busy: the reason passes by itself, as a start that is under way ends.
	Busy bool
}

// Choice is the answer about one VM.
type Choice struct {
	VM string
	// Host is where it should run; "" is nowhere, and Refusals has a reason for
	// each host, by name.
	Host     model.HostID
	Refusals []Refusal
	// Busy: nowhere now, but a refusal will pass by itself.
	Busy bool
	// Broken names the rules that are not hard and that this choice breaks.
	Broken []string
}

// Plan is the answer about many VMs.
type Plan struct {
	// Choices has one entry for each VM asked about, in the same order.
	Choices []Choice
	// Placed counts those with a host.
	Placed int
	// Proven: no plan places more of them, as far as Class allows. Without it
	// the search ended at its bound.
	Proven bool
}

// Verdict is the outcome of a check that may end without an answer.
type Verdict int

// The verdicts.
const (
	// Unknown: neither a witness nor a proof was found within the bound.
	Unknown Verdict = iota
	// Yes, with a witness.
	Yes
	// No, with a proof.
	No
)

// String is the verdict as a word.
func (v Verdict) String() string { return [...]string{"unknown", "yes", "no"}[v] }

// Failures says which failures a cluster shall survive.
type Failures struct {
	// Hosts that fail at the same time, Domains that fail at the same time: each
	// combination of that many is checked. Zero is none.
	Hosts, Domains int
	// Work bounds the search, in candidates looked at; 0 is [DefaultWork].
	Work int
}

// Survival is the answer of [State.Survives].
type Survival struct {
	Verdict Verdict
	// Lost are hosts whose failure cannot be survived (No), or was not decided
	// (Unknown).
	Lost []model.HostID
	// VM is one that finds no place then, and Refusals why; empty if they fit
	// one by one but not together.
	VM       string
	Refusals []Refusal
	// Reason is the proof in words (No), or what ended the search (Unknown).
	Reason string
	// Checked counts the combinations of failures for which a witness was found
	// one by one.
	Checked int
	// Counted: there were too many to look at each, but counting places showed
	// that there is a witness for every one.
	Counted bool
}
