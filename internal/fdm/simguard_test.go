package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// The modelled guard and hypervisor of a node.

func (n *node) startGuard() {
	n.guardOn = true
	n.beatAt = n.w.now
	boot := n.boots
	var pulse func()
	pulse = func() {
		if n.boots != boot || !n.on || !n.guardOn {
			return
		}
		for _, d := range n.w.conf.Datastores {
			if !n.hung[d.Name] {
				n.writeSlot(d.Name)
			}
		}
		if n.w.now-n.beatAt > 2*time.Second {
			for _, ds := range sortedKeys(n.terms) {
				n.yieldList(ds)
			}
		}
		n.w.check()
		n.w.at(n.w.conf.Timing.Interval, pulse)
	}
	pulse()
}

// frozenVM tells whether the guard holds a VM frozen.
func (n *node) frozenVM(id model.VMID) bool {
	g := n.guardVMs[id]
	return g != nil && g.Phase == lease.PhaseFrozen
}

// loseStorage ends the lease on ds after a while and freezes what lives by it.
func (n *node) loseStorage(ds model.DatastoreName, kind string) {
	t := n.w.conf.Timing
	n.hung[ds], n.leased[ds], n.kinds[ds] = true, true, kind
	n.hungs++
	hungs, boot := n.hungs, n.boots
	n.w.at(t.Lease-t.Margin-t.Interval, func() {
		if n.hungs != hungs || n.boots != boot {
			return
		}
		n.leased[ds] = false
		delete(n.terms, ds)
		for _, g := range n.guardVMs {
			if g.Home == ds && g.Phase == lease.PhaseRunning {
				g.Phase, g.Reason = lease.PhaseFrozen, "no heartbeat could be written"
			}
		}
		n.notice(lease.Notice{What: lease.NoticeDatastore, Datastore: ds, Text: "the lease on " + string(ds) + " ended"})
	})
}

// regainStorage: heartbeat first, then each lock is claimed again.
func (n *node) regainStorage(ds model.DatastoreName) {
	n.hung[ds], n.leased[ds] = false, false
	n.hungs++
	if !n.guardOn {
		return
	}
	n.writeSlot(ds)
	for _, id := range sortedKeys(n.guardVMs) {
		g := n.guardVMs[id]
		if g.Home != ds {
			continue
		}
		rec := n.w.disks[ds].locks[model.VMLock(id)]
		switch {
		case rec.Owner != n.name || rec.State != model.LockHeld:
			if d := n.doms[id]; d != nil && d.Active {
				n.w.logf("%s guard kills %s: its lock is at %s", n.name, g.Name, rec)
				n.endDomain(id, StopFailed)
			}
			delete(n.guardVMs, id)
		default:
			rec.Epoch++
			n.w.disks[ds].locks[rec.Lock] = rec
			g.Epoch = rec.Epoch
			if g.Phase == lease.PhaseFrozen {
				g.Phase, g.Reason = lease.PhaseRunning, ""
			}
		}
	}
	n.notice(lease.Notice{What: lease.NoticeDatastore, Datastore: ds, Text: "the lease on " + string(ds) + " is valid"})
}

func (n *node) writeSlot(ds model.DatastoreName) {
	n.slotSeq++
	s := model.Slot{Host: n.name, Boot: n.boot(), Incarnation: 1, Sequence: n.slotSeq, Lease: n.w.conf.Timing.Lease}
	if n.armed {
		s.Flags = model.SlotArmed
	}
	s.Flags |= n.flags
	for _, g := range n.guardVMs {
		if g.Home == ds {
			for _, c := range string(g.VM) {
				s.Running = s.Running*31 + uint64(c)
			}
			s.Running += uint64(g.Epoch) << 40
		}
	}
	n.w.disks[ds].slots[n.name] = model.SlotReading{Host: n.name, Valid: true, Slot: s,
		Identity: model.SlotIdentity{Boot: s.Boot, Incarnation: 1, Sequence: n.slotSeq, Digest: fmt.Sprintf("%s-%d", n.boot(), n.slotSeq)}}
}

