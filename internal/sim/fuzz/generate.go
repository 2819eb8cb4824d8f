package fuzz

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// Config is the size of the clusters and how long each lives.
type Config struct {
	Hosts, VMs int
	Duration   time.Duration
	// Theme narrows the disasters down to one kind ([Themes]); empty: all kinds.
	Theme string
}

// Quiet is the end of every run, after everything was healed: what can run must
// run again by then.
const Quiet = 150 * time.Second

// Validate checks the bounds.
func (c Config) Validate() error {
	switch {
	case c.Hosts < 2 || c.Hosts > 64:
		return fmt.Errorf("hosts %d: must be 2 to 64", c.Hosts)
	case c.VMs < 1 || c.VMs > 2000:
		return fmt.Errorf("vms %d: must be 1 to 2000", c.VMs)
	case c.Duration < Quiet+time.Minute || c.Duration > 24*time.Hour:
		return fmt.Errorf("duration %v: must be %v to 24h, of which the last %v are quiet", c.Duration, Quiet+time.Minute, Quiet)
	}
	return validateTheme(c.Theme)
}

// generator writes the script of one seed.
type generator struct {
	rng   *rand.Rand
	more  *rand.Rand // of the disasters of more
	cfg   Config
	steps []line
	until time.Duration // no fault begins later
	end   time.Duration // ... or lasts longer
	ds    []string
	hosts []string
	lease time.Duration // after which its lapse is proven, by the profile
}

type line struct {
	at   time.Duration
	text string
}

// Generate makes the scenario of a seed. It is the same for the same arguments.
func Generate(seed uint64, cfg Config) (*scenario.Scenario, error) {
	g := &generator{rng: rand.New(rand.NewPCG(seed, 0x68616e6f6b)), more: rand.New(rand.NewPCG(seed, 0x6d6f7265)), cfg: cfg}
	g.end = cfg.Duration - Quiet
	g.until = g.end - 30*time.Second
	cluster := g.cluster()
	if draw := themes[cfg.Theme]; draw != nil {
		g.episodes(draw)
	} else {
		g.disasters()
		g.moreDisasters()
	}
	g.healAll()
	slices.SortStableFunc(g.steps, func(a, b line) int { return int(a.at - b.at) })
	var b strings.Builder
	fmt.Fprintf(&b, "Random disasters of seed %d.\n-- cluster.yaml --\n%s-- script --\n", seed, cluster)
	for _, l := range g.steps {
		fmt.Fprintf(&b, "at %s %s\n", l.at, l.text)
	}
	sc, err := scenario.Parse([]byte(b.String()))
	if err != nil {
		return nil, fmt.Errorf("the scenario of seed %d: %w", seed, err)
	}
	return sc, nil
}

func (g *generator) pick(list []string) string { return list[g.rng.IntN(len(list))] }

func (g *generator) upTo(d time.Duration) time.Duration {
	return time.Duration(g.rng.Int64N(int64(d/time.Millisecond)+1)) * time.Millisecond
}

func (g *generator) between(low, high time.Duration) time.Duration { return low + g.upTo(high-low) }

func (g *generator) add(at time.Duration, format string, args ...any) {
	g.steps = append(g.steps, line{min(at, g.end), fmt.Sprintf(format, args...)})
}

// cluster draws a cluster file: one or two datastores, all hosts alike or not.
func (g *generator) cluster() string {
	var b strings.Builder
	b.WriteString("version: 1\nname: fuzz\nha:\n  enabled: true\n  hostMonitoring: true\n")
	timing := g.pick([]string{"fast", "fast", "fast", "steady"})
	g.lease = map[string]model.Timing{"fast": model.TimingFast, "steady": model.TimingSteady}[timing].StaleAfter()
	fmt.Fprintf(&b, "  timing: %s\n", timing)
	response := g.pick([]string{"none", "none", "powerOff"})
	if g.cfg.Theme == "notes" {
		response = "shutdown"
	}
	fmt.Fprintf(&b, "  isolationResponse: %s\n  isolationDelay: %ds\n", response, 1+g.rng.IntN(6))
	b.WriteString("networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}, {name: vm}]\ndatastores:\n")
	for i := range 1 + g.rng.IntN(2) {
		g.ds = append(g.ds, fmt.Sprintf("ds%d", i+1))
		fmt.Fprintf(&b, "- {name: ds%d, backing: array-%d}\n", i+1, i+1)
	}
	b.WriteString("hosts:\n")
	for i := range g.cfg.Hosts {
		name := fmt.Sprintf("host%d", i+1)
		g.hosts = append(g.hosts, name)
		fmt.Fprintf(&b, "- {name: %s, address: {mgmt: 10.0.%d.%d, hb2: 10.1.%d.%d}, cpu: {cores: 16, mhz: 2000}, memory: 256GiB, datastores: [%s]}\n",
			name, (i+1)/250, (i+1)%250+1, (i+1)/250, (i+1)%250+1, strings.Join(g.ds, ", "))
	}
	b.WriteString("vms:\n")
	for i := range g.cfg.VMs {
		fmt.Fprintf(&b, "- {name: vm%d, host: %s, datastore: %s, cpus: 1, memory: 1GiB, restart: {priority: %s}}\n", i+1,
			g.hosts[i%len(g.hosts)], g.pick(g.ds), g.pick([]string{"medium", "medium", "high", "low"}))
	}
	return b.String()
}

