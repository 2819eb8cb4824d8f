package fdm

import (
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// onReport takes a secondary's account of itself.
func (m *Machine) onReport(h *member, r *Report) {
	if m.role != rolePrimary || r.Host != h.name {
		return
	}
	if r.ConfigVersion < m.conf.Version && h.beat.ConfigVersion < m.conf.Version {
		m.offerConfig(h)
	}
	m.takeReport(h, r)
	if h.welcomed == 0 {
		m.welcomeDue = true
	}
}

// takeReport updates the registry from what a host says of itself.
func (m *Machine) takeReport(h *member, r *Report) {
	before, unfit := h.report, m.unfit(h)
	h.report, h.reportAt = r, m.now
	if before == nil || before.GuardUp != r.GuardUp || before.HypervisorUp != r.HypervisorUp || before.Armed != r.Armed ||
		before.HookSeen != r.HookSeen || before.ConfigVersion != r.ConfigVersion || okStores(before.Datastores) != okStores(r.Datastores) {
		m.viewDue = true
		for _, v := range m.sortVMs(h.vms) {
			m.showProtection(v)
		}
	}
	was, usedBefore := h.active, h.used
	h.active, h.formerly, h.used = h.formerly, was, 0
	clear(h.active)
	for _, lv := range r.VMs {
		if lv.Active {
			h.used += lv.Memory
		}
		if runs(lv) {
			h.active[lv.ID] = lv
		}
	}
	bootBefore := h.bootSaid
	h.bootSaid = r.Boot
	if bootBefore != "" && bootBefore != r.Boot {
		m.rebooted(h.name, r.Boot)
	}
	for _, id := range sortedKeys(was) {
		if _, still := h.active[id]; still {
			continue
		}
		if v := m.vms[id]; v != nil && v.running && v.host == h {
			m.stoppedRunning(v)
		}
	}
	for i := range r.VMs {
		lv := r.VMs[i]
		if v := m.vms[lv.ID]; v != nil && runs(lv) {
			m.setRunning(v, h, lv)
		}
	}
	// VMs whose lock it holds without running them: look again.
	var idle map[model.VMID]*vm
	for id, v := range h.vms {
		if !v.running && v.order == nil {
			if idle == nil {
				idle = map[model.VMID]*vm{}
			}
			idle[id] = v
		}
	}
	for _, v := range m.sortVMs(idle) {
		if !v.running && v.order == nil {
			v.lockKnown = false
			m.evaluate(v)
		}
	}
	m.pokeByReport(h, before, unfit, usedBefore)
	m.checkGathered()
}

// stoppedRunning: the host of a VM reports that it does not run any more.
func (m *Machine) stoppedRunning(v *vm) {
	m.setRunning(v, nil, LocalVM{})
	v.reason = "it does not run any more; its lock is being read"
	m.evaluate(v)
}

// pokeByReport tries waiting VMs again when a report shows that a host can do
// more than before; unfit is why it could take no VM then.
func (m *Machine) pokeByReport(h *member, before *Report, unfit string, usedBefore model.MiB) {
	r := h.report
	switch {
	case before == nil, r.Armed && !before.Armed, unfit != "" && m.unfit(h) == "", gains(before, r):
		m.poke(changeRoom)
	case h.used < usedBefore || r.Memory > before.Memory:
		m.poke(changeMemory)
	}
}

// gains tells whether a host can use a datastore that it could not use before.
func gains(before, now *Report) bool {
	for _, d := range now.Datastores {
		if now.usable(d.Name) && !before.usable(d.Name) {
			return true
		}
	}
	return false
}

// usable tells whether VMs with disks on a datastore can start on the host.
func (r *Report) usable(name model.DatastoreName) bool { return hasStore(r, name) && !r.loses(name) }

func okStores(list []lease.DatastoreStatus) int {
	n := 0
	for _, d := range list {
		if d.OK {
			n++
		}
	}
	return n
}

// managedSet is every VM that Hanok manages, as far as this host knows; ok if
// every datastore's list is known.
func (m *Machine) managedSet() (set []lease.ManagedVM, ok bool) {
	set, unknown := m.managedKnown()
	return set, len(unknown) == 0 || m.managedOK
}

// managedKnown merges the lists owned or read with what was known before of
// the others.
func (m *Machine) managedKnown() (set []lease.ManagedVM, unknown []model.DatastoreName) {
	covered := map[model.DatastoreName]bool{}
	for _, st := range m.storeBy {
		switch {
		case st.list.phase == listOwned:
			for _, v := range st.list.byID() {
				set = append(set, managedVM(v.p))
			}
		case st.listKnown:
			for _, p := range st.lastKnown {
				set = append(set, managedVM(p))
			}
		default:
			unknown = append(unknown, st.name)
			continue
		}
		covered[st.name] = true
	}
	for _, g := range m.managed {
		if !covered[g.Home] {
			set = append(set, g)
		}
	}
	// In the order in which guards keep them.
	slices.SortStableFunc(set, func(a, b lease.ManagedVM) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return set, unknown
}

// flushWelcome tells every member that reported which VMs are managed, when
// that changed or the member does not know yet; changes are gathered.
func (m *Machine) flushWelcome() {
	if !m.welcomeDue || m.self == nil {
		return
	}
	if wait := m.welcomeAt + 200*time.Millisecond - m.now; m.welcomeAt > 0 && wait > 0 {
		if m.welcomeWake <= m.now {
			m.welcomeWake = m.now + wait
			m.after(wait, func() {})
		}
		return
	}
	m.welcomeDue, m.welcomeAt = false, m.now
	set, unknown := m.managedKnown()
	sum := managedSum(set, unknown)
	if sum != m.managedSum {
		m.managedSum = sum
		m.managed = set
		m.managedOK = m.managedOK || len(unknown) == 0
		m.sendManaged()
	}
	w := &Welcome{Managed: set, Unknown: unknown}
	for _, h := range m.order {
		if !h.self && h.report != nil && h.welcomed != sum {
			h.welcomed = sum
			m.do(SendMessage{To: h.name, Message: Message{Welcome: w}})
		}
	}
}

// managedSum is a digest of a managed set (FNV-1a), never 0.
func managedSum(set []lease.ManagedVM, unknown []model.DatastoreName) uint64 {
	sum := uint64(14695981039346656037)
	add := func(s string) {
		for i := 0; i < len(s); i++ {
			sum = (sum ^ uint64(s[i])) * 1099511628211
		}
		sum = (sum ^ 0xff) * 1099511628211
	}
	for _, g := range set {
		add(string(g.ID))
		add(g.Name)
		add(string(g.Home))
		for _, d := range g.Disks {
			add(d)
		}
		for _, d := range g.Datastores {
			add(string(d))
		}
	}
	for _, d := range unknown {
		add(string(d))
	}
	return max(sum, 1)
}

// onWelcome learns from the primary which VMs are managed.
func (m *Machine) onWelcome(h *member, w *Welcome) {
	if m.role != roleSecondary || m.primary != h.name {
		return
	}
	set := w.Managed
	if len(w.Unknown) > 0 {
		if !m.managedOK {
			return // the guard keeps on disk what it knew
		}
		set = append([]lease.ManagedVM(nil), set...)
		have := map[model.VMID]bool{}
		for _, g := range set {
			have[g.ID] = true
		}
		for _, g := range m.managed {
			if hasName(w.Unknown, g.Home) && !have[g.ID] {
				set = append(set, g)
			}
		}
	}
	m.managed, m.managedOK = set, true
	m.sendManaged()
}
