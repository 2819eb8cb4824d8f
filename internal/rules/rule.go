package rules

import (
	"fmt"

	"hanok.dev/hanok/internal/model"
)

// Kind is what a rule asks for.
type Kind int

// The kinds of rules.
const (
	// OnHosts: each of the VMs runs on one of the hosts.
	OnHosts Kind = iota
	// OffHosts: none of the VMs runs on any of the hosts.
	OffHosts
	// Together: all of the VMs that run, run on one host.
	Together
	// Apart: no two of the VMs run on one host; with [Rule.Domains], in one
	// failure domain.
	Apart
)

// String is the kind in words.
func (k Kind) String() string {
	switch k {
	case OnHosts:
		return "on hosts"
	case OffHosts:
		return "off hosts"
	case Together:
		return "together"
	case Apart:
		return "apart"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// HostWeight is a host of a rule with its weight: higher is tried first.
type HostWeight struct {
	Host   model.HostID
	Weight int
}

// Rule constrains where VMs run. Names of VMs and hosts that do not exist are
// ignored.
type Rule struct {
	// Name is what people call the rule; unique in a list.
	Name string
	Kind Kind
	// VMs it is about, by name; groups are resolved.
	VMs []string
	// Hosts of OnHosts and OffHosts; groups are resolved. Equal weights mean
	// that none is preferred.
	Hosts []HostWeight
	// Hard: broken by nothing, neither by a restart nor during a move. A rule
	// that is not hard is kept where possible and broken rather than leave a VM
	// down.
	Hard bool
	// Domains makes Apart keep the VMs in different failure domains instead of
	// hosts. A host without a domain is one of its own.
	Domains bool
}
