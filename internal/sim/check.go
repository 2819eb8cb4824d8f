package sim

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// The invariants, as violations name them.
const (
	InvariantOnce    = "once"    // never two unfrozen instances of a VM
	InvariantWrite   = "write"   // no write by a former owner after a new owner's first
	InvariantLock    = "lock"    // a lock has one holder
	InvariantTerm    = "term"    // terms never go back
	InvariantPrimary = "primary" // at most one primary acts for a datastore, and one leads
	InvariantRestart = "restart" // what can run runs again within its bound
	InvariantPolicy  = "policy"  // no VM is stopped without a reason allowed by policy
	InvariantReason  = "reason"  // nothing waits without a stated reason
)

// truth is what the simulator itself knows of a VM.
type truth struct {
	running  int           // instances whose processors execute
	newest   uint64        // the newest instance that wrote
	since    time.Duration // down since then
	possible time.Duration // a host may take it since then; 0: none may
	silent   time.Duration // down without a stated reason since then; 0: it has one
	userStop bool          // its user asked for the end of the instance that ran last
	byItself bool          // the process that ended last was shut down in the guest, and not by HA
	last     uint64        // the instance that ran last
}

// checker looks at every change for a broken invariant.
type checker struct {
	s         *Sim
	found     []scenario.Violation
	calmSince time.Duration
	leaderAt  time.Duration // when there was last a primary, or nobody who could be
	grants    map[grantKey]model.BootID
	terms     map[termKey]model.Term
	writers   map[writerKey]model.HostID
	claims    map[claimKey]claimed
}

// claimed is what an agent asked its guard for: a lock, and for a start the epoch
// that the order names.
type claimed struct {
	lock  model.LockID
	start bool
	named model.Epoch
}

type grantKey struct {
	ds    model.DatastoreName
	lock  model.LockID
	epoch model.Epoch
}

type termKey struct {
	h    *host
	life uint32
	ds   model.DatastoreName
}

type writerKey struct {
	ds   model.DatastoreName
	term model.Term
}

type claimKey struct {
	h    *host
	life uint32
	op   uint64
}

func (c *checker) init(s *Sim) {
	*c = checker{s: s, grants: map[grantKey]model.BootID{}, terms: map[termKey]model.Term{}, writers: map[writerKey]model.HostID{},
		claims: map[claimKey]claimed{}}
}

// disturbed notes that a fault began or ended.
func (s *Sim) disturbed() { s.check.calmSince = s.now }

func (c *checker) violate(invariant, subject, format string, args ...any) {
	s := c.s
	v := scenario.Violation{At: s.Now().Seconds(), Invariant: invariant, Subject: subject, Detail: fmt.Sprintf(format, args...)}
	s.trace(nil, "VIOLATION %s: %s", v.Invariant, v.Detail)
	if len(c.found) < 100 {
		c.found = append(c.found, v)
	}
	if !s.opts.GoOn {
		s.stopped = true
	}
}

// update counts a VM's running instances after something about one changed.
func (c *checker) update(g *guest) {
	t := &g.truth
	n := 0
	var on *proc
	for _, p := range g.procs {
		if p.runs() {
			n++
			on = p
		}
	}
	was := t.running
	t.running = n
	if n > 1 {
		c.violate(InvariantOnce, g.name, "%s runs on %s", g.name, where(g))
	}
	for _, p := range g.procs {
		if p.runs() && p.busy == nil && p.storageAnswers() {
			c.writeLands(g, p.instance, "a write of the instance on "+string(p.h.name))
		}
	}
	switch {
	case n > 0 && was == 0:
		// One that was frozen or waited for its storage goes on as it was: what its
		// user asked for before is yet to come.
		t.userStop = t.userStop && t.last == on.instance
		t.since, t.possible, t.silent, t.last = 0, 0, 0, on.instance
		c.s.recovered(g, on)
	case n == 0 && was > 0:
		t.since = c.s.now
	}
}

