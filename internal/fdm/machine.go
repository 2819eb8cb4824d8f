package fdm

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Machine is the fault domain manager of one host. It is not safe for
// concurrent use. What it puts into effects (slices, maps, pointers) must not
// be modified afterwards, by either side.
type Machine struct {
	cfg    Config
	now    time.Duration
	out    []Effect
	beats  []SendHeartbeat // of out
	timers timerHeap
	seq    uint64
	opSeq  OpID
	ops    map[OpID]any // typed functions: func(SlotsRead), func(GuardReplied), ...

	conf    Cluster
	loaded  bool
	confAt  time.Duration // conf is in force since then
	confRev uint64        // grows with each conf
	sum     uint64        // of conf's file, see fileSum
	members map[model.HostID]*member
	order   []*member // sorted by name
	self    *member
	stores  map[model.DatastoreName]*store
	storeBy []*store // sorted by name

	// Election.
	role       role
	round      uint64
	reign      uint64 // grows whenever role changes; closures of an older one are void
	primary    model.HostID
	cold       bool // this reign began without a predecessor, and nobody knows of one
	coldID     string
	settled    bool // the cluster is known to have worked in this life: nothing to gather for
	candidate  candidacy
	barred     time.Duration // no candidate before
	cutOff     bool          // as a primary: nobody hears this host
	cutAt      time.Duration // since then
	lossSince  time.Duration
	beatGen    uint64
	since      time.Duration // of the present role
	predecess  model.HostID  // the primary followed before the present reign
	gatherDone bool
	gatherEnd  time.Duration

	// As a secondary.
	network    int             // index of the heartbeat network in use
	switchAt   time.Duration   // of the last switch
	unheard    int             // heartbeats of the primary in a row that miss this host
	switchSaid time.Duration   // a switch was last told to people
	unheardAt  time.Duration   // Stamp of the last of them
	netLost    map[string]bool // heartbeat networks that carry nothing
	watch      bool            // told to read slots
	offAt      time.Duration   // of the last heartbeats while HA is off
	reportAt   time.Duration
	reportDue  bool
	reportWake time.Duration
	view       ClusterView
	viewAt     time.Duration
	viewKnown  bool
	managed    []lease.ManagedVM
	managedOK  bool // managed is known
	managedSum uint64

	// As a primary.
	vms          map[model.VMID]*vm
	vmIDs        []model.VMID // of vms, sorted; nil: to be sorted anew
	byName       map[string]*vm
	ready        map[model.VMID]*vm  // to be placed at the end of this Step
	wasProtected map[model.VMID]bool // by the last view of the former primary
	waiting      map[model.VMID]*vm  // wait for an input to change
	held         map[model.VMID]*vm  // wait for other VMs to be ready
	recovering   map[model.VMID]*vm  // are being restarted, or were and are not ready
	orderDue     bool                // something changed that VMs may wait for
	gateClass    int                 // restarts of lower classes wait
	blockers     []*vm               // those of gateClass that are not ready
	poked        change              // since waiting VMs were tried last
	pokedAt      time.Duration
	pokeWake     time.Duration
	lockQueue    []*vm
	lockBusy     int
	orders       map[string]*order
	orderSeq     uint64
	failSeq      uint64
	failovers    map[string]*failover
	welcomeDue   bool
	welcomeAt    time.Duration
	welcomeWake  time.Duration
	chosenFor    uint64 // digest of what the heartbeat datastores were chosen by
	viewDue      bool
	viewSent     time.Duration
	viewWake     time.Duration

	// This host's own facts and duties.
	guardUp       bool
	status        lease.Status
	statusOK      bool
	hvUp          bool
	listed        bool
	domains       map[model.VMID]*domain
	guarded       map[model.VMID]lease.VMStatus
	guardedBefore map[model.VMID]lease.VMStatus // used again
	localIDs      []model.VMID                  // of both, sorted; worked out anew for each report
	beatsOut      int
	beatTaken     func(GuardReplied) // the same for every heartbeat
	asked         time.Duration      // as a primary: all were asked then for an answer that is still awaited
	asking        bool               // heartbeats being sent ask for it
	vouched       time.Duration      // of this host's clock: the owner of the lists heard it then
	execs         map[string]*exec
	busyVM        map[model.VMID]*exec
	releasing     map[model.VMID]bool
	greeting      map[model.VMID]bool
	ended         map[model.VMID]time.Duration // when a held VM was first seen not to run
	results       map[string]Progress
	resultLog     []string
	terms         map[model.DatastoreName]model.Term

	iso    isolation
	losses map[model.DatastoreName]*loss
	haOff  map[model.VMID]haStop // VMs that HA is stopping here
	// undone are VMs whose start failed half-way and was ended here, while their
	// lock is not released: no haStop, which gives way to a user's stop at the same
	// moment, as the end of an undone start looks to libvirt.
	undone  map[model.VMID]bool
	leaving *leaving // nil unless this host goes down on purpose
	// inherited are the VMs that ran here when this life of the agent began,
	// nil until the guard told: a former life may have ordered their stop.
	inherited map[model.VMID]model.Epoch
	// inheritedAt is when it began.
	inheritedAt time.Duration

	// Administrators' requests.
	relays   map[uint64]func(AdminReply)
	relaySeq uint64

	admission questions
	brake     brake
}

