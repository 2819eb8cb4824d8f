package fdm

import (
	"container/heap"
	"fmt"
	"sort"
	"strings"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// A small virtual cluster: machines in virtual time over a modelled network,
// datastore, guard and hypervisor.

type job struct {
	at  time.Duration
	seq int
	f   func()
}
type jobs []job

func (q jobs) Len() int { return len(q) }
func (q jobs) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q jobs) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *jobs) Push(x any)   { *q = append(*q, x.(job)) }
func (q *jobs) Pop() any     { o := *q; x := o[len(o)-1]; *q = o[:len(o)-1]; return x }

type world struct {
	now    time.Duration
	q      jobs
	seq    int
	conf   Cluster
	files  map[uint64]Cluster
	nodes  map[model.HostID]*node
	names  []model.HostID
	disks  map[model.DatastoreName]*disk
	log    []string
	quiet  map[event.Kind]bool
	answer map[uint64]string
	admin  uint64
	loss   int // of a hundred datagrams, by a fixed sequence
	rnd    uint64
	broken []string // violated invariants
	// gateway: there is an isolation address, which answers whoever is not cut
	// off from it.
	gateway bool
	onEvent func(n *node, e event.Event)
	notes   map[model.VMID]model.PoweredOffNote
	orders  map[string]sentOrder
	faults  map[model.VMID]*startFault
	sent    []sentCommand            // every command that went over the network
	memory  map[model.VMID]model.MiB // by their definitions
	// stubborn are VMs whose guests do not shut down when asked; pings counts
	// those of hosts.
	stubborn map[model.VMID]bool
	pings    map[model.HostID]int
	mute     map[model.VMID]bool // their guest agents do not answer
	probe    time.Duration       // Config.Probe; 0 is the default
}

type sentCommand struct {
	from, to model.HostID
	cmd      Command
}

type sentOrder struct {
	host model.HostID
	id   string
	at   time.Duration
	term model.Term
	over bool
}

type startFault struct {
	fault HypervisorFault
	left  int
	host  model.HostID
}

type disk struct {
	slots map[model.HostID]model.SlotReading
	locks map[model.LockID]model.LockRecord
	lists map[model.Term]model.ProtectedList
}

type node struct {
	w      *world
	name   model.HostID
	on     bool
	boots  int
	starts int
	m      *Machine
	wakeAt time.Duration
	frozen bool // the agent is stopped (SIGSTOP)
	inbox  []Event
	conf   Cluster
	cut    bool            // no network at all
	side   int             // of a split network
	noGate bool            // the isolation address does not answer
	noPing bool            // it answers no ping
	deaf   bool            // nothing reaches it
	mute   bool            // nothing leaves it
	netOff map[string]bool // networks that carry nothing
	flags  model.SlotFlags // by the agent
	kinds  map[model.DatastoreName]string
	old    []model.SlotReading          // what it reads of heartbeats, instead of the present
	hungs  int                          // grows with each change of a datastore's health
	hung   map[model.DatastoreName]bool // storage does not answer
	leased map[model.DatastoreName]bool // ... but the lease still runs

	guardOn  bool
	guardVMs map[model.VMID]*lease.VMStatus
	terms    map[model.DatastoreName]model.Term
	beatAt   time.Duration
	heardAt  time.Duration // the guard counts on contact from then
	slotSeq  uint64
	armed    bool
	doms     map[model.VMID]*Domain
	libvirt  bool
}

func newWorld(n int, datastores ...model.DatastoreName) *world {
	w := &world{stubborn: map[model.VMID]bool{}, pings: map[model.HostID]int{}, nodes: map[model.HostID]*node{}, disks: map[model.DatastoreName]*disk{}, answer: map[uint64]string{}, rnd: 1,
		notes: map[model.VMID]model.PoweredOffNote{}, orders: map[string]sentOrder{}, faults: map[model.VMID]*startFault{}, mute: map[model.VMID]bool{}, memory: map[model.VMID]model.MiB{}, files: map[uint64]Cluster{}, quiet: map[event.Kind]bool{}}
	w.conf = Cluster{Version: 1, Enabled: true, HostMonitoring: true, Timing: model.TimingFast, HeartbeatNetworks: []string{"mgmt", "hb2"}, File: []byte("1")}
	for _, d := range datastores {
		w.conf.Datastores = append(w.conf.Datastores, ClusterDatastore{Name: d, Fence: model.FenceReset})
		w.disks[d] = &disk{slots: map[model.HostID]model.SlotReading{}, lists: map[model.Term]model.ProtectedList{},
			locks: map[model.LockID]model.LockRecord{model.ListLock: {Lock: model.ListLock, Epoch: 1, State: model.LockReleased, Reason: model.ReasonCreated}}}
	}
	for i := 1; i <= n; i++ {
		name := model.HostID(fmt.Sprintf("host%d", i))
		w.names = append(w.names, name)
		w.conf.Hosts = append(w.conf.Hosts, ClusterHost{Name: name, Datastores: datastores, Memory: 8192, CPU: 8000})
		w.nodes[name] = &node{w: w, name: name, armed: true, hung: map[model.DatastoreName]bool{}, leased: map[model.DatastoreName]bool{}, netOff: map[string]bool{}, kinds: map[model.DatastoreName]string{}}
	}
	w.files[1] = w.conf
	for _, name := range w.names {
		w.nodes[name].conf = w.conf
	}
	return w
}

