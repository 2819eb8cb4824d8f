package sim

import (
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// The guard's cgroups: what internal/hypervisor/proc does on a real host.

// scanned lists the host's processes, and places those found in their units:
// what appeared in a unit that was frozen ahead is frozen as it is placed.
func (g *guard) scanned(life uint32, op uint64) {
	if g.life != life {
		return
	}
	h := g.h
	if g.hooked != 0 && g.hooked != h.virt.life {
		g.hooked = 0
		g.post(lease.Event{Kind: lease.EvHookLost})
	}
	procs := g.procs[:0]
	kept := g.busy || len(g.inbox) > 0 || len(g.orders) > 0 || !g.runs() || h.slow > 0
	if kept {
		procs = nil // the list is read later
	}
	for _, p := range h.order {
		p.placed = true
		if len(h.traps) > 0 && !p.frozen {
			if trap, ok := h.traps[p.vm.id]; ok {
				g.order(p, trap)
			}
		}
		procs = append(procs, lease.Proc{VM: p.vm.id, Name: p.vm.name, Frozen: p.frozen})
	}
	if !kept {
		g.procs = procs
	}
	g.post(lease.Event{Kind: lease.EvScanned, Op: op, Procs: procs})
}

// order freezes a process and reports it.
func (g *guard) order(p *proc, op uint64) {
	if g.h.s.opts.Off.NoFreeze {
		g.post(lease.Event{Kind: lease.EvFroze, Op: op, VM: p.vm.id, Frozen: lease.FrozenYes, Took: 10 * time.Millisecond})
		return
	}
	p.frozen, p.freezeOp = true, op
	g.h.s.cover[Freezes]++
	g.h.s.trace(g.h, "freezes %s", p.vm.name)
	g.h.s.check.update(p.vm)
	g.frozeAgain(p)
}

// frozeAgain reports how a freeze stands.
func (g *guard) frozeAgain(p *proc) {
	r := lease.FrozenYes
	if p.busy != nil || p.dying {
		r = lease.FrozenOutstanding
	}
	g.post(lease.Event{Kind: lease.EvFroze, Op: p.freezeOp, VM: p.vm.id, Frozen: r, Took: 10 * time.Millisecond})
}

// freeze is carried out a moment later, and stays in force for what appears.
func (g *guard) freeze(op uint64, vm model.VMID) {
	h := g.h
	h.traps[vm] = op
	alive := g.living()
	h.s.after(h.s.rng.between(time.Millisecond, 40*time.Millisecond), func() {
		if h.traps[vm] != op || !h.on {
			return
		}
		if p := h.procs[vm]; p != nil {
			p.placed = true
			g.order(p, op)
		} else if alive() {
			g.post(lease.Event{Kind: lease.EvFroze, Op: op, VM: vm, Frozen: lease.FrozenNone})
		}
	})
}

func (g *guard) thaw(vm model.VMID) {
	h := g.h
	delete(h.traps, vm)
	p := h.procs[vm]
	if p == nil || !p.frozen {
		return
	}
	p.frozen = false
	h.s.cover[Thaws]++
	h.s.trace(h, "thaws %s", p.vm.name)
	h.s.check.goesOn(p, "thaws")
	h.s.check.update(p.vm)
	p.touchStorage()
}

// gone: the unit of a VM is empty.
func (g *guard) gone(vm model.VMID) {
	g.post(lease.Event{Kind: lease.EvGone, VM: vm})
}
