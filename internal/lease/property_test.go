package lease

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
)

// The connections of a simulated host: its agent's and its hook's.
const (
	connAgent      = 1
	connUser       = 2 // the hook, for a start by hand
	connAgentStart = 3 // the hook, for the agent's paused start
	// confirmID is added to a VM's number in the ids of confirm requests.
	confirmID = 500
	listID    = 900
)

// run lets the world live for a while and checks it at every step.
func (w *world) run(length time.Duration) {
	for end := w.now + length; w.now < end; {
		w.now += time.Millisecond + w.upTo(40*time.Millisecond)
		for _, h := range w.hosts {
			w.live(h)
			w.check()
		}
		if len(w.late) > 0 && w.chance(0.01) {
			i := w.rng.IntN(len(w.late))
			f := w.late[i]
			w.late = append(w.late[:i], w.late[i+1:]...)
			f()
		}
		w.primary()
		w.check()
	}
}

func (w *world) live(h *simHost) {
	if !h.up {
		if w.now >= h.upAt {
			h.boot()
		}
		return
	}
	w.accidents(h)
	if h.dogOn && w.now >= h.lastPet+h.biteIn {
		w.stats["bitten"]++
		h.powerOff("watchdog")
		return
	}
	h.runPlans()
	if !h.up || h.m == nil || h.stopped {
		return
	}
	h.flush()
	for range 6 {
		h.storageWorks()
	}
	if h.m == nil {
		return
	}
	if w.now >= h.beatAt {
		h.beatAt = w.now + 500*time.Millisecond
		h.step(Event{Kind: EvRequest, Conn: connAgent, Request: &Request{Beat: &BeatRequest{Contact: h.net}}})
	}
	if h.m != nil && h.clock() >= h.m.Next() {
		h.step(Event{Kind: EvTick})
		if h.m != nil && h.m.Next() <= h.clock() {
			w.fail("%s is busy: nothing happened since the last tick, and another is wanted at once", h.id)
		}
	}
}

func (h *simHost) runPlans() {
	plans := h.plans
	h.plans = nil
	for _, p := range plans {
		switch {
		case p.at > h.w.now:
			h.plans = append(h.plans, p)
		default:
			p.do()
		}
		if !h.up {
			return
		}
	}
}

// accidents happen to a host that is up, about one in ten seconds.
func (w *world) accidents(h *simHost) {
	if !w.chance(0.004) {
		return
	}
	switch w.rng.IntN(16) {
	case 0:
		h.powerOff("power")
	case 1:
		if h.m != nil && !h.stopped {
			h.killGuard()
		}
	case 2, 3:
		if h.m != nil && !h.stopped {
			h.stopped = true
			w.logf("%s guard stopped", h.id)
			w.stats["guardStopped"]++
			gen := h.gen
			h.plans = append(h.plans, plan{w.now + w.upTo(9*time.Second), func() {
				if h.gen == gen {
					h.stopped = false
					w.logf("%s guard continues", h.id)
				}
			}})
		}
	case 4, 5:
		h.hangStorage(0.5)
	case 9, 10, 11: // cut off from everything, as by a dead switch
		h.hangStorage(0.2)
		h.loseNetwork()
	case 12, 13:
		h.storage = "slow"
		w.logf("%s storage is slow", h.id)
		h.plans = append(h.plans, plan{w.now + w.upTo(20*time.Second), h.healStorage})
	case 6:
		h.storage = "error"
		w.logf("%s storage fails", h.id)
		h.plans = append(h.plans, plan{w.now + w.upTo(10*time.Second), h.healStorage})
	case 7, 8:
		h.loseNetwork()
	case 14, 15:
		if h.m != nil && !h.stopped {
			h.reconfigure()
		}
	}
}

func (h *simHost) loseNetwork() {
	w := h.w
	h.net = false
	w.logf("%s loses the network", h.id)
	h.plans = append(h.plans, plan{w.now + w.upTo(20*time.Second), func() { h.net = true; w.logf("%s has the network again", h.id) }})
}