func (w *world) at(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.q, job{w.now + d, w.seq, f})
}

func (w *world) run(d time.Duration) {
	end := w.now + d
	for len(w.q) > 0 && w.q[0].at <= end {
		j := heap.Pop(&w.q).(job)
		w.now = j.at
		j.f()
	}
	w.now = end
}

func (w *world) random(n int) int {
	w.rnd = w.rnd*6364136223846793005 + 1442695040888963407
	return int((w.rnd >> 33) % uint64(n))
}

func (w *world) violate(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf("%.1fs ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

// powerOn boots a host: agent, guard and libvirt start shortly after.
func (n *node) powerOn() {
	if n.on {
		return
	}
	n.on, n.libvirt = true, true
	n.boots++
	n.doms = map[model.VMID]*Domain{}
	n.guardVMs = map[model.VMID]*lease.VMStatus{}
	n.terms = map[model.DatastoreName]model.Term{}
	boot := n.boots
	n.w.at(time.Duration(10+n.w.random(90))*time.Millisecond, func() {
		if n.boots == boot && n.on {
			n.startGuard()
			n.startAgent()
		}
	})
}

func (n *node) powerOff() {
	n.on, n.m, n.guardOn, n.libvirt, n.frozen, n.inbox = false, nil, false, false, false, nil
	n.doms = map[model.VMID]*Domain{}
	n.guardVMs, n.terms = nil, nil
}

func (n *node) boot() model.BootID { return model.BootID(fmt.Sprintf("%s-boot%d", n.name, n.boots)) }

func (n *node) startAgent() {
	n.starts++
	n.wakeAt = 0 // that was for the former life
	n.m = New(Config{Self: n.name, Boot: n.boot(), Incarnation: 1, Start: uint64(n.starts), Probe: n.w.probe})
	n.step(ConfigLoaded{n.conf})
	n.step(GuardChanged{Up: n.guardOn})
	if n.guardOn {
		n.notice(lease.Notice{What: lease.NoticeStatus})
	}
	if n.libvirt {
		n.step(HypervisorChanged{Up: true})
		n.listDomains()
	}
	for _, name := range n.w.names {
		if o := n.w.nodes[name]; o != n && o.m != nil && n.link(o) {
			o.step(LinkChanged{Host: n.name, Up: true})
			n.step(LinkChanged{Host: o.name, Up: true})
		}
	}
}

func (n *node) killAgent() { n.m, n.inbox = nil, nil }

func (n *node) listDomains() {
	var ev DomainsListed
	for _, id := range sortedKeys(n.doms) {
		ev.Domains = append(ev.Domains, *n.doms[id])
	}
	n.step(ev)
}

// reach tells whether what n sends arrives at o.
func (n *node) reach(o *node) bool {
	return n.on && o.on && !n.cut && !o.cut && n.side == o.side && !n.mute && !o.deaf
}

// link tells whether the two can speak with each other.
func (n *node) link(o *node) bool { return n.reach(o) && o.reach(n) }

// step feeds an event to the agent, unless it is dead; a stopped agent gets it
// later.
func (n *node) step(ev Event) {
	if n.m == nil {
		return
	}
	if n.frozen {
		n.inbox = append(n.inbox, ev)
		return
	}
	n.carry(n.m.Step(n.w.now, ev))
	n.schedule()
}

func (n *node) schedule() {
	next := n.m.Next()
	if next <= n.w.now {
		n.w.violate("%s: Next %v is not after now", n.name, next)
		next = n.w.now + time.Millisecond
	}
	if n.wakeAt > n.w.now && n.wakeAt <= next {
		return
	}
	n.wakeAt = next
	m := n.m
	n.w.at(next-n.w.now, func() {
		if n.m == m && n.wakeAt == n.w.now {
			n.wakeAt = 0
			n.step(Tick{})
		}
	})
}

func (n *node) thawAgent() {
	n.frozen = false
	box := n.inbox
	n.inbox = nil
	for _, ev := range box {
		n.step(ev)
	}
	n.step(Tick{})
}

// later answers an operation of the present agent after d.
func (n *node) later(d time.Duration, f func() Event) {
	m := n.m
	n.w.at(d, func() {
		if n.m == m && n.on {
			n.step(f())
		}
	})
}

func (n *node) carry(effects []Effect) {
	w := n.w
	for _, e := range byValue(effects) {
		switch e := e.(type) {
		case SendHeartbeat:
			o := w.nodes[e.To]
			if o == nil || !n.reach(o) || n.netOff[e.Network] || o.netOff[e.Network] || w.loss > 0 && w.random(100) < w.loss {
				continue
			}
			w.at(time.Millisecond, func() {
				if n.reach(o) {
					o.step(HeartbeatReceived{From: n.name, Network: e.Network, Beat: e.Beat})
				}
			})
		case SendMessage:
			w.watchMessage(n, e)
			o := w.nodes[e.To]
			if o == nil || !n.link(o) {
				continue
			}
			w.at(2*time.Millisecond, func() {
				if n.link(o) {
					o.step(MessageReceived{From: n.name, Message: e.Message})
				}
			})
		case ReadSlots:
			n.readSlots(e)
		case ReadList:
			n.onDisk(e.Datastore, 2*time.Millisecond, func(d *disk, kind, err string) Event {
				r := ListRead{Op: e.Op, Datastore: e.Datastore, Kind: kind, Err: err}
				if d != nil {
					r.Lock = d.locks[model.ListLock]
					for t, l := range d.lists {
						if t > r.List.Term {
							r.List = l
						}
					}
				}
				return r
			})
		case WriteList:
			n.onDisk(e.Datastore, 15*time.Millisecond, func(d *disk, kind, err string) Event {
				if d != nil {
					if old := d.lists[e.List.Term]; old.Version >= e.List.Version {
						w.violate("%s wrote version %d of term %d over %d", n.name, e.List.Version, e.List.Term, old.Version)
					}
					d.lists[e.List.Term] = e.List
				}
				return ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version, Kind: kind, Err: err}
			})
		case ReadLock:
			n.onDisk(e.Datastore, time.Millisecond, func(d *disk, kind, err string) Event {
				r := LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Kind: kind, Err: err}
				if d != nil {
					rec, ok := d.locks[model.VMLock(e.VM)]
					if !ok {
						r.Kind, r.Err = "missing", "no such lock"
					}
					r.Record = rec
				}
				return r
			})
		case AskGuard:
			n.askGuard(e)
		case Hypervise:
			n.hypervise(e)
		case PingGuest:
			n.later(300*time.Millisecond, func() Event {
				d := n.doms[e.VM]
				return GuestPinged{Op: e.Op, Alive: d != nil && d.Active && !d.Paused && !w.mute[e.VM]}
			})
		case PingHost:
			w.pings[e.Host]++
			o := w.nodes[e.Host]
			n.later(50*time.Millisecond, func() Event {
				return HostPinged{Op: e.Op, Host: e.Host, Answered: o != nil && n.link(o) && !o.noPing}
			})
		case PingAddresses:
			n.pingGateway(e)
		case WriteNote:
			n.onDisk(e.Datastore, 10*time.Millisecond, func(d *disk, kind, err string) Event {
				if d != nil {
					w.notes[e.Note.VM] = e.Note
				}
				return NoteWritten{Op: e.Op, Kind: kind, Err: err}
			})
		case ReadNote:
			n.onDisk(e.Datastore, 10*time.Millisecond, func(d *disk, kind, err string) Event {
				return NoteRead{Op: e.Op, Note: w.notes[e.VM], Kind: kind, Err: err}
			})
		case Emit:
			w.record(n, e.Event)
		case SaveConfig:
			c, ok := w.files[e.Version]
			n.later(5*time.Millisecond, func() Event {
				saved := ConfigSaved{Op: e.Op}
				if ok && c.Version > n.conf.Version {
					n.conf = c
				} else {
					saved.Err = "it is older"
				}
				if e.Op == 0 {
					return ConfigLoaded{n.conf}
				}
				n.step(ConfigLoaded{n.conf})
				return saved
			})
		case Consider:
			n.later(20*time.Millisecond, func() Event { return Considered{Op: e.Op, Decision: e.Ask.Answer()} })
		case ReadConfig:
			c, ok := w.files[e.Version]
			n.later(5*time.Millisecond, func() Event {
				if !ok {
					return ConfigRead{Op: e.Op, Err: "no such file"}
				}
				return ConfigRead{Op: e.Op, Config: c}
			})
		case Answer:
			w.answer[e.ID] = fmt.Sprintf("ok=%v %s", e.Reply.OK, e.Reply.Text)
			for _, x := range e.Reply.Help {
				w.answer[e.ID] += "\n              what would help: " + x
			}
			for _, x := range e.Reply.Warnings {
				w.answer[e.ID] += "\n              warning: " + x
			}
			if len(e.Reply.Fields) > 0 {
				w.answer[e.ID] += "\n              fields: " + strings.Join(e.Reply.Fields, ", ")
			}
			w.logf("%s answer: %s", n.name, w.answer[e.ID])
		}
	}
}

