package fuzz

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// theme draws one episode that begins at a moment on a host, and returns when it
// is over.
type theme func(g *generator, at time.Duration, h string) time.Duration

// themes are disasters about one thing each: what must meet within a second to
// break a rule meets there often enough to be found. Hosts, order and moments are
// random as ever.
var themes = map[string]theme{
	"again":   (*generator).backForAMoment,
	"answers": (*generator).lateAnswers,
	"contact": (*generator).lostContact,
	"hand":    (*generator).byHand,
	"lists":   (*generator).changingPrimaries,
	"notes":   (*generator).oldNotes,
	"orders":  (*generator).lateOrders,
	"restart": (*generator).guardsRestart,
	"return":  (*generator).hostReturns,
	"stale":   (*generator).staleReads,
	"starts":  (*generator).lateStarts,
}

// Themes are the names that [Config.Theme] may have.
func Themes() []string { return slices.Sorted(maps.Keys(themes)) }

func validateTheme(name string) error {
	if name != "" && themes[name] == nil {
		return fmt.Errorf("disasters %q: must be one of %s, or empty for all kinds", name, strings.Join(Themes(), ", "))
	}
	return nil
}

// episodes draws the theme's disasters one after the other, with pauses in which
// the cluster mends itself.
func (g *generator) episodes(draw theme) {
	for at := g.upTo(10 * time.Second); at < g.until; {
		at = draw(g, at, g.pick(g.hosts)) + g.between(5*time.Second, 25*time.Second)
	}
}

func (g *generator) vm() string { return fmt.Sprintf("vm%d", 1+g.rng.IntN(g.cfg.VMs)) }

// paths sets the way of a host to all datastores.
func (g *generator) paths(at time.Duration, h, state string) {
	for _, d := range g.ds {
		g.add(at, "storage %s %s %s", h, d, state)
	}
}

func (g *generator) others(h string) []string {
	return slices.DeleteFunc(slices.Clone(g.hosts), func(o string) bool { return o == h })
}

// mend ends what an episode did to a host.
func (g *generator) mend(at time.Duration, h string) {
	g.paths(at, h, "none")
	g.add(at, "slow %s off", h)
	g.add(at, "heal %s", h)
	g.add(at, "cont agent %s", h)
	g.add(at, "power-on %s", h)
	if g.cfg.Theme == "starts" {
		g.add(at, "cont libvirtd %s", h)
	}
}

// hostReturns: a host is cut off from everything, and comes back when others
// are about to take its VMs over, or when what they took has ended again.
func (g *generator) hostReturns(at time.Duration, h string) time.Duration {
	g.paths(at, h, g.pick([]string{"hang", "unanswered", "lost", "lost", "lost", "lost"}))
	g.add(at+g.upTo(500*time.Millisecond), "cut %s both", h)
	for _, o := range g.others(h) {
		kind := g.rng.IntN(4) // slow storage, a slow host, or both
		if kind != 0 {
			g.paths(at, o, "slow")
		}
		if kind != 1 {
			g.add(at, "slow %s %s", o, g.between(100*time.Millisecond, time.Second))
		}
	}
	back := at + g.lease + g.between(-200*time.Millisecond, 7*time.Second)
	if g.rng.IntN(2) == 0 {
		g.add(at, "slow %s %s", h, g.between(50*time.Millisecond, 400*time.Millisecond))
	}
	switch g.rng.IntN(3) {
	case 0: // its users end what was taken over
		back += g.between(8*time.Second, 20*time.Second)
		for i := range g.cfg.VMs {
			if g.rng.IntN(2) == 0 {
				g.add(back-g.between(time.Second, 6*time.Second), "vm stop vm%d", i+1)
				g.add(back+g.between(10*time.Second, 15*time.Second), "vm start vm%d", i+1)
			}
		}
	case 1: // it is back for a moment only
		g.paths(back, h, "none")
		again := back + g.upTo([]time.Duration{60 * time.Millisecond, 1500 * time.Millisecond}[g.rng.IntN(2)])
		g.paths(again, h, g.pick([]string{"hang", "unanswered", "unanswered"}))
		back = again + g.lease + g.between(-200*time.Millisecond, 7*time.Second)
	}
	g.paths(back, h, "none")
	g.add(back+g.between(0, 8*time.Second), "heal %s", h)
	for _, o := range g.hosts {
		g.mend(back+10*time.Second, o)
	}
	return back + 16*time.Second
}

// lateAnswers: a heartbeat lands at once, its answer takes longer than the margin,
// and then nothing is answered any more.
func (g *generator) lateAnswers(at time.Duration, h string) time.Duration {
	g.add(at, "cut %s both", h)
	g.paths(at, h, "unanswered")
	late := at + g.between(g.lease*3/10, g.lease*7/10)
	g.paths(late, h, "none")
	g.paths(late, h, "hang")
	end := late + g.lease + g.between(2*time.Second, 8*time.Second)
	g.mend(end, h)
	return end
}