// hangStorage blocks all storage calls, and a guest's write with probability p.
func (h *simHost) hangStorage(p float64) {
	w := h.w
	h.storage = "hang"
	w.logf("%s storage hangs", h.id)
	w.stats["hang"]++
	for _, v := range w.vms {
		if p2 := h.procs[v.ID]; p2 != nil {
			p2.busy = p2.busy || p2.resumed && !p2.frozen && w.chance(p)
		}
	}
	h.plans = append(h.plans, plan{w.now + w.upTo(15*time.Second), h.healStorage})
}

func (h *simHost) healStorage() {
	h.storage = ""
	h.w.logf("%s storage works", h.id)
	for _, v := range h.w.vms {
		p := h.procs[v.ID]
		if p == nil || !p.busy {
			continue
		}
		p.busy = false // the write lands
		if p.frozen {
			h.after(0, func() { h.frozeEvent(v.ID, p.freezeOp) })
		}
	}
}

// primary is one that judges and orders, and a user who starts VMs by hand.
func (w *world) primary() {
	for _, h := range w.hosts {
		if h.up && h.net {
			w.heard[h.id] = w.now
		}
		if s := w.slots[h.id]; w.seen[h.id].digest != s.Identity.Digest {
			w.seen[h.id] = sighting{s.Identity.Digest, w.now}
		}
	}
	if !w.chance(0.1) {
		return
	}
	v := w.vms[w.rng.IntN(len(w.vms))]
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	if h.m == nil || h.stopped || !h.up {
		return
	}
	if w.chance(0.1) {
		w.claimList(h)
		return
	}
	r := w.highest(model.VMLock(v.ID))
	owner := r.Holder()
	switch {
	case w.chance(0.2):
		h.startDomain(v, connUser)
	case owner == h.id && w.chance(0.3):
		w.stopVM(h, v, r)
	case owner == "" || owner == h.id && h.procs[v.ID] == nil:
		h.claim(v, r.Epoch, nil)
	case owner != h.id && w.takeable(owner):
		w.stats["takeover"]++
		h.claim(v, r.Epoch, &Takeover{Owner: owner, Slot: w.slots[owner].Identity})
	case owner != h.id && w.chance(0.05):
		h.claim(v, r.Epoch, nil) // held elsewhere: only a new boot permits it
	}
}

// claimList lets a host become the owner of the protected list.
func (w *world) claimList(h *simHost) {
	r := w.highest(model.ListLock)
	req := &ClaimListReq{Datastore: w.ds, Epoch: r.Epoch}
	if owner := r.Holder(); owner != "" && owner != h.id && w.takeable(owner) {
		req.Takeover = &Takeover{Owner: owner, Slot: w.slots[owner].Identity}
	}
	h.step(Event{Kind: EvRequest, Conn: connAgent, Request: &Request{ID: listID, ClaimList: req}})
}

// granted checks that an epoch has one winner.
func (w *world) granted(h *simHost, lock string, epoch model.Epoch) {
	key := fmt.Sprintf("%s/%d", lock, epoch)
	who := string(h.bootID())
	if w.grants[key] != "" && w.grants[key] != who {
		w.fail("epoch %d of %s granted to %s and %s", epoch, lock, w.grants[key], who)
	}
	w.grants[key] = who
}

// takeable: silent on the network and a slot that rests, both for longer than
// two drifting clocks can explain.
func (w *world) takeable(owner model.HostID) bool {
	stale := model.StaleAfter(w.slots[owner].Slot.Lease)
	if w.breakRule == "stale" {
		stale = 2 * time.Second
	}
	silence := stale
	if w.breakRule == "silence" {
		silence = 0
	}
	return w.now-w.seen[owner].first >= stale && w.now-w.heard[owner] >= silence
}

