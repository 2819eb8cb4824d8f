package lease

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/model"
)

// chainKind says what a chain of storage calls on one lock is for.
type chainKind uint8

const (
	chainClaim   chainKind = iota // a VM's or list's lock for a live request
	chainReclaim                  // the next epoch of a suspect lock
	chainRelease
	chainForce   // break-glass
	chainCreate  // make the lock
	chainInquire // whose lock is it that a process here runs without?
	chainOrphan  // did a claim of unknown outcome land?
)

// stage is what a chain waits for.
type stage uint8

const (
	stageScan  stage = iota // a list of this host's processes
	stageList               // the highest record
	stageSlot               // the owner's slot
	stageProof              // time, to read the slot again
	stageLink               // the new record
	stageAgain              // the highest record after the link
	stageCreate
)

// chain is the sequence list → (slot) → link → list on one lock. There is at
// most one for each lock; it ends only when its last storage call has
// returned, so that no late result is ever missed.
type chain struct {
	kind  chainKind
	key   lockKey
	vm    model.VMID // "" for a list
	stage stage

	// The request. live: somebody still waits for it.
	live     bool
	hook     bool
	conn, id uint64
	deadline time.Duration

	spec      ManagedVM
	expect    model.Epoch
	anyEpoch  bool
	takeover  *Takeover
	runningVM bool
	reason    string

	prev, rec model.LockRecord
	linkFault *Fault
	turns     uint64 // of the datastore's lease when the link was ordered
	wakeAt    time.Duration
	created   bool

	// The slot as first read, when proof is sought that its host has a new
	// boot id or is silent.
	proof      model.SlotReading
	proofUntil time.Duration
	orphanRec  model.LockRecord // chainOrphan: what may still appear
}

func (m *Machine) startChain(c *chain) {
	m.chains[c.key] = c
	if c.live && c.deadline == 0 {
		c.deadline = m.now + ClaimLimit
	}
	_, managed := m.managed.find(c.vm)
	switch {
	case c.kind == chainCreate && !managed:
		m.createLock(c, model.LockRecord{Reason: model.ReasonCreated})
	case c.vm != "" && (c.kind == chainClaim || c.kind == chainRelease):
		c.stage = stageScan
		if !m.afterScan(func(ok bool) { m.chainScanned(c, ok) }) {
			m.finish(c, Reply{Code: CodeBusy, Text: "too many requests wait for a list of processes"})
		}
	default:
		m.listLock(c, stageList)
	}
}

// chainScanned goes on after a list of processes that began with the request.
func (m *Machine) chainScanned(c *chain, ok bool) {
	v := m.vms[c.vm]
	switch {
	case !c.live:
		m.finish(c, Reply{})
	case !ok:
		m.finish(c, Reply{Code: CodeTimeout, Text: "the processes of this host could not be listed; try again"})
	case c.kind == chainRelease && v != nil && !v.absent():
		m.finish(c, Reply{Code: CodeNotGone, Text: v.name() + " still has processes on this host"})
	case c.kind == chainRelease && v != nil && v.grant == grantHook:
		m.finish(c, Reply{Code: CodeNotGone, Text: "libvirt is starting " + v.name() + " on this host"})
	case c.kind == chainRelease && m.blind && (v == nil || v.lock == lockNone):
		m.finish(c, Reply{Code: CodeBusy, Text: "the guard has lost its memory; libvirt may be starting this VM by an earlier consent. Try again in " + HookGrant.String()})
	case c.kind == chainClaim && !c.runningVM && v != nil && !v.absent():
		m.finish(c, Reply{Code: CodeRefused, Epoch: v.epoch, Text: v.name() + " has processes on this host already"})
	case c.kind == chainClaim && c.runningVM && (v == nil || v.absent()):
		m.finish(c, Reply{Code: CodeNoProcess, Text: "no process of " + c.spec.Name + " runs on this host"})
	default:
		m.listLock(c, stageList)
	}
}

func (m *Machine) order1(c *chain, st stage, e Effect) {
	c.stage, c.wakeAt = st, 0
	e.Op = m.newOp()
	e.Datastore = c.key.ds
	m.ops[e.Op] = c
	m.emit(e)
}

func (m *Machine) listLock(c *chain, st stage) {
	m.order1(c, st, Effect{Kind: EffListLock, Lock: c.key.lock})
}

func (m *Machine) createLock(c *chain, rec model.LockRecord) {
	rec.Lock, rec.Epoch, rec.State = c.key.lock, max(rec.Epoch, 1), model.LockReleased
	rec.Owner, rec.Boot, rec.Incarnation, rec.Nonce = m.cfg.Host, m.cfg.Boot, m.incN, m.cfg.Nonce()
	c.created = true
	m.order1(c, stageCreate, Effect{Kind: EffCreateLock, Lock: c.key.lock, Record: rec})
}

