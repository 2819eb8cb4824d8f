package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Codes of failed commands besides the guard's lease.Code and the
// hypervisor's HypervisorFault.
const (
	codeBusyHost  = "command-under-way" // another command for the VM is not done
	codeStaleTerm = "stale-term"        // a newer primary owns the VM's list
	codeExpired   = "expired"           // guard or libvirt stayed away until the command expired
	codeOff       = "ha-off"
	codeNotHere   = "not-here"
	codeStuck     = "still-running" // the guest did not shut down in time
	codeReplaced  = "replaced"      // a kill replaced the shutdown
	codeAnswers   = "storage-back"  // what was lost when the command left is there again
)

// Pauses before a lock is released again after the guard refused: its datastore
// may need long; a process that is ending is gone in a moment.
const (
	releasePause = 500 * time.Millisecond
	notGonePause = 100 * time.Millisecond
)

// exec is a command as its target carries it out.
type exec struct {
	cmd     Command
	from    model.HostID
	arrived time.Duration
	stage   Stage
	epoch   model.Epoch
	touched bool // a process may exist
	over    bool
	tries   int
	last    Progress
}

func (m *Machine) noteTerm(ds model.DatastoreName, t model.Term) {
	m.terms[ds] = max(m.terms[ds], t)
}

// onCommand takes a command of a primary, once.
func (m *Machine) onCommand(from model.HostID, cmd Command) {
	if p, ok := m.results[cmd.ID]; ok {
		m.tell(from, p)
		return
	}
	if e := m.execs[cmd.ID]; e != nil {
		e.from = from
		m.tell(from, e.last)
		return
	}
	e := &exec{cmd: cmd, from: from, arrived: m.now, epoch: cmd.Epoch}
	m.execs[cmd.ID] = e
	home := cmd.VM.Home
	if !m.loaded || !m.conf.Enabled {
		m.failExec(e, codeOff, "HA is off on this host")
		return
	}
	m.noteTerm(home, cmd.Term)
	if other := m.busyVM[cmd.VM.ID]; other != nil {
		if cmd.Kind != CommandKill || other.cmd.Kind != CommandShutdown {
			m.failExec(e, codeBusyHost, fmt.Sprintf("command %s for it is not done: %s", other.cmd.ID, other.stage))
			return
		}
		m.failExec(other, codeReplaced, "a kill replaced it")
	}
	m.busyVM[cmd.VM.ID] = e
	m.progress(e, StageAccepted)
	m.begin(e)
}

// begin starts the work as soon as guard and libvirt are there, before the
// command expires.
func (m *Machine) begin(e *exec) {
	if m.execs[e.cmd.ID] != e || e.over {
		return
	}
	home := e.cmd.VM.Home
	if e.cmd.Term < m.terms[home] {
		m.failExec(e, codeStaleTerm, fmt.Sprintf("the command is of term %d, the protected list of %s has term %d", e.cmd.Term, home, m.terms[home]))
		return
	}
	if !m.guardUp || !m.hvUp && e.cmd.Kind != CommandEvacuate {
		if m.now-e.arrived >= e.cmd.Expires {
			m.failExec(e, codeExpired, fmt.Sprintf("guard up: %v, libvirt up: %v", m.guardUp, m.hvUp))
			return
		}
		m.after(200*time.Millisecond, func() { m.begin(e) })
		return
	}
	switch e.cmd.Kind {
	case CommandStart:
		m.claim(e)
	case CommandShutdown:
		m.shutdown(e)
	case CommandKill:
		m.kill(e)
	case CommandEvacuate:
		m.evacuate(e)
	default:
		m.failExec(e, string(lease.CodeInvalid), fmt.Sprintf("unknown command %q", e.cmd.Kind))
	}
}

func (m *Machine) tell(to model.HostID, p Progress) {
	if to == m.cfg.Self {
		if m.self != nil {
			m.onProgress(m.self, p)
		}
		return
	}
	m.do(SendMessage{To: to, Message: Message{Progress: &p}})
}

func (m *Machine) progress(e *exec, s Stage) {
	e.stage = s
	e.last = Progress{Command: e.cmd.ID, VM: e.cmd.VM.ID, Stage: s, Epoch: e.epoch, After: m.now - e.arrived}
	m.tell(e.from, e.last)
	m.reportDue = true
}