func where(g *guest) string {
	out := ""
	for _, p := range g.procs {
		if p.runs() {
			if out != "" {
				out += " and "
			}
			out += string(p.h.name)
		}
	}
	return out
}

func (p *proc) storageAnswers() bool {
	for _, d := range p.vm.disks {
		if q := p.h.paths[d.i]; q == nil || q.hangs() {
			return false
		}
	}
	return true
}

// writeLands: a guest's write reaches the storage.
func (c *checker) writeLands(g *guest, instance uint64, what string) {
	if instance < g.truth.newest {
		c.violate(InvariantWrite, g.name, "%s: %s lands after its next owner has written", g.name, what)
		return
	}
	g.truth.newest = instance
}

func (c *checker) writeHangs(*proc) {}

// goesOn: what begins to run, or is thawed, is its lock's holder.
func (c *checker) goesOn(p *proc, how string) {
	rec, f := p.vm.home.highest(model.VMLock(p.vm.id))
	if f == nil && p.runs() && (rec.Holder() != p.h.name || rec.Boot != p.h.boot) {
		c.violate(InvariantLock, p.vm.name, "%s %s %s, whose lock is at %s", p.h.name, how, p.vm.name, rec)
	}
}

// ended judges why a process ended.
func (c *checker) ended(p *proc, why endReason, detail string) {
	s := c.s
	if why == endGuard {
		s.cover[Kills]++
		rec, f := p.vm.home.highest(model.VMLock(p.vm.id))
		if f == nil && rec.Holder() == p.h.name && rec.Boot == p.h.boot {
			c.stopAsked(p, detail)
		}
	}
	if why == endGuest || why == endUser || why == endHostShutdown {
		p.vm.truth.userStop = true
	}
	p.vm.truth.byItself = why == endGuest && !p.asked && c.storageGood(p)
	c.update(p.vm)
}

// stopAsked: the cluster ends a VM that ran. It must have a reason.
func (c *checker) stopAsked(p *proc, what string) {
	p.asked = true
	if !p.resumed || p.vm.truth.userStop || c.mayStop(p) {
		return
	}
	c.violate(InvariantPolicy, p.vm.name, "%s on %s: %s, and no policy permits that now", p.vm.name, p.h.name, what)
}

// After a fault has ended a host may still stop VMs for it until it knows, and
// what it decided until then its guard may carry out for one interval
// (fdm: killLimit, lease: KillRequest.Before). An agent or a guard that stood still
// meanwhile does not add to that: the agent takes in what was said to it first,
// the guard refuses what comes later. Clocks may differ by model.MaxDrift, and a
// message, a look at a datastore and a kill take a moment.
//
// Of a datastore it knows with its next heartbeat there, which begins within an
// interval.
func (c *checker) storageKnown() time.Duration { return c.intervals(1 + 1) }

// Of the network it knows when it hears any host again. The next heartbeats come
// within an interval; on a network that loses datagrams those may be missed, and
// the ones after them count.
func (c *checker) networkKnown() time.Duration { return c.intervals(2 + 1) }

func (c *checker) intervals(n int) time.Duration {
	const moment = 50 * time.Millisecond
	return time.Duration(float64(n)*float64(c.s.conf.Timing.Interval)*(1+2*model.MaxDrift)) + moment
}

// mayStop applies the policies of the cluster file to what is true.
func (c *checker) mayStop(p *proc) bool {
	if p.h.leaving {
		return true
	}
	ha := &c.s.cluster.HA
	v := c.s.cluster.VMByName(p.vm.name)
	if v == nil || v.Requested != model.RequestedStarted || v.Restart.Priority == model.PriorityDisabled {
		return true
	}
	alone := p.h.alone || p.h.aloneEnd > 0 && c.s.now-p.h.aloneEnd < c.networkKnown()
	switch {
	case alone && (ha.IsolationResponse != "none" || v.IsolationResponse != "" && v.IsolationResponse != "none"):
		return true
	case ha.VMMonitoring.Mode != "off" && p.hung:
		return true
	}
	return !c.storageGood(p) // by what VM component protection says
}

