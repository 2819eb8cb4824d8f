package sim

import (
	"slices"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// disk is a datastore as it lies on its device: slots, lock chains, lists. It
// keeps the rules of datastore.Driver without its bytes, and without blocking:
// path.go gives its answers their time.
type disk struct {
	s    *Sim
	i    int
	name model.DatastoreName

	content
	gone  bool // its directory was removed
	saved *content
	// generation grows with every repair; the numbers of locks begin above it.
	generation model.Epoch
}

// content is all that a roll-back takes back.
type content struct {
	slots []model.SlotReading // in the order of their claims
	slot  []int               // by host, the index in slots; -1: not claimed
	locks map[model.LockID][]model.LockRecord
	lists map[model.Term]model.ProtectedList
	term  model.Term // the highest of lists
	notes map[model.VMID]model.PoweredOffNote
}

func newDisk(s *Sim, i int, name model.DatastoreName) *disk {
	d := &disk{s: s, i: i, name: name, content: content{locks: map[model.LockID][]model.LockRecord{},
		lists: map[model.Term]model.ProtectedList{}, notes: map[model.VMID]model.PoweredOffNote{}}}
	d.locks[model.ListLock] = []model.LockRecord{{Lock: model.ListLock, Epoch: 1, State: model.LockReleased, Reason: model.ReasonCreated, Nonce: "created"}}
	return d
}

func (s *Sim) disk(name model.DatastoreName) *disk {
	for _, d := range s.disks {
		if d.name == name {
			return d
		}
	}
	return nil
}

func (c *content) clone() *content {
	out := *c
	out.slots, out.slot = slices.Clone(c.slots), slices.Clone(c.slot)
	out.locks = map[model.LockID][]model.LockRecord{}
	for k, v := range c.locks {
		out.locks[k] = slices.Clone(v)
	}
	out.lists = map[model.Term]model.ProtectedList{}
	for k, v := range c.lists {
		out.lists[k] = v
	}
	out.notes = map[model.VMID]model.PoweredOffNote{}
	for k, v := range c.notes {
		out.notes[k] = v
	}
	return &out
}

func faultOf(kind datastore.Kind, text string) *lease.Fault {
	return &lease.Fault{Kind: string(kind), Text: text}
}

var (
	errGone     = faultOf(datastore.KindNotInitialised, "the cluster's directory is not there")
	errLost     = faultOf(datastore.KindLost, "input/output error")
	errFull     = faultOf(datastore.KindFull, "no space left on device")
	errReadonly = faultOf(datastore.KindReadOnly, "read-only file system")
	errNoLock   = faultOf(datastore.KindMissing, "there is no such lock")
	errNoSlot   = faultOf(datastore.KindMissing, "the host has claimed no slot")
	errTaken    = faultOf(datastore.KindExists, "the epoch is taken")
	errChanged  = faultOf(datastore.KindChanged, "the slot holds something else than this host wrote last")
	errOlder    = faultOf(datastore.KindChanged, "the highest record is lower than one seen before: the datastore went back in time")
)

// digestOf is a text that only slots of that content have.
func digestOf(x *model.Slot) string {
	a := mix(mix(mix(x.Incarnation, x.Sequence), x.AgentSequence), uint64(x.Flags)^x.Running)
	for i := range len(x.Boot) {
		a = mix(a, uint64(x.Boot[i]))
	}
	var buf [13]byte
	for i := range buf {
		buf[i] = "0123456789abcdefghijklmnopqrstuv"[a&31]
		a >>= 5
	}
	return string(buf[:])
}

// slotOf is a host's slot, or nil.
func (d *disk) slotOf(h *host) *model.SlotReading {
	if h == nil || h.i >= len(d.slot) || d.slot[h.i] < 0 {
		return nil
	}
	return &d.slots[d.slot[h.i]]
}

func (d *disk) claimSlot(h *host) *model.SlotReading {
	for len(d.slot) <= h.i {
		d.slot = append(d.slot, -1)
	}
	d.slot[h.i] = len(d.slots)
	d.slots = append(d.slots, model.SlotReading{Host: h.name, Damage: model.SlotEmpty, Identity: model.SlotIdentity{Digest: "empty"}})
	return &d.slots[len(d.slots)-1]
}

// writeSlot is the moment at which a heartbeat reaches the device.
func (d *disk) writeSlot(h *host, known []string, next *model.Slot, digest string) *lease.Fault {
	if d.gone {
		return errGone
	}
	r := d.slotOf(h)
	if r == nil {
		r = d.claimSlot(h)
	} else if len(known) > 0 && r.Damage != model.SlotRepaired && !slices.Contains(known, r.Identity.Digest) {
		if !d.s.opts.Off.NoSlotCheck {
			return errChanged
		}
	}
	r.Valid, r.Damage, r.Slot = true, "", *next
	r.Identity = model.SlotIdentity{Boot: next.Boot, Incarnation: next.Incarnation, Sequence: next.Sequence, Digest: digest}
	return nil
}

func (d *disk) highest(lock model.LockID) (model.LockRecord, *lease.Fault) {
	if d.gone {
		return model.LockRecord{}, errGone
	}
	rs := d.locks[lock]
	if len(rs) == 0 {
		return model.LockRecord{}, errNoLock
	}
	return rs[len(rs)-1], nil
}

// link publishes a record if its number is free: the next one, or any higher.
func (d *disk) link(rec model.LockRecord) *lease.Fault {
	if d.gone {
		return errGone
	}
	rs := d.locks[rec.Lock]
	if rs == nil {
		return errNoLock
	}
	if rec.Epoch <= rs[len(rs)-1].Epoch {
		d.s.cover[ContendedClaims]++
		return errTaken
	}
	if len(rs) >= 2*datastore.KeepRecords {
		rs = append(rs[:0:0], rs[len(rs)-datastore.KeepRecords:]...)
	}
	d.locks[rec.Lock] = append(rs, rec)
	d.s.check.linked(d, rec)
	return nil
}

func (d *disk) createLock(lock model.LockID, rec model.LockRecord) *lease.Fault {
	switch {
	case d.gone:
		return errGone
	case d.locks[lock] == nil:
		rec.Lock, rec.Epoch, rec.State = lock, max(rec.Epoch, 1), model.LockReleased
		if rec.Reason == "" {
			rec.Reason = model.ReasonCreated
		}
		d.locks[lock] = []model.LockRecord{rec}
	}
	return nil
}

func (d *disk) writeList(l model.ProtectedList) *lease.Fault {
	if d.gone {
		return errGone
	}
	d.lists[l.Term] = l
	d.term = max(d.term, l.Term)
	if len(d.lists) > 2*datastore.KeepTerms {
		terms := make([]model.Term, 0, len(d.lists))
		for t := range d.lists {
			terms = append(terms, t)
		}
		slices.Sort(terms)
		for _, t := range terms[:len(terms)-datastore.KeepTerms] {
			delete(d.lists, t)
		}
	}
	return nil
}

func (d *disk) writeNote(n model.PoweredOffNote) *lease.Fault {
	if d.gone {
		return errGone
	}
	d.notes[n.VM] = n
	return nil
}

// repair accepts the datastore as it is (datastore.Repair): every slot may be
// written by its host again, all locks are numbered anew, released, above every
// number that was ever used, what is missing of the lists is made anew.
func (d *disk) repair() {
	if d.gone {
		d.gone = false
		d.content = newDisk(d.s, d.i, d.name).content
	}
	d.generation += 1 << 20
	for lock, rs := range d.locks {
		rec := model.LockRecord{Lock: lock, Epoch: max(d.generation, rs[len(rs)-1].Epoch) + 1, State: model.LockReleased, Reason: model.ReasonRepaired, Nonce: "repaired"}
		d.locks[lock] = append(slices.Clone(rs), rec)
	}
	for i := range d.slots {
		r := &d.slots[i]
		r.Valid, r.Damage, r.Slot, r.Identity = false, model.SlotRepaired, model.Slot{}, model.SlotIdentity{Digest: "repaired"}
	}
}