// pingGateway answers at once, or not within a second.
func (n *node) pingGateway(e PingAddresses) {
	r := AddressesPinged{Op: e.Op}
	if !n.w.gateway {
		n.later(time.Millisecond, func() Event { return r })
		return
	}
	r.Asked = 1
	until, m := n.w.now+time.Second, n.m
	var try func()
	try = func() {
		switch {
		case n.m != m || !n.on:
		case !n.cut && !n.deaf && !n.mute && !n.noGate:
			r.Answered = "gateway"
			n.step(r)
		case n.w.now >= until:
			n.step(r)
		default:
			n.w.at(100*time.Millisecond, try)
		}
	}
	n.w.at(time.Millisecond, try)
}

func (w *world) logf(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%7.1fs ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) record(n *node, e event.Event) {
	if e.At > w.now {
		w.violate("%s: event from the future: %+v", n.name, e)
	}
	if w.onEvent != nil {
		w.onEvent(n, e)
	}
	if w.quiet[e.Kind] {
		return
	}
	line := fmt.Sprintf("%s %s: %s", n.name, e.Kind, e.Text)
	if e.Cause != "" {
		line += " [" + e.Cause + "]"
	}
	if e.At != w.now {
		line += fmt.Sprintf(" (at %.1fs)", e.At.Seconds())
	}
	w.logf("%s", line)
}

