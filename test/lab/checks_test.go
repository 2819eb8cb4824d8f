package lab_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/model"
)

// Checks: they return nil when what they say holds.

func (c *cluster) runOnce(vms []string) error {
	s := c.state()
	for _, vm := range vms {
		if err := drill.Once(s, vm); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) allRunOnce() error { return c.runOnce(c.vmNames()) }

func (c *cluster) runOn(vms []string, host string) error {
	if err := c.runOnce(vms); err != nil {
		return err
	}
	for _, vm := range vms {
		if got := drill.Instances(c.state(), vm); len(got) != 1 || got[0].Host != host {
			return fmt.Errorf("%s runs on %+v, want %s", vm, got, host)
		}
	}
	return nil
}

func (c *cluster) runElsewhere(vms []string, than string) error {
	s := c.state()
	for _, vm := range vms {
		if err := drill.Once(s, vm); err != nil {
			return err
		}
		if drill.Instances(s, vm)[0].Host == than {
			return fmt.Errorf("%s is still on %s", vm, than)
		}
	}
	return nil
}

func (c *cluster) runNowhere(vms []string) error {
	s := c.state()
	for _, vm := range vms {
		if got := drill.Instances(s, vm); len(got) > 0 {
			return fmt.Errorf("%s has instances %+v, want none", vm, got)
		}
	}
	return nil
}

// areFrozen: each VM has one instance, and that is frozen: confirmed by its
// cgroup, or, with I/O outstanding that keeps the kernel from confirming it,
// seen to use no processor while the cluster says that it is frozen.
func (c *cluster) areFrozen(vms []string) error {
	s := c.state()
	for _, vm := range vms {
		got := drill.Instances(s, vm)
		if len(got) != 1 {
			return fmt.Errorf("%s has instances %+v, want one", vm, got)
		}
		if got[0].Frozen {
			continue
		}
		if err := c.vmState(vm, model.VMFrozen); err != nil {
			return err
		}
		if err := drill.Stands(got[0].Pid); err != nil {
			return fmt.Errorf("%s is not frozen: %w", vm, err)
		}
	}
	return nil
}

// untouched fails the test if a VM is not the very process that ran when the
// test began.
func (c *cluster) untouched(vms []string) {
	c.t.Helper()
	s := c.state()
	for _, vm := range vms {
		if err := drill.Once(s, vm); err != nil {
			c.t.Error(err)
			continue
		}
		if got := drill.Instances(s, vm)[0].Pid; got != c.born[vm] {
			c.t.Errorf("%s was touched: process %d became %d", vm, c.born[vm], got)
		}
	}
}

func (c *cluster) restarted(vm string, before observer.Instance) error {
	s := c.state()
	if err := drill.Once(s, vm); err != nil {
		return err
	}
	if drill.Instances(s, vm)[0].Pid == before.Pid {
		return fmt.Errorf("%s still runs as process %d", vm, before.Pid)
	}
	return nil
}

// vm asks the cluster for a VM.
func (c *cluster) vm(name string) (*local.VM, error) {
	st, err := c.d.Status(c.ctx)
	if err != nil {
		return nil, err
	}
	v := st.VMByName(name)
	if v == nil {
		return nil, fmt.Errorf("the cluster does not know %s", name)
	}
	return v, nil
}

func (c *cluster) protected(vm string) error {
	v, err := c.vm(vm)
	if err == nil && (!v.Protected || v.State != model.VMStarted) {
		err = fmt.Errorf("%s: %s", vm, drill.Describe(v))
	}
	return err
}

func (c *cluster) allProtected() error { return c.d.Settled(c.ctx) }

func (c *cluster) vmState(vm string, want model.VMState) error {
	v, err := c.vm(vm)
	if err == nil && v.State != want {
		err = fmt.Errorf("%s: %s; want state %s", vm, drill.Describe(v), want)
	}
	return err
}

// vmsWait: the VMs are in a state, with a reason that contains because.
func (c *cluster) vmsWait(vms []string, want model.VMState, because string) error {
	for _, vm := range vms {
		v, err := c.vm(vm)
		if err != nil {
			return err
		}
		if v.State != want || !strings.Contains(v.Reason, because) {
			return fmt.Errorf("%s: %s; want state %s because %q", vm, drill.Describe(v), want, because)
		}
	}
	return nil
}

func (c *cluster) downBecause(vm, because string) error {
	v, err := c.vm(vm)
	if err == nil && (v.State == model.VMStarted || !strings.Contains(v.Reason, because)) {
		err = fmt.Errorf("%s: %s; want it down because %q", vm, drill.Describe(v), because)
	}
	return err
}

func (c *cluster) hostState(host, want string) error {
	st, err := c.d.Status(c.ctx)
	if err != nil {
		return err
	}
	h := st.HostByName(model.HostID(host))
	if h == nil || string(h.State) != want {
		return fmt.Errorf("%s: %+v, want state %s", host, h, want)
	}
	return nil
}

// sees: a host sees another in a state.
func (c *cluster) sees(viewer, host string, want model.HostState) error {
	st, err := c.d.StatusOf(c.ctx, viewer)
	if err != nil {
		return err
	}
	if h := st.HostByName(model.HostID(host)); h == nil || h.State != want {
		return fmt.Errorf("%s sees %s as %+v, want state %s", viewer, host, h, want)
	}
	return nil
}

// selfState: the host itself says that it is in a state.
func (c *cluster) selfState(host string, want model.HostState) error {
	st, err := c.d.StatusOf(c.ctx, host)
	if err == nil && st.State != want {
		err = fmt.Errorf("%s says that it is %s, want %s", host, st.State, want)
	}
	return err
}

// hostReason: what is shown of the host's state contains because.
func (c *cluster) hostReason(host, because string) error {
	st, err := c.d.Status(c.ctx)
	if err != nil {
		return err
	}
	h := st.HostByName(model.HostID(host))
	if h == nil || !strings.Contains(h.Reason, because) {
		return fmt.Errorf("%s: %+v, want the reason %q", host, h, because)
	}
	return nil
}

// onePrimary: every host says the same host is primary, and that it leads or
// follows it.
func (c *cluster) onePrimary() error {
	primaries := map[string]bool{}
	for _, h := range c.hosts() {
		st, err := c.d.StatusOf(c.ctx, h)
		if err != nil {
			return err
		}
		if st.Role == model.RoleNone {
			return fmt.Errorf("%s follows nobody", h)
		}
		for _, x := range st.Hosts {
			if x.Role == model.RolePrimary {
				primaries[string(x.Name)] = true
			}
		}
	}
	if len(primaries) != 1 {
		return fmt.Errorf("the hosts show the primaries %v, want one", primaries)
	}
	return nil
}

func (c *cluster) notRunOn(vms []string, host string) error {
	for _, vm := range vms {
		if got := c.vmHost(vm); got == host {
			return fmt.Errorf("%s runs on %s", vm, host)
		}
	}
	return nil
}

// told counts the events that the primary keeps whose text contains part.
func (c *cluster) told(part string) int {
	c.t.Helper()
	return strings.Count(c.mustExec(c.primary(), "hanok", "events", "-n", "1000"), part)
}

func (c *cluster) connected(host string) error { return c.hostState(host, string(model.HostConnected)) }

// counted: a counter of the host whose name contains part is not zero.
func (c *cluster) counted(host, part string) error {
	st, err := c.d.StatusOf(c.ctx, host)
	if err != nil {
		return err
	}
	for name, n := range st.Local.Counters {
		if n > 0 && strings.Contains(strings.ToLower(name), part) {
			return nil
		}
	}
	return fmt.Errorf("no counter of %s speaks of %q: %v", host, part, st.Local.Counters)
}

// datastoreProblem: a host explains what is wrong with a datastore in one of
// the words.
func (c *cluster) datastoreProblem(ds string, words ...string) error {
	st, err := c.d.Status(c.ctx)
	if err != nil {
		return err
	}
	var seen []string
	for _, h := range st.Hosts {
		for _, l := range h.Leases {
			if string(l.Datastore) != ds || l.OK {
				continue
			}
			text := strings.ToLower(l.Kind + " " + l.Problem)
			seen = append(seen, text)
			for _, w := range words {
				if strings.Contains(text, w) {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("no host explains %s by one of %q: %q", ds, words, seen)
}

// switched: HA or host monitoring is on or off as every host sees it.
func (c *cluster) switched(what string, on bool) error {
	for _, h := range c.hosts() {
		st, err := c.d.StatusOf(c.ctx, h)
		if err != nil {
			return err
		}
		got := st.HA
		if what == "monitoring" {
			got = st.HostMonitoring
		}
		if got != on {
			return fmt.Errorf("%s: %s is %v", h, what, got)
		}
	}
	return nil
}

// timelineIsComplete: the newest failover tells all its phases for every VM.
func (c *cluster) timelineIsComplete(vms []string) {
	c.t.Helper()
	c.eventually(90*time.Second, "the timeline is complete", func() error {
		out, err := c.exec(c.primary(), "hanok", "events", "--failover", "last")
		if err != nil {
			return err
		}
		list, err := c.d.LastTimeline(c.ctx)
		if err != nil {
			return err
		}
		if list.LastAlive == nil || len(list.VMs) < len(vms) {
			return fmt.Errorf("not all guests answered yet:\n%s", out)
		}
		for _, vm := range vms {
			if err := phases(list, vm); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
		}
		c.t.Logf("\n%s", out)
		return nil
	})
}

// phases: the timeline of a VM has every phase, in order of time.
func phases(t event.Timeline, vm string) error {
	i := slices.IndexFunc(t.VMs, func(v event.VMTimeline) bool { return v.VM == vm })
	if i < 0 {
		return fmt.Errorf("the timeline does not tell of %s", vm)
	}
	steps := slices.Concat(t.Steps, t.VMs[i].Steps)
	last := -1.0
	for _, k := range []event.Kind{event.LastHeartbeat, event.Silence, event.Verdict, event.StartIssued, event.LockTaken, event.DomainRunning, event.GuestAlive} {
		j := slices.IndexFunc(steps, func(s event.Step) bool { return s.Kind == k })
		if j < 0 {
			return fmt.Errorf("the timeline of %s has no %s", vm, k)
		}
		if steps[j].Since < last {
			return fmt.Errorf("in the timeline of %s, %s comes before what must precede it", vm, k)
		}
		last = steps[j].Since
	}
	return nil
}
