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
	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
)

// cluster is the lab as one test uses it. Its methods fail the test.
type cluster struct {
	t   *testing.T
	ctx context.Context
	d   drill.Drill
	// born are the pids of all VMs when the test began, resetsAtFirst how often
	// each host had been reset.
	born          map[string]int
	resetsAtFirst map[string]int
}

// settled returns the lab, settled, and checks at the end of the test that the
// observer saw no breach and every disk is intact.
func settled(t *testing.T) *cluster {
	t.Helper()
	if upErr != nil {
		t.Fatal("the lab did not come up:", upErr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	c := &cluster{t: t, ctx: ctx, d: theLab, born: map[string]int{}, resetsAtFirst: map[string]int{}}
	for _, h := range c.state().Hosts {
		c.resetsAtFirst[h.Name] = h.Resets
	}
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
		if h.Resets > c.resetsAtFirst[h.Name] {
			c.describeReset(h.Name)
		}
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

// describeReset prints why a host's watchdog expired: what the lab saw of it, and
// the last words of its guard.
func (c *cluster) describeReset(host string) {
	l := c.d.Layout()
	events, _ := os.ReadFile(l.EventLog())
	for line := range strings.Lines(string(events)) {
		if strings.Contains(line, `"kind":"reset"`) && strings.Contains(line, `"host":"`+host+`"`) {
			c.t.Logf("reset: %s", strings.TrimSpace(line))
		}
	}
	for _, name := range []string{"guard.log", "init.log"} {
		data, _ := os.ReadFile(filepath.Join(l.HostVar(host), "log/hanok", name))
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		c.t.Logf("%s of %s:\n%s", name, host, strings.Join(lines[max(0, len(lines)-25):], "\n"))
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
func (c *cluster) cut(h string)                    { c.t.Helper(); c.must(c.d.Cut(c.ctx, h, "", "both")) }
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