// link publishes the record after c.prev.
func (m *Machine) link(c *chain, state model.LockState, reason string) {
	c.rec = model.LockRecord{Lock: c.key.lock, Epoch: c.prev.Epoch + 1, Owner: m.cfg.Host, Boot: m.cfg.Boot,
		Incarnation: m.incN, Nonce: m.cfg.Nonce(), State: state, Reason: reason}
	c.linkFault = nil
	if s := m.store(c.key.ds); s != nil {
		c.turns = s.turns
	}
	m.saveDirty = true // a successor must know the nonce before it can appear
	m.order1(c, stageLink, Effect{Kind: EffLinkLock, Lock: c.key.lock, Record: c.rec})
}

// finish ends a chain and answers whoever still waits for it.
func (m *Machine) finish(c *chain, r Reply) {
	delete(m.chains, c.key)
	m.statusDirty = true
	if !c.live {
		return
	}
	c.live = false
	m.answer(c, r)
}

// answer replies without ending the chain.
func (m *Machine) answer(c *chain, r Reply) {
	r.ID = c.id
	if c.hook {
		r = m.hookReply(c, r)
	}
	m.reply(c.conn, r)
}

func (m *Machine) chainStep(c *chain, ev *Event) {
	switch c.stage {
	case stageList:
		switch {
		case !c.live && (c.kind == chainClaim || c.kind == chainForce):
			m.finish(c, Reply{})
		case ev.Fault != nil:
			m.listFailed(c, ev.Fault)
		default:
			c.prev = ev.Record
			m.decide(c)
		}
	case stageSlot:
		m.slotRead(c, ev)
	case stageLink:
		c.linkFault = ev.Fault
		m.listLock(c, stageAgain)
	case stageAgain:
		m.linked(c, ev)
	case stageCreate:
		switch {
		case ev.Fault != nil && c.kind == chainCreate:
			m.finish(c, m.storageReply(c, ev.Fault))
		case ev.Fault != nil:
			m.reclaimLater(c)
		case c.kind == chainCreate:
			m.finish(c, Reply{Code: CodeOK})
		default:
			m.listLock(c, stageList)
		}
	}
}

func (m *Machine) storageReply(c *chain, f *Fault) Reply {
	text := f.Text
	if f.Kind == FaultMissing {
		text += "; a missing lock is unknown, not free: "
		if _, managed := m.managed.find(c.vm); managed {
			text += "its owner may still run the VM; look at the datastore, then `hanok datastore repair " + string(c.key.ds) + "`"
		} else {
			text += "`hanok vm protect` makes the lock of a new VM"
		}
	}
	return Reply{Code: CodeStorage, Text: "datastore " + string(c.key.ds) + ": " + text}
}

func (m *Machine) listFailed(c *chain, f *Fault) {
	switch c.kind {
	case chainReclaim:
		m.reclaimUnknown(c, f)
	case chainInquire:
		if v := m.vms[c.vm]; v != nil {
			v.retryAt = m.now + ScanPeriod
			v.reason = "it runs without a lock; its lock cannot be read: " + f.Text
		}
		m.finish(c, Reply{})
	case chainOrphan:
		m.finish(c, Reply{})
	default:
		m.finish(c, m.storageReply(c, f))
	}
}

// decide goes on from the highest record.
func (m *Machine) decide(c *chain) {
	switch c.kind {
	case chainCreate: // of a VM that is managed already: its lock is there
		m.finish(c, Reply{Code: CodeOK})
	case chainClaim:
		m.decideClaim(c)
	case chainReclaim:
		m.decideReclaim(c)
	case chainRelease:
		m.decideRelease(c)
	case chainForce:
		m.decideForce(c)
	case chainInquire:
		m.decideInquire(c)
	case chainOrphan:
		m.decideOrphan(c)
	}
}

// mine reports whether the record says that this boot of this host holds the
// lock. Within a boot only a released record disowns.
func (m *Machine) mine(r model.LockRecord) bool {
	return r.Holder() == m.cfg.Host && (r.Boot == m.cfg.Boot || r.State == model.LockHanded)
}

func (m *Machine) decideClaim(c *chain) {
	r := c.prev
	switch holder := r.Holder(); {
	case r.State == model.LockMovedTo:
		m.finish(c, Reply{Code: CodeInvalid, Record: &r, Text: "this lock lives on datastore " + r.Target + " now"})
	case !c.anyEpoch && r.Epoch != c.expect:
		m.finish(c, Reply{Code: CodeEpochMoved, Record: &r,
			Text: fmt.Sprintf("epoch %d was expected, but the lock is at %s", c.expect, r)})
	case holder == "" || holder == m.cfg.Host:
		// Free, held by this boot of this host, or by an earlier boot of it,
		// which is over by definition.
		m.linkClaim(c)
	default:
		m.order1(c, stageSlot, Effect{Kind: EffReadSlot, Host: holder})
	}
}

