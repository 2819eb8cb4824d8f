package main

import (
	"fmt"
	"math"
	"math/rand/v2"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// cluster is a skewed cluster on shared storage: VMs of common sizes, memory 60 %
// allocated, most VMs on the first half of the hosts, two virtual processors for
// each core and at most four.
type cluster struct {
	hosts []host
	vms   []guest
}

type host struct {
	name   string
	memory int // MiB
	cores  int
}

type guest struct {
	name   string
	memory int // MiB
	cpus   int
	used   float64 // cores
	host   int
}

const (
	overcommit   = 4    // virtual processors per core, at most
	allocated    = 0.6  // of the memory of all hosts
	fullest      = 0.95 // of the memory of one host
	skewed       = 0.7  // of the VMs go to the first half of the hosts
	mhzOfVirtual = 1000 // what a virtual processor reserves
)

// sizes of VMs with their shares in per cent.
var sizes = []struct{ memory, cpus, share int }{
	{4096, 2, 30}, {8192, 2, 30}, {8192, 4, 20}, {16384, 4, 15}, {32768, 8, 5},
}

// generate makes a cluster that depends on its arguments alone.
func generate(hosts, vms int, seed uint64) (*cluster, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	c := &cluster{}
	memory, used := 0, 0.0
	for i := range vms {
		g := guest{name: fmt.Sprintf("vm%05d", i)}
		n := r.IntN(100)
		for _, s := range sizes {
			if n -= s.share; n < 0 {
				g.memory, g.cpus = s.memory, s.cpus
				break
			}
		}
		g.used = min(1, math.Exp(r.NormFloat64()*0.9-1.9)) * float64(g.cpus)
		memory += g.memory
		used += float64(g.cpus)
		c.vms = append(c.vms, g)
	}
	perHost := (int(float64(memory)/float64(hosts)/allocated/8192) + 1) * 8192
	cores := max(16, (int(used/float64(hosts)/2/16)+1)*16)
	for i := range hosts {
		c.hosts = append(c.hosts, host{fmt.Sprintf("host%04d", i), perHost, cores})
	}
	return c, c.spread(r)
}

// spread puts the VMs on hosts.
func (c *cluster) spread(r *rand.Rand) error {
	memory, cpus := make([]int, len(c.hosts)), make([]int, len(c.hosts))
	for i := range c.vms {
		g := &c.vms[i]
		for try := 0; ; try++ {
			if try == 100_000 {
				return fmt.Errorf("no place for %s: the hosts are too small", g.name)
			}
			h := r.IntN(len(c.hosts))
			if r.Float64() < skewed {
				h = r.IntN(max(len(c.hosts)/2, 1))
			}
			if float64(memory[h]+g.memory) <= fullest*float64(c.hosts[h].memory) && cpus[h]+g.cpus <= c.hosts[h].cores*overcommit {
				g.host = h
				memory[h] += g.memory
				cpus[h] += g.cpus
				break
			}
		}
	}
	return nil
}

// state is the cluster as placement knows it.
func (c *cluster) state() *placement.State {
	hosts, vms := c.placement()
	s := placement.New(hosts, vms, nil)
	for _, g := range c.vms {
		if err := s.Run(g.name, hosts[g.host].Name); err != nil {
			panic(err) // the names are our own
		}
	}
	return s
}

func (c *cluster) placement() ([]placement.Host, []placement.VM) {
	shared := []model.DatastoreName{"shared"}
	var hosts []placement.Host
	for _, h := range c.hosts {
		hosts = append(hosts, placement.Host{Name: model.HostID(h.name), CPU: model.MHz(h.cores * overcommit * mhzOfVirtual), Memory: model.MiB(h.memory), Datastores: shared})
	}
	var vms []placement.VM
	for _, g := range c.vms {
		vms = append(vms, placement.VM{Name: g.name, Reservation: placement.Resources{CPU: model.MHz(g.cpus * mhzOfVirtual), Memory: model.MiB(g.memory)},
			Usage: placement.Resources{CPU: model.MHz(g.used * mhzOfVirtual)}, Datastores: shared})
	}
	return hosts, vms
}

// on are the VMs of some hosts, as wants of a restart.
func (c *cluster) on(lost map[int]bool) []placement.Want {
	var out []placement.Want
	for _, g := range c.vms {
		if lost[g.host] {
			out = append(out, placement.Want{VM: g.name})
		}
	}
	return out
}

// withRules is a cluster file with so many rules of all kinds that can hold,
// followed by some that contradict them, each in a part of its own.
func (c *cluster) withRules(n, contradictions int, seed uint64) *config.Cluster {
	r := rand.New(rand.NewPCG(seed, 1))
	out, err := config.Parse([]byte("version: 1\nname: bench\ndatastores: [{name: shared}]\nvms: [{name: like, datastore: shared}]"))
	if err != nil {
		panic(err) // the text is our own
	}
	like := out.VMs[0] // with all defaults
	out.VMs = nil
	for i, h := range c.hosts {
		out.Hosts = append(out.Hosts, config.Host{Name: model.HostID(h.name), Memory: model.MiB(h.memory), CPU: config.CPU{Cores: h.cores, MHz: 2000},
			Datastores: []model.DatastoreName{"shared"}, Groups: []string{fmt.Sprintf("rack%d", i%8)}, FailureDomain: fmt.Sprintf("rack%d", i%8)})
	}
	for _, g := range c.vms {
		v := like
		v.Name, v.CPUs, v.Memory, v.Host = g.name, g.cpus, model.MiB(g.memory), model.HostID(c.hosts[g.host].name)
		out.VMs = append(out.VMs, v)
	}
	// Applications of eight VMs: two pairs together, replicas apart, a rack or
	// hosts that they may run on.
	per := min(8, len(c.vms))
	apps := len(c.vms) / per
	name := func(app, i int) string { return c.vms[app*per+i].name }
	for i := range n {
		app, rule := r.IntN(apps), config.Rule{Name: fmt.Sprintf("rule%05d", i)}
		switch i % 4 {
		case 0:
			k := 4 * r.IntN(2)
			rule.Kind, rule.Policy, rule.VMs = config.RuleResourceAffinity, "together", []string{name(app, k), name(app, k+1)}
		case 1:
			rule.Kind, rule.Policy, rule.VMs = config.RuleResourceAffinity, "apart", []string{name(app, 1), name(app, 2), name(app, 3), name(app, 5), name(app, 6)}
			if r.IntN(3) == 0 {
				rule.Scope = "failureDomain"
			}
		case 2:
			rule.Kind, rule.Must, rule.VMs = config.RuleVMHost, true, []string{name(app, 0), name(app, 2), name(app, 4)}
			rule.HostGroups = []string{fmt.Sprintf("rack%d", app%8), fmt.Sprintf("rack%d", (app+1)%8), fmt.Sprintf("rack%d", (app+2)%8)}
		case 3:
			rule.Kind, rule.Strict, rule.Hosts = config.RuleNodeAffinity, r.IntN(2) == 0, map[model.HostID]int{}
			for range len(c.hosts) / 2 {
				rule.Hosts[model.HostID(c.hosts[r.IntN(len(c.hosts))].name)] = r.IntN(3)
			}
			for _, h := range c.hosts[:len(c.hosts)/8] { // common to all, so that they can hold
				rule.Hosts[model.HostID(h.name)] = 1
			}
			rule.VMs = []string{name(app, 3), name(app, 7)}
		}
		out.Rules = append(out.Rules, rule)
	}
	for i := range contradictions {
		app := i * (apps / contradictions)
		chain := []string{name(app, 0), name(app, 1), name(app, 2)}
		for k, pair := range [][]string{chain[:2], chain[1:], {chain[0], chain[2]}} {
			policy := "together"
			if k == 2 {
				policy = "apart"
			}
			out.Rules = append(out.Rules, config.Rule{Name: fmt.Sprintf("bad%d-%d", i, k), Kind: config.RuleResourceAffinity, Policy: policy, VMs: pair})
		}
	}
	return out
}