// New returns a machine that has yet to be told its configuration.
func New(cfg Config) *Machine {
	m := &Machine{
		cfg:           cfg.withDefaults(),
		ops:           map[OpID]any{},
		members:       map[model.HostID]*member{},
		stores:        map[model.DatastoreName]*store{},
		role:          roleNone,
		domains:       map[model.VMID]*domain{},
		guarded:       map[model.VMID]lease.VMStatus{},
		guardedBefore: map[model.VMID]lease.VMStatus{},
		execs:         map[string]*exec{},
		busyVM:        map[model.VMID]*exec{},
		releasing:     map[model.VMID]bool{},
		greeting:      map[model.VMID]bool{},
		ended:         map[model.VMID]time.Duration{},
		results:       map[string]Progress{},
		terms:         map[model.DatastoreName]model.Term{},
		relays:        map[uint64]func(AdminReply){},
		vms:           map[model.VMID]*vm{},
		byName:        map[string]*vm{},
		ready:         map[model.VMID]*vm{},
		waiting:       map[model.VMID]*vm{},
		netLost:       map[string]bool{},
		losses:        map[model.DatastoreName]*loss{},
		haOff:         map[model.VMID]haStop{},
		undone:        map[model.VMID]bool{},
		held:          map[model.VMID]*vm{},

		recovering: map[model.VMID]*vm{},
		orders:     map[string]*order{},
		failovers:  map[string]*failover{},
	}
	m.beatTaken = func(GuardReplied) { m.beatsOut = max(0, m.beatsOut-1) }
	return m
}

// Step takes one event at the time now since boot and returns what to do, in
// order; the result is valid until the next call. Time never runs backwards: an earlier now counts as the last one.
func (m *Machine) Step(now time.Duration, ev Event) []Effect {
	clear(m.out)
	m.out, m.beats = m.out[:0], m.beats[:0]
	if now > m.now {
		gap := now - m.now
		m.now = now
		m.overslept(gap)
	}
	m.runTimers()
	m.dispatch(ev)
	m.settle()
	return m.out
}

// Next is the time since boot at which the machine wants its next Tick; always
// later than the last Step.
func (m *Machine) Next() time.Duration {
	next := m.now + time.Minute
	if len(m.timers) > 0 && m.timers[0].at < next {
		next = m.timers[0].at
	}
	return max(next, m.now+time.Millisecond)
}

// overslept makes up for time in which this machine was not run at all: what
// it could not hear then is not silence. A primary that slept for so long that
// the others elected another steps back and listens.
func (m *Machine) overslept(gap time.Duration) {
	if !m.loaded || gap <= m.interval()+m.interval()/2 {
		return
	}
	m.brake.slept = m.now
	if m.role == rolePrimary && gap > m.silence()+m.interval() {
		m.emit(event.Event{Kind: event.Election, Severity: event.Warning, Host: m.cfg.Self,
			Text: fmt.Sprintf("%s steps back", m.cfg.Self), Cause: fmt.Sprintf("this agent did not run for %s", seconds(gap))})
		m.elect("the agent of the primary had stopped", m.silence())
		return
	}
	m.iso.heardAt = min(m.now, m.iso.heardAt+gap)
	for _, h := range m.order {
		h.base = min(m.now, h.lastHeard()+gap)
	}
}

// whenAwake runs f, or, if this agent did not run until a moment ago, after an
// interval: what was said to it meanwhile has been taken in by then. Whatever
// ends VMs by what this agent knows waits so.
func (m *Machine) whenAwake(f func()) {
	if m.brake.slept > 0 && m.now-m.brake.slept < m.interval() {
		m.after(m.interval(), func() { m.whenAwake(f) })
		return
	}
	f()
}

