package lab

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/uuid"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/model"
)

// Limits of a generated lab: host addresses are .11 to .250 of a /24.
const (
	MaxHosts = 240
	MaxVMs   = 500
)

// guestMemory is enough for the guest image; with 64 MiB it thrashes.
const guestMemory model.MiB = 96

// vmSpace is the name space of the UUIDs of lab VMs, so that the same lab gets
// the same VMs again.
var vmSpace = uuid.MustParse("9d0a7b56-2f43-4c0e-9d0f-6a2f7c1e48b3")

// GenerateCluster returns the cluster of a lab that is described by numbers
// only: hosts host1…, three networks, two datastores, VMs vm101… spread over
// hosts and datastores.
func GenerateCluster(lab layout.Lab, hosts, vms int) (*config.Cluster, error) {
	if hosts < 1 || hosts > MaxHosts {
		return nil, fmt.Errorf("%d hosts: a lab has 1 to %d", hosts, MaxHosts)
	}
	if vms < 0 || vms > MaxVMs {
		return nil, fmt.Errorf("%d VMs: a lab has 0 to %d", vms, MaxVMs)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nname: lab-%s\n", lab.Name())
	b.WriteString("ha: {options: {das.isolationaddress0: 10.99.0.1, das.usedefaultisolationaddress: false}}\n")
	b.WriteString("networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}, {name: vm}]\n")
	b.WriteString("datastores: [{name: ds1, backing: array-a}, {name: ds2, backing: array-b}]\nhosts:\n")
	memory := max(2048, vms*int(guestMemory)*2)
	for h := 1; h <= hosts; h++ {
		fmt.Fprintf(&b, "- {name: host%d, cpu: {cores: 4, mhz: 2000}, memory: %dMiB, datastores: [ds1, ds2]}\n", h, memory)
	}
	if vms > 0 {
		b.WriteString("vms:\n")
	}
	for v := range vms {
		fmt.Fprintf(&b, "- {name: vm%d, host: host%d, datastore: ds%d, memory: %dMiB}\n", 101+v, v%hosts+1, (v/hosts)%2+1, guestMemory)
	}
	c, err := config.Parse([]byte(b.String()))
	if err != nil {
		return nil, fmt.Errorf("generated cluster file: %w", err)
	}
	return c, Complete(c)
}

// Complete fills in what only a lab knows: addresses, VM ids, hosts.
func Complete(c *config.Cluster) error {
	if len(c.Hosts) == 0 || len(c.Hosts) > MaxHosts {
		return fmt.Errorf("hosts: the file has %d; a lab has 1 to %d", len(c.Hosts), MaxHosts)
	}
	if len(c.Networks) == 0 {
		return fmt.Errorf("networks: a lab needs at least one")
	}
	for i := range c.Hosts {
		h := &c.Hosts[i]
		if h.Address == nil {
			h.Address = map[string]netip.Addr{}
		}
		for n, net := range c.Networks {
			a, given := h.Address[net.Name]
			if !given {
				h.Address[net.Name] = netip.AddrFrom4([4]byte{10, 99, byte(n), byte(11 + i)})
			} else if !a.Is4() {
				return fmt.Errorf("hosts.%s.address.%s %v: the lab knows IPv4 only", h.Name, net.Name, a)
			}
		}
	}
	for i := range c.VMs {
		v := &c.VMs[i]
		if v.Type != "vm" {
			return fmt.Errorf("vms.%s.type %s: the lab runs virtual machines only", v.Name, v.Type)
		}
		if v.ID == "" {
			v.ID = model.VMID(uuid.NewSHA1(vmSpace, []byte(c.ID+"/"+v.Name)).String())
		}
		if v.Host == "" {
			v.Host = c.Hosts[i%len(c.Hosts)].Name
		}
		if h := c.HostByName(v.Host); !h.Accessible(v) {
			return fmt.Errorf("vms.%s: host %s does not reach all its datastores", v.Name, v.Host)
		}
	}
	return nil
}
