package sim

import (
	"fmt"
	"strconv"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// Do carries out an action of a scenario now; text is its line, for people. An
// action that has no meaning at the moment (to power on what is on) does
// nothing.
func (s *Sim) Do(a scenario.Action, text string) error {
	s.lastStep, s.lastAt = text, s.now
	s.remember(a, text)
	if s.opts.Trace != nil {
		s.trace(nil, "--- %s", text)
	}
	for i := range len(text) {
		s.hash = mix(s.hash, uint64(text[i]))
	}
	switch a := a.(type) {
	case scenario.Power:
		s.power(a)
	case scenario.Cut:
		s.cut(s.byName[a.Host], a.Network, a.Direction)
	case scenario.Heal:
		s.heal(s.byName[a.Host])
	case scenario.Partition:
		s.partition(a)
	case scenario.StorageFault:
		if p := s.byName[a.Host].pathTo(a.Datastore); p != nil {
			if a.Fault == scenario.FaultFull && p.state != pathFull {
				s.cover[FullDatastores]++
			}
			p.set(pathStates[a.Fault])
		}
	case scenario.Process:
		s.signal(a)
	case scenario.VM:
		return s.doVM(a)
	case scenario.Configure:
		return s.configure(a.Field, a.Value, a.Force)
	case scenario.Maintenance:
		return s.configure(fmt.Sprintf("hosts[%s].maintenance", a.Host), strconv.FormatBool(a.On), a.Force)
	case scenario.Leave:
		s.leave(s.byName[a.Host], a)
	case scenario.Datastore:
		s.doDatastore(a)
	case scenario.Stall:
		h := s.byName[a.Host]
		if a.Name == "guard" {
			h.guard.stall, h.guard.stallFor = a.After, a.For
		} else {
			h.agent.stall, h.agent.stallFor = a.After, a.For
		}
	case scenario.Slow:
		if a.By > 0 {
			s.cover[SlowHosts]++
		}
		s.byName[a.Host].slow = a.By
		s.disturbed()
	case scenario.Clock:
		h := s.byName[a.Host]
		s.cover[ClockChanges]++
		h.ppm = a.PPM
		h.clk.set(s.now, a.PPM)
		h.guard.alarm.at, h.agent.alarm.at = 0, 0
		h.wake()
	case scenario.Network:
		q := &s.opts.Network
		switch a.What {
		case "loss":
			q.Loss = a.Permille
		case "duplicate":
			q.Duplicate = a.Permille
		case "latency":
			q.Latency = a.Latency
		}
		s.disturbed()
	default:
		return fmt.Errorf("the simulator does not know how to do %T", a)
	}
	return nil
}

func (s *Sim) power(a scenario.Power) {
	h := s.byName[a.Host]
	boots := h.boots
	later := func(f func()) {
		if a.For > 0 {
			s.after(a.For, func() {
				if h.boots == boots {
					f()
				}
			})
		}
	}
	switch a.Op {
	case scenario.PowerOff:
		s.cover[PowerLosses]++
		h.powerOff("power lost")
	case scenario.PowerOn:
		h.powerOn()
	case scenario.Reboot:
		h.powerOff("reboot")
		h.powerOn()
	case scenario.Shutdown:
		h.shutdown()
	case scenario.Freeze:
		h.setFrozen(true)
		later(func() { h.setFrozen(false) })
	case scenario.Thaw:
		h.setFrozen(false)
		h.setSuspended(false)
	case scenario.Suspend:
		h.setSuspended(true)
		later(func() { h.setSuspended(false) })
	}
}

func (s *Sim) stopGuard(h *host, d time.Duration) {
	h.guard.stopped = true
	s.disturbed()
	life := h.guard.life
	s.after(d, func() {
		if h.guard.life == life {
			h.guard.stopped = false
			h.guard.resume()
		}
	})
}

func (s *Sim) stopAgent(h *host, d time.Duration) {
	h.agent.setStopped(true)
	s.disturbed()
	life := h.agent.life
	s.after(d, func() {
		if h.agent.life == life {
			h.agent.setStopped(false)
		}
	})
}

func (s *Sim) signal(a scenario.Process) {
	h := s.byName[a.Host]
	s.disturbed()
	stop := a.Op == scenario.Stop
	switch {
	case !h.on:
	case a.Op == scenario.Kill && a.Name == "agent":
		h.agent.kill()
	case a.Op == scenario.Kill && a.Name == "guard":
		h.guard.kill()
	case a.Op == scenario.Kill:
		h.virt.kill()
	case a.Name == "agent":
		h.agent.setStopped(stop)
	case a.Name == "guard":
		h.guard.stopped = stop && h.guard.up()
		h.guard.resume()
	default:
		h.virt.setStopped(stop)
	}
}

func (v *libvirtd) setStopped(on bool) {
	v.stopped = on && v.on
	v.resume()
}

func (s *Sim) doVM(a scenario.VM) error {
	g := s.vmNamed[a.VM]
	ref := &fdm.VMRef{Name: a.VM}
	switch a.Op {
	case scenario.VMStart:
		s.Ask(fdm.AdminRequest{Start: ref, Force: a.Force}, nil)
	case scenario.VMStop:
		g.truth.userStop = true
		s.Ask(fdm.AdminRequest{Shutdown: ref}, nil)
	case scenario.VMKill:
		g.truth.userStop = true
		s.Ask(fdm.AdminRequest{Kill: ref}, nil)
	case scenario.VMCrash:
		for _, p := range append([]*proc(nil), g.procs...) {
			p.end(endCrash, "it crashed")
		}
	case scenario.VMShutdown:
		for _, p := range append([]*proc(nil), g.procs...) {
			p.h.virt.guestShutsDown(p)
		}
	case scenario.VMHang:
		for _, p := range g.procs {
			s.cover[GuestHangs]++
			p.hung = true
		}
	case scenario.VMFailStart:
		g.failStarts = a.Count
	case scenario.VMDelete:
		g.noDisk = true
	case scenario.VMRestore:
		g.noDisk = false
	case scenario.VMByHand:
		s.byName[a.Host].virt.byHand(g)
	case scenario.VMSet:
		return s.configure("vms["+a.VM+"]."+a.Field, a.Value, a.Force)
	default:
		return fmt.Errorf("the simulator has no `vm %s`", a.Op)
	}
	s.disturbed()
	return nil
}

// configure changes the cluster file through the first agent that answers, as
// an operator does, and asks again while none takes it.
func (s *Sim) configure(field, value string, force bool) error {
	next, err := s.cluster.Changed(field, value)
	if err != nil {
		return err
	}
	s.adoptFile(next)
	s.disturbed()
	s.apply(next.Version, 60, force)
	return nil
}

func (s *Sim) apply(version uint64, tries int, force bool) {
	if tries == 0 || s.cluster.Version != version {
		return
	}
	offer := &fdm.ConfigOffer{Version: version, File: s.files[version].conf.File}
	again := func() { s.after(time.Second, func() { s.apply(version, tries-1, force) }) }
	if !s.Ask(fdm.AdminRequest{Apply: offer, Force: force}, func(r fdm.AdminReply) {
		switch {
		case r.Refused && s.cluster.Version == version:
			s.takeBack(s.files[version])
		case !r.OK && !r.Refused:
			again()
		}
	}) {
		again()
	}
}

// takeBack goes back to the file before one that was refused, as an operator
// does; versions never come twice.
func (s *Sim) takeBack(refused *file) {
	c := refused.from.cluster.Clone()
	c.Version = refused.cluster.Version
	s.cluster, s.conf, s.newest = c, refused.from.conf, refused.from
}

// guestLimit is how long a guest may take to shut down before its host does, as
// `hanok host stop-vms` asks for by default.
const guestLimit = 90 * time.Second

// leave has a host stop its VMs, or calls that off.
func (s *Sim) leave(h *host, a scenario.Leave) {
	if !h.agent.runs() {
		return
	}
	s.admins++
	s.disturbed()
	was := h.leaving
	h.leaving = !a.Cancel
	s.asked[s.admins] = func(r fdm.AdminReply) {
		if r.Refused {
			h.leaving = was
		}
	}
	h.agent.post(fdm.AdminAsked{ID: s.admins, Request: fdm.AdminRequest{Force: a.Force, Leave: &fdm.LeaveRequest{GuestLimit: guestLimit, Cancel: a.Cancel}}})
}

func (s *Sim) doDatastore(a scenario.Datastore) {
	d := s.disk(a.Datastore)
	s.disturbed()
	switch a.Op {
	case scenario.DatastoreSnapshot:
		d.saved = d.content.clone()
	case scenario.DatastoreRollback:
		if d.saved != nil {
			d.content = *d.saved.clone()
			s.check.rolledBack(d)
		}
	case scenario.DatastoreDelete:
		d.gone = true
	case scenario.DatastoreRepair:
		d.repair()
	}
}

// loss is an instance that an action took away.
type loss struct {
	fault string
	at    time.Duration
	from  model.HostID
}

// recoveries are the losses, by VM, and what became of them.
type recoveries struct {
	lost map[*guest]loss
	done []scenario.Recovery
}

// remember notes which VMs an action may take away.
func (s *Sim) remember(a scenario.Action, text string) {
	host, vm := scenario.Victims(a)
	if host == "" && vm == "" {
		return
	}
	if s.recover.lost == nil {
		s.recover.lost = map[*guest]loss{}
	}
	for _, g := range s.vms {
		for _, p := range g.procs {
			if (p.h.name == host || g.name == vm) && p.runs() {
				s.recover.lost[g] = loss{text, s.now, p.h.name}
			}
		}
	}
}

// recovered: a VM runs that ran nowhere.
func (s *Sim) recovered(g *guest, p *proc) {
	s.cover[Restarts]++
	if l, ok := s.recover.lost[g]; ok {
		delete(s.recover.lost, g)
		if s.now > l.at && len(s.recover.done) < 100_000 {
			s.recover.done = append(s.recover.done, scenario.Recovery{VM: g.name, Fault: l.fault, FaultAt: (l.at - s.zero).Seconds(),
				From: l.from, To: p.h.name, Seconds: (s.now - l.at).Seconds()})
		}
	}
}
