package lease

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/model"
)

func (m *Machine) request(conn uint64, r *Request) {
	switch {
	case r.Beat != nil:
		m.beat(conn, r.ID, *r.Beat)
	case r.Reload != nil:
		m.emit(Effect{Kind: EffReload})
		m.reply(conn, Reply{ID: r.ID, Code: CodeOK})
	case r.Managed != nil:
		m.replaceManaged(conn, r.ID, r.Managed.VMs)
	case r.Create != nil:
		m.create(conn, r.ID, r.Create)
	case r.Claim != nil:
		m.claim(conn, r.ID, r.Claim)
	case r.Confirm != nil:
		m.confirm(conn, r.ID, *r.Confirm)
	case r.Release != nil:
		m.release(conn, r.ID, r.Release)
	case r.Kill != nil:
		m.killRequest(conn, r.ID, *r.Kill)
	case r.ClaimList != nil:
		m.claimList(conn, r.ID, r.ClaimList)
	case r.YieldList != nil:
		m.yieldList(conn, r.ID, r.YieldList.Datastore)
	case r.Status != nil:
		s := m.Status(m.now)
		m.reply(conn, Reply{ID: r.ID, Code: CodeOK, Status: &s})
	case r.Hook != nil:
		m.hook(conn, r.ID, r.Hook)
	case r.Force != nil:
		m.force(conn, r.ID, r.Force)
	case r.Subscribe != nil:
		m.subscribers[conn] = true
		m.emit(Effect{Kind: EffSubscribe, Conn: conn})
		m.reply(conn, Reply{ID: r.ID, Code: CodeOK})
		s := m.Status(m.now)
		m.emit(Effect{Kind: EffNotify, Conn: conn, Notice: &Notice{What: NoticeStatus, Status: &s}})
	default:
		m.refuse(conn, r.ID, CodeInvalid, "the request asks for nothing that this guard knows")
	}
}

// connLost forgets who waits on a connection; what they asked for is undone if
// it succeeds.
func (m *Machine) connLost(conn uint64) {
	delete(m.subscribers, conn)
	for _, c := range m.chains {
		if c.conn == conn {
			c.live = false
		}
	}
	for _, v := range m.order {
		n := 0
		for _, w := range v.kills {
			if w.conn != conn {
				v.kills[n] = w
				n++
			}
		}
		v.kills = v.kills[:n]
	}
	n := 0
	for _, h := range m.hookWaits {
		if h.conn != conn {
			m.hookWaits[n] = h
			n++
		}
	}
	m.hookWaits = m.hookWaits[:n]
}

func (m *Machine) beat(conn, id uint64, b BeatRequest) {
	if m.agent.beat.Isolated != b.Isolated || m.agent.beat.ShuttingDown != b.ShuttingDown {
		m.statusDirty = true
	}
	m.agent.heard, m.agent.last, m.agent.beat = true, m.now, b
	m.agent.sequence++
	m.reply(conn, Reply{ID: id, Code: CodeOK})
}

func (m *Machine) replaceManaged(conn, id uint64, vms []ManagedVM) {
	if len(vms) > maxManaged {
		m.refuse(conn, id, CodeInvalid, fmt.Sprintf("%d managed VMs are more than %d", len(vms), maxManaged))
		return
	}
	for i := range vms {
		if err := vms[i].validate(); err != "" {
			m.refuse(conn, id, CodeInvalid, fmt.Sprintf("vms[%d]: %s", i, err))
			return
		}
	}
	m.setManaged(vms)
	m.cfg.ManagedUnknown = false
	m.emit(Effect{Kind: EffSaveManaged})
	m.reply(conn, Reply{ID: id, Code: CodeOK})
}

// validate says what is wrong with v, or "".
func (v *ManagedVM) validate() string {
	switch {
	case v.ID.Validate() != nil:
		return v.ID.Validate().Error()
	case v.Home == "":
		return "home: name the datastore that holds the VM's lock"
	}
	return ""
}

