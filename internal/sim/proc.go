package sim

import (
	"slices"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

// guest is a virtual machine, wherever it runs.
type guest struct {
	i     int
	id    model.VMID
	name  string
	conf  config.VM
	home  *disk
	disks []*disk // all that its disks live on
	procs []*proc // its processes on all hosts

	failStarts int // so many starts fail
	noDisk     bool
	failFault  fdm.HypervisorFault

	truth truth
}

// proc is a VM's process on one host, with its virtual processors.
type proc struct {
	vm       *guest
	h        *host
	instance uint64 // grows with every process of any VM
	placed   bool   // in the guard's cgroup
	paused   bool   // libvirt has not continued it
	ioError  bool   // stopped by a failed write until the storage is back
	frozen   bool   // by its cgroup
	freezeOp uint64
	resumed  bool          // ever ran
	asked    bool          // the agent asked for its end
	busy     *path         // a write hangs there
	dying    bool          // killed, but its write hangs in the kernel
	hung     bool          // the guest answers nothing
	alive    time.Duration // when the guest's agent answers
	reason   endReason
}

// runs: its processors execute.
func (p *proc) runs() bool {
	return !p.paused && !p.frozen && !p.ioError && !p.dying && !p.h.halted()
}

// endReason is why a process ended.
type endReason uint8

const (
	endPower endReason = iota // its host lost power or was reset
	endCrash                  // it died, or panicked
	endGuest                  // the guest shut itself down
	endUser                   // its user or administrator ended it
	endHostShutdown
	endGuard   // the guard killed it
	endAgent   // the agent had libvirt kill it
	endReplace // it was migrated
)

// bootTime is how long a guest takes to boot on an idle host, unless the file
// says.
const bootTime = 3 * time.Second

func (s *Sim) addGuest(c *config.VM) {
	g := &guest{i: len(s.vms), id: c.ID, name: c.Name, conf: *c, home: s.disk(c.Datastore), failFault: fdm.FaultOther}
	g.disks = append(g.disks, g.home)
	for _, n := range c.DisksOn {
		if d := s.disk(n); !slices.Contains(g.disks, d) {
			g.disks = append(g.disks, d)
		}
	}
	s.vms = append(s.vms, g)
	s.byVM[g.id], s.vmNamed[g.name] = g, g
}

// spawn makes a VM's process, with its processors stopped.
func (h *host) spawn(g *guest) *proc {
	h.s.nonces++
	p := &proc{vm: g, h: h, instance: h.s.nonces, paused: true, alive: forever}
	h.procs[g.id] = p
	i, _ := slices.BinarySearchFunc(h.order, g.id, func(p *proc, id model.VMID) int {
		if p.vm.id < id {
			return -1
		}
		return 1
	})
	h.order = slices.Insert(h.order, i, p)
	g.procs = append(g.procs, p)
	return p
}

// proceed continues the processors. A booting guest needs its host's processor:
// many at once take longer.
func (p *proc) proceed() {
	s := p.h.s
	p.paused = false
	if !p.resumed {
		p.resumed = true
		boot := p.vm.conf.Boot
		if boot <= 0 {
			boot = bootTime
		}
		n := 0
		for _, o := range p.h.order {
			if o.resumed && o.alive > s.now {
				n++
			}
		}
		cores := max(p.h.conf.CPU.Cores, 2)
		p.alive = s.now + boot*time.Duration(max(n, cores))/time.Duration(cores)
	}
	s.check.goesOn(p, "starts")
	s.check.update(p.vm)
	p.touchStorage()
}

// touchStorage lets a running guest meet the state of its storage: a write
// hangs, or fails and stops the processors.
func (p *proc) touchStorage() {
	if !p.runs() {
		return
	}
	for _, d := range p.vm.disks {
		q := p.h.paths[d.i]
		if q == nil {
			continue
		}
		switch q.state {
		case pathHang, pathHangHard, pathUnanswered:
			if p.busy == nil && p.h.s.rng.chance(700) {
				p.busy = q
				p.h.s.check.writeHangs(p)
			}
		case pathLost, pathFull, pathReadonly:
			p.ioError = true
			p.h.s.check.update(p.vm)
			return
		}
	}
}

// end removes the process. A killed process whose write hangs hard in the
// kernel stays until the storage answers.
func (p *proc) end(why endReason, detail string) {
	h, s := p.h, p.h.s
	if p.busy != nil && p.busy.state == pathHangHard && why != endPower {
		if !p.dying {
			p.dying, p.reason = true, why
			s.check.update(p.vm)
		}
		return
	}
	p.busy = nil
	delete(h.procs, p.vm.id)
	h.order = slices.DeleteFunc(h.order, func(o *proc) bool { return o == p })
	p.vm.procs = slices.DeleteFunc(p.vm.procs, func(o *proc) bool { return o == p })
	s.check.ended(p, why, detail)
	s.trace(h, "%s ends: %s", p.vm.name, detail)
	if !h.on {
		return
	}
	h.guard.gone(p.vm.id)
	h.virt.processGone(p, why)
}

// healed: the path that a write hung on answers again.
func (p *proc) healed() {
	if p.ioError {
		p.ioError = false // QEMU is continued by hand or by policy; its disks are consistent
	}
	if p.busy != nil {
		p.busy = nil
		p.h.s.check.writeLands(p.vm, p.instance, "a write that hung")
		if p.dying {
			p.dying = false
			p.end(p.reason, "killed")
			return
		}
		if p.frozen {
			p.h.guard.frozeAgain(p)
		}
	}
	p.h.s.check.update(p.vm)
}