// watchMessage checks the rule that no VM is commanded to two hosts under the
// same epoch while the first may still act.
func (w *world) watchMessage(n *node, e SendMessage) {
	if p := e.Message.Progress; p != nil && p.Done {
		for k, o := range w.orders {
			if o.id == p.Command {
				o.over = true
				w.orders[k] = o
			}
		}
	}
	if c := e.Message.Command; c != nil {
		w.sent = append(w.sent, sentCommand{n.name, e.To, *c})
	}
	if c := e.Message.Command; c != nil && c.Kind == CommandStart {
		w.noteStart(n, e.To, c)
	}
}

func (w *world) noteStart(n *node, to model.HostID, c *Command) {
	key := fmt.Sprintf("%s/%s/%d/%d", n.name, c.VM.ID, c.Epoch, n.starts)
	o, ok := w.orders[key]
	target := w.nodes[o.host]
	if ok && !o.over && o.host != to && target.on && target.m != nil && !target.frozen && !target.cut && w.now-o.at < commandExpires {
		w.violate("%s commands %s to %s and %s under epoch %d", n.name, c.VM.Name, o.host, to, c.Epoch)
	}
	w.orders[key] = sentOrder{host: to, id: c.ID, at: w.now}
}

// onDisk runs f after d with the datastore as it is then, or with the error
// that this host sees.
func (n *node) onDisk(name model.DatastoreName, d time.Duration, f func(d *disk, kind, err string) Event) {
	if n.hung[name] {
		n.later(2*time.Second, func() Event { return f(nil, "hung", "no answer in 2s") })
		return
	}
	n.later(d, func() Event {
		if disk := n.w.disks[name]; disk != nil {
			return f(disk, "", "")
		}
		return f(nil, "not-mounted", "no such datastore")
	})
}

func (n *node) readSlots(e ReadSlots) {
	started := n.w.now
	n.onDisk(e.Datastore, 2*time.Millisecond, func(d *disk, kind, err string) Event {
		r := SlotsRead{Op: e.Op, Datastore: e.Datastore, Started: started, Completed: n.w.now, Kind: kind, Err: err}
		if d != nil {
			for _, h := range sortedKeys(d.slots) {
				r.Slots = append(r.Slots, d.slots[h])
			}
			if n.old != nil {
				r.Slots = n.old
			}
		}
		return r
	})
}

// runningOn lists where a VM has an active, continued domain.
func (w *world) runningOn(id model.VMID) []string {
	var on []string
	for _, name := range w.names {
		n := w.nodes[name]
		if d := n.doms[id]; n.on && d != nil && d.Active && !d.Paused && !n.frozenVM(id) {
			on = append(on, string(name))
		}
	}
	return on
}

func (w *world) check() {
	ids := map[model.VMID]bool{}
	for _, n := range w.nodes {
		for id := range n.doms {
			ids[id] = true
		}
	}
	for _, id := range sortedKeys(ids) {
		if on := w.runningOn(id); len(on) > 1 {
			w.violate("VM %s runs on %s", id, strings.Join(on, " and "))
		}
	}
}

func (w *world) primaries() []string {
	var p []string
	for _, name := range w.names {
		if n := w.nodes[name]; n.m != nil && !n.frozen && n.m.role == rolePrimary {
			p = append(p, string(name))
		}
	}
	sort.Strings(p)
	return p
}