// begin checks what all requests about a lock have in common and starts their
// chain.
func (m *Machine) begin(conn, id uint64, c *chain) {
	s := m.store(c.key.ds)
	switch {
	case s == nil:
		m.refuse(conn, id, CodeInvalid, fmt.Sprintf("this host has no datastore %q", c.key.ds))
	case s.changed:
		m.refuse(conn, id, CodeStorage, m.leaseText(c.key.ds))
	case m.chains[c.key] != nil:
		m.refuse(conn, id, CodeBusy, "another operation on this lock is under way; try again")
	default:
		c.live, c.conn, c.id = true, conn, id
		if c.kind == chainClaim && c.vm != "" {
			m.addVM(c.spec) // so that a list of processes looks for it
		}
		m.startChain(c)
	}
}

func (m *Machine) create(conn, id uint64, r *CreateRequest) {
	if err := r.VM.validate(); err != "" {
		m.refuse(conn, id, CodeInvalid, err)
		return
	}
	m.begin(conn, id, &chain{kind: chainCreate, vm: r.VM.ID, key: lockKey{r.VM.Home, model.VMLock(r.VM.ID)}})
}

func (m *Machine) claim(conn, id uint64, r *ClaimRequest) {
	v := m.vms[r.VM.ID]
	switch err := r.VM.validate(); {
	case err != "":
		m.refuse(conn, id, CodeInvalid, err)
	case r.Running && v != nil && v.lock == lockHeld && v.running && m.leaseOK(v.spec.Home):
		m.reply(conn, Reply{ID: id, Code: CodeOK, Epoch: v.epoch})
	case v != nil && v.lock != lockNone && v.spec.Home != r.VM.Home:
		m.refuse(conn, id, CodeInvalid, fmt.Sprintf("this host holds the lock of %s on datastore %s", v.name(), v.spec.Home))
	case !m.leaseOK(r.VM.Home) && m.store(r.VM.Home) != nil:
		m.refuse(conn, id, CodeNoLease, m.leaseText(r.VM.Home))
	default:
		m.begin(conn, id, &chain{kind: chainClaim, vm: r.VM.ID, key: lockKey{r.VM.Home, model.VMLock(r.VM.ID)},
			spec: r.VM, expect: r.Epoch, takeover: r.Takeover, runningVM: r.Running})
	}
}

// leaseText says why nothing may be claimed on a datastore.
func (m *Machine) leaseText(ds model.DatastoreName) string {
	s := m.store(ds)
	switch {
	case s == nil:
		return fmt.Sprintf("this host has no datastore %q", ds)
	case s.changed && s.fault != nil:
		return fmt.Sprintf("datastore %s changed under this host and is not trusted: %s; "+
			"look at it, then run `hanok datastore repair %s`", ds, s.fault.Text, ds)
	case s.fault != nil:
		return fmt.Sprintf("this host has no lease on datastore %s: %s", ds, s.fault.Text)
	case s.hung:
		return fmt.Sprintf("this host has no lease on datastore %s: the datastore does not answer", ds)
	default:
		return fmt.Sprintf("this host has no lease on datastore %s yet", ds)
	}
}

func (m *Machine) confirm(conn, id uint64, r ConfirmRequest) {
	if code, text := m.confirmable(r); code != CodeOK {
		m.confirmReply(conn, id, r, code, text)
		return
	}
	ok := m.afterScan(func(scanned bool) {
		code, text := m.confirmable(r)
		switch {
		case code != CodeOK:
		case !scanned:
			code, text = CodeTimeout, "the processes of this host could not be listed; try again"
		case m.vms[r.VM].absent():
			code, text = CodeNoProcess, "no process of the VM runs on this host"
		default:
			v := m.vms[r.VM]
			v.grant = grantNone
			m.saveDirty, m.statusDirty = true, true
		}
		m.confirmReply(conn, id, r, code, text)
	})
	if !ok {
		m.refuse(conn, id, CodeBusy, "too many requests wait for a list of processes")
	}
}

