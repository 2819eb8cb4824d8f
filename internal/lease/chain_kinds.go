package lease

import (
	"fmt"
	"slices"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// sortedChains returns the chains that wait for time, in a fixed order.
func (m *Machine) sortedChains() []*chain {
	if len(m.chains) == 0 {
		return nil // as nearly always
	}
	var out []*chain
	for _, c := range m.chains {
		if c.live && m.now >= c.deadline || c.wakeAt != 0 && m.now >= c.wakeAt {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *chain) int {
		if n := strings.Compare(string(a.key.ds), string(b.key.ds)); n != 0 {
			return n
		}
		return strings.Compare(string(a.key.lock), string(b.key.lock))
	})
	return out
}

// Re-claiming a suspect lock.

func (m *Machine) decideReclaim(c *chain) {
	v, s, r := m.vms[c.vm], m.store(c.key.ds), c.prev
	switch {
	case v == nil || v.lock != lockSuspect:
		m.finish(c, Reply{})
	case s == nil || !s.leased:
		m.reclaimLater(c)
	case m.mine(r) && (r.Epoch >= v.epoch || s.repaired):
		m.link(c, model.LockHeld, "")
	case r.Epoch < v.epoch && !s.repaired:
		m.reclaimUnknown(c, &Fault{Kind: FaultChanged,
			Text: fmt.Sprintf("the lock of %s is at epoch %d, but this host held epoch %d: the datastore was rolled back", v.name(), r.Epoch, v.epoch)})
	case r.Epoch < v.epoch || r.State == model.LockReleased && r.Epoch == v.epoch+1,
		r.State == model.LockReleased && r.Reason == model.ReasonRepaired && s.repaired && v.entire:
		// Rolled back and accepted by an administrator after all others had
		// to notice; or released for this host by somebody, and held by nobody
		// since: a release that is not the very next record followed another
		// owner, whose writes are on the disks. A repair numbers all locks anew,
		// though: then it counts that the VM ran here until the change.
		m.link(c, model.LockHeld, "")
	default:
		v.lock = lockLost
		v.reason = "its lock is at " + r.String()
		v.epoch = r.Epoch
		m.saveDirty = true
		m.finish(c, Reply{})
	}
}

// reclaimUnknown: the lock cannot be read, or is older than what this host
// held: the VM stays frozen. Only after an administrator repaired the datastore
// is a missing lock made anew, above all numbers that were in use.
func (m *Machine) reclaimUnknown(c *chain, f *Fault) {
	s, v := m.store(c.key.ds), m.vms[c.vm]
	if s != nil && v != nil && s.repaired && f.Kind == FaultMissing && !c.created {
		m.createLock(c, model.LockRecord{Epoch: v.epoch, Reason: model.ReasonCreated})
		return
	}
	if v != nil && v.reason != f.Text {
		v.reason = f.Text
		m.statusDirty = true
	}
	m.reclaimLater(c)
}

func (m *Machine) reclaimLater(c *chain) {
	if v := m.vms[c.vm]; v != nil {
		v.retryAt = m.now + m.cfg.Timing.Interval
	}
	m.finish(c, Reply{})
}

func (m *Machine) wonReclaim(c *chain) {
	v := m.vms[c.vm]
	if v == nil || v.lock != lockSuspect {
		m.lateWin(c)
		return
	}
	v.epoch, v.nonce = c.rec.Epoch, c.rec.Nonce
	if !m.sound(c) {
		m.reclaimLater(c) // ours, but the lease ended meanwhile
		return
	}
	v.lock = lockHeld
	m.thaw(v)
	m.finish(c, Reply{})
}

// Releasing.

func (m *Machine) decideRelease(c *chain) {
	r := c.prev
	switch {
	case r.Epoch < c.expect:
		// An old listing (or a rollback): whose the lock is now is not known.
		m.finish(c, Reply{Code: CodeStorage, Record: &r, Text: fmt.Sprintf("the lock reads epoch %d, but this host held epoch %d: the listing is old, or the datastore was rolled back; try again", r.Epoch, c.expect)})
	case !m.mine(r):
		// Not ours (any more): there is nothing to release.
		m.releasedNothing(c)
	case c.vm != "" && c.live && r.Epoch != c.expect:
		m.finish(c, Reply{Code: CodeEpochMoved, Record: &r, Text: "the lock is at " + r.String()})
	default:
		m.link(c, model.LockReleased, c.reason)
	}
}

func (m *Machine) releasedNothing(c *chain) {
	r := c.prev
	m.forget(c)
	m.finish(c, Reply{Code: CodeHeldByOther, Record: &r, Text: "this host does not hold the lock: it is at " + r.String()})
}

func (m *Machine) released(c *chain) {
	m.forget(c)
	m.finish(c, Reply{Code: CodeOK, Epoch: c.rec.Epoch, Record: &c.rec})
}

// forget drops what this host knew of a lock that it does not hold any more.
func (m *Machine) forget(c *chain) {
	if c.vm == "" {
		if s := m.store(c.key.ds); s != nil {
			s.list.cleanup = false
		}
		return
	}
	if v := m.vms[c.vm]; v != nil && v.lock != lockNone {
		v.lock, v.grant = lockNone, grantNone
		m.saveDirty = true
	}
}

// releaseFailed: a release that may have happened. The request is told; a VM's
// lock must be proven again, a list's cleaned up, a late win looked for.
func (m *Machine) releaseFailed(c *chain, r Reply) {
	v := m.vms[c.vm]
	if v != nil && v.lock == lockHeld {
		m.suspect(v, "releasing its lock failed: "+r.Text)
	}
	if c.reason == model.ReasonLateWin && (v == nil || v.lock == lockNone) {
		m.addOrphan(c.key, c.prev)
	}
	m.finish(c, r)
}

// Break-glass.

func (m *Machine) decideForce(c *chain) {
	r := c.prev
	switch h := r.Holder(); {
	case r.Epoch != c.expect:
		m.finish(c, Reply{Code: CodeEpochMoved, Record: &r, Text: "the lock is at " + r.String()})
	case h == "":
		m.finish(c, Reply{Code: CodeInvalid, Record: &r, Text: "nobody holds the lock: it is at " + r.String()})
	case h == m.cfg.Host && m.mine(r):
		m.finish(c, Reply{Code: CodeInvalid, Record: &r, Text: "this host holds the lock itself; stop the VM instead"})
	case h == m.cfg.Host:
		m.link(c, model.LockReleased, model.ReasonForced)
	default:
		m.order1(c, stageSlot, Effect{Kind: EffReadSlot, Host: h})
	}
}

// forceProof releases the lock of a host whose slot rests for a whole lease.
func (m *Machine) forceProof(c *chain, slot model.SlotReading) {
	switch {
	case c.proofUntil == 0:
		c.proof = slot
		c.proofUntil = m.now + m.staleAfter(slot)
		c.deadline = max(c.deadline, c.proofUntil+ClaimLimit/2)
	case c.proof.Identity.Digest != slot.Identity.Digest:
		r := c.prev
		m.finish(c, Reply{Code: CodeOwnerAlive, Record: &r,
			Text: fmt.Sprintf("%s still writes heartbeats; stop the VM there, or that host", r.Holder())})
		return
	case m.now >= c.proofUntil:
		m.link(c, model.LockReleased, model.ReasonForced)
		return
	}
	c.stage = stageProof
	c.wakeAt = min(m.now+m.cfg.Timing.Interval, max(c.proofUntil, m.now+1))
}

// Processes without a lock.

func (m *Machine) decideInquire(c *chain) {
	if v := m.vms[c.vm]; v != nil && v.lock == lockNone {
		v.inquired = true
		if m.mine(c.prev) {
			// Left by a guard of this boot whose memory is lost.
			v.foreign = false
			v.lock, v.epoch, v.nonce = lockSuspect, c.prev.Epoch, c.prev.Nonce
			v.retryAt = 0
			m.saveDirty = true
		} else {
			v.reason = "it runs without a lock, which is at " + c.prev.String()
		}
	}
	m.finish(c, Reply{})
}

// Claims of unknown outcome.

func (m *Machine) addOrphan(key lockKey, rec model.LockRecord) {
	if len(m.orphans) >= maxOrphans {
		m.orphans = slices.Delete(m.orphans, 0, 1)
	}
	m.orphans = append(m.orphans, orphan{key: key, rec: rec, pause: retryPause,
		next: m.now + retryPause, until: m.now + orphanLimit})
	m.saveDirty = true
}

// orphanDuties looks for claims of unknown outcome, ever more rarely.
func (m *Machine) orphanDuties() {
	for i := 0; i < len(m.orphans); i++ {
		o := &m.orphans[i]
		if m.now < o.next {
			continue
		}
		if m.now >= o.until {
			m.orphans = slices.Delete(m.orphans, i, i+1)
			i--
			m.saveDirty = true
			continue
		}
		if m.chains[o.key] != nil || !m.leaseOK(o.key.ds) {
			// Time without storage does not count.
			o.next = m.now + m.cfg.Timing.Interval
			o.until = m.now + orphanLimit
			continue
		}
		o.pause = min(2*o.pause, orphanLimit/4)
		o.next = m.now + o.pause
		c := &chain{kind: chainOrphan, key: o.key, orphanRec: o.rec}
		if o.key.lock != model.ListLock {
			c.vm = model.VMID(o.key.lock)
		}
		m.startChain(c)
	}
}

func (m *Machine) decideOrphan(c *chain) {
	o, r := c.orphanRec, c.prev
	if r.Epoch < o.Epoch {
		m.finish(c, Reply{}) // not yet; it may still land
		return
	}
	// The number is taken: by the orphan, or for good by somebody else.
	m.orphans = slices.DeleteFunc(m.orphans, func(x orphan) bool { return x.rec.Nonce == o.Nonce })
	m.saveDirty = true
	v := m.vms[c.vm]
	inUse := v != nil && (v.lock != lockNone || v.running)
	if r.Nonce == o.Nonce && !inUse {
		m.lateWin(c)
		return
	}
	m.finish(c, Reply{})
}