// finish ends a command and remembers how.
func (m *Machine) finish(e *exec, p Progress) {
	if e.over {
		return
	}
	e.over = true
	delete(m.execs, e.cmd.ID)
	if m.busyVM[e.cmd.VM.ID] == e {
		delete(m.busyVM, e.cmd.VM.ID)
	}
	p.Command, p.VM, p.Epoch, p.Done, p.After = e.cmd.ID, e.cmd.VM.ID, e.epoch, true, m.now-e.arrived
	m.results[e.cmd.ID] = p
	m.resultLog = append(m.resultLog, e.cmd.ID)
	if len(m.resultLog) > keptResults {
		delete(m.results, m.resultLog[0])
		m.resultLog = append(m.resultLog[:0:0], m.resultLog[1:]...)
	}
	m.tell(e.from, p)
	m.reportDue = true
	m.tend(e.cmd.VM.ID)
}

func (m *Machine) failExec(e *exec, code, text string) {
	m.finish(e, Progress{Stage: StageFailed, Code: code, Text: text})
}

func managedVM(p model.ProtectedVM) lease.ManagedVM {
	ds := p.Datastores
	if len(ds) == 0 {
		ds = []model.DatastoreName{p.Home}
	}
	return lease.ManagedVM{ID: p.ID, Name: p.Name, Home: p.Home, Disks: p.Disks, Datastores: ds}
}

func (m *Machine) claim(e *exec) {
	req := &lease.ClaimRequest{VM: managedVM(e.cmd.VM), Epoch: e.cmd.Epoch, Takeover: e.cmd.Takeover, Term: e.cmd.Term, Command: e.cmd.ID}
	m.ask(lease.Request{Claim: req}, func(r lease.Reply) {
		if e.over {
			return
		}
		if r.Code != lease.CodeOK {
			text := r.Text
			if r.Record != nil {
				text += fmt.Sprintf(" (its lock: %s)", r.Record)
			}
			m.failExec(e, string(r.Code), text)
			return
		}
		e.epoch = r.Epoch
		delete(m.undone, e.cmd.VM.ID)
		m.progress(e, StageLocked)
		m.define(e)
	})
}

func (m *Machine) define(e *exec) {
	m.hypervise(CallDefine, e.cmd.VM.ID, e.cmd.VM.Config, func(r HypervisorDone) {
		if r.Fault != "" {
			m.rollBack(e, string(r.Fault), "define: "+r.Text)
			return
		}
		e.touched = true
		m.hypervise(CallStartPaused, e.cmd.VM.ID, "", func(r HypervisorDone) {
			if r.Fault != "" && r.Fault != FaultRunning {
				m.rollBack(e, string(r.Fault), r.Text)
				return
			}
			m.confirm(e)
		})
	})
}

func (m *Machine) confirm(e *exec) {
	m.ask(lease.Request{Confirm: &lease.ConfirmRequest{VM: e.cmd.VM.ID, Epoch: e.epoch}}, func(r lease.Reply) {
		if r.Code != lease.CodeOK {
			m.rollBack(e, string(r.Code), "the guard did not confirm the paused start: "+r.Text)
			return
		}
		m.hypervise(CallResume, e.cmd.VM.ID, "", func(r HypervisorDone) {
			if r.Fault != "" {
				m.rollBack(e, string(r.Fault), "resume: "+r.Text)
				return
			}
			m.running(e)
		})
	})
}

// running: the VM's processors continue; what is left is to see its guest.
func (m *Machine) running(e *exec) {
	if m.busyVM[e.cmd.VM.ID] == e {
		delete(m.busyVM, e.cmd.VM.ID)
	}
	m.assumeRunning(e)
	m.progress(e, StageRunning)
	m.hypervise(CallNoAutostart, e.cmd.VM.ID, "", func(HypervisorDone) {})
	m.awaitGuest(e, m.now+m.cfg.AliveLimit)
}

// awaitGuest asks the guest agent every second whether the guest lives.
func (m *Machine) awaitGuest(e *exec, until time.Duration) {
	if e.over {
		return
	}
	d := m.domains[e.cmd.VM.ID]
	switch {
	case d == nil || !d.Active:
		m.finish(e, Progress{Stage: StageRunning, Text: "it ended before its guest agent answered"})
		return
	case m.now >= until:
		m.finish(e, Progress{Stage: StageRunning, Text: fmt.Sprintf("its guest agent did not answer in %s", seconds(m.cfg.AliveLimit))})
		return
	}
	if m.isFrozen(e.cmd.VM.ID) || m.hangs(e.cmd.VM.ID) {
		m.after(time.Second, func() { m.awaitGuest(e, until) })
		return
	}
	m.do(PingGuest{VM: e.cmd.VM.ID, Timeout: 2 * time.Second, Op: m.op(func(r GuestPinged) {
		if r.Alive {
			if d := m.domains[e.cmd.VM.ID]; d != nil && d.Active {
				d.alive = true
			}
			m.finish(e, Progress{Stage: StageAlive})
			return
		}
		m.after(time.Second, func() { m.awaitGuest(e, until) })
	})})
}

