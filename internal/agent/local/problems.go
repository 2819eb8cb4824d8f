package local

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// viewOld is the age from which the primary's account is called old: it comes
// every 5 s at least.
const viewOld = 15 * time.Second

// certificateWarning is how long before its end a certificate that was not
// renewed is a problem; it should have been renewed at least nine days before.
const certificateWarning = 21 * 24 * time.Hour

// FindProblems fills Problems from the rest: what is wrong, what to do, the
// gravest first.
func (s *Status) FindProblems() {
	s.Problems = []Problem{}
	add := func(about, remedy, format string, args ...any) {
		s.Problems = append(s.Problems, Problem{About: about, Text: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if s.Local.Error != "" {
		add("", s.Local.Remedy, "The agent cannot work: %s", s.Local.Error)
		return
	}
	self := string(s.Host)
	if !s.Local.Guard {
		add(self, "see the log of hanok-guard; it is restarted by itself", "The guard of this host is not reachable: %s", s.Local.GuardProblem)
	}
	if !s.Local.Hypervisor {
		add(self, "systemctl restart libvirtd; running VMs are not affected", "libvirt on this host does not answer: %s", s.Local.HypervisorProblem)
	}
	if at := s.Local.CertificateExpires; at != 0 {
		if left := time.Until(time.Unix(at, 0)); left < certificateWarning {
			add(self, "a server renews it while it reaches this host; or enrol the host anew: hanok host token "+self, "The certificate of this host ends at %s.", time.Unix(at, 0).UTC().Format(time.RFC3339))
		}
	}
	for _, n := range s.Local.Notices {
		add(self, "", "%s", n)
	}
	if !s.HA {
		add("", "hanok ha on", "High availability is switched off: nothing is restarted.")
		return // the rest follows from it
	}
	switch {
	case s.Primary == "":
		add("", "it takes a few seconds; if it stays, check that the hosts reach each other on port 8182 (UDP and TCP)", "There is no primary: an election is under way.")
	case time.Duration(s.AgeSeconds*float64(time.Second)) > viewOld:
		add("", "check the network between this host and "+string(s.Primary), "The primary's account is %.0f s old.", s.AgeSeconds)
	}
	if !s.HostMonitoring {
		add("", "hanok ha monitoring on", "Host monitoring is switched off: failed hosts are not noticed.")
	}
	if r := s.Admission; r != nil {
		if r.Answer != "yes" {
			add("admission", strings.Join(r.Help, "; or "), "The room for failures that ha.admission (%s) asks for is not there (%s): %s.", r.Policy, r.Answer, r.Reason)
		}
		for _, w := range r.Warnings {
			add("admission", "add hosts, or let VMs use less; ha.admission.degradation sets what is tolerated", "After failures VMs would get less: %s.", w)
		}
	}
	for _, c := range s.DisabledRules {
		add(c.Disabled, "change one of the rules "+strings.Join(c.Rules, ", ")+"; `hanok rule check` says more", "Rule %s is not in force: %s.", c.Disabled, c.Reason)
	}
	for _, h := range s.Hosts {
		s.hostProblems(h, add)
	}
	for _, d := range s.Datastores {
		if d.Problem != "" {
			add(string(d.Name), "hanok datastore check "+string(d.Name)+" on a host that mounts it", "%s", d.Problem)
		}
	}
	for _, v := range s.VMs {
		switch v.State {
		case model.VMStopped, model.VMDisabled, model.VMIgnored: // as somebody wants it
		case model.VMStarted:
			if !v.Protected && v.Reason != "" {
				add(v.Name, "", "%s is not protected: %s", v.Name, v.Reason)
			}
		default:
			if v.Reason != "" {
				add(v.Name, "", "%s is in state %s: %s", v.Name, v.State, v.Reason)
			}
		}
	}
}

var healthy = []model.HostState{model.HostPrimary, model.HostConnected, model.HostMaintenance, model.HostStandby, model.HostElection}

func (s *Status) hostProblems(h Host, add func(about, remedy, format string, args ...any)) {
	name := string(h.Name)
	if !slices.Contains(healthy, h.State) {
		text := string(h.State)
		if h.Reason != "" {
			text += ", " + h.Reason
		}
		add(name, remedies[h.State], "%s is %s", name, text)
		return
	}
	if h.State != model.HostPrimary && h.State != model.HostConnected {
		return
	}
	if !h.Guard {
		add(name, "see the log of hanok-guard there", "The guard of %s is down: its VMs freeze when its leases end.", name)
		return
	}
	if !h.Armed {
		add(name, "load a watchdog driver (softdog, if there is no hardware), see docs/operations.md", "%s is not armed: %s", name, orUnknown(h.ArmedWhy))
	}
	if !h.Hook {
		add(name, "restart libvirtd there so that it loads the hook; `hanok-guard install-hook` puts it back", "libvirt on %s does not ask Hanok's hook.", name)
	}
	if !h.Hypervisor {
		add(name, "systemctl restart libvirtd there", "libvirt on %s does not answer.", name)
	}
	for _, w := range h.Warnings {
		add(name, "docs/operations.md, \"Heartbeat networks and datastores\"", "%s.", w)
	}
	for _, l := range h.Leases {
		if !l.OK {
			add(name, remedyOf(l), "%s has no lease on datastore %s: %s", name, l.Datastore, orUnknown(l.Problem))
		}
	}
	if s.ConfigVersion > 0 && h.ConfigVersion > 0 && h.ConfigVersion < s.ConfigVersion {
		add(name, "it gets the newer one by itself; see its log if it stays", "%s works with version %d of the cluster file, not %d.", name, h.ConfigVersion, s.ConfigVersion)
	}
}

func remedyOf(l Lease) string {
	return fmt.Sprintf("hanok datastore check %s there; docs/operations.md, \"A datastore is in trouble\"", l.Datastore)
}

func orUnknown(s string) string {
	if s == "" {
		return "no reason was given"
	}
	return s
}

var remedies = map[model.HostState]string{
	model.HostFailed:           "its VMs are restarted elsewhere; repair it and switch it on, it joins by itself",
	model.HostAgentUnreachable: "its VMs run on under its guard; check hanok agent there and port 8182",
	model.HostPartitioned:      "check the network between the hosts",
	model.HostIsolated:         "check the network of that host",
	model.HostInitError:        "hanok status on that host says why",
	model.HostUninitialized:    "start hanok agent there",
	model.HostDisconnected:     "start hanok agent there",
}
