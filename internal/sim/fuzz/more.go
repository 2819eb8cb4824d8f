package fuzz

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The rarer disasters, on top of the others and drawn from a sequence of their
// own: what happens to a whole datastore, to clocks, to slow hosts and to guests,
// answers that come late, and moments chosen so that several hosts claim the same
// lock at once.

func (g *generator) moreDisasters() {
	rng := g.rng
	g.rng = g.more
	defer func() { g.rng = rng }()
	for at := g.between(5*time.Second, 60*time.Second); at < g.until; at += g.between(15*time.Second, 120*time.Second) {
		g.another(at, g.pick(g.hosts))
	}
}

func (g *generator) another(at time.Duration, h string) {
	long := g.between(2*time.Second, 40*time.Second)
	vm := fmt.Sprintf("vm%d", 1+g.rng.IntN(g.cfg.VMs))
	ds := g.pick(g.ds)
	switch g.rng.IntN(10) {
	case 0: // a full datastore is full for all
		for _, o := range g.hosts {
			g.add(at, "storage %s %s full", o, ds)
			g.add(at+long, "storage %s %s none", o, ds)
		}
	case 1:
		g.add(at, "slow %s %s", h, g.between(5*time.Millisecond, 300*time.Millisecond))
		g.add(at+long, "slow %s off", h)
	case 2:
		g.add(at, "clock %s %d", h, g.rng.IntN(20_001)-10_000)
	case 3:
		g.add(at, "vm hang %s", vm)
		g.add(at+long, "vm crash %s", vm)
	case 4, 5: // answers come late, alone or to a host that is cut off
		g.add(at, "storage %s %s unanswered", h, ds)
		g.add(at+long, "storage %s %s none", h, ds)
		if g.rng.IntN(2) == 0 {
			g.cut(at+g.upTo(2*time.Second), h, long)
		}
	case 6, 7:
		g.raceForVMs(at, h, ds)
	default:
		g.raceForLists(at, h)
	}
}

// raceForVMs lets the storage of a host that is cut off answer again just when
// others take its locks over slowly: it claims the same numbers.
func (g *generator) raceForVMs(at time.Duration, h, ds string) {
	g.add(at, "storage %s %s hang", h, ds)
	g.add(at, "cut %s both", h)
	back := at + g.lease + g.between(0, 3*time.Second)
	for _, o := range g.hosts {
		if o != h {
			g.add(at, "storage %s %s slow", o, ds)
			g.add(back+8*time.Second, "storage %s %s none", o, ds)
		}
	}
	g.add(back, "storage %s %s none", h, ds)
	g.add(back+g.between(0, 20*time.Second), "heal %s", h)
}

// raceForLists parts the hosts when one of them, perhaps the primary, loses power:
// the primaries of both sides claim what it owned at the same moment.
func (g *generator) raceForLists(at time.Duration, h string) {
	rest := slices.DeleteFunc(slices.Clone(g.hosts), func(o string) bool { return o == h })
	g.rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	g.add(at, "power-off %s", h)
	if len(rest) > 1 {
		n := 1 + g.rng.IntN(len(rest)-1)
		g.add(at, "partition %s | %s", strings.Join(rest[:n], ","), strings.Join(rest[n:], ","))
	}
	if g.rng.IntN(2) == 0 {
		for _, o := range rest {
			for _, d := range g.ds {
				g.add(at, "storage %s %s slow", o, d)
				g.add(at+g.lease+8*time.Second, "storage %s %s none", o, d)
			}
		}
	}
	long := g.lease + g.between(5*time.Second, 30*time.Second)
	for _, o := range rest {
		g.add(at+long, "heal %s", o)
	}
	g.add(at+long+g.upTo(20*time.Second), "power-on %s", h)
}
