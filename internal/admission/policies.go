package admission

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// census is the cluster in sums, over hosts that take VMs.
type census struct {
	hosts    []placement.Host
	total    placement.Resources // of these hosts
	running  []placement.VM      // on any host
	reserved placement.Resources // of what runs, at least the minimum each
	used     placement.Resources
}

func count(s *placement.State, p Policy) census {
	var c census
	for _, h := range s.Hosts() {
		if h.Unfit != "" || h.Maintenance {
			continue
		}
		c.hosts = append(c.hosts, h)
		cap := capacity(h)
		c.total.CPU += cap.CPU
		c.total.Memory += cap.Memory
	}
	for _, name := range s.VMs() {
		if on, _ := s.On(name); on == "" {
			continue
		}
		v, _ := s.VM(name)
		c.running = append(c.running, v)
		n := need(v, p)
		c.reserved.CPU += n.CPU
		c.reserved.Memory += n.Memory
		c.used.CPU += v.Usage.CPU
		c.used.Memory += v.Usage.Memory
	}
	return c
}

// capacity is what a host has for VMs.
func capacity(h placement.Host) placement.Resources {
	return placement.Resources{CPU: h.CPU - h.Reserved.CPU, Memory: h.Memory - h.Reserved.Memory}
}

// need is what a VM counts for in slots and percentages.
func need(v placement.VM, p Policy) placement.Resources {
	return placement.Resources{
		CPU:    max(v.Reservation.CPU, p.MinCPU) + v.Overhead.CPU,
		Memory: max(v.Reservation.Memory, p.MinMemory) + v.Overhead.Memory,
	}
}

// largest is the sum of the n largest amounts.
func largest[T model.MHz | model.MiB](amounts []T, n int) T {
	sorted := slices.Clone(amounts)
	slices.Sort(sorted)
	var sum T
	for i := range min(n, len(sorted)) {
		sum += sorted[len(sorted)-1-i]
	}
	return sum
}

func (c census) lose(n int) placement.Resources {
	var cpu []model.MHz
	var mem []model.MiB
	for _, h := range c.hosts {
		cpu, mem = append(cpu, capacity(h).CPU), append(mem, capacity(h).Memory)
	}
	return placement.Resources{CPU: largest(cpu, n), Memory: largest(mem, n)}
}

// percentage: a share of both resources stays unreserved.
func percentage(s *placement.State, p Policy) Report {
	c := count(s, p)
	lost := c.lose(p.HostFailures)
	r := Report{Verdict: placement.Yes}
	var parts []string
	look := func(what, unit string, total, reserved, lost int64, percent int) {
		if total <= 0 {
			parts = append(parts, fmt.Sprintf("the hosts' %s is not known", what))
			if reserved > 0 && what == "memory" {
				r.Verdict = placement.Unknown
			}
			return
		}
		keep := float64(percent)
		if percent == 0 {
			keep = 100 * float64(lost) / float64(total)
		}
		free := 100 * float64(total-reserved) / float64(total)
		parts = append(parts, fmt.Sprintf("%.1f %% of %d %s of %s is free, %.1f %% is to be kept", free, total, unit, what, keep))
		if free < keep {
			r.Verdict = placement.No
			short := int64(keep/100*float64(total)+0.999) - (total - reserved)
			r.Help = append(r.Help, fmt.Sprintf("free %d %s of reservations: stop VMs or reserve less", max(short, 1), unit))
		}
	}
	look("processor", "MHz", int64(c.total.CPU), int64(c.reserved.CPU), int64(lost.CPU), p.CPUPercent)
	look("memory", "MiB", int64(c.total.Memory), int64(c.reserved.Memory), int64(lost.Memory), p.MemoryPercent)
	if r.Verdict != placement.Yes {
		r.Help = append(r.Help, "add a host", "lower ha.admission.hostFailures, or the percentages")
	}
	r.Reason = strings.Join(parts, "; ")
	return r
}