// rollBack undoes a start that failed after the lock was won: the process
// first, then the lock; the definition stays.
func (m *Machine) rollBack(e *exec, code, text string) {
	if e.over {
		return
	}
	if !e.touched {
		m.giveBack(e, model.ReasonStartFail, Progress{Stage: StageFailed, Code: code, Text: text})
		return
	}
	m.undone[e.cmd.VM.ID] = true
	m.hypervise(CallKill, e.cmd.VM.ID, "", func(HypervisorDone) {
		m.ask(lease.Request{Kill: &lease.KillRequest{VM: e.cmd.VM.ID, Epoch: e.epoch}}, func(lease.Reply) {
			m.giveBack(e, model.ReasonStartFail, Progress{Stage: StageFailed, Code: code, Text: text})
		})
	})
}

// giveBack releases the lock and ends the command; the guard refuses while a
// process exists, so it is asked a few times.
func (m *Machine) giveBack(e *exec, reason string, p Progress) {
	if e.over {
		return
	}
	m.ask(lease.Request{Release: &lease.ReleaseRequest{VM: e.cmd.VM.ID, Epoch: e.epoch, Reason: reason}}, func(r lease.Reply) {
		switch {
		case e.over:
		case r.Code == lease.CodeOK:
			e.epoch = max(r.Epoch, e.epoch+1)
			delete(m.undone, e.cmd.VM.ID)
			m.finish(e, p)
		case r.Code == lease.CodeUnknownVM || r.Code == lease.CodeHeldByOther:
			delete(m.undone, e.cmd.VM.ID)
			m.finish(e, p) // there is nothing to give back
		case e.tries >= 5:
			if p.Stage == StageGone {
				p.Stage, p.Code = StageFailed, string(r.Code)
			}
			p.Text += fmt.Sprintf("; its lock is not released yet (%s): %s", r.Code, r.Text)
			m.finish(e, p)
		default:
			e.tries++
			if r.Code == lease.CodeEpochMoved && r.Epoch > e.epoch {
				e.epoch = r.Epoch // the guard renewed its claim meanwhile
			}
			m.after(500*time.Millisecond, func() { m.giveBack(e, reason, p) })
		}
	})
}

// hold is the epoch under which this host holds the VM's lock.
func (m *Machine) hold(e *exec) bool {
	s, ok := m.guarded[e.cmd.VM.ID]
	if !ok {
		m.failExec(e, codeNotHere, "this host does not hold its lock")
		return false
	}
	e.epoch = s.Epoch
	return true
}

// shutdown asks the guest, and releases when the VM is gone.
func (m *Machine) shutdown(e *exec) {
	if !m.hold(e) {
		return
	}
	if m.isFrozen(e.cmd.VM.ID) || m.hangs(e.cmd.VM.ID) {
		m.failExec(e, string(lease.CodeRefused), "it is frozen, or its storage hangs: its guest cannot shut down; kill it, or wait until its datastore answers")
		return
	}
	m.hypervise(CallShutdown, e.cmd.VM.ID, "", func(r HypervisorDone) {
		if e.over {
			return
		}
		if d := m.domains[e.cmd.VM.ID]; d != nil && !d.Active {
			m.stopped(e)
			return
		}
		if r.Fault != "" {
			m.failExec(e, string(r.Fault), r.Text)
		}
	})
	m.after(m.cfg.StopLimit, func() {
		m.failExec(e, codeStuck, fmt.Sprintf("its guest did not shut down in %s", seconds(m.cfg.StopLimit)))
	})
}

// kill ends the VM at once, by its cgroup.
func (m *Machine) kill(e *exec) {
	if !m.hold(e) {
		return
	}
	m.ask(lease.Request{Kill: &lease.KillRequest{VM: e.cmd.VM.ID, Epoch: e.epoch}}, func(r lease.Reply) {
		if e.over {
			return
		}
		if r.Code != lease.CodeOK && r.Code != lease.CodeNoProcess {
			m.failExec(e, string(r.Code), r.Text)
			return
		}
		m.stopped(e)
	})
}

// stopped: the VM that was to be stopped is gone.
func (m *Machine) stopped(e *exec) {
	if e.stage == StageGone {
		return
	}
	e.stage = StageGone
	m.giveBack(e, model.ReasonUserOff, Progress{Stage: StageGone})
}