func (m *Machine) confirmReply(conn, id uint64, r ConfirmRequest, code Code, text string) {
	var epoch model.Epoch
	if v := m.vms[r.VM]; v != nil {
		epoch = v.epoch
	}
	m.reply(conn, Reply{ID: id, Code: code, Text: text, Epoch: epoch})
}

func (m *Machine) confirmable(r ConfirmRequest) (Code, string) {
	v := m.vms[r.VM]
	switch {
	case v == nil || v.lock == lockNone || v.lock == lockLost:
		return CodeUnknownVM, "this host does not hold the lock of this VM"
	case v.killing:
		return CodeNotGone, v.name() + " is being killed"
	case v.lock != lockHeld || !m.leaseOK(v.spec.Home):
		return CodeNoLease, m.leaseText(v.spec.Home)
	case v.epoch != r.Epoch:
		return CodeEpochMoved, fmt.Sprintf("this host holds epoch %d, not %d", v.epoch, r.Epoch)
	}
	return CodeOK, ""
}

func (m *Machine) release(conn, id uint64, r *ReleaseRequest) {
	v := m.vms[r.VM]
	home := m.homeOf(r.VM)
	if v != nil && v.spec.Home != "" {
		home = v.spec.Home
	}
	switch {
	case home == "":
		m.refuse(conn, id, CodeUnknownVM, "this guard knows no VM with that id")
	case r.Reason == "":
		m.refuse(conn, id, CodeInvalid, "reason: say why the lock is released")
	case v != nil && v.lock != lockNone && v.epoch != r.Epoch:
		m.reply(conn, Reply{ID: id, Code: CodeEpochMoved, Epoch: v.epoch,
			Text: fmt.Sprintf("this host holds epoch %d, not %d", v.epoch, r.Epoch)})
	default:
		m.begin(conn, id, &chain{kind: chainRelease, vm: r.VM, key: lockKey{home, model.VMLock(r.VM)},
			expect: r.Epoch, reason: r.Reason})
	}
}

func (m *Machine) killRequest(conn, id uint64, r KillRequest) {
	v := m.vms[r.VM]
	switch {
	case v == nil:
		m.refuse(conn, id, CodeUnknownVM, "this host neither holds the lock of this VM nor runs it")
	case v.lock != lockNone && v.epoch != r.Epoch:
		m.reply(conn, Reply{ID: id, Code: CodeEpochMoved, Epoch: v.epoch,
			Text: fmt.Sprintf("this host holds epoch %d, not %d", v.epoch, r.Epoch)})
	case r.Before != 0 && m.now > r.Before:
		m.refuse(conn, id, CodeExpired, fmt.Sprintf("the order to kill %s came %v too late: its reason may be over", v.name(), (m.now-r.Before).Round(time.Millisecond)))
	case r.Before != 0 && m.stood != 0 && m.now-m.stood < m.cfg.Timing.Interval:
		// Nobody heard from it what it finds out in these moments: that a datastore is back.
		m.refuse(conn, id, CodeExpired, fmt.Sprintf("the guard stood still until %v ago: the reason to kill %s may be over", (m.now-m.stood).Round(time.Millisecond), v.name()))
	case len(v.kills) >= maxWaiters:
		m.refuse(conn, id, CodeBusy, "too many wait for its end already")
	default:
		if !v.killing {
			v.killBefore = r.Before
		} else if r.Before == 0 {
			v.killBefore = 0
		}
		v.kills = append(v.kills, waiter{conn, id})
		m.kill(v, "ordered")
	}
}

func (m *Machine) force(conn, id uint64, r *ForceRequest) {
	c := &chain{kind: chainForce, key: lockKey{r.Datastore, r.Lock}, expect: r.Epoch,
		deadline: m.now + m.cfg.Timing.StaleAfter() + ClaimLimit}
	if r.Lock != model.ListLock {
		c.vm = model.VMID(r.Lock)
	}
	m.begin(conn, id, c)
}

// listState is the lock on a datastore's protected list.
type listState struct {
	held    bool
	term    model.Term
	nonce   string
	cleanup bool        // the lock may still be on the datastore and must be released
	least   model.Epoch // of cleanup: an older record than this is an old listing
	retryAt time.Duration
}

