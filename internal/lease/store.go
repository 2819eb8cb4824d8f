package lease

import (
	"hash/fnv"
	"slices"
	"time"

	"hanok.dev/hanok/internal/model"
)

// store is one datastore and this host's lease on it.
type store struct {
	cfg DatastoreConfig

	// s is the start of the last successful write; hasS tells whether there
	// was one in this boot. limits is what others may conclude from it.
	s      time.Duration
	hasS   bool
	limits limits
	// leased: the lease is valid. turns counts its beginnings and its ends, so
	// that a claim can tell whether the lease was valid when its link was ordered
	// and all the time since.
	leased bool
	turns  uint64

	sequence  uint64
	known     []string // digests the slot may have; the last good one first
	late      []string // of a predecessor's writes, which may still be on their way
	expected  []string // known and late, as the write in flight was told
	op        uint64   // write in flight
	started   time.Duration
	writing   model.Slot
	promised  limits // by the write in flight
	writingID string
	nextWrite time.Duration
	hung      bool // the write in flight takes suspiciously long

	fault     *Fault
	changed   bool          // the world changed; only `hanok datastore repair` ends this
	changedAt time.Duration // when that was noticed
	// repairUntil: after a repair no lock is re-claimed before this, so that
	// every other host has noticed the change or lost its lease.
	repairUntil time.Duration
	repaired    bool

	list listState
}

func (m *Machine) store(name model.DatastoreName) *store {
	for _, s := range m.stores {
		if s.cfg.Name == name {
			return s
		}
	}
	return nil
}

// setStores takes over a new list of datastores. One that still has VMs, a
// list or a write in flight stays until it has none.
func (m *Machine) setStores(cfgs []DatastoreConfig) {
	var next []*store
	for _, c := range cfgs {
		s := m.store(c.Name)
		if s == nil {
			s = &store{nextWrite: m.now}
		}
		s.cfg = c
		next = append(next, s)
	}
	for _, s := range m.stores {
		if !slices.Contains(next, s) && m.inUse(s) {
			next = append(next, s)
		}
	}
	m.stores = next
}

func (m *Machine) inUse(s *store) bool {
	if s.op != 0 || s.list.held {
		return true
	}
	for k := range m.chains {
		if k.ds == s.cfg.Name {
			return true
		}
	}
	return slices.ContainsFunc(m.order, func(v *vm) bool { return v.spec.Home == s.cfg.Name })
}

// leaseOK reports whether VMs may run by the lease on that datastore now.
func (m *Machine) leaseOK(ds model.DatastoreName) bool {
	s := m.store(ds)
	return s != nil && s.leased
}

// lapse ends the leases whose time is over and suspects all that lives by them.
func (m *Machine) lapse() {
	for _, s := range m.stores {
		if s.leased && m.now >= s.limits.Freeze {
			m.endLease(s, "no heartbeat could be written to "+string(s.cfg.Name)+" in time")
		}
	}
}

func (m *Machine) endLease(s *store, why string) {
	s.leased = false
	s.turns++
	m.statusDirty = true
	m.saveDirty = true
	for _, v := range m.order {
		if v.spec.Home != s.cfg.Name {
			continue
		}
		if m.adoptionMayCount(v) {
			v.foreign, v.inquired, v.reason = true, false, why
			m.freezeVM(v)
		}
		m.suspect(v, why)
	}
	m.loseList(s, why)
	m.notify(Notice{What: NoticeDatastore, Datastore: s.cfg.Name, Text: "the lease on " + string(s.cfg.Name) + " ended: " + why})
}

// hungAfter is how long a heartbeat may take before it is called hung.
func (m *Machine) hungAfter() time.Duration { return 2 * m.cfg.Timing.Interval }

// heartbeats starts the writes that are due: at most one is in flight for each
// datastore, and none before the first list of processes (guard rule 4).
func (m *Machine) heartbeats() {
	if !m.scan.done {
		return
	}
	for _, s := range m.stores {
		if s.op != 0 && !s.hung && m.now >= s.started+m.hungAfter() {
			s.hung = true
			m.statusDirty = true
			m.notify(Notice{What: NoticeDatastore, Datastore: s.cfg.Name, Text: "a heartbeat to " + string(s.cfg.Name) + " hangs"})
		}
		if s.repaired && !slices.ContainsFunc(m.order, func(v *vm) bool { return v.lock == lockSuspect && v.spec.Home == s.cfg.Name }) {
			s.repaired = false
		}
		if s.op == 0 && m.now >= s.nextWrite {
			m.writeSlot(s)
		}
	}
}

