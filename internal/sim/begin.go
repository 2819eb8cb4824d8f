package sim

import (
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// protectedOf is a VM as the lists name it.
func protectedOf(g *guest) model.ProtectedVM {
	p := model.ProtectedVM{ID: g.id, Name: g.name, Home: g.home.name, Memory: g.conf.Memory, CPUs: g.conf.CPUs, Priority: g.conf.Restart.Priority,
		Requested: g.conf.Requested, DependsOn: g.conf.DependsOn, Host: g.conf.Host, LastEpoch: 2,
		Config: fmt.Sprintf("/srv/%s/%s.xml", g.home.name, g.name)}
	for _, d := range g.disks {
		p.Datastores = append(p.Datastores, d.name)
		p.Disks = append(p.Disks, fmt.Sprintf("/srv/%s/%s.img", d.name, g.name))
	}
	if p.Requested != model.RequestedStarted && p.Requested != model.RequestedStopped {
		p.Requested = model.RequestedStarted
	}
	if g.conf.Requested != model.RequestedStarted {
		p.LastEpoch = 1
	}
	return p
}

func managedOf(g *guest) lease.ManagedVM {
	p := protectedOf(g)
	return lease.ManagedVM{ID: p.ID, Name: p.Name, Home: p.Home, Disks: p.Disks, Datastores: p.Datastores}
}

// begin sets the scene: lists and locks exist, guards start, take the locks of
// the VMs of their hosts and let them run; then the agents start.
func (s *Sim) begin() {
	var managed []lease.ManagedVM
	lists := make([]model.ProtectedList, len(s.disks))
	for _, g := range s.vms {
		p := protectedOf(g)
		managed = append(managed, managedOf(g))
		g.home.locks[model.VMLock(g.id)] = []model.LockRecord{{Lock: model.VMLock(g.id), Epoch: 1, State: model.LockReleased, Reason: model.ReasonCreated, Nonce: "created"}}
		l := &lists[g.home.i]
		l.Term, l.Version = 1, 1
		l.VMs = append(l.VMs, p)
	}
	slices.SortFunc(managed, func(a, b lease.ManagedVM) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	for i, l := range lists {
		if l.Term == 1 {
			s.disks[i].writeList(l)
		}
	}
	first := map[*host][]*guest{}
	for _, g := range s.vms {
		if g.conf.Requested != model.RequestedStopped && g.conf.Requested != model.RequestedDisabled {
			h := s.byName[g.conf.Host]
			first[h] = append(first[h], g)
		}
	}
	waiting := len(s.hosts)
	for _, h := range s.hosts {
		h.managed, h.managedKnown = managed, true
		s.after(s.rng.between(0, 200*time.Millisecond), h.virt.start)
		s.after(s.rng.between(0, 200*time.Millisecond), func() {
			h.guard.start()
			h.place(first[h], func() {
				if waiting--; waiting == 0 {
					for _, h := range s.hosts {
						s.after(s.rng.between(0, 300*time.Millisecond), h.agent.start)
					}
				}
			})
		})
	}
	s.after(time.Second, s.check.watch)
}

// place takes the locks of VMs for this host, one after the other as the guard
// permits, and lets them run; then it calls done.
func (h *host) place(list []*guest, done func()) {
	if len(list) == 0 {
		done()
		return
	}
	g := list[0]
	again := func() { h.s.after(20*time.Millisecond, func() { h.place(list, done) }) }
	h.guard.ask(&lease.Request{Claim: &lease.ClaimRequest{VM: managedOf(g), Epoch: 1}}, func(r lease.Reply) {
		if r.Code != lease.CodeOK {
			again()
			return
		}
		p := h.spawn(g)
		h.virt.domain(g, true)
		h.guard.ask(&lease.Request{Confirm: &lease.ConfirmRequest{VM: g.id, Epoch: r.Epoch}}, func(lease.Reply) {
			p.proceed()
			p.alive = h.s.now
		})
		h.place(list[1:], done)
	})
}

// Ask gives an administrator's request to the first agent that runs; f gets the
// answer. False if no agent runs.
func (s *Sim) Ask(r fdm.AdminRequest, f func(fdm.AdminReply)) bool {
	for _, h := range s.hosts {
		if h.agent.runs() {
			s.admins++
			if f != nil {
				s.asked[s.admins] = f
			}
			h.agent.post(fdm.AdminAsked{ID: s.admins, Request: r})
			return true
		}
	}
	return false
}
