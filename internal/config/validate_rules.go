package config

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// checkDependencies follows dependsOn: known VMs and groups, no cycle, and no
// higher priority that waits for a lower one. A VM of a group that it depends on
// waits for the others.
func (c *Cluster) checkDependencies(p *Problems) {
	index := make(map[string]int, len(c.VMs))
	for i := range c.VMs {
		index[c.VMs[i].Name] = i
	}
	groups := c.vmGroups()
	vmNames := append(names(c.VMs, func(v *VM) string { return v.Name }), c.vmGroupNames()...)
	for i := range c.VMs {
		v := &c.VMs[i]
		for j, name := range v.DependsOn {
			at := fmt.Sprintf("vms[%d].dependsOn[%d]", i, j)
			on := c.named(index, groups, name)
			if len(on) == 0 {
				c.checkRef(p, at, "VM or VM group", name, vmNames)
				continue
			}
			for _, k := range on {
				switch w := &c.VMs[k]; {
				case w == v:
				case v.Restart.Infrastructure && !w.Restart.Infrastructure:
					p.add(at, "make "+w.Name+" infrastructure too", "%s is infrastructure and would wait for %s, which is not", v.Name, w.Name)
				case !w.Restart.Infrastructure && v.Restart.Priority.Rank() > w.Restart.Priority.Rank():
					p.add(at, "give "+w.Name+" at least that priority", "%s has priority %s and would wait for %s of priority %s",
						v.Name, v.Restart.Priority, w.Name, w.Restart.Priority)
				}
			}
		}
	}
	if at, cycle := findCycle(c, index, groups); cycle != nil {
		p.add(fmt.Sprintf("vms[%d].dependsOn", at), "remove one of these dependencies", "waits for itself: %s", clip(strings.Join(cycle, " → ")))
	}
}

// findCycle returns the index of a VM that depends on itself and the way round,
// or nil. Iterative, because a file may hold a chain of thousands.
func findCycle(c *Cluster, index map[string]int, groups map[string][]int) (int, []string) {
	vms := c.VMs
	const (
		unseen = iota
		open
		done
	)
	state := make([]uint8, len(vms))
	type frame struct {
		vm, next int
		on       []int
	}
	visit := func(k int) frame {
		f := frame{vm: k}
		for _, name := range vms[k].DependsOn {
			for _, on := range c.named(index, groups, name) {
				if _, byName := index[name]; byName || on != k {
					f.on = append(f.on, on)
				}
			}
		}
		return f
	}
	for start := range vms {
		if state[start] != unseen {
			continue
		}
		stack := []frame{visit(start)}
		state[start] = open
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(top.on) {
				state[top.vm] = done
				stack = stack[:len(stack)-1]
				continue
			}
			k := top.on[top.next]
			top.next++
			switch {
			case state[k] == done:
			case state[k] == open:
				from := slices.IndexFunc(stack, func(f frame) bool { return f.vm == k })
				var way []string
				for _, f := range stack[from:] {
					way = append(way, vms[f.vm].Name)
				}
				return k, append(way, vms[k].Name)
			default:
				state[k] = open
				stack = append(stack, visit(k))
			}
		}
	}
	return 0, nil
}

func (c *Cluster) checkRules(p *Problems, refs bool) {
	u := newUnique(p, "rule")
	vms, hosts, groups, vmGroups := c.vmSet(), c.hostNames(), c.groupNames(), c.vmGroupNames()
	for i := range c.Rules {
		r := &c.Rules[i]
		at := fmt.Sprintf("rules[%d]", i)
		checkName(p, at+".name", r.Name)
		u.check(at+".name", r.Name)
		if !refs {
			continue
		}
		c.checkRuleShape(p, at, r)
		uv := newUnique(p, "VM")
		for j, v := range r.VMs {
			f := fmt.Sprintf("%s.vms[%d]", at, j)
			uv.check(f, v)
			if !vms[v] {
				c.checkRef(p, f, "VM", v, names(c.VMs, func(v *VM) string { return v.Name }))
			}
		}
		var ruleHosts []string
		for h := range r.Hosts {
			ruleHosts = append(ruleHosts, string(h))
		}
		sort.Strings(ruleHosts)
		for _, h := range ruleHosts {
			c.checkRef(p, at+".hosts."+clip(h), "host", h, hosts)
		}
		for j, g := range r.HostGroups {
			c.checkRef(p, fmt.Sprintf("%s.hostGroups[%d]", at, j), "host group", g, groups)
		}
		for j, g := range r.VMGroups {
			c.checkRef(p, fmt.Sprintf("%s.vmGroups[%d]", at, j), "VM group", g, vmGroups)
		}
	}
}

func (c *Cluster) vmSet() map[string]bool {
	out := make(map[string]bool, len(c.VMs))
	for i := range c.VMs {
		out[c.VMs[i].Name] = true
	}
	return out
}

// checkRuleShape checks that a rule has the fields of its kind, and no others.
func (c *Cluster) checkRuleShape(p *Problems, at string, r *Rule) {
	type part struct {
		name         string
		given, needs bool
	}
	node, res, vmh := r.Kind == RuleNodeAffinity, r.Kind == RuleResourceAffinity, r.Kind == RuleVMHost
	allowed := map[string]bool{"hosts": node, "strict": node, "policy": res, "scope": res && r.Policy == "apart", "preferred": res,
		"hostGroups": vmh, "must": vmh, "avoid": vmh}
	for _, x := range []part{
		{"hosts", len(r.Hosts) > 0, node}, {"strict", r.Strict, false}, {"policy", r.Policy != "", res},
		{"scope", r.Scope != "", false}, {"preferred", r.Preferred, false},
		{"hostGroups", len(r.HostGroups) > 0, vmh}, {"must", r.Must, false}, {"avoid", r.Avoid, false},
	} {
		if x.given && !allowed[x.name] {
			p.add(at+"."+x.name, "remove it, or change the kind", "does not belong to a rule of kind %s", strings.TrimSpace(r.Kind+" "+r.Policy))
		}
		if x.needs && !x.given {
			p.add(at+"."+x.name, "", "is required for a rule of kind %s", r.Kind)
		}
	}
	if least := map[bool]int{true: 2, false: 1}[res]; len(r.VMs) < least && len(r.VMGroups) == 0 {
		p.add(at+".vms", "", "has %d VMs; a rule of kind %s needs at least %d", len(r.VMs), r.Kind, least)
	}
}