func (n *node) status() *lease.Status {
	s := &lease.Status{Host: n.name, Boot: n.boot(), Incarnation: 1, Armed: n.armed, HookSeen: true}
	for _, d := range n.w.conf.Datastores {
		x := lease.DatastoreStatus{Name: d.Name, OK: !n.hung[d.Name] || n.leased[d.Name], ListTerm: n.terms[d.Name]}
		if n.hung[d.Name] {
			x.Kind, x.Problem = n.kinds[d.Name], "it does not answer"
		}
		s.Datastores = append(s.Datastores, x)
	}
	for _, id := range sortedKeys(n.guardVMs) {
		s.VMs = append(s.VMs, *n.guardVMs[id])
	}
	return s
}

func (n *node) notice(x lease.Notice) {
	x.Status = n.status()
	n.step(GuardNoticed{x})
}

func (n *node) askGuard(e AskGuard) {
	if !n.guardOn {
		n.later(3*time.Second, func() Event {
			return GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeTimeout, Text: "the guard does not answer"}}
		})
		return
	}
	if e.Request.Beat != nil {
		n.beatAt = n.w.now
		b := e.Request.Beat
		if b.Contact {
			n.heardAt = max(n.heardAt, n.w.now-b.ContactAge)
		}
		n.flags = 0
		if b.ShuttingDown {
			n.flags = model.SlotShuttingDown
		}
		if b.Isolated {
			n.flags |= model.SlotIsolated
			for _, ds := range sortedKeys(n.terms) {
				n.yieldList(ds)
			}
		}
	}
	n.later(3*time.Millisecond, func() Event {
		r := n.serve(e.Request)
		if r.Code == lease.CodeOK && e.Request.Beat == nil && e.Request.Status == nil {
			n.w.at(time.Millisecond, func() {
				if n.on && n.guardOn {
					n.notice(lease.Notice{What: lease.NoticeStatus})
				}
			})
		}
		return GuardReplied{Op: e.Op, Reply: r}
	})
}

func refuse(c lease.Code, rec *model.LockRecord, format string, args ...any) lease.Reply {
	return lease.Reply{Code: c, Text: fmt.Sprintf(format, args...), Record: rec}
}

func (n *node) serve(r lease.Request) lease.Reply {
	switch {
	case r.Create != nil:
		d := n.w.disks[r.Create.VM.Home]
		id := model.VMLock(r.Create.VM.ID)
		if _, ok := d.locks[id]; !ok {
			d.locks[id] = model.LockRecord{Lock: id, Epoch: 1, State: model.LockReleased, Reason: model.ReasonCreated, Owner: n.name}
		}
		rec := d.locks[id]
		return lease.Reply{Code: lease.CodeOK, Epoch: rec.Epoch, Record: &rec}
	case r.Claim != nil:
		rep := n.claimLock(r.Claim.VM.Home, model.VMLock(r.Claim.VM.ID), r.Claim.Epoch, r.Claim.Takeover)
		if rep.Code == lease.CodeOK {
			phase := lease.PhaseGranted
			if r.Claim.Running {
				phase = lease.PhaseRunning
			}
			n.guardVMs[r.Claim.VM.ID] = &lease.VMStatus{VM: r.Claim.VM.ID, Name: r.Claim.VM.Name, Home: r.Claim.VM.Home, Epoch: rep.Epoch, Phase: phase}
		}
		return rep
	case r.Confirm != nil:
		g, d := n.guardVMs[r.Confirm.VM], n.doms[r.Confirm.VM]
		if g == nil || d == nil || !d.Active {
			return refuse(lease.CodeNoProcess, nil, "no process")
		}
		g.Phase = lease.PhaseRunning
		return lease.Reply{Code: lease.CodeOK}
	case r.Release != nil:
		return n.releaseLock(r.Release)
	case r.Kill != nil:
		if g := n.guardVMs[r.Kill.VM]; g != nil && g.Epoch != r.Kill.Epoch {
			return refuse(lease.CodeEpochMoved, nil, "epoch moved")
		}
		if d := n.doms[r.Kill.VM]; d != nil && d.Active {
			n.w.logf("%s guard kills %s, note of epoch %d", n.name, d.Name, n.w.notes[r.Kill.VM].LockEpoch)
			n.endDomain(r.Kill.VM, StopFailed)
		}
		return lease.Reply{Code: lease.CodeOK}
	case r.ClaimList != nil:
		rep := n.claimLock(r.ClaimList.Datastore, model.ListLock, r.ClaimList.Epoch, r.ClaimList.Takeover)
		if rep.Code == lease.CodeOK {
			n.terms[r.ClaimList.Datastore] = model.Term(rep.Epoch)
		}
		return rep
	case r.YieldList != nil:
		n.yieldList(r.YieldList.Datastore)
	case r.Status != nil:
		return lease.Reply{Code: lease.CodeOK, Status: n.status()}
	}
	return lease.Reply{Code: lease.CodeOK}
}