func (m *Machine) linkClaim(c *chain) {
	if !m.leaseOK(c.key.ds) {
		m.finish(c, Reply{Code: CodeNoLease, Text: m.leaseText(c.key.ds)})
		return
	}
	m.link(c, model.LockHeld, "")
}

// slotRead judges the owner's slot.
func (m *Machine) slotRead(c *chain, ev *Event) {
	switch {
	case !c.live:
		m.finish(c, Reply{})
	case ev.Fault != nil:
		m.finish(c, m.storageReply(c, ev.Fault))
	case c.kind == chainForce:
		m.forceProof(c, ev.Reading)
	default:
		m.judgeOwner(c, ev.Reading)
	}
}

func (m *Machine) judgeOwner(c *chain, slot model.SlotReading) {
	r := c.prev
	t := c.takeover
	// A slot with another boot id proves that the boot which took the lock is
	// over; not for a handed record, whose boot id is the source's.
	newBoot := slot.Valid && slot.Slot.Boot != r.Boot && r.State != model.LockHanded
	same := t != nil && t.Owner == r.Holder() && t.Slot.Digest == slot.Identity.Digest
	switch {
	case newBoot && (same && c.vm == "" || m.bootProven(c, slot, same)):
		m.linkClaim(c)
	case newBoot && m.now < c.proofUntil:
		c.stage = stageProof
		c.wakeAt = m.now + m.cfg.Timing.Interval
	case t == nil:
		m.finish(c, Reply{Code: CodeHeldByOther, Record: &r, Text: "the lock is at " + r.String()})
	case t.Owner != r.Holder():
		m.finish(c, Reply{Code: CodeHeldByOther, Record: &r,
			Text: fmt.Sprintf("the take-over names owner %s, but the lock is at %s", t.Owner, r)})
	case !same:
		m.finish(c, Reply{Code: CodeOwnerAlive, Record: &r,
			Text: fmt.Sprintf("the slot of %s changed since its silence was judged: it lives", t.Owner)})
	default:
		if why := m.unfenced(c, slot); why != "" {
			m.finish(c, Reply{Code: CodeNotArmed, Record: &r, Text: why})
			return
		}
		m.linkClaim(c)
	}
}

// bootProven reports whether the host writes heartbeats under its new boot id:
// one slot alone could be a late write of an even older boot. A slot that
// stands still as the primary judged it is looked at until it has rested for a
// lease: then the owner is silent, whichever boot it is.
func (m *Machine) bootProven(c *chain, slot model.SlotReading, judged bool) bool {
	first := c.proof
	if first.Valid && first.Slot.Boot == slot.Slot.Boot && first.Slot.Incarnation == slot.Slot.Incarnation {
		return slot.Slot.Sequence > first.Slot.Sequence
	}
	c.proof = slot
	if c.proofUntil == 0 {
		c.proofUntil = m.now + 5*m.cfg.Timing.Interval
		if judged {
			c.proofUntil = m.now + m.staleAfter(slot)
			c.deadline = max(c.deadline, c.proofUntil+ClaimLimit/2)
		}
	}
	return false
}

// unfenced says why nothing proves that the silent owner of a VM's lock has
// stopped, or "".
func (m *Machine) unfenced(c *chain, slot model.SlotReading) string {
	s := m.store(c.key.ds)
	switch {
	case c.vm == "": // a list: its writes go below its own term
		return ""
	case c.takeover.Gone: // nothing is left that could write
		return ""
	case s != nil && s.cfg.Unfenced:
		return ""
	case s != nil && s.cfg.Fence == model.FenceReset && slot.Valid && slot.Slot.Flags.Has(model.SlotArmed):
		return ""
	case s != nil && s.cfg.Fence == model.FenceReset:
		return fmt.Sprintf("%s had no armed watchdog, so nothing proves that it has stopped; "+
			"confirm that its power is off, or set `unfenced: accept` for datastore %s", c.prev.Owner, c.key.ds)
	default:
		return fmt.Sprintf("datastore %s can stop no silent owner (fence class %s); "+
			"confirm that %s is off, or set `unfenced: accept` for it", c.key.ds, s.fence(), c.prev.Owner)
	}
}

func (s *store) fence() model.FenceClass {
	if s == nil {
		return model.FenceNone
	}
	return s.cfg.Fence
}