// disasters draws what happens. Faults come alone, and in the combinations that
// the rules of the protocol are about.
func (g *generator) disasters() {
	at := g.upTo(10 * time.Second)
	for at < g.until {
		g.disaster(at, g.pick(g.hosts))
		at += g.between(4*time.Second, 55*time.Second)
	}
	if g.rng.IntN(3) == 0 {
		g.add(0, "network loss %d", g.rng.IntN(100))
	}
	if g.rng.IntN(3) == 0 {
		g.add(0, "network duplicate %d", g.rng.IntN(100))
	}
}

func (g *generator) disaster(at time.Duration, h string) {
	vm := func() string { return fmt.Sprintf("vm%d", 1+g.rng.IntN(g.cfg.VMs)) }
	long := g.between(2*time.Second, 40*time.Second)
	short := g.between(200*time.Millisecond, 9*time.Second)
	switch g.rng.IntN(22) {
	case 0, 1:
		g.add(at, "power-off %s", h)
		g.add(at+g.between(time.Second, 50*time.Second), "power-on %s", h)
	case 2:
		g.add(at, "reboot %s", h)
	case 3, 4: // cut off from everything, as by a dead switch
		g.storage(at, h, long)
		g.cut(at+g.upTo(3*time.Second), h, g.between(2*time.Second, 40*time.Second))
	case 5:
		g.cut(at, h, long)
	case 6:
		g.partition(at, long)
	case 7, 8:
		g.storage(at, h, long)
	case 9: // storage, then the guard stands still
		g.storage(at, h, long)
		g.stop(at+g.upTo(8*time.Second), "guard", h, short)
	case 10:
		g.stop(at, "guard", h, short)
	case 11:
		g.stop(at, "agent", h, long)
	case 12:
		g.add(at, "kill %s %s", g.pick([]string{"guard", "agent", "libvirtd"}), h)
	case 13: // killed while it cannot write
		g.storage(at, h, long)
		g.add(at+g.upTo(6*time.Second), "kill guard %s", h)
	case 14:
		g.add(at, "freeze %s for %s", h, g.between(time.Second, 20*time.Second))
	case 15:
		g.add(at, "stall %s %s after %d for %s", g.pick([]string{"guard", "agent"}), h, 1+g.rng.IntN(200), short)
	case 16: // somebody starts and stops VMs
		g.add(at, "vm stop %s", vm())
		g.add(at+g.upTo(30*time.Second), "vm start %s", vm())
	case 17:
		g.add(at, "vm crash %s", vm())
	case 18: // the host is lost while a VM is being moved about by its user
		v := vm()
		g.add(at, "vm stop %s", v)
		g.add(at+g.upTo(4*time.Second), "power-off %s", h)
		g.add(at+g.between(5*time.Second, 50*time.Second), "power-on %s", h)
	case 19:
		g.add(at, "host maintenance %s on", h)
		g.add(at+long, "host maintenance %s off", h)
	case 20: // two at once
		g.add(at, "power-off %s", h)
		other := g.pick(g.hosts)
		g.storage(at+g.upTo(4*time.Second), other, long)
		g.cut(at+g.upTo(4*time.Second), other, long)
		g.add(at+g.between(20*time.Second, 60*time.Second), "power-on %s", h)
	case 21:
		g.add(at, "suspend %s for %s", h, g.between(time.Second, 20*time.Second))
	}
}

func (g *generator) storage(at time.Duration, h string, long time.Duration) {
	fault := g.pick([]string{"hang", "hang", "hang-hard", "lost", "flaky", "cached", "slow", "readonly"})
	for _, d := range g.ds {
		if len(g.ds) == 1 || g.rng.IntN(3) > 0 {
			g.add(at, "storage %s %s %s", h, d, fault)
			g.add(at+long, "storage %s %s none", h, d)
		}
	}
}

func (g *generator) cut(at time.Duration, h string, long time.Duration) {
	g.add(at, "cut %s%s %s", h, g.pick([]string{"", "", "", " mgmt"}), g.pick([]string{"both", "both", "in", "out"}))
	g.add(at+long, "heal %s", h)
}

func (g *generator) partition(at, long time.Duration) {
	list := slices.Clone(g.hosts)
	g.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	n := 1 + g.rng.IntN(len(list)-1)
	g.add(at, "partition %s | %s", strings.Join(list[:n], ","), strings.Join(list[n:], ","))
	for _, h := range list {
		g.add(at+long, "heal %s", h)
	}
}

func (g *generator) stop(at time.Duration, name, h string, long time.Duration) {
	g.add(at, "stop %s %s", name, h)
	g.add(at+long, "cont %s %s", name, h)
}

// healAll ends every fault: from here on what can run must run again.
func (g *generator) healAll() {
	g.add(g.end, "network loss 0")
	g.add(g.end, "network duplicate 0")
	for _, h := range g.hosts {
		for _, d := range g.ds {
			g.add(g.end, "storage %s %s none", h, d)
		}
		g.add(g.end, "heal %s", h)
		g.add(g.end, "thaw %s", h)
		g.add(g.end, "cont guard %s", h)
		g.add(g.end, "cont agent %s", h)
		g.add(g.end, "power-on %s", h)
		g.add(g.end, "host maintenance %s off", h)
		g.add(g.end, "slow %s off", h)
		g.add(g.end, "clock %s 0", h)
	}
}