func (n *node) claimLock(ds model.DatastoreName, id model.LockID, epoch model.Epoch, t *lease.Takeover) lease.Reply {
	d := n.w.disks[ds]
	rec, ok := d.locks[id]
	switch {
	case n.hung[ds] || !ok:
		return refuse(lease.CodeStorage, nil, "datastore %s does not answer", ds)
	case rec.Epoch != epoch:
		return refuse(lease.CodeEpochMoved, &rec, "epoch %d is not the highest", epoch)
	}
	if h := rec.Holder(); h != "" && h != n.name {
		slot := d.slots[h]
		switch {
		case t == nil || t.Owner != h:
			return refuse(lease.CodeHeldByOther, &rec, "held by %s", h)
		case slot.Slot.Boot != rec.Boot: // its boot is gone
		case slot.Identity.Digest == t.Slot.Digest && t.Gone:
			o := n.w.nodes[h]
			if d := o.doms[model.VMID(id)]; o.on && d != nil && d.Active {
				n.w.violate("%s is taken as gone from %s, which runs it", id, h)
			}
		case slot.Identity.Digest != t.Slot.Digest:
			return refuse(lease.CodeOwnerAlive, &rec, "the slot of %s changed", h)
		case id != model.ListLock && !slot.Slot.Flags.Has(model.SlotArmed):
			return refuse(lease.CodeNotArmed, &rec, "%s was not armed", h)
		case id != model.ListLock && n.w.now < n.w.nodes[h].heardAt+n.w.conf.Timing.Lease:
			// It feeds its watchdog with I/O outstanding until L − Wmax after its
			// contact, and is reset Wmax later.
			n.w.violate("%s is taken from %s, which had contact %v ago", id, h, n.w.now-n.w.nodes[h].heardAt)
		}
	}
	n.w.seq++
	d.locks[id] = model.LockRecord{Lock: id, Epoch: epoch + 1, Owner: n.name, Boot: n.boot(), Incarnation: 1, Nonce: fmt.Sprint(n.w.seq), State: model.LockHeld}
	return lease.Reply{Code: lease.CodeOK, Epoch: epoch + 1}
}

func (n *node) releaseLock(r *lease.ReleaseRequest) lease.Reply {
	g := n.guardVMs[r.VM]
	if g == nil {
		return refuse(lease.CodeUnknownVM, nil, "not held here")
	}
	if d := n.doms[r.VM]; d != nil && d.Active {
		return refuse(lease.CodeNotGone, nil, "it runs")
	}
	if n.hung[g.Home] {
		return refuse(lease.CodeStorage, nil, "datastore %s does not answer", g.Home)
	}
	d := n.w.disks[g.Home]
	rec := d.locks[model.VMLock(r.VM)]
	if rec.Epoch != r.Epoch || rec.Owner != n.name {
		return refuse(lease.CodeEpochMoved, &rec, "epoch moved")
	}
	rec.Epoch, rec.State, rec.Reason = rec.Epoch+1, model.LockReleased, r.Reason
	d.locks[rec.Lock] = rec
	delete(n.guardVMs, r.VM)
	return lease.Reply{Code: lease.CodeOK, Epoch: rec.Epoch}
}

func (n *node) yieldList(ds model.DatastoreName) {
	t := n.terms[ds]
	delete(n.terms, ds)
	if n.kinds[ds] != "" && n.hung[ds] {
		return // the record cannot be written
	}
	d := n.w.disks[ds]
	if rec := d.locks[model.ListLock]; t != 0 && rec.Epoch == model.Epoch(t) && rec.Owner == n.name {
		rec.Epoch, rec.State, rec.Reason = rec.Epoch+1, model.LockReleased, model.ReasonYield
		d.locks[model.ListLock] = rec
	}
}