func (m *Machine) dispatch(ev Event) {
	switch e := ev.(type) {
	case Tick:
	case HeartbeatReceived:
		m.onHeartbeat(e)
	case *HeartbeatReceived: // read now and not kept
		m.onHeartbeat(*e)
	case MessageReceived:
		m.onMessage(e)
	case LinkChanged:
		m.onLink(e)
	case SlotsRead:
		answer(m, e.Op, e)
	case ListRead:
		answer(m, e.Op, e)
	case ListWritten:
		answer(m, e.Op, e)
	case LockRead:
		answer(m, e.Op, e)
	case GuardReplied:
		answer(m, e.Op, e)
	case *GuardReplied: // read now and not kept
		answer(m, e.Op, *e)
	case *SlotsRead: // read now and not kept
		answer(m, e.Op, *e)
	case HypervisorDone:
		answer(m, e.Op, e)
	case GuestPinged:
		answer(m, e.Op, e)
	case HostPinged:
		answer(m, e.Op, e)
	case AddressesPinged:
		answer(m, e.Op, e)
	case NoteWritten:
		answer(m, e.Op, e)
	case NoteRead:
		answer(m, e.Op, e)
	case GuardNoticed:
		m.onNotice(e.Notice)
	case GuardChanged:
		m.onGuard(e)
	case HypervisorChanged:
		m.onHypervisor(e)
	case DomainsListed:
		m.onDomains(e)
	case DomainChanged:
		m.onDomain(e.Domain)
	case ConfigLoaded:
		m.onConfig(e.Config)
	case ConfigSaved:
		answer(m, e.Op, e)
	case Considered:
		answer(m, e.Op, e)
	case ConfigRead:
		answer(m, e.Op, e)
	case AdminAsked:
		m.onAdmin(e)
	}
}

// settle does what is best done once for all that an event changed.
func (m *Machine) settle() {
	if m.role == rolePrimary {
		m.selfReport()
		m.retryWaiting()
		m.pumpLocks()
		m.placeReady()
		m.orchestrate()
		m.watchRoom()
		m.pumpQuestions()
		m.flushLists()
		m.flushWelcome()
		m.flushView()
	} else {
		m.flushReport()
	}
}

func (m *Machine) do(e Effect) { m.out = append(m.out, e) }

func (m *Machine) emit(e event.Event) {
	if e.At == 0 {
		e.At = m.now
	}
	if e.Severity == "" {
		e.Severity = event.Info
	}
	m.do(Emit{e})
}

// op registers f, a func of one kind of answer, for a new operation.
func (m *Machine) op(f any) OpID {
	m.opSeq++
	m.ops[m.opSeq] = f
	return m.opSeq
}

// answer hands e to whoever waits for exactly such an answer to id; anything
// else is late or foreign and dropped.
func answer[E Event](m *Machine, id OpID, e E) {
	if f, ok := m.ops[id].(func(E)); ok {
		delete(m.ops, id)
		f(e)
	}
}

func (m *Machine) ask(req lease.Request, f func(lease.Reply)) {
	id := m.op(func(r GuardReplied) { f(r.Reply) })
	m.do(AskGuard{Op: id, Request: req})
}

func (m *Machine) hypervise(call HypervisorCall, vm model.VMID, config string, f func(HypervisorDone)) {
	m.do(Hypervise{Op: m.op(f), Call: call, VM: vm, Config: config})
}

// timer is a function to run at a time; seq keeps equal times in order.
type timer struct {
	at  time.Duration
	seq uint64
	f   func()
}

type timerHeap []timer

func (h timerHeap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

// after runs f once d has passed, at least a millisecond from now.
func (m *Machine) after(d time.Duration, f func()) {
	m.seq++
	m.timers = append(m.timers, timer{m.now + max(d, time.Millisecond), m.seq, f})
	for i := len(m.timers) - 1; i > 0; {
		p := (i - 1) / 2
		if !m.timers.less(i, p) {
			break
		}
		m.timers[i], m.timers[p] = m.timers[p], m.timers[i]
		i = p
	}
}

func (m *Machine) runTimers() {
	for len(m.timers) > 0 && m.timers[0].at <= m.now {
		f := m.timers[0].f
		last := len(m.timers) - 1
		m.timers[0] = m.timers[last]
		m.timers[last] = timer{}
		m.timers = m.timers[:last]
		for i := 0; ; {
			c := 2*i + 1
			if c >= last {
				break
			}
			if c+1 < last && m.timers.less(c+1, c) {
				c++
			}
			if !m.timers.less(c, i) {
				break
			}
			m.timers[i], m.timers[c] = m.timers[c], m.timers[i]
			i = c
		}
		f()
	}
}

// reigning wraps f so that it does nothing once the role has changed.
func (m *Machine) reigning(f func()) func() {
	reign := m.reign
	return func() {
		if m.reign == reign {
			f()
		}
	}
}

func (m *Machine) interval() time.Duration { return m.conf.Timing.Interval }
func (m *Machine) silence() time.Duration  { return silentAfter*m.interval() + m.interval()/4 }

func (m *Machine) maxRestarts() int {
	if m.conf.MaxRestarts > 0 {
		return m.conf.MaxRestarts
	}
	return defaultMaxRestarts
}

func (m *Machine) perHost() int {
	if m.conf.PerHost > 0 {
		return m.conf.PerHost
	}
	return defaultPerHost
}

func seconds(d time.Duration) string {
	var buf [32]byte
	return string(append(strconv.AppendFloat(buf[:0], d.Seconds(), 'f', 1, 64), " s"...))
}

func sortedKeys[K ~string, V any](in map[K]V) []K {
	keys := make([]K, 0, len(in))
	for k := range in {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
