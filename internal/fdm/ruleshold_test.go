package fdm

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// Hosts and agents fail and return, VMs crash, hosts are cut off: at no moment do
// VMs run as a hard rule forbids. Where they run first the rules allow.
func TestHardRulesHoldThroughout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := rapid.IntRange(3, 4).Draw(t, "hosts")
		s := &scenario{w: newWorld(hosts, "ds1")}
		w := s.w
		for _, k := range []event.Kind{event.Guard, event.Hypervisor, event.Config} {
			w.quiet[k] = true
		}
		at := map[string]model.HostID{}
		var vms []string
		for i := range 5 {
			vm := fmt.Sprintf("v%d", i)
			vms = append(vms, vm)
			at[vm] = w.names[rapid.IntRange(0, hosts-1).Draw(t, vm)]
		}
		list := drawRules(t, w.names, vms, at)
		w.conf.Rules = list
		w.files[1] = w.conf
		for _, n := range w.nodes {
			n.conf = w.conf
		}
		s.verb([]string{"on"})
		for _, vm := range vms {
			w.addVM(vm, "ds1", at[vm], 512)
		}
		step := func() {
			s.verb([]string{"run", "500ms"})
			if why := brokenRule(w, list); why != "" {
				t.Fatalf("at %v: %s\n%s", w.now, why, strings.Join(w.log[max(0, len(w.log)-60):], "\n"))
			}
		}
		for range 20 {
			step()
		}
		for range rapid.IntRange(1, 8).Draw(t, "faults") {
			h := string(w.names[rapid.IntRange(0, hosts-1).Draw(t, "host")])
			vm := rapid.SampledFrom(vms).Draw(t, "vm")
			n := w.nodes[model.HostID(h)]
			switch rapid.SampledFrom([]string{"off", "off", "off", "on", "crash", "cut", "heal", "agent"}).Draw(t, "fault") {
			case "off":
				if n.on {
					s.verb([]string{"power-off", h})
				}
			case "on":
				if !n.on {
					s.verb([]string{"power-on", h})
				}
			case "crash":
				s.verb([]string{"die", vm, string(StopCrashed)})
			case "cut", "heal":
				if n.on {
					s.verb([]string{map[bool]string{true: "heal", false: "cut"}[n.cut], h})
				}
			case "agent":
				if n.on && n.m != nil {
					s.verb([]string{"agent", "kill", h})
					s.verb([]string{"agent", "start", h})
				}
			}
			for range rapid.IntRange(1, 60).Draw(t, "halfSeconds") {
				step()
			}
		}
	})
}

// drawRules draws hard rules that hold where the VMs run.
func drawRules(t *rapid.T, hosts []model.HostID, vms []string, at map[string]model.HostID) []rules.Rule {
	var out []rules.Rule
	for i := range rapid.IntRange(1, 4).Draw(t, "rules") {
		r := rules.Rule{Name: fmt.Sprintf("r%d", i), Kind: rules.Kind(rapid.IntRange(0, 3).Draw(t, "kind")), Hard: true}
		for _, vm := range rapid.Permutation(vms).Draw(t, "vms") {
			fits := !slices.ContainsFunc(r.VMs, func(o string) bool {
				return r.Kind == rules.Apart && at[o] == at[vm] || r.Kind == rules.Together && at[o] != at[vm]
			})
			if fits && len(r.VMs) < 3 {
				r.VMs = append(r.VMs, vm)
			}
		}
		for _, h := range hosts {
			runs := slices.ContainsFunc(r.VMs, func(vm string) bool { return at[vm] == h })
			extra := rapid.Bool().Draw(t, "extra")
			if r.Kind == rules.OnHosts && (runs || extra) || r.Kind == rules.OffHosts && !runs && extra {
				r.Hosts = append(r.Hosts, rules.HostWeight{Host: h})
			}
		}
		out = append(out, r)
	}
	return out
}

// brokenRule is which hard rule the VMs that run break; "" if none.
func brokenRule(w *world, list []rules.Rule) string {
	for _, r := range list {
		on := map[model.HostID][]string{}
		for _, vm := range r.VMs {
			for _, h := range w.runningOn(model.VMID("vm-" + vm)) {
				on[model.HostID(h)] = append(on[model.HostID(h)], vm)
			}
		}
		for h, there := range on {
			named := slices.ContainsFunc(r.Hosts, func(x rules.HostWeight) bool { return x.Host == h })
			switch {
			case r.Kind == rules.OnHosts && !named, r.Kind == rules.OffHosts && named, r.Kind == rules.Apart && len(there) > 1, r.Kind == rules.Together && len(on) > 1:
				return fmt.Sprintf("%v run on %s, all of them on %v, against rule %+v", there, h, on, r)
			}
		}
	}
	return ""
}