// linked judges the highest record after a link.
func (m *Machine) linked(c *chain, ev *Event) {
	switch {
	case ev.Fault != nil:
		m.unresolved(c, ev.Fault)
	case ev.Record.Nonce == c.rec.Nonce:
		c.prev = ev.Record
		m.won(c)
	case ev.Record.Epoch < c.rec.Epoch:
		// Not there yet, or the listing is old: the record may be there.
		f := c.linkFault
		if f == nil || f.Kind == FaultExists {
			f = &Fault{Kind: "stale", Text: fmt.Sprintf("the lock reads epoch %d after epoch %d was linked: the listing is old", ev.Record.Epoch, c.rec.Epoch)}
		}
		m.unresolved(c, f)
	default:
		c.prev = ev.Record
		m.lost(c)
	}
}

// unresolved ends a chain whose record may or may not appear.
func (m *Machine) unresolved(c *chain, f *Fault) {
	if c.rec.State == model.LockHeld {
		m.addOrphan(c.key, c.rec)
	}
	switch c.kind {
	case chainReclaim:
		m.reclaimLater(c)
	case chainRelease:
		m.releaseFailed(c, m.storageReply(c, f))
	default:
		m.finish(c, m.storageReply(c, f))
	}
}

// won: the highest record carries the chain's nonce.
func (m *Machine) won(c *chain) {
	if c.rec.Epoch%8 == 0 {
		m.emit(Effect{Kind: EffPrune, Datastore: c.key.ds, Lock: c.key.lock})
	}
	m.saveDirty, m.statusDirty = true, true
	switch c.kind {
	case chainClaim:
		m.wonClaim(c)
	case chainReclaim:
		m.wonReclaim(c)
	case chainRelease:
		m.released(c)
	default:
		m.finish(c, Reply{Code: CodeOK, Epoch: c.rec.Epoch})
	}
}

// sound reports whether the lease was valid, without a gap, when the link was
// ordered and since: only then does a win permit to run. After a gap somebody may
// have judged this host silent and be about to link the number after the one won.
func (m *Machine) sound(c *chain) bool {
	s := m.store(c.key.ds)
	return s != nil && s.leased && s.turns == c.turns
}

func (m *Machine) wonClaim(c *chain) {
	if !c.live || !m.sound(c) {
		if c.live {
			m.answer(c, Reply{Code: CodeNoLease, Text: m.leaseText(c.key.ds)})
			c.live = false
		}
		m.lateWin(c)
		return
	}
	if c.vm == "" {
		m.wonList(c)
		return
	}
	v := m.addVM(c.spec)
	v.lock, v.epoch, v.nonce = lockHeld, c.rec.Epoch, c.rec.Nonce
	v.foreign, v.inquired, v.dropped = false, false, false
	switch {
	case c.runningVM:
		v.grant = grantNone
	case c.hook:
		v.grant, v.grantAt = grantHook, m.now
	case v.grant != grantHook: // libvirt may be starting it by an earlier one
		v.grant = grantAgent
	}
	if !c.runningVM && v.freeze == unfrozen {
		v.freeze = frozen // an earlier run may have left its cgroup so
	}
	m.thaw(v)
	m.finish(c, Reply{Code: CodeOK, Epoch: c.rec.Epoch, Record: &c.rec})
}

// lateWin releases a lock that was won although nobody wants it any more.
func (m *Machine) lateWin(c *chain) {
	c.kind, c.reason = chainRelease, model.ReasonLateWin
	m.link(c, model.LockReleased, model.ReasonLateWin)
}

// lost: another record took the number.
func (m *Machine) lost(c *chain) {
	r := c.prev
	switch c.kind {
	case chainReclaim:
		m.decideReclaim(c)
	case chainRelease:
		m.decideRelease(c)
	default:
		code := CodeEpochMoved
		if h := r.Holder(); h != "" && h != m.cfg.Host {
			code = CodeHeldByOther
		}
		m.finish(c, Reply{Code: code, Record: &r, Text: "another claim was first; the lock is at " + r.String()})
	}
}

// chainTimers wakes chains that wait for time and answers requests that waited
// long enough; the chains of those go on alone.
func (m *Machine) chainTimers() {
	for _, c := range m.sortedChains() {
		if c.live && m.now >= c.deadline {
			m.answer(c, Reply{Code: CodeTimeout, Text: "datastore " + string(c.key.ds) + " did not answer in time"})
			c.live = false
		}
		if c.wakeAt != 0 && m.now >= c.wakeAt {
			if !c.live {
				m.finish(c, Reply{})
				continue
			}
			m.order1(c, stageSlot, Effect{Kind: EffReadSlot, Host: c.prev.Holder()})
		}
	}
}
