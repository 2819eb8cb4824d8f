package sim

import (
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Times of a host's start. The daemons come up as on a lab host; what
// supervises them starts them again this long after their end.
const (
	guardAfterBoot   = 20 * time.Millisecond
	libvirtAfterBoot = 800 * time.Millisecond
	agentAfterBoot   = 100 * time.Millisecond
	respawn          = 100 * time.Millisecond
	respawnLibvirt   = time.Second
)

// host is one host of the cluster.
type host struct {
	s    *Sim
	i    int
	name model.HostID
	conf *config.Host

	on      bool
	boots   uint64
	boot    model.BootID
	clk     clock
	ppm     int64
	frozen  bool // all processes stand still; the kernel answers
	suspend bool // the machine sleeps; its clock goes on
	slow    time.Duration
	leaving bool // it was told to stop its VMs before it shuts down
	resets  int

	alone    bool          // it and no other host's agent can speak to each other
	aloneEnd time.Duration // when that ended last

	nics  []nic
	paths []*path // by datastore; nil: not meant to reach it
	links []*link // by host
	procs map[model.VMID]*proc
	order []*proc // procs in the order of their ids
	traps map[model.VMID]uint64

	guard        guard
	agent        agentd
	virt         libvirtd
	dog          watchdog
	file         uint64 // version of the cluster file on its disk
	managed      []lease.ManagedVM
	managedKnown bool
}

func (s *Sim) addHost(c *config.Host) {
	h := &host{s: s, i: len(s.hosts), name: c.Name, conf: c, nics: make([]nic, len(s.nets)), paths: make([]*path, len(s.disks)),
		links: nil, procs: map[model.VMID]*proc{}, traps: map[model.VMID]uint64{}, file: s.cluster.Version}
	h.ppm = s.rng.below(2*s.opts.Drift+1) - s.opts.Drift
	for _, d := range s.disks {
		for _, n := range c.Datastores {
			if n == d.name {
				h.paths[d.i] = &path{h: h, d: d}
			}
		}
	}
	h.guard.h, h.agent.h, h.virt.h = h, h, h
	h.virt.domains = map[model.VMID]*domain{}
	s.hosts = append(s.hosts, h)
	s.byName[h.name] = h
	h.newBoot()
}

// newBoot begins another boot: a new boot id, a clock that starts anywhere.
func (h *host) newBoot() {
	h.on, h.frozen, h.suspend = true, false, false
	h.boots++
	h.boot = model.BootID(number('b', h.boots) + "-" + string(h.name))
	h.clk = clock{since: h.s.now, shown: h.s.rng.between(time.Second, 100*time.Hour), ppm: h.ppm}
	h.dog = watchdog{}
	h.guard.lives = 0
	h.guard.saved = nil
}

func (h *host) clock() time.Duration { return h.clk.at(h.s.now) }

// halted: no process of the host runs.
func (h *host) halted() bool { return !h.on || h.frozen || h.suspend }

// powerOn boots a host that is off.
func (h *host) powerOn() {
	if h.on {
		return
	}
	s := h.s
	s.trace(h, "power on")
	h.leaving = false
	h.newBoot()
	boots := h.boots
	for _, p := range h.paths {
		if p != nil {
			p.stuck = nil
		}
	}
	start := func(d time.Duration, f func()) {
		s.after(s.opts.HostBoot+d+s.rng.between(0, d), func() {
			if h.on && h.boots == boots {
				f()
			}
		})
	}
	start(guardAfterBoot, h.guard.start)
	start(libvirtAfterBoot, h.virt.start)
	start(agentAfterBoot, h.agent.start)
	s.topology(h)
}

// powerOff is a loss of power: nobody says goodbye.
func (h *host) powerOff(why string) {
	if !h.on {
		return
	}
	s := h.s
	s.trace(h, "power off: %s", why)
	h.on = false
	for _, p := range h.paths {
		if p != nil {
			p.powerLost()
		}
	}
	h.guard.die()
	h.agent.die(false)
	h.virt.die()
	for len(h.order) > 0 {
		h.order[0].end(endPower, "")
	}
	clear(h.traps)
	clear(h.virt.domains)
	h.virt.order = nil
	h.dog = watchdog{}
	s.topology(h)
	s.disturbed()
}

// shutdown ends a host in good order: guests first, then the daemons.
func (h *host) shutdown() {
	if h.halted() {
		return
	}
	h.s.trace(h, "shutdown")
	for _, p := range append([]*proc(nil), h.order...) {
		h.virt.endGuest(p, endHostShutdown)
	}
	boots := h.boots
	h.s.after(2*time.Second, func() {
		if h.boots == boots {
			h.powerOff("shut down")
		}
	})
}

// setFrozen stops or continues every process of the host.
func (h *host) setFrozen(on bool) {
	if !h.on || h.frozen == on {
		return
	}
	h.s.trace(h, "frozen: %v", on)
	h.frozen = on
	h.s.seeAlone()
	h.wake()
}

// setSuspended puts the host to sleep or wakes it up. Its watchdog goes on, as
// one in the board does.
func (h *host) setSuspended(on bool) {
	if !h.on || h.suspend == on {
		return
	}
	h.s.trace(h, "suspended: %v", on)
	h.suspend = on
	h.s.topology(h)
	h.wake()
}

// wake lets what stood still go on.
func (h *host) wake() {
	h.s.disturbed()
	for _, p := range h.order {
		h.s.check.update(p.vm)
	}
	if h.halted() {
		return
	}
	h.guard.resume()
	h.agent.resume()
	h.virt.resume()
}

// watchdog is the device: it resets the host when it is not fed.
type watchdog struct {
	open    bool
	timeout time.Duration
	by      uint32        // life of the guard that set it
	bite    time.Duration // true time of the reset
	waiting bool          // an item is in the queue
}

// feed opens the device or pets it. The hardware may be late, up to the longest
// time that is reckoned with.
func (d *watchdog) feed(h *host) {
	d.open = true
	d.bite = h.s.now + d.timeout - d.timeout/100*time.Duration(h.clk.ppm)/10_000 + h.s.rng.between(0, 900*time.Millisecond)
	if !d.waiting {
		d.waiting = true
		h.s.queue.push(item{at: d.bite, kind: kindWatchdog, h: h, life: uint32(h.boots)})
	}
}

func (d *watchdog) due(h *host, life uint32) {
	if life != uint32(h.boots) || !h.on || !d.open {
		return
	}
	d.waiting = false
	switch {
	case h.s.now < d.bite:
		d.waiting = true
		h.s.queue.push(item{at: d.bite, kind: kindWatchdog, h: h, life: life})
	case h.s.opts.Off.NoReset:
	default:
		h.resets++
		h.s.cover[Resets]++
		h.powerOff("reset by its watchdog")
		if h.s.opts.RebootOnReset {
			h.powerOn()
		}
	}
}