func (m *Machine) writeSlot(s *store) {
	s.sequence++
	s.writing = model.Slot{
		Host: m.cfg.Host, Boot: m.cfg.Boot, Incarnation: m.incN,
		Sequence: s.sequence, AgentSequence: m.agent.sequence,
		Flags: m.flags(), Running: m.runningDigest(s), Lease: m.cfg.Timing.Lease.Truncate(time.Millisecond),
	}
	s.writingID = m.cfg.Identify(s.cfg.Name, s.writing)
	s.expected = s.expected[:0]
	if s.hasS || s.changed {
		s.expected = append(append(s.expected, s.known...), s.late...)
	} // else the slot holds what an earlier boot wrote, as long as no write of this one is known to have landed
	s.known = append(s.known, s.writingID)
	if len(s.known) > maxKnown {
		s.known = slices.Delete(s.known, 1, 2) // keep the last good one
	}
	s.op = m.newOp()
	s.started = m.now
	s.nextWrite = m.soon(m.cfg.Timing.Interval)
	s.promised = limitsOf(s.started, m.cfg.Timing)
	if s.hasS {
		s.limits = s.limits.earliest(s.promised) // it may land although its answer never comes
	}
	m.saveDirty = true
	m.emit(Effect{Kind: EffWriteSlot, Op: s.op, Datastore: s.cfg.Name, Slot: s.writing, Known: s.expected})
}

func (m *Machine) flags() model.SlotFlags {
	var f model.SlotFlags
	if ok, _ := m.armed(); ok {
		f |= model.SlotArmed
	}
	if m.agent.beat.Isolated {
		f |= model.SlotIsolated
	}
	if m.agent.beat.ShuttingDown {
		f |= model.SlotShuttingDown
	}
	return f
}

// runningDigest is a digest of the VMs whose locks are held on s, whatever
// their order.
func (m *Machine) runningDigest(s *store) uint64 {
	var sum uint64
	for _, v := range m.order {
		if v.lock == lockHeld && v.spec.Home == s.cfg.Name {
			sum ^= v.digest()
		}
	}
	return sum
}

// digest is a hash of a VM's id and the epoch of its lock.
func (v *vm) digest() uint64 {
	if v.sum != 0 && v.sumEpoch == v.epoch {
		return v.sum
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(v.id)) // never fails
	var e [8]byte
	for i := range e {
		e[i] = byte(v.epoch >> (8 * i))
	}
	_, _ = h.Write(e[:])
	v.sum, v.sumEpoch = h.Sum64(), v.epoch
	return v.sum
}

func (m *Machine) slotWritten(ev *Event) {
	i := slices.IndexFunc(m.stores, func(s *store) bool { return s.op == ev.Op && ev.Op != 0 })
	if i < 0 {
		return
	}
	s := m.stores[i]
	if s.hung {
		m.statusDirty = true // also where the lease did not lapse meanwhile
	}
	s.op, s.hung = 0, false
	m.longestWrite = max(m.longestWrite, m.now-s.started)
	if ev.Fault != nil {
		m.writeFailed(s, ev.Fault)
		return
	}
	s.known = append(s.known[:0], s.writingID)
	// Not saved at once: a successor that knows an older s is only more careful,
	// and the next write saves it.
	s.s, s.hasS, s.limits = s.started, true, s.promised
	if s.changed {
		// The driver accepts a slot that is not this host's last one only
		// after an administrator's repair.
		s.changed, s.repaired, s.late = false, true, nil
		s.repairUntil = s.changedAt + m.cfg.Timing.StaleAfter()
		m.saveDirty, m.statusDirty = true, true
	}
	if s.fault != nil {
		s.fault = nil
		m.statusDirty = true
	}
	if m.now >= s.limits.Freeze {
		s.nextWrite = m.now // it took too long to count; try at once
		return
	}
	if !s.leased {
		s.leased = true
		s.turns++
		m.statusDirty = true
		m.notify(Notice{What: NoticeDatastore, Datastore: s.cfg.Name, Text: "the lease on " + string(s.cfg.Name) + " is valid"})
	}
}

func (m *Machine) writeFailed(s *store, f *Fault) {
	if s.fault == nil || s.fault.Kind != f.Kind {
		m.statusDirty = true
		m.notify(Notice{What: NoticeDatastore, Datastore: s.cfg.Name, Text: f.Text})
	}
	s.fault = f
	s.nextWrite = m.now + m.cfg.Timing.Interval
	if (f.Kind == FaultChanged || f.Kind == FaultForeign) && !s.changed {
		s.changed, s.changedAt = true, m.now
		m.saveDirty = true
		if s.leased {
			for _, v := range m.order {
				v.entire = v.entire || v.lock == lockHeld && v.spec.Home == s.cfg.Name
			}
			m.endLease(s, "the datastore changed under this host: "+f.Text)
		}
	}
}
