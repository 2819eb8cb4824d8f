package sim

import (
	"fmt"
	"math"
	"time"

	"hanok.dev/hanok/internal/agent"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// Options of a simulation. The zero value is usable.
type Options struct {
	// Seed decides everything that is left to chance.
	Seed uint64
	// Drift is the largest error of a host's clock, in parts per million; each
	// host draws its own. Default 10,000 (1 %), the most that the protocol
	// allows; negative: clocks are exact.
	Drift int64
	// HostBoot is the time from power to the first daemon. Default 5 s.
	HostBoot time.Duration
	// RebootOnReset: a host that its watchdog reset boots again, else it stays
	// off.
	RebootOnReset bool
	// NoWatchdog names hosts without a watchdog.
	NoWatchdog map[model.HostID]bool
	// Network is how datagrams travel.
	Network NetworkQuality
	// Jitter lets what is normally done at once (between the daemons of a host)
	// take up to this long. Default 0.
	Jitter time.Duration
	// Off switches parts of the surroundings or of the machines' effects off,
	// to see scenarios and invariants fail.
	Off Tamper
	// Trace is called with what happens, for people; nil costs nothing.
	Trace func(at time.Duration, host model.HostID, text string)
	// Events is given each event of the hosts' agents, in the order in which they
	// emit them; nil costs nothing.
	Events func(by model.HostID, e event.Event)
	// GoOn keeps a simulation running after a violation.
	GoOn bool
	// RestartBound is how long a VM that could run may stay down while nothing
	// is broken any more. Default 90 s.
	RestartBound time.Duration
}

// NetworkQuality is how datagrams travel. Probabilities are in a thousand.
type NetworkQuality struct {
	// Latency of every packet and the most that is added at random, which
	// reorders datagrams. Defaults 200 µs and 200 µs.
	Latency, Spread time.Duration
	Loss, Duplicate int
}

// Sim is a cluster in virtual time. It is not safe for concurrent use.
type Sim struct {
	opts  Options
	now   time.Duration
	zero  time.Duration // the scenario's time 0
	queue queue
	rng   random
	steps uint64 // steps of machines
	items uint64 // items of the queue
	hash  uint64

	cluster  *config.Cluster // the newest version
	conf     fdm.Cluster
	files    map[uint64]*file
	newest   *file // but for those that were refused
	hosts    []*host
	byName   map[model.HostID]*host
	lastHost *host // that host found last
	disks    []*disk
	vms      []*guest
	byVM     map[model.VMID]*guest
	vmNamed  map[string]*guest
	nets     []string

	nonces uint64
	admins uint64
	asked  map[uint64]func(fdm.AdminReply)

	check    checker
	cover    Coverage
	recover  recoveries
	told     []telling
	stopped  bool
	lastStep string // the last fault, for people
	lastAt   time.Duration
}

// file is one version of the cluster file as the machines get it.
type file struct {
	cluster *config.Cluster
	conf    fdm.Cluster
	from    *file // what was in force before; nil: the first
}

// New makes the cluster of a file: its hosts are up, its VMs run where the file
// says and hold their locks, and the agents have just started. A host without
// memory gets 64 GiB, a VM without gets 512 MiB.
func New(c *config.Cluster, o Options) (*Sim, error) {
	c = c.Clone()
	if err := fill(c); err != nil {
		return nil, err
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.HostBoot, 5*time.Second)
	def(&o.RestartBound, 90*time.Second)
	def(&o.Network.Latency, 200*time.Microsecond)
	def(&o.Network.Spread, 200*time.Microsecond)
	switch {
	case o.Drift == 0:
		o.Drift = int64(model.MaxDrift * million)
	case o.Drift < 0:
		o.Drift = 0
	}
	s := &Sim{opts: o, rng: random(o.Seed), files: map[uint64]*file{}, byName: map[model.HostID]*host{},
		byVM: map[model.VMID]*guest{}, vmNamed: map[string]*guest{}, asked: map[uint64]func(fdm.AdminReply){},
		now: time.Second}
	s.check.init(s)
	s.adoptFile(c)
	for _, n := range c.Networks {
		s.nets = append(s.nets, n.Name)
	}
	for i := range c.Datastores {
		s.disks = append(s.disks, newDisk(s, i, c.Datastores[i].Name))
	}
	for i := range c.Hosts {
		s.addHost(&c.Hosts[i])
	}
	for i := range c.VMs {
		s.addGuest(&c.VMs[i])
	}
	s.begin()
	return s, nil
}

// adoptFile makes c the newest version of the cluster file.
func (s *Sim) adoptFile(c *config.Cluster) {
	s.cluster = c
	s.conf = agent.CoreOf(c, "")
	s.conf.File = fmt.Appendf(nil, "version %d", c.Version) // it is passed on, and never read
	if s.opts.Off.Config != nil {
		s.opts.Off.Config(&s.conf)
	}
	s.newest = &file{c, s.conf, s.newest}
	s.files[c.Version] = s.newest
}

// fill gives a cluster file what only a real one has.
func fill(c *config.Cluster) error {
	if len(c.Hosts) == 0 {
		return fmt.Errorf("hosts: a simulation needs at least one")
	}
	if len(c.HeartbeatNetworks()) == 0 {
		return fmt.Errorf("networks: a simulation needs one with heartbeat: true")
	}
	for i := range c.Hosts {
		if h := &c.Hosts[i]; h.Memory == 0 {
			h.Memory = 64 << 10
		}
	}
	for i := range c.VMs {
		v := &c.VMs[i]
		if v.ID == "" {
			v.ID = model.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i+1))
		}
		if v.Memory == 0 {
			v.Memory = 512
		}
		if v.Host == "" {
			for n := range c.Hosts {
				if h := &c.Hosts[(i+n)%len(c.Hosts)]; h.Accessible(v) {
					v.Host = h.Name
					break
				}
			}
		}
		h := c.HostByName(v.Host)
		if h == nil || !h.Accessible(v) {
			return fmt.Errorf("vms.%s: host %q does not reach all its datastores", v.Name, v.Host)
		}
	}
	return nil
}

