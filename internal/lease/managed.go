package lease

import (
	"slices"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// managedSet are the managed VMs of a cluster, in the order of their ids. It
// shares them with whoever gave them: large clusters have many, and most hosts
// ask for few.
type managedSet struct {
	vms   []ManagedVM
	disks map[string]model.VMID // managed disk -> its VM; made when first asked for
}

func byID(a, b ManagedVM) int { return strings.Compare(string(a.ID), string(b.ID)) }

// newManagedSet keeps vms as they are if they are in order already. Of two with
// one id the last counts.
func newManagedSet(vms []ManagedVM) managedSet {
	for i := 1; i < len(vms); i++ {
		if vms[i-1].ID >= vms[i].ID {
			sorted := slices.Clone(vms)
			slices.SortStableFunc(sorted, byID)
			out := sorted[:0]
			for _, v := range sorted {
				if n := len(out); n > 0 && out[n-1].ID == v.ID {
					out[n-1] = v
				} else {
					out = append(out, v)
				}
			}
			return managedSet{vms: out}
		}
	}
	return managedSet{vms: vms}
}

func (s *managedSet) find(id model.VMID) (ManagedVM, bool) {
	i, ok := slices.BinarySearchFunc(s.vms, id, func(v ManagedVM, id model.VMID) int {
		return strings.Compare(string(v.ID), string(id))
	})
	if !ok {
		return ManagedVM{}, false
	}
	return s.vms[i], true
}

// owner is the managed VM that a disk belongs to.
func (s *managedSet) owner(disk string) (model.VMID, bool) {
	if s.disks == nil {
		s.disks = map[string]model.VMID{}
		for i := range s.vms {
			for _, d := range s.vms[i].Disks {
				s.disks[d] = s.vms[i].ID
			}
		}
	}
	id, ok := s.disks[disk]
	return id, ok
}

// homeOf and nameOf are of a managed VM, or "".
func (m *Machine) homeOf(id model.VMID) model.DatastoreName {
	v, _ := m.managed.find(id)
	return v.Home
}

func (m *Machine) nameOf(id model.VMID) string {
	v, _ := m.managed.find(id)
	return v.Name
}

// setManaged replaces the managed VMs.
func (m *Machine) setManaged(vms []ManagedVM) {
	before := m.managed
	m.managed = newManagedSet(vms)
	for _, have := range m.order {
		v, is := m.managed.find(have.id)
		if is && have.spec.Home == v.Home {
			have.spec = v
		}
		_, was := before.find(have.id)
		if dropped := !is && (was || have.dropped); dropped != have.dropped {
			have.dropped, m.statusDirty = dropped, true
		}
	}
}

// ManagedVMs are the VMs that must not run without their locks, by id. The
// caller must not change them.
func (m *Machine) ManagedVMs() []ManagedVM { return m.managed.vms }

// Tracked are the VMs whose processes a scan must find and place: the managed
// ones and those that this host holds or claims a lock of.
func (m *Machine) Tracked() map[model.VMID]ManagedVM {
	out := make(map[model.VMID]ManagedVM, len(m.managed.vms)+len(m.order))
	for _, v := range m.managed.vms {
		out[v.ID] = v
	}
	for _, v := range m.order {
		out[v.id] = v.spec
	}
	return out
}