// backForAMoment: a host that is cut off comes back before others take its VMs, for
// so short a time that its claims are under way when its storage falls silent
// again. Their answers come when it is back for good, just as others claim.
func (g *generator) backForAMoment(at time.Duration, h string) time.Duration {
	g.paths(at, h, "lost")
	g.add(at+g.upTo(300*time.Millisecond), "cut %s both", h)
	for _, o := range g.others(h) {
		g.paths(at, o, "slow")
	}
	moment := at + g.lease - g.between(1200*time.Millisecond, 1900*time.Millisecond)
	g.paths(moment, h, "slow")
	again := moment + g.between(1400*time.Millisecond, 3000*time.Millisecond)
	g.paths(again, h, "unanswered")
	back := again + g.lease + g.between(2500*time.Millisecond, 4500*time.Millisecond)
	g.paths(back, h, "none")
	end := back + g.between(6*time.Second, 10*time.Second)
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end + 8*time.Second
}

// oldNotes: an isolated host shuts its VMs down and writes so; later, when they run
// there again, its agent restarts while their users shut them down.
func (g *generator) oldNotes(at time.Duration, h string) time.Duration {
	g.add(at, "cut %s both", h)
	healed := at + g.between(14*time.Second, 22*time.Second)
	g.add(healed, "heal %s", h)
	lost := healed + g.between(2*time.Second, 6*time.Second)
	for _, o := range g.others(h) {
		g.add(lost+g.upTo(time.Second), "power-off %s", o)
	}
	killed := lost + g.lease + g.between(6*time.Second, 12*time.Second)
	g.add(killed, "kill agent %s", h)
	for i := range g.cfg.VMs {
		if g.rng.IntN(3) > 0 {
			down := killed + g.between(-3*time.Second, 6*time.Second)
			g.add(down, "vm shutdown vm%d", i+1)
			g.add(down+g.between(12*time.Second, 16*time.Second), "vm start vm%d", i+1)
		}
	}
	end := killed + 12*time.Second
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end + 15*time.Second
}

// lateStarts: VMs are being started on a host whose libvirt stands still and that is
// cut off; when libvirt goes on, others run them.
func (g *generator) lateStarts(at time.Duration, h string) time.Duration {
	g.crashes(at, 500*time.Millisecond)
	g.crashes(at, 500*time.Millisecond)
	lost := at + g.between(300*time.Millisecond, 4*time.Second)
	g.add(lost, "stop libvirtd %s", h)
	lost += g.upTo(time.Second)
	g.paths(lost, h, g.pick([]string{"lost", "hang"}))
	g.add(lost+g.upTo(300*time.Millisecond), "cut %s both", h)
	back := lost + g.lease + g.between(time.Second, 8*time.Second)
	if g.rng.IntN(2) == 0 {
		g.paths(back, h, "none")
	}
	g.add(back+g.upTo(time.Second), "cont libvirtd %s", h)
	end := back + 6*time.Second
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end + 8*time.Second
}

// lostContact: the storage of a host hangs with writes outstanding, which its
// contact to the primary makes harmless; then the contact ends, and soon after
// the writes land.
func (g *generator) lostContact(at time.Duration, h string) time.Duration {
	g.paths(at, h, g.pick([]string{"hang", "hang-hard", "unanswered"}))
	rest := g.others(h)
	g.rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	friend := rest[0]
	parted := len(rest) > 1 && g.rng.IntN(2) == 0
	if parted {
		g.add(at, "partition %s,%s | %s", h, friend, strings.Join(rest[1:], ","))
	}
	lost := at + g.lease + g.between(time.Second, 10*time.Second)
	switch n := g.rng.IntN(6); {
	case n < 2 && parted: // another host gets the list, and did not hear h
		g.add(lost, "stop agent %s", friend)
	case n == 2 && parted:
		for _, o := range g.hosts {
			g.add(lost, "heal %s", o)
		}
		g.add(lost, "cut %s both", h)
	case n == 0:
		g.add(lost, "stop agent %s", h)
	case n == 1:
		g.add(lost, "%s agent %s", g.pick([]string{"stop", "kill"}), friend)
	case n == 2:
		g.add(lost, "power-off %s", friend)
	default:
		g.add(lost, "cut %s both", h)
	}
	back := lost + g.between(g.lease/2, g.lease)
	if g.rng.IntN(2) == 0 {
		back = lost + g.between(500*time.Millisecond, g.lease+6*time.Second)
	}
	g.paths(back, h, "none")
	for _, o := range g.hosts {
		g.mend(back+g.lease+3*time.Second, o)
	}
	return back + g.lease + 8*time.Second
}