// storageGood: the storage of a VM answers its host, and has long enough for that to
// be known there.
func (c *checker) storageGood(p *proc) bool {
	for _, d := range p.vm.disks {
		if q := p.h.paths[d.i]; q == nil || q.state != pathGood || c.s.now-q.since < c.storageKnown() {
			return false
		}
	}
	return true
}

// linked: a record was published.
func (c *checker) linked(d *disk, rec model.LockRecord) {
	rs := d.locks[rec.Lock]
	if rec.State == model.LockReleased && rec.Reason == model.ReasonHAOff {
		c.poweredOff(d, rec)
	}
	if len(rs) < 2 || rec.State != model.LockHeld {
		return
	}
	if before := rs[len(rs)-2]; before.Holder() != "" && before.Holder() != rec.Owner {
		c.s.cover[Takeovers]++
	}
	g := c.s.byVM[model.VMID(rec.Lock)]
	if g == nil {
		return
	}
	for _, p := range g.procs {
		if p.runs() && p.h.name != rec.Owner {
			c.violate(InvariantLock, g.name, "%s takes the lock of %s, which runs on %s", rec.Owner, g.name, p.h.name)
		}
	}
}

// poweredOff: a lock is released for a restart because HA stopped its VM. Of a guest
// that shut down only a note about this very epoch can say so.
func (c *checker) poweredOff(d *disk, rec model.LockRecord) {
	g := c.s.byVM[model.VMID(rec.Lock)]
	if g == nil || !g.truth.byItself {
		return
	}
	if n := d.notes[g.id]; n.LockEpoch != rec.Epoch-1 || n.Withdrawn {
		c.violate(InvariantPolicy, g.name, "%s was shut down in the guest on %s, and is to be restarted as if HA had stopped it", g.name, rec.Owner)
	}
}

// ordered: an agent takes a command in; what it claims later is of no older term.
func (c *checker) ordered(h *host, cmd *fdm.Command) {
	k := termKey{h, h.agent.life, cmd.VM.Home}
	c.terms[k] = max(c.terms[k], cmd.Term)
}

// requested notes what the agent asks of its guard.
func (c *checker) requested(h *host, r *lease.Request) {
	switch {
	case r.Claim != nil:
		k := termKey{h, h.agent.life, r.Claim.VM.Home}
		if r.Claim.Term != 0 && r.Claim.Term < c.terms[k] {
			c.violate(InvariantTerm, string(h.name), "%s acts on term %d of %s after term %d", h.name, r.Claim.Term, r.Claim.VM.Home, c.terms[k])
		}
		c.terms[k] = max(c.terms[k], r.Claim.Term)
		c.claims[claimKey{h, h.agent.life, r.ID}] = claimed{model.VMLock(r.Claim.VM.ID), !r.Claim.Running, r.Claim.Epoch}
	case r.ClaimList != nil:
		c.claims[claimKey{h, h.agent.life, r.ID}] = claimed{lock: listOn(r.ClaimList.Datastore)}
	}
}

// replied: the guard answers its agent. An epoch is granted once, and to an order
// to start only the one after the epoch that it names.
func (c *checker) replied(g *guard, r *lease.Reply) {
	k := claimKey{g.h, g.h.agent.life, r.ID}
	asked, ok := c.claims[k]
	if !ok {
		return
	}
	delete(c.claims, k)
	if r.Code != lease.CodeOK {
		return
	}
	lock := asked.lock
	if asked.start && r.Epoch != asked.named+1 {
		c.violate(InvariantLock, string(lock), "%s was to claim the epoch after %d of %s and was granted %d", g.h.name, asked.named, lock, r.Epoch)
	}
	key := grantKey{"", lock, r.Epoch}
	if before, taken := c.grants[key]; taken && before != g.h.boot {
		c.violate(InvariantLock, string(lock), "epoch %d of %s was granted to %s and to %s", r.Epoch, lock, before, g.h.boot)
	}
	c.grants[key] = g.h.boot
	if len(lock) > len(model.ListLock) && lock[:len(model.ListLock)] == model.ListLock {
		c.s.cover[ListsTaken]++
		c.oneOwner(g.h, model.DatastoreName(lock[len(model.ListLock)+1:]))
	}
}

