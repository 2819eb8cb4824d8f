package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"sort"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// Validate checks the cluster as a whole, as Parse does; for clusters that a
// program put together. The error is [*Problems].
func (c *Cluster) Validate() error {
	p := &Problems{}
	if c.Version == 0 {
		p.add("version", "", "is required")
	}
	if err := c.HA.Timing.Values.Validate(); err != nil {
		p.add("ha.timing", "", "%v", err)
	}
	c.validate(p, true)
	return p.err()
}

// validate adds what is wrong; references are followed only when refs.
func (c *Cluster) validate(p *Problems, refs bool) {
	if c.Name != "" {
		checkName(p, "name", c.Name)
	}
	if c.ID != "" && c.ID != c.Name {
		checkName(p, "id", c.ID)
	}
	if len(c.ID) > 63 {
		p.add("id", "set a shorter id", "has %d characters; at most 63 fit into certificates", len(c.ID))
	}
	c.checkAdmission(p)
	if n := c.HA.MassFailurePercent; n < 0 || n > 100 {
		p.add("ha.massFailurePercent", "50 is the default; 0 switches the check off", "%d is not from 0 to 100", n)
	}
	c.checkNetworks(p)
	c.checkDatastores(p)
	c.checkHosts(p, refs)
	c.checkVMs(p, refs)
	c.checkRules(p, refs)
	if !refs {
		return
	}
	for k, v := range c.HA.Options {
		if s, _, ok := findOption(k); ok && s.Kind == OptionNetwork {
			c.checkRef(p, "ha.options."+k, "network", v, c.networkNames())
		}
	}
	c.checkDependencies(p)
}

func checkName(p *Problems, field, name string) {
	if err := model.ValidateName(name); err != nil && name != "" {
		p.add(field, "", "%v", err)
	}
}

// unique reports a name that was seen before.
type unique struct {
	p    *Problems
	what string
	seen map[string]string
}

func newUnique(p *Problems, what string) unique { return unique{p, what, map[string]string{}} }

func (u unique) check(field, name string) {
	if name == "" {
		return
	}
	if at, dup := u.seen[name]; dup {
		u.p.add(field, "rename or remove one", "%s %q is at %s already", u.what, clip(name), at)
		return
	}
	u.seen[name] = field
}

func (c *Cluster) checkRef(p *Problems, field, what, name string, known []string) {
	if name == "" || slices.Contains(known, name) {
		return
	}
	remedy := ""
	switch {
	case p.full(): // looking for near names costs time that nobody benefits from
	case len(known) > 0:
		remedy = Suggest(name, known)
	default:
		remedy = "the file has no " + what + "s"
	}
	p.add(field, remedy, "no %s is named %q", what, clip(name))
}

func names[T any](list []T, name func(*T) string) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = name(&list[i])
	}
	return out
}

// maxFailures bounds ha.admission: more at once than anyone plans for would make
// the check as long as it is useless.
const maxFailures = 8

func (c *Cluster) checkAdmission(p *Problems) {
	a := c.HA.Admission
	bound := func(field string, n, most int) {
		if n < 0 || n > most {
			p.add("ha.admission."+field, "", "%d is not from 0 to %d", n, most)
		}
	}
	bound("hostFailures", a.HostFailures, maxFailures)
	bound("failureDomains", a.FailureDomains, maxFailures)
	bound("cpuPercent", a.CPUPercent, 100)
	bound("memoryPercent", a.MemoryPercent, 100)
	bound("degradation", a.Degradation, 100)
}

func checkVersion(p *Problems, field, version string) {
	if _, err := ParseVersion(version); err != nil {
		p.add(field, "", "%v", err)
	}
}

func checkNames(p *Problems, field string, list []string) {
	for i, name := range list {
		checkName(p, fmt.Sprintf("%s[%d]", field, i), name)
	}
}

func (c *Cluster) networkNames() []string {
	return names(c.Networks, func(n *Network) string { return n.Name })
}

func (c *Cluster) datastoreNames() []string {
	return names(c.Datastores, func(d *Datastore) string { return string(d.Name) })
}

func (c *Cluster) ruleNames() []string {
	return names(c.Rules, func(r *Rule) string { return r.Name })
}