// endDomain ends a domain's process and tells libvirt and the guard.
func (n *node) endDomain(id model.VMID, cause StopCause) {
	d := n.doms[id]
	d.Active, d.Paused, d.Cause = false, false, cause
	if g := n.guardVMs[id]; g != nil {
		g.Phase = lease.PhaseGone
	}
	n.w.at(5*time.Millisecond, func() {
		if n.on && n.libvirt && n.doms[id] != nil {
			n.step(DomainChanged{*n.doms[id]})
		}
	})
	n.w.at(8*time.Millisecond, func() {
		if n.on && n.guardOn {
			n.notice(lease.Notice{What: lease.NoticeGone, VM: id})
		}
	})
}

func (n *node) hypervise(e Hypervise) {
	if !n.libvirt {
		n.later(time.Second, func() Event { return HypervisorDone{Op: e.Op, Fault: FaultUnavailable, Text: "libvirt is down"} })
		return
	}
	d := 50 * time.Millisecond
	if e.Call == CallStartPaused {
		d = 400 * time.Millisecond
	}
	n.later(d, func() Event {
		fault := n.call(e)
		r := HypervisorDone{Op: e.Op, Fault: fault}
		if fault != "" {
			r.Text = fmt.Sprintf("%s: %s", e.Call, fault)
		}
		return r
	})
}

func (n *node) call(e Hypervise) HypervisorFault {
	dom := n.doms[e.VM]
	changed := func() { n.w.at(time.Millisecond, func() { n.step(DomainChanged{*n.doms[e.VM]}) }) }
	switch e.Call {
	case CallDefine:
		if dom == nil {
			mem := n.w.memory[e.VM]
			if mem == 0 {
				mem = 512
			}
			n.doms[e.VM] = &Domain{VM: e.VM, Name: string(e.VM), Memory: mem, CPUs: 1}
		}
	case CallUndefine:
		delete(n.doms, e.VM)
	case CallStartPaused:
		if f := n.w.faults[e.VM]; f != nil && f.left != 0 && (f.host == "" || f.host == n.name) {
			f.left--
			return f.fault
		}
		dom.Active, dom.Paused = true, true
		changed()
	case CallResume:
		dom.Paused = false
		changed()
	case CallReset:
		n.w.logf("%s resets %s", n.name, dom.Name)
	case CallShutdown:
		n.w.at(time.Second, func() {
			if d := n.doms[e.VM]; n.on && d != nil && d.Active && !n.w.stubborn[e.VM] {
				n.endDomain(e.VM, StopGuestShutdown)
			}
		})
	case CallKill:
		if dom != nil && dom.Active {
			n.endDomain(e.VM, StopDestroyed)
		}
	}
	return ""
}

// addVM puts a running, locked VM on a host and on the list, as an earlier
// primary would have left it; stopped if host is "".
func (w *world) addVM(name string, ds model.DatastoreName, host model.HostID, mem model.MiB) model.VMID {
	id := model.VMID("vm-" + name)
	w.memory[id] = mem
	d := w.disks[ds]
	p := model.ProtectedVM{ID: id, Name: name, Home: ds, Datastores: []model.DatastoreName{ds}, Config: "/" + name + ".xml", Memory: mem, CPUs: 1, Requested: model.RequestedStopped, Host: host, LastEpoch: 1}
	rec := model.LockRecord{Lock: model.VMLock(id), Epoch: 1, State: model.LockReleased, Reason: model.ReasonCreated}
	if host != "" {
		n := w.nodes[host]
		rec = model.LockRecord{Lock: model.VMLock(id), Epoch: 2, State: model.LockHeld, Owner: host, Boot: n.boot(), Incarnation: 1}
		p.Requested, p.LastEpoch = model.RequestedStarted, 2
		n.doms[id] = &Domain{VM: id, Name: name, Active: true, Memory: mem, CPUs: 1}
		n.guardVMs[id] = &lease.VMStatus{VM: id, Name: name, Home: ds, Epoch: 2, Phase: lease.PhaseRunning}
	}
	d.locks[rec.Lock] = rec
	l := d.lists[1]
	l.Term, l.Version = 1, l.Version+1
	l.VMs = append(l.VMs, p)
	d.lists[1] = l
	return id
}
