package lease

import (
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
)

// Saved is what a guard leaves for its successor within one boot (guard rule
// 4). Times are of the same clock.
type Saved struct {
	Host        model.HostID  `json:"host"`
	Boot        model.BootID  `json:"boot"`
	Incarnation uint64        `json:"incarnation"`
	Agent       uint64        `json:"agentSequence"`
	Stores      []SavedStore  `json:"datastores"`
	VMs         []SavedVM     `json:"vms"`
	Orphans     []SavedOrphan `json:"orphans"`
}

// SavedStore is a datastore's lease and slot.
type SavedStore struct {
	Name     model.DatastoreName `json:"name"`
	HasS     bool                `json:"hasS"`
	S        time.Duration       `json:"s"`
	Limits   limits              `json:"limits"`
	Sequence uint64              `json:"sequence"`
	// Known are the digests that the slot may have.
	Known     []string      `json:"known"`
	Changed   bool          `json:"changed,omitempty"`
	ChangedAt time.Duration `json:"changedAt,omitempty"`
	ListTerm  model.Term    `json:"listTerm,omitempty"`
	ListNonce string        `json:"listNonce,omitempty"`
	// ListCleanup: the list's lock may have to be released.
	ListCleanup bool `json:"listCleanup,omitempty"`
}

// SavedVM is a VM whose lock is held or suspect.
type SavedVM struct {
	Spec    ManagedVM   `json:"spec"`
	Epoch   model.Epoch `json:"epoch"`
	Nonce   string      `json:"nonce"`
	Suspect bool        `json:"suspect,omitempty"`
	// Running: it had processes; the first list of processes tells whether it
	// still has.
	Running bool `json:"running,omitempty"`
	Hook    bool `json:"hookGrant,omitempty"`
	// HookAt is when the hook permitted a start.
	HookAt time.Duration `json:"hookAt,omitempty"`
}

// SavedOrphan is a claim whose outcome is not known.
type SavedOrphan struct {
	Datastore model.DatastoreName `json:"datastore"`
	Record    model.LockRecord    `json:"record"`
}

// Saved returns what a successor needs.
func (m *Machine) Saved() Saved {
	var out Saved
	m.SaveTo(&out)
	return out
}

// restore takes over from a predecessor. All locks of VMs are suspect until
// the lease is known to hold; the first Step freezes what is.
func (m *Machine) restore(saved *Saved) {
	m.incN = saved.Incarnation
	m.agent.sequence = saved.Agent
	for _, o := range saved.Stores {
		s := m.store(o.Name)
		if s == nil {
			s = &store{cfg: DatastoreConfig{Name: o.Name, Fence: model.FenceNone}}
			m.stores = append(m.stores, s)
		}
		s.hasS, s.s, s.limits, s.sequence = o.HasS, o.S, o.Limits, o.Sequence
		s.known = slices.Clone(o.Known)
		// A write of the predecessor may still be on its way.
		s.late = slices.Clone(o.Known)
		s.changed, s.changedAt = o.Changed, o.ChangedAt
		s.leased = o.HasS && !o.Changed
		switch {
		case o.ListTerm != 0 && s.leased:
			s.list = listState{held: true, term: o.ListTerm, nonce: o.ListNonce}
		default:
			s.list = listState{cleanup: o.ListTerm != 0 || o.ListCleanup, least: model.Epoch(o.ListTerm)}
		}
	}
	for _, o := range saved.VMs {
		v := m.addVM(o.Spec)
		v.epoch, v.nonce, v.lock, v.running = o.Epoch, o.Nonce, lockHeld, o.Running
		if o.Hook {
			v.grant, v.grantAt = grantHook, o.HookAt
		}
		if s := m.store(v.spec.Home); o.Suspect || s == nil || !s.leased {
			v.lock, v.reason = lockSuspect, "the lease ended before the guard started"
			m.pendingFreeze = append(m.pendingFreeze, v.id)
		}
	}
	for _, o := range saved.Orphans {
		if len(m.orphans) < maxOrphans {
			m.orphans = append(m.orphans, orphan{key: lockKey{o.Datastore, o.Record.Lock}, rec: o.Record,
				pause: retryPause})
		}
	}
	// The agent gets the time of its silence to come back.
	m.agent.restored = true
}

// SaveTo is Saved into a value that is used again: what it held before is
// overwritten, its slices are kept.
func (m *Machine) SaveTo(out *Saved) {
	stores, vms, orphans, before := out.Stores[:0], out.VMs[:0], out.Orphans[:0], out.Stores
	*out = Saved{Host: m.cfg.Host, Boot: m.cfg.Boot, Incarnation: m.incN, Agent: m.agent.sequence}
	for i, s := range m.stores {
		var k []string
		if i < len(before) {
			k = before[i].Known[:0] // not overwritten yet: stores has i of them
		}
		o := SavedStore{Name: s.cfg.Name, HasS: s.hasS, S: s.s, Limits: s.limits, Sequence: s.sequence,
			Known: append(k, s.known...), Changed: s.changed, ChangedAt: s.changedAt, ListCleanup: s.list.cleanup}
		if s.list.held {
			o.ListTerm, o.ListNonce = s.list.term, s.list.nonce
		}
		stores = append(stores, o)
	}
	for _, v := range m.order {
		if v.lock == lockHeld || v.lock == lockSuspect || v.lock == lockLost {
			vms = append(vms, SavedVM{Spec: v.spec, Epoch: v.epoch, Nonce: v.nonce,
				Suspect: v.lock != lockHeld, Running: v.running, Hook: v.grant == grantHook, HookAt: v.grantAt})
		}
	}
	for i := range m.orphans {
		orphans = append(orphans, SavedOrphan{Datastore: m.orphans[i].key.ds, Record: m.orphans[i].rec})
	}
	first := len(orphans)
	for _, c := range m.chains {
		// A claim in flight is an orphan for a successor.
		if (c.stage == stageLink || c.stage == stageAgain) && c.rec.State == model.LockHeld {
			orphans = append(orphans, SavedOrphan{Datastore: c.key.ds, Record: c.rec})
		}
	}
	slices.SortFunc(orphans[first:], func(a, b SavedOrphan) int { return strings.Compare(a.Record.Nonce, b.Record.Nonce) })
	out.Stores, out.VMs, out.Orphans = stores, vms, orphans
}