// rolledBack: a datastore went back in time, and with it what was granted and
// written since: its numbers may be used again. What runs is judged as ever.
func (c *checker) rolledBack(d *disk) {
	for k := range c.grants {
		if _, ok := d.locks[k.lock]; ok || k.lock == listOn(d.name) {
			delete(c.grants, k)
		}
	}
	for k := range c.terms {
		if k.ds == d.name {
			delete(c.terms, k)
		}
	}
	for k := range c.writers {
		if k.ds == d.name {
			delete(c.writers, k)
		}
	}
}

// listOn tells the lists' locks of several datastores apart.
func listOn(ds model.DatastoreName) model.LockID {
	return model.LockID(string(model.ListLock) + "/" + string(ds))
}

// oneOwner: no other guard holds the list by a lease that it believes in.
func (c *checker) oneOwner(h *host, ds model.DatastoreName) {
	for _, o := range c.s.hosts {
		if o == h || !o.guard.runs() {
			continue
		}
		st := o.guard.m.Status(o.clock())
		for _, d := range st.Datastores {
			if d.Name == ds && d.OK && d.ListTerm != 0 && d.LeaseLeft > c.s.conf.Timing.Margin {
				c.violate(InvariantPrimary, string(ds), "%s takes the list of %s, which %s still holds under term %d", h.name, ds, o.name, d.ListTerm)
			}
		}
	}
}

// listWritten: only one host writes under a term.
func (c *checker) listWritten(h *host, e fdm.WriteList) {
	t := termKey{h, h.agent.life, e.Datastore}
	if e.List.Term < c.terms[t] {
		c.violate(InvariantTerm, string(h.name), "%s writes the list of %s under term %d after term %d", h.name, e.Datastore, e.List.Term, c.terms[t])
	}
	c.terms[t] = max(c.terms[t], e.List.Term)
	k := writerKey{e.Datastore, e.List.Term}
	if w, ok := c.writers[k]; ok && w != h.name {
		c.violate(InvariantPrimary, string(e.Datastore), "%s writes the list of %s under term %d, as %s did", h.name, e.Datastore, e.List.Term, w)
	}
	c.writers[k] = h.name
}

// watch looks at what should happen and does not, once a second.
func (c *checker) watch() {
	s := c.s
	s.after(time.Second, c.watch)
	if !s.conf.Enabled {
		c.leaderAt = s.now
		return
	}
	c.watchLeader()
	leader := s.primary()
	for _, g := range s.vms {
		t := &g.truth
		if t.running > 0 || g.conf.Requested == model.RequestedStopped && t.since == 0 {
			continue
		}
		if leader == nil {
			t.possible, t.silent = 0, 0 // watchLeader judges
			continue
		}
		x, ok := leader.agent.m.VM(g.id)
		if !ok {
			// Nobody acts for its datastore, which states its own reason.
			x = fdm.VMView{State: model.VMRecovery, Reason: "nobody acts for " + string(g.home.name)}
			if t.userStop {
				x.State = model.VMStopped
			}
		}
		c.watchVM(g, &x)
	}
}