func (c *Cluster) hostNames() []string {
	return names(c.Hosts, func(h *Host) string { return string(h.Name) })
}

func (c *Cluster) groupNames() []string {
	var out []string
	for _, h := range c.Hosts {
		out = append(out, h.Groups...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *Cluster) vmGroupNames() []string {
	var out []string
	for i := range c.VMs {
		out = append(out, c.VMs[i].Groups...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *Cluster) checkNetworks(p *Problems) {
	u := newUnique(p, "network")
	for i, n := range c.Networks {
		at := fmt.Sprintf("networks[%d].name", i)
		checkName(p, at, n.Name)
		u.check(at, n.Name)
	}
}

func (c *Cluster) checkDatastores(p *Problems) {
	u, paths, ids := newUnique(p, "datastore"), newUnique(p, "path"), newUnique(p, "datastore UUID")
	for i, d := range c.Datastores {
		at := fmt.Sprintf("datastores[%d]", i)
		checkName(p, at+".name", string(d.Name))
		u.check(at+".name", string(d.Name))
		if d.Backing != "" {
			checkName(p, at+".backing", d.Backing)
		}
		if d.Path != "" && (!path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path || d.Path == "/" || strings.ContainsAny(d.Path, "\x00\n")) {
			p.add(at+".path", "write it as /srv/"+string(d.Name), "%q is no absolute, clean path of a mount", clip(d.Path))
		}
		paths.check(at+".path", d.Path)
		if d.UUID != "" {
			if err := d.UUID.Validate(); err != nil {
				p.add(at+".uuid", "it is what `hanok datastore init` wrote", "%v", err)
			}
			ids.check(at+".uuid", string(d.UUID))
		}
	}
}

func (c *Cluster) checkHosts(p *Problems, refs bool) {
	u, addrs := newUnique(p, "host"), newUnique(p, "address")
	networks, datastores := c.networkNames(), c.datastoreNames()
	for i := range c.Hosts {
		h := &c.Hosts[i]
		at := fmt.Sprintf("hosts[%d]", i)
		if h.Name != "" {
			if err := h.Name.Validate(); err != nil {
				p.add(at+".name", "", "%v", err)
			}
		}
		u.check(at+".name", string(h.Name))
		checkVersion(p, at+".hypervisor", h.Hypervisor)
		checkNames(p, at+".cpu.features", h.CPU.Features)
		for j, n := range h.Networks {
			if refs {
				c.checkRef(p, fmt.Sprintf("%s.networks[%d]", at, j), "network", n, networks)
			}
		}
		for _, n := range sortedNetworks(h.Address) {
			a, f := h.Address[n], at+".address."+clip(n)
			if refs {
				c.checkRef(p, f, "network", n, networks)
			}
			checkAddress(p, f, a)
			if a.IsValid() {
				addrs.check(f, n+" "+a.String())
			}
		}
		ud := newUnique(p, "datastore")
		for j, d := range h.Datastores {
			f := fmt.Sprintf("%s.datastores[%d]", at, j)
			ud.check(f, string(d))
			if refs {
				c.checkRef(p, f, "datastore", string(d), datastores)
			}
		}
		for j, g := range h.Groups {
			checkName(p, fmt.Sprintf("%s.groups[%d]", at, j), g)
		}
		if h.FailureDomain != "" {
			checkName(p, at+".failureDomain", h.FailureDomain)
		}
	}
}

func sortedNetworks(m map[string]netip.Addr) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func checkAddress(p *Problems, field string, a netip.Addr) {
	switch {
	case !a.IsValid(): // reported by the reader
	case a.Zone() != "":
		p.add(field, "use an address that is the same seen from every host", "%s has a zone", a)
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		p.add(field, "use the host's own address on this network", "%s is no address of a single host", a)
	}
}

func (c *Cluster) checkVMs(p *Problems, refs bool) {
	u, ids := newUnique(p, "VM"), newUnique(p, "VM id")
	datastores, hosts := c.datastoreNames(), c.hostNames()
	byName := make(map[model.HostID]*Host, len(c.Hosts))
	for i := range c.Hosts {
		byName[c.Hosts[i].Name] = &c.Hosts[i]
	}
	for i := range c.VMs {
		v := &c.VMs[i]
		at := fmt.Sprintf("vms[%d]", i)
		checkName(p, at+".name", v.Name)
		u.check(at+".name", v.Name)
		if v.ID != "" {
			if err := v.ID.Validate(); err != nil {
				p.add(at+".id", "`virsh domuuid "+clip(v.Name)+"` prints it", "%v", err)
			}
			ids.check(at+".id", string(v.ID))
		}
		if v.CPUs < 1 || v.CPUs > 4096 {
			p.add(at+".cpus", "", "%d is not from 1 to 4096", v.CPUs)
		}
		checkLimit(p, at+".restart.maxRestart", v.Restart.MaxRestart)
		checkLimit(p, at+".restart.maxRelocate", v.Restart.MaxRelocate)
		if v.Memory > 0 && v.Reservation.Memory > v.Memory {
			p.add(at+".reservation.memory", "reserve at most the VM's memory", "%s is more than the VM's %s",
				FormatMemory(v.Reservation.Memory), FormatMemory(v.Memory))
		}
		checkVersion(p, at+".minHypervisor", v.MinHypervisor)
		checkNames(p, at+".cpuFeatures", v.CPUFeatures)
		checkNames(p, at+".groups", v.Groups)
		if !refs {
			continue
		}
		for j, n := range v.Networks {
			c.checkRef(p, fmt.Sprintf("%s.networks[%d]", at, j), "network", n, c.networkNames())
		}
		c.checkRef(p, at+".host", "host", string(v.Host), hosts)
		c.checkRef(p, at+".datastore", "datastore", string(v.Datastore), datastores)
		for j, d := range v.DisksOn {
			c.checkRef(p, fmt.Sprintf("%s.disksOn[%d]", at, j), "datastore", string(d), datastores)
		}
		if h := byName[v.Host]; h != nil && !h.Accessible(v) {
			p.add(at+".host", "choose a host that mounts them, or add them to its datastores",
				"%s does not mount all datastores of the VM", v.Host)
		}
	}
}

// maxLimit bounds the attempts of one VM: with pauses of up to a minute a hundred
// take longer than anybody waits.
const maxLimit = 100

func checkLimit(p *Problems, field string, n int) {
	if n < NoLimit || n > maxLimit {
		p.add(field, "leave it out for the cluster's das.maxvmrestartcount", "%d is not from 0 to %d", n, maxLimit)
	}
}

// CheckDeployable reports what real hosts need beyond a valid file: a heartbeat
// network, and an address of every host on at least one. When self is not empty
// it must be one of the hosts.
func (c *Cluster) CheckDeployable(self model.HostID) error {
	p := &Problems{}
	heartbeat := c.HeartbeatNetworks()
	if len(heartbeat) == 0 {
		p.add("networks", "give at least one network heartbeat: true", "no network carries heartbeats")
	}
	for i := range c.Hosts {
		h := &c.Hosts[i]
		if len(heartbeat) > 0 && !slices.ContainsFunc(heartbeat, func(n string) bool { return h.AddressOf(n).IsValid() }) {
			p.add(fmt.Sprintf("hosts[%d].address", i), "give it an address on "+strings.Join(heartbeat, " or "),
				"%s has no address on a heartbeat network", h.Name)
		}
	}
	if self != "" && c.HostByName(self) == nil {
		p.add("hosts", Suggest(string(self), c.hostNames()), "this host, %q, is not among the hosts", string(self))
	}
	text, err := c.Marshal()
	if err != nil {
		p.add("vms", "leave out what is as by default", "%v", err)
	} else if len(text) > MaxDeployed {
		p.add("vms", "leave out what is as by default; a VM without settings of its own needs no entry",
			"the file has %d bytes as hosts keep it; they hand on at most %d", len(text), MaxDeployed)
	}
	if err := p.err(); err != nil {
		return fmt.Errorf("cluster %q cannot run on hosts: %w", c.Name, err)
	}
	return nil
}

// AsProblems returns the list of problems inside err; nil when err holds none.
func AsProblems(err error) *Problems {
	var p *Problems
	if errors.As(err, &p) {
		return p
	}
	return nil
}
