package sim

import (
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// libvirtd is a host's libvirt daemon, with the hook that it runs.
type libvirtd struct {
	h        *host
	life     uint32
	on       bool
	stopped  bool
	starting int
	proving  bool
	domains  map[model.VMID]*domain
	order    []*domain // in the order of their ids
}

type domain struct {
	vm    *guest
	cause fdm.StopCause
}

// Times of libvirt's work, on an idle host.
const (
	virtCall   = 20 * time.Millisecond
	virtDefine = 30 * time.Millisecond
	virtStart  = 400 * time.Millisecond
	virtEvent  = 3 * time.Millisecond
	virtRelist = 30 * time.Second
	guestStops = 2 * time.Second // a guest that was asked to shut down
	hookLimit  = 2700 * time.Millisecond
	virtLimit  = 15 * time.Second
	startLimit = 70 * time.Second
)

func (v *libvirtd) runs() bool { return v.on && !v.stopped && !v.h.halted() }

func (v *libvirtd) start() {
	if v.on || !v.h.on {
		return
	}
	v.life++
	v.on, v.stopped, v.starting, v.proving = true, false, 0, false
	v.h.s.trace(v.h, "libvirtd starts")
	// What ended while it was away died without its knowledge.
	for _, d := range v.order {
		if v.h.procs[d.vm.id] == nil && d.cause == fdm.StopUnknown {
			d.cause = fdm.StopFailed
		}
	}
	v.connected()
}

// connected tells the agent, if both are there.
func (v *libvirtd) connected() {
	a := &v.h.agent
	if !v.on || !a.up() {
		return
	}
	life, alife := v.life, a.life
	v.h.s.after(10*time.Millisecond, func() {
		if v.life != life || a.life != alife || a.hvUp {
			return
		}
		if !v.runs() {
			v.h.s.after(time.Second, v.connected)
			return
		}
		a.hvUp = true
		a.post(fdm.HypervisorChanged{Up: true})
		v.list()
		v.relist(life, alife)
		v.proveHook()
	})
}

func (v *libvirtd) relist(life, alife uint32) {
	v.h.s.after(virtRelist, func() {
		if v.life == life && v.h.agent.life == alife {
			if v.runs() {
				v.list()
			}
			v.relist(life, alife)
		}
	})
}

func (v *libvirtd) list() {
	ev := fdm.DomainsListed{Domains: make([]fdm.Domain, 0, len(v.order))}
	for _, d := range v.order {
		ev.Domains = append(ev.Domains, v.show(d))
	}
	v.h.agent.post(ev)
}

func (v *libvirtd) show(d *domain) fdm.Domain {
	p := v.h.procs[d.vm.id]
	return fdm.Domain{VM: d.vm.id, Name: d.vm.name, Active: p != nil, Paused: p != nil && p.paused, Cause: d.cause,
		Memory: d.vm.conf.Memory, CPUs: d.vm.conf.CPUs}
}

// die is the end of the daemon; its domains run on.
func (v *libvirtd) die() {
	if !v.on {
		return
	}
	v.on = false
	v.life++
	a := &v.h.agent
	if a.up() && a.hvUp {
		a.hvUp = false
		a.post(fdm.HypervisorChanged{Reason: "libvirt closed the connection"})
	}
}

func (v *libvirtd) kill() {
	if !v.on {
		return
	}
	v.h.s.trace(v.h, "libvirtd killed")
	v.die()
	boots := v.h.boots
	v.h.s.after(respawnLibvirt, func() {
		if v.h.boots == boots && !v.h.s.opts.Off.NoRespawn {
			v.start()
		}
	})
}

func (v *libvirtd) resume() {
	if v.runs() {
		v.connected()
	}
}

// proveHook has libvirt ask for the canary until the guard has seen it.
func (v *libvirtd) proveHook() {
	h := v.h
	g := &h.guard
	if v.proving || !v.on || !h.agent.hvUp {
		return
	}
	v.proving = true
	life := v.life
	h.s.after(200*time.Millisecond, func() {
		v.proving = false
		if v.life != life || g.hooked == life {
			return
		}
		if !v.runs() || !g.runs() {
			h.s.after(time.Second, v.proveHook)
			return
		}
		g.ask(&lease.Request{Hook: &lease.HookRequest{Name: lease.CanaryPrefix + "sim", Operation: "prepare", SubOperation: "begin", Daemon: int(life)}},
			func(lease.Reply) { g.hooked = life })
	})
}

func (v *libvirtd) domain(g *guest, make bool) *domain {
	d := v.domains[g.id]
	if d == nil && make {
		d = &domain{vm: g}
		v.domains[g.id] = d
		i, _ := slices.BinarySearchFunc(v.order, g.id, func(d *domain, id model.VMID) int {
			if d.vm.id < id {
				return -1
			}
			return 1
		})
		v.order = slices.Insert(v.order, i, d)
	}
	return d
}

func (v *libvirtd) undefine(d *domain) {
	delete(v.domains, d.vm.id)
	v.order = slices.DeleteFunc(v.order, func(o *domain) bool { return o == d })
}

// changed tells the agent of a domain's change.
func (v *libvirtd) changed(d *domain) {
	life, alife := v.life, v.h.agent.life
	v.h.s.after(virtEvent, func() {
		if v.life == life && v.on && v.h.agent.life == alife && v.h.agent.hvUp && v.domains[d.vm.id] == d {
			v.h.agent.post(fdm.DomainChanged{Domain: v.show(d)})
		}
	})
}

// call carries out a call of the agent; it is answered once.
func (v *libvirtd) call(e fdm.Hypervise) {
	a, s := &v.h.agent, v.h.s
	limit := virtLimit
	if e.Call == fdm.CallStartPaused {
		limit = startLimit
	}
	life, over := a.life, false
	answer := func(fault fdm.HypervisorFault, text string) {
		if over || a.life != life {
			return
		}
		over = true
		a.post(fdm.HypervisorDone{Op: e.Op, Fault: fault, Text: text})
	}
	g := s.byVM[e.VM]
	switch {
	case !v.on || !a.hvUp:
		a.later(0, func() fdm.Event {
			return fdm.HypervisorDone{Op: e.Op, Fault: fdm.FaultUnavailable, Text: "libvirt does not answer"}
		})
		return
	case g == nil && e.Call != fdm.CallList:
		a.later(0, func() fdm.Event {
			return fdm.HypervisorDone{Op: e.Op, Fault: fdm.FaultNoConfig, Text: "no such domain"}
		})
		return
	}
	s.after(limit, func() {
		if !over && a.life == life {
			answer(fdm.FaultTimeout, "libvirt did not answer in time")
			if v.on && !v.runs() && a.hvUp {
				a.hvUp = false
				a.post(fdm.HypervisorChanged{Reason: "libvirt does not answer"})
			}
		}
	})
	vlife := v.life
	v.when(virtCall, vlife, func() { v.do(e, g, answer) }, func() { answer(fdm.FaultUnavailable, "libvirt closed the connection") })
}

// when runs f once d has passed and the daemon runs; gone if it ended.
func (v *libvirtd) when(d time.Duration, life uint32, f, gone func()) {
	v.h.s.after(d, func() {
		switch {
		case v.life != life:
			gone()
		case !v.runs():
			v.when(100*time.Millisecond, life, f, gone)
		default:
			f()
		}
	})
}

func (v *libvirtd) do(e fdm.Hypervise, g *guest, answer func(fdm.HypervisorFault, string)) {
	h := v.h
	switch e.Call {
	case fdm.CallDefine:
		v.define(g, answer)
	case fdm.CallStartPaused:
		v.startPaused(g, answer)
	case fdm.CallResume:
		p := h.procs[g.id]
		if p == nil || p.dying {
			answer(fdm.FaultOther, "the domain is not running")
			return
		}
		if p.paused {
			p.proceed()
			v.changed(v.domain(g, true))
		}
		answer("", "")
	case fdm.CallShutdown:
		if p := h.procs[g.id]; p != nil {
			h.s.check.stopAsked(p, "shutdown by the agent")
			v.guestShutsDown(p)
		}
		answer("", "")
	case fdm.CallKill:
		if p := h.procs[g.id]; p != nil {
			h.s.check.stopAsked(p, "kill by the agent")
			p.end(endAgent, "killed by the agent through libvirt")
		}
		answer("", "")
	case fdm.CallList:
		v.list()
		answer("", "")
	case fdm.CallUndefine:
		if d := v.domains[g.id]; d != nil && h.procs[g.id] == nil {
			v.undefine(d)
		}
		answer("", "")
	default:
		answer("", "")
	}
}

// guestShutsDown lets a guest end by itself, if it lives.
func (v *libvirtd) guestShutsDown(p *proc) {
	if p.hung || p.alive > v.h.s.now {
		return
	}
	var end func()
	end = func() {
		switch {
		case v.h.procs[p.vm.id] != p:
		case !p.runs():
			v.h.s.after(time.Second, end)
		default:
			v.endGuest(p, endGuest)
		}
	}
	v.h.s.after(guestStops, end)
}

// endGuest ends a guest's process in an orderly way.
func (v *libvirtd) endGuest(p *proc, why endReason) {
	p.end(why, map[endReason]string{endGuest: "the guest shut down", endUser: "ended by its user", endCrash: "it crashed", endHostShutdown: "its host shuts down"}[why])
}

func (v *libvirtd) define(g *guest, answer func(fdm.HypervisorFault, string)) {
	h := v.h
	p := h.paths[g.home.i]
	switch {
	case p == nil || p.state == pathLost || g.home.gone:
		answer(fdm.FaultNoConfig, "the VM's definition cannot be read")
	case p.hangs():
		h.s.after(h.agent.readLimit(), func() { answer(fdm.FaultTimeout, "the VM's definition cannot be read in time") })
	default:
		d := v.domain(g, true)
		h.s.after(virtDefine, func() {
			if v.domains[g.id] == d {
				answer("", "")
			} else {
				answer(fdm.FaultUnavailable, "libvirt closed the connection")
			}
		})
	}
}

// startPaused asks the hook, then makes the process. Starts cost the host's
// processor: many at once take longer.
func (v *libvirtd) startPaused(g *guest, answer func(fdm.HypervisorFault, string)) {
	h, s := v.h, v.h.s
	if h.procs[g.id] != nil {
		answer(fdm.FaultRunning, "the domain is running")
		return
	}
	v.domain(g, true).cause = fdm.StopUnknown
	life := v.life
	v.askHook(g, func(ok bool, text string) {
		switch {
		case v.life != life:
			answer(fdm.FaultUnavailable, "libvirt closed the connection")
			return
		case !ok:
			answer(fdm.FaultHook, text)
			return
		}
		v.starting++
		cores := max(h.conf.CPU.Cores, 2)
		d := virtStart * time.Duration(max(v.starting, cores)) / time.Duration(cores)
		v.when(d+s.rng.between(0, d/4), v.life, func() {
			v.starting--
			v.create(g, answer)
		}, func() {
			v.starting = max(0, v.starting-1)
			answer(fdm.FaultUnavailable, "libvirt closed the connection")
		})
	})
}

func (v *libvirtd) create(g *guest, answer func(fdm.HypervisorFault, string)) {
	h := v.h
	fail := func(f fdm.HypervisorFault, text string) {
		v.tellHook(g, "stopped")
		answer(f, text)
	}
	for _, d := range g.disks {
		p := h.paths[d.i]
		if p == nil || p.state == pathLost {
			fail(fdm.FaultMissingDisk, fmt.Sprintf("a disk on %s cannot be opened", d.name))
			return
		}
		if p.hangs() {
			v.when(time.Second, v.life, func() { v.create(g, answer) }, func() { answer(fdm.FaultUnavailable, "libvirt closed the connection") })
			return
		}
	}
	switch {
	case h.procs[g.id] != nil:
		answer(fdm.FaultRunning, "the domain is running")
	case g.noDisk:
		fail(fdm.FaultMissingDisk, "its disk is missing")
	case g.failStarts > 0:
		g.failStarts--
		fail(g.failFault, "the process ended with an error")
	default:
		h.spawn(g)
		v.changed(v.domain(g, true))
		answer("", "")
	}
}

// byHand is `virsh start`: libvirt asks the hook, and the VM runs at once.
func (v *libvirtd) byHand(g *guest) {
	if !v.runs() || v.h.procs[g.id] != nil {
		return
	}
	v.domain(g, true).cause = fdm.StopUnknown
	v.askHook(g, func(ok bool, _ string) {
		if !ok {
			return
		}
		v.when(virtStart, v.life, func() {
			v.create(g, func(f fdm.HypervisorFault, _ string) {
				if p := v.h.procs[g.id]; f == "" && p != nil {
					p.proceed()
				}
			})
		}, func() {})
	})
}

// askHook is the hook script: the guard decides, and without its answer the
// list of managed VMs on this host's disk.
func (v *libvirtd) askHook(g *guest, f func(ok bool, text string)) {
	h := v.h
	if h.s.opts.Off.NoHook {
		f(true, "")
		return
	}
	done := false
	if h.guard.up() {
		h.guard.ask(&lease.Request{Hook: &lease.HookRequest{VM: g.id, Name: g.name, Operation: "prepare", SubOperation: "begin", Daemon: int(v.life)}},
			func(r lease.Reply) {
				if !done {
					done = true
					f(r.Code == lease.CodeOK, r.Text)
				}
			})
	}
	h.s.after(hookLimit, func() {
		if done || !h.on {
			return
		}
		done = true
		for i := range h.managed {
			if h.managed[i].ID == g.id {
				f(false, "hanok: the guard of this host does not answer")
				return
			}
		}
		f(true, "")
	})
}

func (v *libvirtd) tellHook(g *guest, op string) {
	if v.h.guard.up() {
		v.h.guard.ask(&lease.Request{Hook: &lease.HookRequest{VM: g.id, Name: g.name, Operation: op}}, func(lease.Reply) {})
	}
}

// processGone: libvirt notices the end of a process.
func (v *libvirtd) processGone(p *proc, why endReason) {
	d := v.domains[p.vm.id]
	if d == nil {
		return
	}
	if !v.on {
		d.cause = fdm.StopFailed
		return
	}
	d.cause = map[endReason]fdm.StopCause{endCrash: fdm.StopFailed, endGuest: fdm.StopGuestShutdown, endUser: fdm.StopDestroyed,
		endHostShutdown: fdm.StopGuestShutdown, endGuard: fdm.StopFailed, endAgent: fdm.StopDestroyed, endReplace: fdm.StopMigrated}[why]
	v.tellHook(p.vm, "stopped")
	v.changed(d)
}
