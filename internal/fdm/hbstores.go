package fdm

import (
	"fmt"
	"slices"
	"strings"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
)

// Heartbeat datastores are those by whose slots people are told what became of a
// silent host, and whose number and independence is watched. Guards write on
// every datastore, because their leases need it, and a slot that moves anywhere
// proves life: the choice never makes a verdict less careful.

// Preference is an administrator's word on a datastore's use for heartbeats.
type Preference int

// The preferences.
const (
	PreferenceAvoid Preference = iota - 1
	PreferenceNone
	PreferencePrefer
)

// Numbers of heartbeat datastores of a host.
const (
	defaultHeartbeats = 2
	maxHeartbeats     = 5
)

// HeartbeatStores chooses the heartbeat datastores of each host, the best first:
// by preference, never on the hosts' own network if there is another, not
// sharing backing, server and failure domain with one chosen before, the first
// outside of the host's own failure domain, reached by the most hosts, by name. usable tells whether a host reaches a datastore now.
func HeartbeatStores(c Cluster, usable func(model.HostID, model.DatastoreName) bool) map[model.HostID][]model.DatastoreName {
	reach := map[model.DatastoreName]int{}
	for _, h := range c.Hosts {
		for _, d := range h.Datastores {
			if usable(h.Name, d) {
				reach[d]++
			}
		}
	}
	out := make(map[model.HostID][]model.DatastoreName, len(c.Hosts))
	for _, h := range c.Hosts {
		var left []ClusterDatastore
		for _, d := range c.Datastores {
			if hasName(h.Datastores, d.Name) && usable(h.Name, d.Name) {
				left = append(left, d)
			}
		}
		out[h.Name] = chooseStores(left, h.Spec.FailureDomain, reach, c.heartbeats())
	}
	return out
}

// heartbeats is how many heartbeat datastores a host should have.
func (c *Cluster) heartbeats() int {
	if c.HeartbeatStores <= 0 {
		return defaultHeartbeats
	}
	return min(c.HeartbeatStores, maxHeartbeats)
}

func chooseStores(left []ClusterDatastore, home string, reach map[model.DatastoreName]int, n int) []model.DatastoreName {
	var chosen []ClusterDatastore
	for len(chosen) < n && len(left) > 0 {
		best := 0
		for i := range left {
			if slices.Compare(merit(left[i], chosen, home, reach), merit(left[best], chosen, home, reach)) > 0 {
				best = i
			}
		}
		chosen = append(chosen, left[best])
		left = slices.Delete(left, best, best+1)
	}
	names := make([]model.DatastoreName, 0, len(chosen))
	for _, d := range chosen {
		names = append(names, d.Name)
	}
	return names
}

// merit orders datastores as candidates beside those chosen; more is better.
// home is the failure domain of the host: what takes both away leaves nothing
// that tells of the host, so that one elsewhere is better, once.
func merit(d ClusterDatastore, chosen []ClusterDatastore, home string, reach map[model.DatastoreName]int) []int {
	own, backing, server, domain, away := 1, 1, 1, 1, 1
	if len(chosen) == 0 && home != "" && d.FailureDomain == home {
		away = 0
	}
	if d.OnHostNetwork {
		own = 0
	}
	for _, c := range chosen {
		if d.Backing != "" && c.Backing == d.Backing {
			backing = 0
		}
		if d.Server != "" && c.Server == d.Server {
			server = 0
		}
		if d.FailureDomain != "" && c.FailureDomain == d.FailureDomain {
			domain = 0
		}
	}
	return []int{int(d.Preference), own, backing, server, domain, away, reach[d.Name]}
}