func vmNumber(id model.VMID) uint64 {
	var n uint64
	_, _ = fmt.Sscanf(string(id[24:]), "%d", &n)
	return n
}

func (h *simHost) claim(v ManagedVM, epoch model.Epoch, t *Takeover) {
	h.step(Event{Kind: EvRequest, Conn: connAgent, Request: &Request{ID: vmNumber(v.ID), Claim: &ClaimRequest{VM: v, Epoch: epoch, Takeover: t}}})
}

// stopVM: the guest powers off and the agent releases.
func (w *world) stopVM(h *simHost, v ManagedVM, r model.LockRecord) {
	p := h.procs[v.ID]
	if p != nil && (p.busy || p.frozen) {
		return
	}
	delete(h.procs, v.ID)
	h.after(0, func() { h.step(Event{Kind: EvGone, VM: v.ID}) })
	h.after(w.upTo(time.Second), func() {
		h.step(Event{Kind: EvRequest, Conn: connAgent, Request: &Request{ID: 1000, Release: &ReleaseRequest{VM: v.ID, Epoch: r.Epoch, Reason: model.ReasonGuestOff}}})
	})
}

// startDomain asks libvirt to start a domain; libvirt asks the hook and does
// one thing at a time with a domain.
func (h *simHost) startDomain(v ManagedVM, conn uint64) {
	if h.starting[v.ID] || h.procs[v.ID] != nil || h.m == nil {
		return
	}
	h.starting[v.ID] = true
	h.step(Event{Kind: EvRequest, Conn: conn, Request: &Request{ID: vmNumber(v.ID),
		Hook: &HookRequest{VM: v.ID, Name: v.Name, Operation: "prepare", SubOperation: "begin"}}})
	boots := h.boots
	h.plans = append(h.plans, plan{h.w.now + 3*time.Second, func() { // no answer is a refusal
		if h.boots == boots && h.procs[v.ID] == nil && !h.permitted[v.ID] {
			h.starting[v.ID] = false
		}
	}})
}

// replied is the agent, or libvirt, that acts on a guard's answer.
func (h *simHost) replied(conn uint64, r *Reply) {
	w := h.w
	switch n := uint64(len(w.vms)); {
	case r.ID > confirmID && r.ID <= confirmID+n:
		h.confirmed(w.vms[r.ID-confirmID-1].ID, r)
		return
	case r.ID == listID:
		w.stats["list "+string(r.Code)]++
		if r.Code == CodeOK {
			w.granted(h, "list", r.Epoch)
		}
		return
	case r.ID == 0 || r.ID > n:
		return
	}
	v := w.vms[r.ID-1]
	if r.Code != CodeOK {
		w.stats["reply "+string(r.Code)]++
		if conn != connAgent {
			h.starting[v.ID] = false
		}
		return
	}
	w.granted(h, v.Name, r.Epoch)
	slow := w.upTo(800 * time.Millisecond)
	if w.chance(0.1) {
		slow = w.upTo(8 * time.Second)
	}
	if conn == connAgent {
		h.epochs[v.ID] = r.Epoch
		h.plans = append(h.plans, plan{w.now + slow, func() { h.startDomain(v, connAgentStart) }})
		return
	}
	if h.permitted[v.ID] || !h.starting[v.ID] {
		return // libvirt gave up waiting
	}
	h.permitted[v.ID] = true
	h.plans = append(h.plans, plan{w.now + slow, func() {
		h.starting[v.ID], h.permitted[v.ID] = false, false
		w.stats["started"]++
		w.logf("%s process of %s by conn %d", h.id, v.Name, conn)
		h.procs[v.ID] = &simProc{resumed: conn == connUser}
		if conn == connAgentStart {
			h.confirm(v, h.epochs[v.ID])
		}
	}})
}