// changingPrimaries: agents die and stand still one after the other while storage
// is slow or shows old listings, and VMs end.
func (g *generator) changingPrimaries(at time.Duration, h string) time.Duration {
	long := g.between(10*time.Second, 40*time.Second)
	for _, o := range g.hosts {
		if g.rng.IntN(3) > 0 {
			g.paths(at, o, g.pick([]string{"slow", "slow", "cached", "flaky", "unanswered"}))
		}
	}
	for range 3 + g.rng.IntN(6) {
		t, o := at+g.upTo(long), g.pick(g.hosts)
		switch g.rng.IntN(4) {
		case 0, 1:
			g.add(t, "kill agent %s", o)
		case 2:
			g.stop(t, "agent", o, g.between(time.Second, 6*time.Second))
		case 3:
			g.cut(t, o, g.between(time.Second, 4*time.Second))
		}
	}
	end := at + long
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	if g.rng.IntN(3) == 0 { // an agent stands still for as long as a VM may be down
		g.add(end, "stop agent %s", h)
		g.add(end+2*time.Second, "vm crash %s", g.vm())
		end += 110 * time.Second
		g.add(end, "cont agent %s", h)
	}
	for range 3 {
		g.add(end+time.Second, "vm crash %s", g.vm())
	}
	return end + time.Second
}

// lateOrders: a primary, or the host that it orders, stands still or is cut off
// between order and deed; the order arrives when there is another primary, or
// when the VM was started and ended elsewhere.
func (g *generator) lateOrders(at time.Duration, h string) time.Duration {
	long := g.between(3*time.Second, 15*time.Second)
	end := at + long + 8*time.Second
	switch g.rng.IntN(4) {
	case 0, 1:
		g.add(at, "stall agent %s after %d for %s", h, 1+g.rng.IntN(60), long)
		g.crashes(at, 2*time.Second)
		g.crashes(at+3*time.Second, long)
	case 2:
		g.crashes(at, 2*time.Second)
		lost := at + g.upTo(2*time.Second)
		g.add(lost, "cut %s both", h)
		g.stop(lost+g.upTo(2*time.Second), "agent", h, long)
		g.add(lost+long, "heal %s", h)
		g.crashes(lost+3*time.Second, long)
	default:
		end = g.orderWaits(at, h)
	}
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end
}

// crashes ends some VMs within a time.
func (g *generator) crashes(at, within time.Duration) {
	for range 2 + g.rng.IntN(g.cfg.VMs) {
		g.add(at+g.upTo(within), "vm crash %s", g.vm())
	}
}

// orderWaits: a host is lost, and one that is ordered to take its VMs stands still
// with the order in its inbox. Meanwhile others run them, and their users end them.
func (g *generator) orderWaits(at time.Duration, lost string) time.Duration {
	rest := g.others(lost)
	target := g.pick(rest)
	g.add(at, "power-off %s", lost)
	ordered := at + g.lease + g.between(0, 2*time.Second)
	over := ordered + g.between(25*time.Second, 40*time.Second)
	g.stop(ordered, "agent", target, over-ordered)
	for _, o := range rest {
		if o != target {
			g.add(ordered+g.between(200*time.Millisecond, 3*time.Second), "kill agent %s", o)
		}
	}
	for i := range g.cfg.VMs {
		if g.rng.IntN(3) > 0 {
			g.add(over-g.between(time.Second, 8*time.Second), "vm stop vm%d", i+1)
			g.add(over+g.between(8*time.Second, 12*time.Second), "vm start vm%d", i+1)
		}
	}
	return over + 8*time.Second
}

// guardsRestart: the guard of a host that nobody hears dies, once or more, while
// its storage answers or not.
func (g *generator) guardsRestart(at time.Duration, h string) time.Duration {
	end := at + g.lease + g.between(2*time.Second, 15*time.Second)
	g.add(at, "cut %s both", h)
	if g.rng.IntN(2) == 0 {
		g.paths(at+g.upTo(time.Second), h, g.pick([]string{"hang", "lost", "slow", "unanswered"}))
	}
	if g.rng.IntN(3) == 0 {
		g.stop(at+g.upTo(2*time.Second), "guard", h, g.between(g.lease/2, g.lease))
	}
	for range 1 + g.rng.IntN(3) {
		g.add(at+g.upTo(end-at), "kill guard %s", h)
	}
	g.add(end, "cont guard %s", h)
	g.mend(end, h)
	return end + 5*time.Second
}

// staleReads: hosts read heartbeats as they were, as over NFS with its caches,
// while another is cut off from the network alone.
func (g *generator) staleReads(at time.Duration, h string) time.Duration {
	for _, o := range g.others(h) {
		if g.rng.IntN(4) > 0 {
			g.paths(at+g.upTo(3*time.Second), o, "stale")
		}
	}
	g.add(at+g.upTo(3*time.Second), "cut %s both", h)
	end := at + g.lease + g.between(2*time.Second, 15*time.Second)
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end + 5*time.Second
}

// byHand: somebody starts VMs past HA, by libvirt or without it.
func (g *generator) byHand(at time.Duration, h string) time.Duration {
	v := g.vm()
	switch g.rng.IntN(4) {
	case 0:
		g.add(at, "vm crash %s", v)
	case 1:
		g.add(at, "power-off %s", g.pick(g.hosts))
	case 2:
		g.paths(at, h, g.pick([]string{"hang", "lost", "slow"}))
	}
	for range 1 + g.rng.IntN(3) {
		g.add(at+g.upTo(8*time.Second), "vm by-hand %s %s", v, g.pick(g.hosts))
	}
	end := at + 10*time.Second
	for _, o := range g.hosts {
		g.mend(end, o)
	}
	return end
}