func (m *Machine) claimList(conn, id uint64, r *ClaimListReq) {
	s := m.store(r.Datastore)
	switch {
	case s == nil:
		m.refuse(conn, id, CodeInvalid, fmt.Sprintf("this host has no datastore %q", r.Datastore))
	case s.list.held:
		m.reply(conn, Reply{ID: id, Code: CodeOK, Epoch: model.Epoch(s.list.term)})
	case !s.leased:
		m.refuse(conn, id, CodeNoLease, m.leaseText(r.Datastore))
	case !m.agentAlive() || m.agent.beat.Isolated:
		m.refuse(conn, id, CodeInvalid, "beat first: a list is held only for an agent that lives and is not isolated")
	case s.list.cleanup:
		m.refuse(conn, id, CodeBusy, "the list's lock is still being released; try again")
	default:
		m.begin(conn, id, &chain{kind: chainClaim, key: lockKey{r.Datastore, model.ListLock}, expect: r.Epoch, takeover: r.Takeover})
	}
}

func (m *Machine) wonList(c *chain) {
	s := m.store(c.key.ds)
	s.list = listState{held: true, term: model.Term(c.rec.Epoch), nonce: c.rec.Nonce}
	m.finish(c, Reply{Code: CodeOK, Epoch: c.rec.Epoch, Record: &c.rec})
}

func (m *Machine) yieldList(conn, id uint64, ds model.DatastoreName) {
	s := m.store(ds)
	if s == nil {
		m.refuse(conn, id, CodeInvalid, fmt.Sprintf("this host has no datastore %q", ds))
		return
	}
	if s.list.held {
		s.list = listState{cleanup: true, least: model.Epoch(s.list.term)}
		m.saveDirty, m.statusDirty = true, true
	}
	m.reply(conn, Reply{ID: id, Code: CodeOK})
}

// loseList gives up a list: at once for this host, on the datastore as soon as
// it answers.
func (m *Machine) loseList(s *store, why string) {
	if !s.list.held {
		return
	}
	term := s.list.term
	s.list = listState{cleanup: true, least: model.Epoch(term)}
	m.saveDirty, m.statusDirty = true, true
	m.notify(Notice{What: NoticeListLost, Datastore: s.cfg.Name, Epoch: model.Epoch(term), Text: "the list of " + string(s.cfg.Name) + " is given up: " + why})
}

func (m *Machine) agentAlive() bool { return m.agent.heard && m.now < m.agent.last+AgentSilence }

// agentSilence is guard rule 5.
func (m *Machine) agentSilence() {
	why := ""
	switch {
	case !m.agentAlive():
		why = "the agent is silent"
	case m.agent.beat.Isolated:
		why = "this host is isolated"
	default:
		return
	}
	for _, s := range m.stores {
		m.loseList(s, why)
	}
}

// listDuties releases lists that were given up.
func (m *Machine) listDuties() {
	for _, s := range m.stores {
		key := lockKey{s.cfg.Name, model.ListLock}
		if s.list.cleanup && s.leased && m.now >= s.list.retryAt && m.chains[key] == nil {
			s.list.retryAt = m.now + m.cfg.Timing.Interval
			m.startChain(&chain{kind: chainRelease, key: key, reason: model.ReasonYield, expect: s.list.least})
		}
	}
}

// contact reports whether the owner of the lists hears this host, so that it
// will not take its VMs on s. It counts for L − Wmax only: a host that loses contact
// stops feeding its watchdog early enough to be reset within L of that moment,
// and nobody takes its VMs before it was silent for longer than L.
func (m *Machine) contact(s *store) bool {
	return m.agent.heard && m.agent.beat.Contact && m.now < m.contactEnd(s)
}

// contactEnd is when the last contact ceases to count for VMs on s.
func (m *Machine) contactEnd(s *store) time.Duration {
	return m.agent.last - m.agent.beat.ContactAge + s.limits.Contact
}