// heartbeatWarnings says what is wrong with a host's heartbeat datastores.
func (m *Machine) heartbeatWarnings(h *member) []string {
	if m.conf.IgnoreFewHeartbeats || m.self == nil {
		return nil
	}
	var out []string
	want := m.conf.heartbeats()
	if len(h.heartbeats) < want {
		out = append(out, fmt.Sprintf("%s has %d heartbeat datastores (%s) where %d are wanted", h.name, len(h.heartbeats), storeNames(h.heartbeats), want))
	}
	if home := h.conf.Spec.FailureDomain; home != "" && len(h.heartbeats) > 0 && !m.awayFrom(home, h.heartbeats) {
		out = append(out, fmt.Sprintf("all heartbeat datastores of %s (%s) are in its own failure domain %s: what takes that away leaves nothing that tells of it", h.name, storeNames(h.heartbeats), home))
	}
	for i, a := range h.heartbeats {
		x := m.stores[a]
		if x == nil {
			continue
		}
		if x.conf.OnHostNetwork {
			out = append(out, fmt.Sprintf("heartbeat datastore %s of %s is on the hosts' own network: what silences the host silences it too", a, h.name))
		}
		for _, b := range h.heartbeats[:i] {
			y := m.stores[b]
			switch {
			case y == nil:
			case x.conf.Backing != "" && x.conf.Backing == y.conf.Backing:
				out = append(out, fmt.Sprintf("heartbeat datastores %s and %s of %s share backing %s", b, a, h.name, x.conf.Backing))
			case x.conf.Server != "" && x.conf.Server == y.conf.Server:
				out = append(out, fmt.Sprintf("heartbeat datastores %s and %s of %s share server %s", b, a, h.name, x.conf.Server))
			case x.conf.FailureDomain != "" && x.conf.FailureDomain == y.conf.FailureDomain:
				out = append(out, fmt.Sprintf("heartbeat datastores %s and %s of %s share failure domain %s", b, a, h.name, x.conf.FailureDomain))
			}
		}
	}
	return out
}

// awayFrom tells whether one of the datastores is outside of a failure domain.
func (m *Machine) awayFrom(home string, list []model.DatastoreName) bool {
	return slices.ContainsFunc(list, func(d model.DatastoreName) bool {
		st := m.stores[d]
		return st == nil || st.conf.FailureDomain != home
	})
}

func storeNames(list []model.DatastoreName) string {
	if len(list) == 0 {
		return "none"
	}
	names := make([]string, 0, len(list))
	for _, d := range list {
		names = append(names, string(d))
	}
	return strings.Join(names, ", ")
}

// chooseHeartbeats chooses anew, on a primary, when what hosts reach may have
// changed. A silent host keeps its choice: its slots there are what tells.
func (m *Machine) chooseHeartbeats() {
	sum := m.reachSum()
	if sum == m.chosenFor {
		return
	}
	m.chosenFor = sum
	choice := HeartbeatStores(m.conf, func(host model.HostID, d model.DatastoreName) bool {
		h := m.members[host]
		return h != nil && (h.report == nil || !h.report.GuardUp || h.suspect || hasStore(h.report, d))
	})
	for _, h := range m.order {
		next := choice[h.name]
		if len(h.heartbeats) > 0 && (h.suspect || h.report == nil || !h.report.GuardUp) {
			continue // nobody knows what it reaches
		}
		if slices.Equal(next, h.heartbeats) {
			continue
		}
		was := h.heartbeats
		h.heartbeats, m.viewDue = next, true
		sev, why := event.Info, ""
		if len(was) > 0 {
			why = fmt.Sprintf("before: %s", storeNames(was))
			if h.report != nil {
				for _, d := range was {
					if !hasStore(h.report, d) {
						sev, why = event.Warning, fmt.Sprintf("%s does not reach %s any more", h.name, d)
					}
				}
			}
		}
		if len(was) > 0 || len(next) == 0 {
			m.emit(event.Event{Kind: event.Storage, Severity: sev, Host: h.name,
				Text: fmt.Sprintf("heartbeat datastores of %s: %s", h.name, storeNames(next)), Cause: why})
		}
	}
}

// reachSum is a digest of all that the choice depends on (FNV-1a), never 0.
func (m *Machine) reachSum() uint64 {
	sum := uint64(14695981039346656037)
	add := func(x uint64) { sum = (sum ^ x) * 1099511628211 }
	add(m.reign)
	add(uint64(m.confAt))
	for _, h := range m.order {
		bits := uint64(len(h.heartbeats)) << 3
		if h.suspect {
			bits |= 1
		}
		if h.report == nil || !h.report.GuardUp {
			add(bits | 2)
			continue
		}
		add(bits)
		for _, d := range h.conf.Datastores {
			if hasStore(h.report, d) {
				add(1)
			} else {
				add(0)
			}
		}
	}
	return max(sum, 1)
}