// confirmed continues the VM's processors, or ends what must not go on.
func (h *simHost) confirmed(id model.VMID, r *Reply) {
	h.w.stats["confirm "+string(r.Code)]++
	h.plans = append(h.plans, plan{h.w.now + h.w.upTo(100*time.Millisecond), func() {
		p := h.procs[id]
		switch {
		case p == nil:
		case r.Code == CodeOK:
			p.resumed = true
		case !p.busy && !p.resumed && h.w.chance(0.5):
			delete(h.procs, id)
			h.after(0, func() { h.step(Event{Kind: EvGone, VM: id}) })
		}
	}})
}

func (h *simHost) confirm(v ManagedVM, epoch model.Epoch) {
	h.after(h.w.upTo(200*time.Millisecond), func() {
		h.step(Event{Kind: EvRequest, Conn: connAgent, Request: &Request{ID: confirmID + vmNumber(v.ID), Confirm: &ConfirmRequest{VM: v.ID, Epoch: epoch}}})
	})
}

// check holds at every moment.
func (w *world) check() {
	for _, v := range w.vms {
		var run, write []string
		for _, h := range w.hosts {
			p := h.procs[v.ID]
			if p == nil {
				continue
			}
			if p.resumed && !p.frozen {
				run = append(run, string(h.id))
			}
			if p.resumed && !p.frozen || p.busy {
				write = append(write, string(h.id))
			}
		}
		if len(run) > 1 {
			w.fail("%s runs on %v", v.Name, run)
		}
		if len(run) > 0 && len(write) > 1 {
			w.fail("%s runs on %v while writes of %v may still land", v.Name, run, write)
		}
	}
}

// checkPet is guard rule 2, from what the world knows.
func (h *simHost) checkPet() {
	s := h.m.stores[0]
	for id, p := range h.procs {
		if p.resumed && !p.frozen && p.placed && h.clock() > s.limits.Pet {
			h.w.fail("%s feeds its watchdog %v after the last heartbeat while %s runs", h.id, h.clock()-s.s, id)
		}
	}
}

// simulate runs one world and returns what it did.
func simulate(seed uint64, length time.Duration, breakRule string) (stats map[string]int, failure string) {
	type stop struct{}
	var w *world
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(stop); !ok {
				panic(r)
			}
		}
	}()
	fail := func(format string, args ...any) {
		tail := w.trace[max(0, len(w.trace)-80):]
		failure = fmt.Sprintf("seed %d at %v: ", seed, w.now) + fmt.Sprintf(format, args...) + "\n" + strings.Join(tail, "\n")
		panic(stop{})
	}
	w = newWorld(rand.New(rand.NewPCG(seed, 1)), 3, 3, fail)
	stats = w.stats
	w.breakRule = breakRule
	w.run(length)
	return stats, ""
}

// TestNeverTwice lets small clusters live through accidents.
func TestNeverTwice(t *testing.T) {
	total := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		stats, failure := simulate(seed, 60*time.Second, "")
		if failure != "" {
			rt.Fatal(failure)
		}
		for k, n := range stats {
			total[k] += n
		}
	})
	t.Log(total)
	for _, must := range []string{"started", "thawed", "takeover", "bitten", "guardKilled", "stateLost"} {
		if total[must] == 0 {
			t.Errorf("nothing was %s: the test proves nothing", must)
		}
	}
}

// TestChecksCanFail breaks one rule of the surroundings at a time: the checks
// of TestNeverTwice must notice.
func TestChecksCanFail(t *testing.T) {
	for rule, seeds := range map[string]uint64{
		"freeze":  20,  // a freeze is confirmed but does nothing
		"stale":   100, // locks are taken from slots that rested for 2 s
		"silence": 400, // ... and from hosts that still answer
	} {
		t.Run(rule, func(t *testing.T) {
			for seed := range seeds {
				if _, failure := simulate(seed, 60*time.Second, rule); failure != "" {
					t.Log(strings.SplitN(failure, "\n", 2)[0])
					return
				}
			}
			t.Errorf("%d worlds without the rule were safe: the checks see nothing", seeds)
		})
	}
}
