package lab_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// edited brings a changed cluster file into force until the test ends or calls
// restore.
func (c *cluster) edited(change func(*config.Cluster)) (restore func()) {
	c.t.Helper()
	before := c.clusterFile()
	next := before.Clone()
	change(next)
	put := func(f *config.Cluster) {
		c.t.Helper()
		if out, err := c.apply(c.primary(), f); err != nil {
			c.t.Fatalf("apply: %v: %s", err, out)
		}
	}
	put(next)
	done := false
	restore = func() {
		if !done {
			done = true
			put(before)
		}
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			restore()
		}
	})
	return restore
}

// What depends on a name server starts when the guest agent of the name server
// has answered; a should-rule is broken rather than leave it down.
func TestRestartOrder(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	lost := c.vmsOn(victim)
	dns, web := lost[0], lost[1]
	restore := c.edited(func(f *config.Cluster) {
		f.VMByName(dns).Restart.ReadyWhen = string(model.ReadyGuest)
		f.VMByName(dns).Restart.Priority = model.PriorityHigh
		f.VMByName(web).DependsOn = []string{dns}
		h := f.HostByName(model.HostID(victim))
		h.Groups = append(h.Groups, "first")
		f.Rules = append(f.Rules, config.Rule{Name: "should-first", Kind: config.RuleVMHost, VMs: []string{dns}, HostGroups: []string{"first"}})
	})
	c.powerOff(victim)
	c.eventually(20*time.Second, web+" waits for "+dns, func() error { return c.vmsWait([]string{web}, model.VMQueued, "waits for") })
	c.eventually(60*time.Second, "they run elsewhere", func() error { return c.runElsewhere(lost, victim) })
	c.eventually(90*time.Second, dns+" was alive before "+web+" was started", func() error {
		list, err := c.d.LastTimeline(c.ctx)
		if err != nil {
			return err
		}
		alive, err := stepOf(list, dns, event.GuestAlive)
		if err != nil {
			return err
		}
		start, err := stepOf(list, web, event.StartIssued)
		if err == nil && start < alive {
			t.Fatalf("%s was to start %.1f s after the failure, the guest of %s answered after %.1f s", web, start, dns, alive)
		}
		return err
	})
	restore()
	c.powerOn(victim)
	c.settle()
}

func stepOf(list event.Timeline, vm string, kind event.Kind) (float64, error) {
	for _, v := range list.VMs {
		if v.VM != vm {
			continue
		}
		if i := slices.IndexFunc(v.Steps, func(s event.Step) bool { return s.Kind == kind }); i >= 0 {
			return v.Steps[i].Since, nil
		}
	}
	return 0, fmt.Errorf("the timeline of %s has no %s yet", vm, kind)
}

// Hard rules hold through a failure: a must-rule keeps a VM down, and so does an
// apart-rule with too few hosts; both say so, and both VMs start when the host
// returns. A rule that contradicts an older one is not in force, and is told. A VM
// requested stopped stays down until it is requested started.
func TestRulesHoldInARestart(t *testing.T) {
	c := settled(t)
	victim := c.secondaryWithVMs()
	for _, h := range c.hosts() {
		if h != victim {
			c.must(c.d.EnsureVMs(c.ctx, h, 1)) // which may take one from the victim
		}
	}
	c.must(c.d.EnsureVMs(c.ctx, victim, 2))
	licensed, alone := c.vmsOn(victim)[0], c.vmsOn(victim)[1]
	apart := []string{alone}
	for _, h := range c.hosts() {
		if h != victim {
			apart = append(apart, c.vmsOn(h)[0])
		}
	}
	restore := c.edited(func(f *config.Cluster) {
		h := f.HostByName(model.HostID(victim))
		h.Groups = append(h.Groups, "licensed")
		f.Rules = append(f.Rules,
			config.Rule{Name: "must-here", Kind: config.RuleVMHost, VMs: []string{licensed}, HostGroups: []string{"licensed"}, Must: true},
			config.Rule{Name: "spread", Kind: config.RuleResourceAffinity, VMs: apart, Policy: "apart"})
	})
	p := c.primary()
	c.mustExec(p, "hanok", "rule", "add", "pair", "kind=resourceAffinity", "vms="+apart[0]+","+apart[1], "policy=together")
	for _, cmd := range []string{"ha rules", "status", "events"} {
		if out, _ := c.exec(p, append([]string{"hanok"}, strings.Fields(cmd)...)...); !strings.Contains(out, "not in force") || !strings.Contains(out, "pair") {
			t.Errorf("hanok %s does not say that rule pair is not in force:\n%s", cmd, out)
		}
	}

	c.powerOff(victim)
	c.eventually(20*time.Second, "both say which rule keeps them down", func() error {
		return errors.Join(c.vmsWait([]string{licensed}, model.VMQueued, "rule must-here"), c.vmsWait([]string{alone}, model.VMQueued, "rule spread"))
	})
	c.holds(2*time.Second, "they stay down", func() error { return c.runNowhere([]string{licensed, alone}) })
	c.powerOn(victim)
	c.eventually(60*time.Second, "they run on the host that returned", func() error { return c.runOn([]string{licensed, alone}, victim) })
	restore()
	c.settle()

	c.mustExec(c.primary(), "hanok", "vm", "set", alone, "requested=stopped")
	c.eventually(40*time.Second, alone+" is stopped as requested", func() error { return c.vmState(alone, model.VMStopped) })
	c.runCheck(c.runNowhere([]string{alone}))
	c.mustExec(c.primary(), "hanok", "vm", "set", alone, "requested=started")
	c.eventually(30*time.Second, alone+" runs again", func() error { return c.protected(alone) })
	c.settle()
}