// Now is the scenario's time: 0 when Settle returned, or when New did.
func (s *Sim) Now() time.Duration { return s.now - s.zero }

// At calls f at a scenario's time that is not past.
func (s *Sim) At(t time.Duration, f func()) { s.after(s.zero+t-s.now, f) }

// after calls f when d has passed.
func (s *Sim) after(d time.Duration, f func()) {
	p := s.queue.load()
	p.f = f
	s.queue.push(item{at: s.now + max(d, 0), kind: kindFunc, p: p})
}

// Run lets time pass until the scenario's time t, or the first violation.
func (s *Sim) Run(t time.Duration) {
	end := s.zero + t
	for !s.stopped && s.queue.until(end) {
		s.turn()
	}
	if !s.stopped {
		s.now = max(s.now, end)
	}
}

// turn takes the next item.
func (s *Sim) turn() {
	it := s.queue.pop()
	s.now = it.at
	s.items++
	s.hash = mix(s.hash, uint64(it.at)^uint64(it.kind)<<56)
	switch it.kind {
	case kindFunc:
		f := it.p.f
		s.queue.release(it.p)
		f()
	case kindGuard:
		it.h.guard.wakeUp(it.life)
	case kindAgent:
		it.h.agent.wakeUp(it.life)
	case kindBeat:
		s.beatArrives(it.h, it.p)
		s.queue.release(it.p)
	case kindWrote:
		it.h.guard.wrote(it.life, it.p)
	case kindSlots:
		it.h.agent.slotsRead(it.life, it.p)
	case kindScan:
		it.h.guard.scanned(it.life, it.p.op)
		s.queue.release(it.p)
	case kindWatchdog:
		it.h.dog.due(it.h, it.life)
	}
}

// Settle runs until every VM that is to run is protected, which becomes the
// scenario's time 0; false if that is not so within limit.
func (s *Sim) Settle(limit time.Duration) bool {
	end := s.now + limit
	for s.now < end && !s.stopped {
		s.Run(s.Now() + 500*time.Millisecond)
		if s.allProtected() {
			s.zero = s.now
			s.check.calmSince = s.now
			return !s.stopped
		}
	}
	return false
}

func (s *Sim) allProtected() bool {
	v, ok := s.View()
	if !ok {
		return false
	}
	n := 0
	for i := range v.VMs {
		g := s.byVM[v.VMs[i].ID]
		if g != nil && g.conf.Requested == model.RequestedStarted {
			if !v.VMs[i].Protected && v.VMs[i].Priority != model.PriorityDisabled {
				return false
			}
			n++
		}
	}
	for _, g := range s.vms {
		if g.conf.Requested == model.RequestedStarted {
			n--
		}
	}
	return n == 0
}

// primary is the host that leads; the one of the best rank if several believe
// to, nil if none.
func (s *Sim) primary() *host {
	var best *host
	most := -1
	for _, h := range s.hosts {
		if !h.agent.runs() || h.agent.m.Role() != model.RolePrimary {
			continue
		}
		if n := h.agent.m.ListsOwned(); n > most {
			best, most = h, n
		}
	}
	return best
}

// View is the cluster as its primary shows it; false without a primary.
func (s *Sim) View() (fdm.ClusterView, bool) {
	h := s.primary()
	if h == nil {
		return fdm.ClusterView{}, false
	}
	return h.agent.m.View(h.clock()), true
}

// Hash is a digest of everything that happened: equal for equal runs.
func (s *Sim) Hash() uint64 { return s.hash }

// Steps are the steps of all machines, and the items of the queue, until now.
func (s *Sim) Steps() (machines, items uint64) { return s.steps, s.items }

// Violations are the invariants that did not hold.
func (s *Sim) Violations() []scenario.Violation { return s.check.found }

func (s *Sim) trace(h *host, format string, args ...any) {
	if s.opts.Trace == nil {
		return
	}
	name := model.HostID("")
	if h != nil {
		name = h.name
	}
	s.opts.Trace(s.Now(), name, fmt.Sprintf(format, args...))
}

func (s *Sim) nonce() string {
	s.nonces++
	return number('n', s.nonces)
}

// number is a short text that no other number has.
func number(prefix byte, n uint64) string {
	var buf [24]byte
	i := len(buf)
	for {
		i--
		buf[i] = "0123456789abcdefghijklmnopqrstuv"[n&31]
		if n >>= 5; n == 0 {
			break
		}
	}
	i--
	buf[i] = prefix
	return string(buf[i:])
}

// forever is later than everything.
const forever = time.Duration(math.MaxInt64)