func (c *checker) watchVM(g *guest, x *fdm.VMView) {
	s, t := c.s, &g.truth
	switch x.State {
	case model.VMStopped:
		if t.userStop || g.conf.Requested != model.RequestedStarted {
			t.possible, t.silent = 0, 0
			return
		}
	case model.VMDisabled, model.VMIgnored, model.VMStopping:
		t.possible, t.silent = 0, 0
		return
	}
	if c := s.cluster.VMByName(g.name); c != nil && x.State == model.VMError {
		if _, _, own := c.Restart.Limits(); own { // it waits for somebody
			t.possible, t.silent = 0, 0
			return
		}
	}
	if !s.mayRun(g) || x.Priority == model.PriorityDisabled {
		t.possible = 0
	} else if t.possible == 0 {
		t.possible = s.now
	} else if s.now-t.possible > s.opts.RestartBound {
		c.violate(InvariantRestart, g.name, "%s is down for %v although a host may take it; shown as %s: %s", g.name, (s.now - t.possible).Round(time.Second), x.State, x.Reason)
		t.possible = s.now
	}
	if x.Reason != "" || x.State == model.VMStarted {
		t.silent = 0
	} else if t.silent == 0 {
		t.silent = s.now
	} else if s.now-t.silent > s.opts.RestartBound {
		c.violate(InvariantReason, g.name, "%s is %s for %v without a stated reason", g.name, x.State, (s.now - t.silent).Round(time.Second))
		t.silent = s.now
	}
}

// watchLeader: while somebody could lead, somebody does.
func (c *checker) watchLeader() {
	s := c.s
	able := false
	for _, h := range s.hosts {
		able = able || h.agent.runs() && h.guard.runs() && h.slow == 0
	}
	if !able || s.primary() != nil {
		c.leaderAt = s.now
	} else if s.now-c.leaderAt > s.opts.RestartBound {
		c.violate(InvariantPrimary, "", "no host leads for %v", (s.now - c.leaderAt).Round(time.Second))
		c.leaderAt = s.now
	}
}

// mayRun tells whether some host may take a VM that is down, by what is true.
func (s *Sim) mayRun(g *guest) bool {
	if g.noDisk || g.failStarts > 0 || s.now-s.check.calmSince < time.Second {
		return false
	}
	leader := s.primary()
	if leader == nil || leader.paths[g.home.i] == nil || leader.paths[g.home.i].state != pathGood || !s.lockFree(g) {
		return false
	}
	for _, h := range s.hosts {
		if h == leader || s.joined(h, leader) {
			if h.fit(g) {
				return true
			}
		}
	}
	return false
}

// fit: the host could run the VM now.
func (h *host) fit(g *guest) bool {
	c := h.s.cluster.HostByName(h.name)
	if !h.agent.runs() || !h.guard.runs() || !h.virt.runs() || h.slow > 0 || c == nil || c.Maintenance || h.s.now < h.clk.since+20*time.Second {
		return false
	}
	for _, d := range g.disks {
		if p := h.paths[d.i]; p == nil || p.state != pathGood || d.gone {
			return false
		}
	}
	used := g.conf.Memory
	for _, p := range h.order {
		used += p.vm.conf.Memory
	}
	return used <= c.Memory
}

// lockFree: nothing but the cluster itself keeps the VM's lock.
func (s *Sim) lockFree(g *guest) bool {
	rec, f := g.home.highest(model.VMLock(g.id))
	if f != nil {
		return false
	}
	owner := s.byName[rec.Holder()]
	if owner == nil {
		return rec.Holder() == ""
	}
	if owner.on && owner.boot == rec.Boot {
		return owner.fit(g) && len(g.procs) == 0
	}
	d := s.cluster.DatastoreByName(g.home.name)
	r := g.home.slotOf(owner)
	return owner.on && s.tells(owner, g.home) || d.Unfenced == "accept" || d.Fence == model.FenceReset && r != nil && r.Valid && r.Slot.Flags.Has(model.SlotArmed)
}

// tells: a host that has booted again can say so, by its heartbeat on the
// datastore or by its report to the primary.
func (s *Sim) tells(h *host, d *disk) bool {
	if !h.guard.runs() || h.slow > 0 || s.now < h.clk.since+20*time.Second {
		return false
	}
	p := h.paths[d.i]
	return p != nil && p.state == pathGood || h.agent.runs() && s.joined(h, s.primary())
}