// slots: everything counted in slots of the largest reservation.
func slots(s *placement.State, p Policy) Report {
	c := count(s, p)
	cpu, mem := max(p.MinCPU, 1), model.MiB(1)
	for _, v := range c.running {
		n := need(v, p)
		cpu, mem = max(cpu, n.CPU), max(mem, n.Memory)
	}
	if p.SlotCPU > 0 {
		cpu = min(cpu, p.SlotCPU)
	}
	if p.SlotMemory > 0 {
		mem = min(mem, p.SlotMemory)
	}
	var per []int64
	for _, h := range c.hosts {
		k := capacity(h)
		n := int64(k.Memory / mem)
		if k.CPU > 0 {
			n = min(n, int64(k.CPU/cpu))
		}
		if h.MaxVMs > 0 {
			n = min(n, int64(h.MaxVMs))
		}
		per = append(per, max(n, 0))
	}
	sort.Slice(per, func(i, j int) bool { return per[i] > per[j] })
	var left, used int64
	for i, n := range per {
		if i >= p.HostFailures {
			left += n
		}
	}
	for _, v := range c.running {
		n := need(v, p)
		used += max(1, ceil(int64(n.CPU), int64(cpu)), ceil(int64(n.Memory), int64(mem)))
	}
	r := Report{Verdict: placement.Yes, Reason: fmt.Sprintf("a slot is %d MHz and %d MiB; %d are left without the %d largest hosts, %d are in use", cpu, mem, left, p.HostFailures, used)}
	if left < used {
		r.Verdict = placement.No
		r.Help = []string{fmt.Sprintf("stop VMs of %d slots, or reserve less for the largest: a smaller slot gives more of them", used-left),
			"bound the slot with das.slotCpuInMHz and das.slotMemInMB", "add a host", "lower ha.admission.hostFailures"}
	}
	return r
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// dedicated: enough usable hosts are kept free.
func dedicated(s *placement.State, p Policy) Report {
	var usable, busy []string
	runs := map[model.HostID]string{}
	for _, vm := range s.VMs() {
		if on, _ := s.On(vm); on != "" && runs[on] == "" {
			runs[on] = vm
		}
	}
	for _, h := range s.Hosts() {
		switch {
		case !h.DedicatedFailover || h.Unfit != "" || h.Maintenance:
		case runs[h.Name] != "":
			busy = append(busy, fmt.Sprintf("%s runs %s", h.Name, runs[h.Name]))
		default:
			usable = append(usable, string(h.Name))
		}
	}
	r := Report{Verdict: placement.Yes, Reason: fmt.Sprintf("%d dedicated failover hosts are free (%s), %d are to be", len(usable), dash(usable), p.HostFailures)}
	if len(busy) > 0 {
		r.Reason += "; " + strings.Join(busy, ", ")
	}
	if len(usable) < p.HostFailures {
		r.Verdict = placement.No
		r.Help = []string{"mark another host dedicatedFailover, or bring one back", "move VMs off dedicated failover hosts", "lower ha.admission.hostFailures"}
	}
	return r
}

func dash(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// degradation warns when VMs would get less than they use now, by more than is
// tolerated, after the largest hosts are lost.
func degradation(s *placement.State, p Policy) []string {
	if p.Degradation >= 100 || p.Kind == Off || p.Kind == "" || p.HostFailures == 0 {
		return nil
	}
	c := count(s, p)
	lost := c.lose(p.HostFailures)
	var out []string
	look := func(what, unit string, used, left int64) {
		tolerated := used - used*int64(max(p.Degradation, 0))/100
		if used > 0 && tolerated > left {
			out = append(out, fmt.Sprintf("performance: after %d host failures %d %s of %s are left for VMs that use %d %s now; %d %% less are tolerated",
				p.HostFailures, left, unit, what, used, unit, p.Degradation))
		}
	}
	look("processor", "MHz", int64(c.used.CPU), int64(c.total.CPU-lost.CPU))
	look("memory", "MiB", int64(c.used.Memory), int64(c.total.Memory-lost.Memory))
	return out
}