// tend looks after a VM that this host holds and that does not run any more:
// its lock is released with the reason, so that the primary knows whether to
// start it again. It is the duty of every host, whether HA is on or off.
func (m *Machine) tend(id model.VMID) {
	g, held := m.guarded[id]
	d := m.domains[id]
	if e := m.busyVM[id]; e != nil {
		if e.cmd.Kind == CommandShutdown && d != nil && !d.Active && e.stage == StageAccepted {
			m.stopped(e)
		}
		return
	}
	if !held || m.releasing[id] || !m.guardUp {
		return
	}
	active := d != nil && d.Active
	wait, reason := time.Duration(0), ""
	switch {
	case g.Phase == lease.PhaseGranted:
		// A start that a former life of this agent began, or a user's that is
		// about to appear.
		wait, reason = 10*time.Second, model.ReasonStartFail
		if active && d.Paused {
			wait = 3 * time.Second
		}
	case active && m.hvUp && m.listed && g.Phase != lease.PhaseGone:
		return
	case g.Phase != lease.PhaseRunning && g.Phase != lease.PhaseGone:
		return
	case !m.hvUp || !m.listed || active:
		// Its processes ended; libvirt may yet say why.
		if g.Phase != lease.PhaseGone {
			return
		}
		wait, reason = 3*time.Second, model.ReasonCrashed
	case d == nil || d.Cause == StopUnknown:
		wait, reason = time.Second, model.ReasonCrashed
	case d.Cause == StopMigrated:
		return
	default:
		reason = releaseReason(d.Cause)
	}
	reason, known := m.whyEnded(g, d, reason)
	if !known {
		return
	}
	if wait > 0 {
		since, waiting := m.ended[id]
		if !waiting {
			m.ended[id] = m.now
			m.after(wait, func() { m.tend(id) })
			return
		}
		if left := since + wait - m.now; left > 0 {
			m.after(left, func() { m.tend(id) })
			return
		}
	}
	if active && g.Phase == lease.PhaseGranted {
		m.releasing[id] = true
		m.ask(lease.Request{Kill: &lease.KillRequest{VM: id, Epoch: g.Epoch}}, func(lease.Reply) {
			m.release(id, g, reason)
		})
		return
	}
	m.release(id, g, reason)
}

func releaseReason(c StopCause) string {
	switch c {
	case StopUndone:
		return model.ReasonStartFail
	case StopGuestShutdown:
		return model.ReasonGuestOff
	case StopDestroyed, StopSaved:
		return model.ReasonUserOff
	}
	return model.ReasonCrashed
}

func (m *Machine) release(id model.VMID, g lease.VMStatus, reason string) {
	m.releasing[id] = true
	m.ask(lease.Request{Release: &lease.ReleaseRequest{VM: id, Epoch: g.Epoch, Reason: reason}}, func(r lease.Reply) {
		if r.Code == lease.CodeOK || r.Code == lease.CodeUnknownVM || r.Code == lease.CodeHeldByOther {
			delete(m.releasing, id)
			delete(m.ended, id)
			delete(m.undone, id)
			if s, ok := m.guarded[id]; ok && s.Epoch == g.Epoch {
				delete(m.guarded, id)
			}
			if d := m.domains[id]; d != nil && !m.hvUp {
				d.Active = false // the guard has proven that nothing of it is left
			}
			m.reportDue = true
			if reason == model.ReasonHAOff || reason == model.ReasonHostOff {
				and := "its lock is released for a restart elsewhere"
				if reason == model.ReasonHostOff {
					and = "its lock is released"
				}
				m.emit(event.Event{Kind: event.VMDown, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
					Text: fmt.Sprintf("%s has stopped on %s, and %s", g.Name, m.cfg.Self, and), Cause: m.haOff[id].why})
			}
			delete(m.haOff, id)
			if reason == model.ReasonCrashed {
				m.emit(event.Event{Kind: event.VMDown, Severity: event.Warning, VM: g.Name, Host: m.cfg.Self, Datastore: g.Home,
					Text: fmt.Sprintf("%s died on %s without being asked to", g.Name, m.cfg.Self), Cause: r.Text})
			}
			return
		}
		// Every refusal brings a new status of the guard, which must not bring
		// the next attempt at once.
		pause := releasePause
		if r.Code == lease.CodeNotGone {
			pause = notGonePause
		}
		m.after(pause, func() {
			delete(m.releasing, id)
			m.tend(id)
		})
	})
}
