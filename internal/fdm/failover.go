package fdm

import (
	"fmt"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// order is a command on its way: from its placement until its target says that
// the VM runs, is gone, or that it failed.
type order struct {
	id      string
	v       *vm
	host    *member
	cmd     Command
	kind    CommandKind
	counted bool
	quiet   bool // a further try after the same failure: not told again
	sent    bool
	stage   Stage
	epoch   model.Epoch // won by the target
	heardAt time.Duration
	repeats int
	over    bool // only the guest's sign of life is awaited
}

// placeReady places the VMs that are ready, in order, within the limits.
func (m *Machine) placeReady() {
	if len(m.ready) == 0 {
		return
	}
	list := m.sortVMs(m.ready)
	clear(m.ready)
	if !m.gatherDone {
		for _, v := range list {
			m.queue(v, "waiting for the members to gather after a start of the whole cluster")
		}
		return
	}
	room := m.room(list)
	m.plan(room, list)
	class := infrastructure + 1
	for _, v := range list {
		if c := m.class(v); c < class {
			class = c
			m.gate()
		}
		if why := m.mustWait(v); why != "" {
			m.holdBack(v, why)
			continue
		}
		m.place(v, room)
	}
}

// queue keeps v waiting for an input to change.
func (m *Machine) queue(v *vm, why string) {
	v.reason = why
	m.waiting[v.p.ID] = v
	m.viewDue = true
}

// unfit is why a host takes no VM at all; "" if it may.
func (m *Machine) unfit(h *member) string {
	switch {
	case h.failed || h.suspect:
		return fmt.Sprintf("it is %s", h.state)
	case h.conf.Maintenance:
		return "it is in maintenance"
	case h.report == nil:
		return "it has not reported to the primary yet"
	case m.apart(h):
		return "it is heard, but it does not hear or does not report: it cannot be ordered to start a VM"
	case h.report.Leaving:
		return leavingWhy
	case !h.report.GuardUp:
		return "its guard does not answer"
	case !h.report.HypervisorUp:
		return "its libvirt does not answer"
	}
	return ""
}

// wantOf is a VM's wish for a place, with what failed before.
func (m *Machine) wantOf(v *vm) placement.Want {
	w := placement.Want{VM: v.p.Name, Failed: map[model.HostID]int{}}
	if v.p.Down != nil {
		for _, h := range v.p.Down.Hosts {
			w.Failed[h]++
		}
		if v.p.Down.Asked && v.p.Down.Failover == "" {
			w.Purpose = placement.PowerOn
		}
	}
	if h := m.staysOn(v); h != "" {
		delete(w.Failed, h)
	}
	return w
}

func (m *Machine) place(v *vm, room *placement.State) {
	w := m.wantOf(v)
	w.Only, w.Prefer = v.want.only, v.want.prefer
	if w.Prefer == "" || w.Failed[w.Prefer] > 0 {
		w.Prefer = v.planned
	}
	if w.Prefer == "" || w.Failed[w.Prefer] > 0 {
		w.Prefer = v.admitted
	}
	if h := m.staysOn(v); h != "" {
		w.Prefer = h
	}
	c := room.Place(w)
	if c.Host == "" {
		m.unplaced(v, c.Refusals, c.Busy)
		return
	}
	if err := room.Run(v.p.Name, c.Host); err != nil {
		m.queue(v, err.Error())
		return
	}
	h, _, _ := room.Host(c.Host)
	h.Starting++
	room.SetHost(h)
	v.breaks = c.Broken
	m.startOn(v, m.members[c.Host])
}

func (m *Machine) unplaced(v *vm, refusals []placement.Refusal, busy bool) {
	if busy {
		m.queue(v, "waiting for starts that are under way")
		return
	}
	parts := make([]string, 0, len(refusals))
	for _, r := range refusals {
		parts = append(parts, fmt.Sprintf("%s: %s", r.Host, r.Reason))
	}
	m.queue(v, "")
	v.unplaced, m.orderDue = true, true
	m.standingReason(v, "no host can take it: "+strings.Join(parts, "; "), false)
	m.recheck(v, m.cfg.Probe)
}

// startOn orders h to start v. The attempt is recorded before the command
// leaves.
func (m *Machine) startOn(v *vm, h *member) {
	d := v.p.Down
	o := m.newOrder(v, h, CommandStart, v.want.epoch)
	o.cmd.Takeover, o.cmd.Failover = v.want.takeover, d.Failover
	m.countMove(v, h.name)
	if d.Attempts < m.attemptsOf(v) {
		d.Attempts++
		o.counted = true
	}
	o.quiet = v.fault != ""
	if _, counts := failurePause(v.fault); counts {
		o.quiet = v.standing
	}
	d.Hosts = append(d.Hosts[:len(d.Hosts):len(d.Hosts)], h.name)
	if len(d.Hosts) > keptHosts {
		d.Hosts = d.Hosts[len(d.Hosts)-keptHosts:]
	}
	v.triedAt, v.unplaced = m.now, false
	delete(m.waiting, v.p.ID)
	m.saveFor(v, len(v.askers) > 0, func() { m.send(o) })
}

func (m *Machine) newOrder(v *vm, h *member, kind CommandKind, epoch model.Epoch) *order {
	m.orderSeq++
	o := &order{id: fmt.Sprintf("%s-%d-%d", m.cfg.Self, m.cfg.Start, m.orderSeq), v: v, host: h, kind: kind, heardAt: m.now}
	o.cmd = Command{ID: o.id, Kind: kind, Term: v.st.list.term, Epoch: epoch, Expires: commandExpires}
	m.orders[o.id], v.order = o, o
	h.orders[o.id] = o
	if kind == CommandStart {
		h.orderMem += v.p.Memory
	}
	m.viewDue, m.orderDue = true, true
	return o
}

// send lets a command leave, if all that it rests on still holds.
func (m *Machine) send(o *order) {
	v := o.v
	if m.orders[o.id] != o || v.order != o {
		return
	}
	if v.st.list.phase != listOwned || v.st.list.term != o.cmd.Term {
		m.dropOrder(o, "the term of the protected list changed")
		return
	}
	if o.kind == CommandStart && v.p.Down == nil { // it settled while the record was being written
		m.dropOrder(o, "it is not to be started any more")
		return
	}
	if why := m.unfit(o.host); why != "" && o.kind == CommandStart {
		m.dropOrder(o, fmt.Sprintf("%s cannot take it any more: %s", o.host.name, why))
		return
	}
	o.cmd.VM = m.record(v)
	o.sent, o.heardAt = true, m.now
	if o.kind == CommandStart && !o.quiet {
		evidence := map[string]string{"command": o.id, "term": fmt.Sprint(o.cmd.Term), "epoch": fmt.Sprint(o.cmd.Epoch), "attempt": fmt.Sprint(v.p.Down.Attempts)}
		if len(v.breaks) > 0 {
			evidence["breaks"] = strings.Join(v.breaks, ", ") + ", rather than leave it down"
		}
		m.emit(event.Event{Kind: event.StartIssued, VM: v.p.Name, Host: o.host.name, Datastore: v.st.name, Failover: o.cmd.Failover,
			Text:     fmt.Sprintf("%s is to start on %s", v.p.Name, o.host.name),
			Cause:    v.p.Down.Cause,
			Evidence: evidence})
	}
	m.transmit(o)
	m.watchOrder(o)
}

func (m *Machine) transmit(o *order) {
	if o.host.self {
		m.onCommand(m.cfg.Self, o.cmd)
		return
	}
	cmd := o.cmd
	m.do(SendMessage{To: o.host.name, Message: Message{Command: &cmd}})
}

// repeatOrders sends again what h may have missed; it answers what it knows.
func (m *Machine) repeatOrders(h *member) {
	for _, id := range sortedKeys(h.orders) {
		if o := h.orders[id]; o.sent {
			m.transmit(o)
		}
	}
}

// watchOrder repeats a command that shows no progress, and then gives it up:
// the lock record tells what became of it.
func (m *Machine) watchOrder(o *order) {
	m.after(commandSilence, func() {
		if m.orders[o.id] != o || o.over {
			return
		}
		limit := commandSilence
		if o.kind == CommandShutdown {
			limit += m.cfg.StopLimit
		}
		switch {
		case m.now-o.heardAt < limit:
		case o.repeats == 0:
			o.repeats++
			m.transmit(o)
		default:
			m.dropOrder(o, fmt.Sprintf("%s does not say how the command stands", o.host.name))
			return
		}
		m.watchOrder(o)
	})
}

// endOrder takes an order off its host's account.
func (m *Machine) endOrder(o *order) {
	if o.host.orders[o.id] == o {
		delete(o.host.orders, o.id)
		if o.kind == CommandStart {
			o.host.orderMem -= o.v.p.Memory
		}
	}
	if o.v.order == o {
		o.v.order = nil
	}
	m.viewDue, m.orderDue = true, true
}

// dropOrder gives an order up; its VM is looked at anew, by its lock.
func (m *Machine) dropOrder(o *order, why string) {
	delete(m.orders, o.id)
	wasOpen := o.v.order == o
	m.endOrder(o)
	v := o.v
	if !wasOpen || m.vms[v.p.ID] != v {
		return
	}
	if o.counted && v.p.Down != nil && v.p.Down.Attempts > 0 {
		v.p.Down.Attempts--
	}
	v.lockKnown = false
	if o.kind != CommandStart {
		m.answerStop(v, AdminReply{Text: fmt.Sprintf("%s: %s", v.p.Name, why)})
		m.stopFailed(v, "")
	}
	v.reason = why
	m.rediscover(v)
	m.wake(v, time.Millisecond)
	m.poke(changeStart)
}

// rediscover looks whether any host reports v as running.
func (m *Machine) rediscover(v *vm) {
	for _, h := range m.order {
		if lv, ok := h.active[v.p.ID]; ok && !h.failed {
			m.setRunning(v, h, lv)
		}
	}
}

func (m *Machine) onProgress(h *member, p Progress) {
	o := m.orders[p.Command]
	if m.role != rolePrimary || o == nil || o.host != h || o.v.p.ID != p.VM {
		return
	}
	o.heardAt = m.now
	v := o.v
	if p.Epoch > 0 {
		o.epoch = p.Epoch
	}
	again := o.stage == p.Stage
	o.stage = p.Stage
	ev := event.Event{VM: v.p.Name, Host: h.name, Datastore: v.st.name, Failover: o.cmd.Failover,
		Evidence: map[string]string{"command": o.id, "epoch": fmt.Sprint(o.epoch), "after": seconds(p.After)}}
	switch p.Stage {
	case StageLocked:
		if !again && o.kind == CommandStart && !o.quiet {
			ev.Kind, ev.Text = event.LockTaken, fmt.Sprintf("%s has the lock of %s (epoch %d)", h.name, v.p.Name, o.epoch)
			m.emit(ev)
		}
	case StageRunning:
		if o.over {
			break
		}
		if p.Done {
			m.missedEnd(o)
			return
		}
		o.over = true
		m.endOrder(o)
		ev.Kind, ev.Text = event.DomainRunning, fmt.Sprintf("%s runs on %s", v.p.Name, h.name)
		m.emit(ev)
		m.setRunning(v, h, LocalVM{ID: v.p.ID, Name: v.p.Name, Managed: true, Active: true, Epoch: o.epoch, Phase: lease.PhaseRunning, Memory: v.p.Memory, CPUs: v.p.CPUs})
		m.assumeActive(h, v)
		m.poke(changeStart)
	case StageAlive:
		if !o.over {
			m.missedEnd(o)
			return
		}
		ev.Kind, ev.Text = event.GuestAlive, fmt.Sprintf("the guest of %s answers", v.p.Name)
		m.emit(ev)
		if v.running && v.host == h {
			v.local.Alive = true
			m.viewDue, m.orderDue = true, true
		}
	case StageGone:
		if o.kind == CommandEvacuate {
			m.evacuated(o)
			break
		}
		m.gone(o, p)
	case StageFailed:
		m.orderFailed(o, p)
	}
	if p.Done {
		delete(m.orders, o.id)
	}
}

// missedEnd: a start is told to have ended of which nobody heard that the VM
// ran. What became of the VM since then its host's report and its lock tell.
func (m *Machine) missedEnd(o *order) {
	m.dropOrder(o, fmt.Sprintf("%s carried the command out while it was not heard; its lock is being read", o.host.name))
}

// assumeActive counts a VM on its host until the host's next report does.
func (m *Machine) assumeActive(h *member, v *vm) {
	if _, ok := h.active[v.p.ID]; !ok {
		h.used += v.p.Memory
	}
	h.active[v.p.ID] = v.local
}

// gone: a VM was stopped as asked.
func (m *Machine) gone(o *order, p Progress) {
	v := o.v
	m.endOrder(o)
	v.running, v.local = false, LocalVM{}
	if _, ok := o.host.active[v.p.ID]; ok {
		delete(o.host.active, v.p.ID)
		o.host.used -= v.p.Memory
	}
	if p.Epoch > v.p.LastEpoch {
		v.p.LastEpoch = p.Epoch
	}
	m.setHost(v, nil)
	v.lockKnown = false
	m.save(v)
	m.emit(event.Event{Kind: event.VMDown, VM: v.p.Name, Host: o.host.name, Text: fmt.Sprintf("%s is stopped, as asked", v.p.Name)})
	m.answerStop(v, AdminReply{OK: true, Text: fmt.Sprintf("%s is stopped", v.p.Name)})
	m.showProtection(v)
	m.evaluate(v)
	m.poke(changeMemory)
}

// orderFailed decides when a failed start is tried again.
func (m *Machine) orderFailed(o *order, p Progress) {
	v := o.v
	delete(m.orders, o.id)
	m.endOrder(o)
	v.lockKnown = false
	if o.kind != CommandStart {
		m.emit(event.Event{Kind: event.Refused, Severity: event.Warning, VM: v.p.Name, Host: o.host.name, Text: fmt.Sprintf("%s was not stopped", v.p.Name), Cause: p.Text})
		m.answerStop(v, AdminReply{Text: fmt.Sprintf("%s was not stopped on %s: %s", v.p.Name, o.host.name, p.Text)})
		m.stopFailed(v, p.Code)
		m.rediscover(v)
		m.evaluate(v)
		return
	}
	if v.p.Down == nil {
		m.evaluate(v)
		return
	}
	pause, counted := failurePause(p.Code)
	if !counted && o.counted && v.p.Down.Attempts > 0 {
		v.p.Down.Attempts--
	}
	why := fmt.Sprintf("%s on %s: %s", p.Code, o.host.name, p.Text)
	again := v.fault == p.Code
	known := again && v.standing
	v.fault = p.Code
	if p.Code == string(lease.CodeNotArmed) {
		m.waitFence(v, fmt.Sprintf("%s; waiting for proof that the owner is dead: power it off and on again, or `hanok lock release --force`, or set `unfenced: accept` for %s", why, v.st.name))
		v.nextTry = m.now + pause
		return
	}
	if counted {
		v.p.Down.Here++
		if !known {
			m.emit(event.Event{Kind: event.RestartFailed, Severity: event.Warning, VM: v.p.Name, Host: o.host.name, Datastore: v.st.name, Failover: v.p.Down.Failover,
				Text: fmt.Sprintf("%s did not start on %s (attempt %d of %d)", v.p.Name, o.host.name, v.p.Down.Attempts, m.attemptsOf(v)), Cause: p.Text,
				Evidence: map[string]string{"code": p.Code, "command": o.id, "after": seconds(p.After)}})
		}
		pause = m.backoff(v.p.Down.Attempts)
	}
	if counted && m.spent(v) {
		m.giveUp(v, why)
		return
	}
	if counted && v.p.Down.Attempts >= m.attemptsOf(v) {
		v.standing, pause, m.orderDue = true, m.cfg.Probe, true
		m.waiting[v.p.ID] = v
		m.standingReason(v, fmt.Sprintf("%d attempts failed, the last with %s", v.p.Down.Attempts, why), known)
		if f := m.failovers[v.inFailover]; f != nil {
			f.stuck++
		}
		m.leaveFailover(v)
	} else {
		m.answerStart(v, AdminReply{Text: fmt.Sprintf("%s did not start: %s; it is tried again in %s", v.p.Name, why, seconds(pause))})
	}
	reason := v.reason
	if !v.standing {
		reason = why
		if !counted && !again {
			m.emit(event.Event{Kind: event.RestartPending, VM: v.p.Name, Host: o.host.name, Datastore: v.st.name, Failover: v.p.Down.Failover,
				Text: fmt.Sprintf("%s is tried again until this passes; it does not count as an attempt", v.p.Name), Cause: why})
		}
	}
	if counted && m.conf.VMs[v.p.Name].Limits == nil {
		m.waiting[v.p.ID] = v // an attempt that is its own is not spent before its time
	}
	m.postpone(v, pause, reason)
	m.save(v)
	m.poke(changeStart)
}

// backoff is the pause after so many failed attempts: 2, 4, 8, 16 s.
func (m *Machine) backoff(attempts int) time.Duration {
	return retryBase << min(max(attempts-1, 0), 5)
}

// failurePause says how long to wait after a failure, and whether it counts as
// an attempt.
func failurePause(code string) (pause time.Duration, counted bool) {
	switch code {
	case string(FaultImageLocked), string(lease.CodeBusy), string(lease.CodeOwnerAlive), string(lease.CodeNoLease),
		string(lease.CodeShuttingDown), string(lease.CodeTimeout), codeBusyHost, codeStaleTerm, codeExpired:
		return transientPause, false
	case string(lease.CodeEpochMoved), string(lease.CodeHeldByOther):
		return transientPause / 2, false
	case string(lease.CodeNotArmed):
		return fencePause, false
	}
	return 0, true
}
