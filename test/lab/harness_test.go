package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// cluster is the lab as one test uses it. Its methods fail the test.
type cluster struct {
	t   *testing.T
	ctx context.Context
	d   drill.Drill
	// born are the pids of all VMs when the test began.
	born map[string]int
}

// settled returns the lab, settled, and checks at the end of the test that the
// observer saw no breach and every disk is intact.
func settled(t *testing.T) *cluster {
	t.Helper()
	if upErr != nil {
		t.Fatal("the lab did not come up:", upErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	c := &cluster{t: t, ctx: ctx, d: theLab, born: map[string]int{}}
	t.Cleanup(func() {
		defer cancel()
		c.noViolations()
		if t.Failed() {
			c.describe()
			c.recover()
		}
	})
	c.settle()
	for _, vm := range c.vmNames() {
		c.born[vm] = c.instance(vm).Pid
	}
	return c
}

func (c *cluster) settle() {
	c.t.Helper()
	if err := c.d.Settle(c.ctx, settleLimit); err != nil {
		c.t.Fatal(err)
	}
}

// recover puts the lab right after a failed test, so that the next may tell its
// own story.
func (c *cluster) recover() {
	s := c.state()
	for _, h := range s.Hosts {
		if h.Frozen {
			_ = c.d.Thaw(c.ctx, h.Name)
		}
		_ = c.d.Heal(c.ctx, h.Name)
		if h.Power != "on" {
			_ = c.d.PowerOn(c.ctx, h.Name, false)
		}
	}
}

// describe prints what a person would look at first.
func (c *cluster) describe() {
	s := c.state()
	for _, h := range s.Hosts {
		c.t.Logf("truth: %+v", h)
	}
	for _, i := range s.Instances {
		c.t.Logf("truth: %+v", i)
	}
	for _, h := range s.Hosts {
		if h.Power != "on" || h.Frozen {
			continue
		}
		out, _ := c.exec(h.Name, "hanok", "status")
		c.t.Logf("%s says:\n%s", h.Name, out)
	}
	if p, err := c.d.Primary(c.ctx); err == nil {
		out, _ := c.exec(p, "hanok", "events")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		c.t.Logf("last events:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

func (c *cluster) noViolations() {
	v, err := c.d.Violations(c.ctx)
	if err != nil {
		c.t.Error("violations:", err)
	}
	for _, x := range v {
		c.t.Errorf("VIOLATION of %q: %s", x.Invariant, x.Detail)
	}
}

func (c *cluster) state() supervisor.State {
	s, err := c.d.State(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *cluster) status() local.Status {
	c.t.Helper()
	st, err := c.d.Status(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

// known is a VM as the cluster sees it; nil when it does not know it.
func (c *cluster) known(vm string) *local.VM {
	c.t.Helper()
	st := c.status()
	return st.VMByName(vm)
}

// eventually waits until check returns nil, or fails the test.
func (c *cluster) eventually(limit time.Duration, what string, check func() error) {
	c.t.Helper()
	if err := drill.Until(c.ctx, limit, what, check); err != nil {
		c.t.Fatal(err)
	}
}

// holds fails the test if check returns an error at any time before d is over.
func (c *cluster) holds(d time.Duration, what string, check func() error) {
	c.t.Helper()
	err := drill.Until(c.ctx, d, what, func() error {
		if err := check(); err != nil {
			c.t.Fatalf("did not hold: %s: %v", what, err)
		}
		return errors.New("holds")
	})
	if err == nil {
		c.t.Fatal("unreachable")
	}
}

// runCheck fails the test with a check's error.
func (c *cluster) runCheck(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Error(err)
	}
}

// Hosts and VMs.

func (c *cluster) hosts() []string {
	var out []string
	for _, h := range c.state().Hosts {
		out = append(out, h.Name)
	}
	return out
}

func (c *cluster) vmNames() []string {
	var out []string
	for _, v := range c.state().VMs {
		out = append(out, v.Name)
	}
	return out
}

func (c *cluster) primary() string {
	c.t.Helper()
	var p string
	c.eventually(15*time.Second, "a host is primary", func() (err error) { p, err = c.d.Primary(c.ctx); return err })
	return p
}

// otherThan is a host that is neither h nor, if possible, the primary.
func (c *cluster) otherThan(h string) string {
	p := c.primary()
	last := ""
	for _, x := range c.hosts() {
		if x != h && x != p {
			return x
		}
		if x != h {
			last = x
		}
	}
	return last
}

// secondaryWithVMs is a secondary that runs at least two VMs.
func (c *cluster) secondaryWithVMs() string {
	c.t.Helper()
	p := c.primary()
	best := ""
	for _, h := range c.hosts() {
		if h != p && (best == "" || len(c.vmsOn(h)) > len(c.vmsOn(best))) {
			best = h
		}
	}
	c.ensureVMsOn(best)
	return best
}

// ensureVMsOn makes a host run at least two VMs.
func (c *cluster) ensureVMsOn(host string) {
	c.t.Helper()
	c.must(c.d.EnsureVMs(c.ctx, host, 2))
	for _, vm := range c.vmNames() {
		c.born[vm] = c.instance(vm).Pid
	}
}

func (c *cluster) vmsOn(host string) []string { return drill.On(c.state(), host) }

func (c *cluster) vmsNotOn(host string) []string { return c.without(c.vmsOn(host)) }

func (c *cluster) without(vms []string) []string {
	return slices.DeleteFunc(c.vmNames(), func(v string) bool { return slices.Contains(vms, v) })
}

func (c *cluster) vmHost(vm string) string { return c.instance(vm).Host }

// instance is the only instance of a VM.
func (c *cluster) instance(vm string) observer.Instance {
	c.t.Helper()
	s := c.state()
	if err := drill.Once(s, vm); err != nil {
		c.t.Fatal(err)
	}
	return drill.Instances(s, vm)[0]
}

func (c *cluster) datastoreOf(vm string) string {
	c.t.Helper()
	v := c.known(vm)
	if v == nil {
		c.t.Fatalf("the cluster does not know %s", vm)
	}
	return string(v.Datastore)
}

func (c *cluster) vmsWithHome(ds string) []string {
	var out []string
	for _, v := range c.status().VMs {
		if string(v.Datastore) == ds {
			out = append(out, v.Name)
		}
	}
	return out
}

func (c *cluster) vmsOnWithHome(host, ds string) []string {
	home := c.vmsWithHome(ds)
	return slices.DeleteFunc(c.vmsOn(host), func(v string) bool { return !slices.Contains(home, v) })
}

// configOf is the path of a VM's domain XML inside the hosts.
func (c *cluster) configOf(vm string) string {
	return filepath.Join("/srv", c.datastoreOf(vm), vm, vm+".xml")
}

// Faults.

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) powerOff(h string)               { c.t.Helper(); c.must(c.d.PowerOff(c.ctx, h)) }
func (c *cluster) powerOn(h string)                { c.t.Helper(); c.must(c.d.PowerOn(c.ctx, h, false)) }
func (c *cluster) powerOnWithoutWatchdog(h string) { c.t.Helper(); c.must(c.d.PowerOn(c.ctx, h, true)) }
func (c *cluster) freeze(h string)                 { c.t.Helper(); c.must(c.d.Freeze(c.ctx, h)) }
func (c *cluster) heal(h string)                   { c.t.Helper(); c.must(c.d.Heal(c.ctx, h)) }
func (c *cluster) storage(h, ds, fault string) {
	c.t.Helper()
	c.must(c.d.Storage(c.ctx, h, ds, fault))
}
func (c *cluster) signal(h, daemon, sig string) {
	c.t.Helper()
	c.must(c.d.Signal(c.ctx, h, daemon, sig))
}

// kill ends a daemon and waits until another process has taken its place.
func (c *cluster) kill(host, daemon string) {
	c.t.Helper()
	pid := func() (string, error) { return c.exec(host, "pgrep", "-o", "-f", drill.Daemons[daemon]) }
	before, err := pid()
	c.must(err)
	c.signal(host, daemon, "KILL")
	c.eventually(5*time.Second, daemon+" was started again", func() error {
		if after, err := pid(); err != nil || after == before {
			return fmt.Errorf("process %q, before %q: %v", after, before, err)
		}
		return nil
	})
}

func (c *cluster) exec(host string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	out, err := c.d.Exec(ctx, host, argv...)
	if err != nil {
		return string(out) + err.Error(), err
	}
	return string(out), nil
}

func (c *cluster) mustExec(host string, argv ...string) string {
	c.t.Helper()
	out, err := c.exec(host, argv...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cluster) resets(host string) int {
	for _, h := range c.state().Hosts {
		if h.Name == host {
			return h.Resets
		}
	}
	return 0
}

// killProcess ends a VM's QEMU as a crash would.
func (c *cluster) killProcess(vm string) {
	c.t.Helper()
	p, err := os.FindProcess(c.instance(vm).Pid)
	c.must(err)
	c.must(p.Kill())
}

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
