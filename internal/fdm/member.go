package fdm

import (
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// member is a host of the cluster file as this machine knows it.
type member struct {
	name model.HostID
	conf ClusterHost
	self bool

	heard        time.Duration   // last datagram or message; 0 is never
	nets         []time.Duration // last datagram on each heartbeat network
	beat         Heartbeat       // the last
	ledAt        time.Duration   // Stamp and Start of its last heartbeat as a primary
	ledLife      uint64
	assertAt     time.Duration // it was last told at once who is primary
	confirms     time.Duration // of this host's clock: it follows this primary and heard it then
	answeredTo   time.Duration // Stamp and Start of its last question answered at once
	answeredLife uint64
	link         bool
	offered      uint64 // version of the cluster file last offered
	offerAt      time.Duration
	report       *Report
	reportAt     time.Duration
	bootSaid     model.BootID           // by its last report of this reign
	active       map[model.VMID]LocalVM // of the report
	formerly     map[model.VMID]LocalVM // active of the report before; used again
	used         model.MiB              // memory of its active VMs

	state  model.HostState
	reason string // see why
	doubt  doubt

	// On a primary: since when it counts as heard at the latest, and what is
	// suspected of a silent host.
	base     time.Duration
	suspect  bool
	since    time.Duration // of the suspicion
	quietAt  time.Duration // a timer is set for the end of the silence that a verdict needs
	pinged   bool          // an answer to the ping is known
	answered bool
	aliveAt  time.Duration // when its slots were first seen to move during the silence
	boot     model.BootID  // the last reboot told to people
	pingAt   time.Duration
	lookedAt time.Duration // the locks of its VMs were last read because it is apart
	failed   bool
	failover string
	// knownFailed: a former primary had found it failed and restarted its VMs.
	knownFailed bool
	gen         uint64 // of its silence timer

	heartbeats []model.DatastoreName // chosen for it, by a primary
	warnings   []string              // about its heartbeat datastores, warnFor, by the file warnBy
	warnFor    []model.DatastoreName
	warnBy     uint64
	lossIDs    map[model.DatastoreName]string // failovers of its lost datastores
	orders     map[string]*order
	orderMem   model.MiB
	vms        map[model.VMID]*vm // believed to run there
	welcomed   uint64
	needsView  bool
	watcher    bool // one of the next two ranks
}

// lastHeard is the time of the last sign of life, for judging its silence.
func (h *member) lastHeard() time.Duration { return max(h.heard, h.base) }

func (m *Machine) onConfig(c Cluster) {
	if m.loaded && c.Version < m.conf.Version {
		return
	}
	if c.Timing.Interval <= 0 {
		c.Timing = model.TimingFast
	}
	sum := fileSum(c.File)
	changed := !m.loaded || c.Version != m.conf.Version || sum != m.sum
	wasOff := !m.loaded || !m.conf.Enabled
	conflicts := m.conf.Conflicts
	if !m.loaded {
		m.iso.heardAt = m.now
	}
	m.conf, m.loaded, m.confAt, m.sum = c, true, m.now, sum
	m.confRev++
	m.setMembers()
	m.setStores()
	m.ask(lease.Request{Reload: &lease.ReloadRequest{}}, func(lease.Reply) {})
	if changed {
		m.emit(event.Event{Kind: event.Config, Text: fmt.Sprintf("cluster file version %d is in force", c.Version),
			Evidence: map[string]string{"ha": onOff(c.Enabled), "hostMonitoring": onOff(c.HostMonitoring)}})
	}
	if changed && m.role == rolePrimary {
		m.tellRules(conflicts)
	}
	switch {
	case !c.Enabled || m.self == nil:
		m.setRole(roleNone)
	case wasOff || m.role == roleNone:
		m.elect("HA starts on this host", m.silence())
	}
	if m.role == rolePrimary {
		for _, h := range m.order {
			m.offerConfig(h)
			m.watchSilence(h)
			if h.state == model.HostConnected || h.state == model.HostMaintenance {
				m.shownConnected(h, "")
			}
		}
		m.settingsChanged()
		m.orderDue = true
		m.openLists()
		m.poke(changeRoom)
		m.viewDue = true
	}
	m.startBeats()
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func (m *Machine) setMembers() {
	known := map[model.HostID]bool{}
	m.self = nil
	for _, c := range m.conf.Hosts {
		known[c.Name] = true
		h := m.members[c.Name]
		if h == nil {
			h = &member{name: c.Name, self: c.Name == m.cfg.Self, state: model.HostUninitialized, base: m.now,
				active: map[model.VMID]LocalVM{}, formerly: map[model.VMID]LocalVM{}, orders: map[string]*order{}, vms: map[model.VMID]*vm{}}
			m.members[c.Name] = h
		}
		h.conf = c
		if len(h.nets) != len(m.conf.HeartbeatNetworks) {
			h.nets = make([]time.Duration, len(m.conf.HeartbeatNetworks))
		}
		if h.self {
			m.self = h
		}
	}
	m.order = m.order[:0]
	for _, name := range sortedKeys(m.members) {
		if !known[name] {
			m.forgetMember(m.members[name])
			continue
		}
		m.order = append(m.order, m.members[name])
	}
	if m.network >= len(m.conf.HeartbeatNetworks) {
		m.network = 0
	}
}

// forgetMember drops a host that left the cluster file.
func (m *Machine) forgetMember(h *member) {
	delete(m.members, h.name)
	h.gen++
	for _, id := range sortedKeys(h.orders) {
		m.dropOrder(h.orders[id], fmt.Sprintf("%s left the cluster", h.name))
	}
	for _, id := range sortedKeys(h.vms) {
		v := h.vms[id]
		m.setRunning(v, nil, LocalVM{})
		m.evaluate(v)
	}
	if m.primary == h.name && m.role == roleSecondary {
		m.elect(fmt.Sprintf("primary %s left the cluster", h.name), 0)
	}
}

func (m *Machine) setStores() {
	known := map[model.DatastoreName]bool{}
	for _, c := range m.conf.Datastores {
		known[c.Name] = true
		st := m.stores[c.Name]
		if st == nil {
			st = &store{name: c.Name, slots: map[model.HostID]*slotSeen{}}
			m.stores[c.Name] = st
		}
		st.conf = c
		st.here = m.self != nil && hasName(m.self.conf.Datastores, c.Name)
	}
	for _, name := range sortedKeys(m.stores) {
		if !known[name] {
			m.closeList(m.stores[name], "the datastore left the cluster", true)
			delete(m.stores, name)
		}
	}
	m.storeBy = m.storeBy[:0]
	for _, name := range sortedKeys(m.stores) {
		m.storeBy = append(m.storeBy, m.stores[name])
	}
}

func hasName(list []model.DatastoreName, d model.DatastoreName) bool {
	for _, x := range list {
		if x == d {
			return true
		}
	}
	return false
}

// offerConfig hands the cluster file to a member that keeps an older one, as
// far as its heartbeats tell.
func (m *Machine) offerConfig(h *member) {
	if h.self || !m.loaded || len(m.conf.File) == 0 {
		return
	}
	if h.heard > 0 && h.beat.Kind != "" && h.beat.ConfigVersion >= m.conf.Version && !m.otherFile(h) {
		return
	}
	if h.offered == m.conf.Version && m.now-h.offerAt < 2*time.Second {
		return
	}
	h.offered, h.offerAt = m.conf.Version, m.now
	m.do(SendMessage{To: h.name, Message: Message{Config: &ConfigOffer{Version: m.conf.Version, File: m.conf.File}}})
}

func (m *Machine) onMessage(e MessageReceived) {
	h := m.members[e.From]
	if h == nil || h.self {
		return
	}
	h.link = true
	m.signOfLife(h)
	msg := e.Message
	switch {
	case msg.Report != nil:
		m.onReport(h, msg.Report)
	case msg.Welcome != nil:
		m.onWelcome(h, msg.Welcome)
	case msg.Command != nil:
		m.onCommand(h.name, *msg.Command)
	case msg.Progress != nil:
		m.onProgress(h, *msg.Progress)
	case msg.Config != nil:
		m.onOffer(h, *msg.Config)
	case msg.Admin != nil:
		m.onRelay(h, *msg.Admin)
	case msg.Answer != nil:
		if f := m.relays[msg.Answer.ID]; f != nil {
			delete(m.relays, msg.Answer.ID)
			f(msg.Answer.Reply)
		}
	case msg.View != nil:
		m.onView(h, msg.View)
	}
}

func (m *Machine) onLink(e LinkChanged) {
	h := m.members[e.Host]
	if h == nil || h.self {
		return
	}
	h.link = e.Up
	if e.Up {
		h.offered = 0
		if m.role == roleSecondary && m.primary == h.name {
			m.reportDue = true
		}
		if m.role == rolePrimary {
			h.welcomed, h.needsView = 0, true
			m.welcomeDue, m.viewDue = true, true
			m.repeatOrders(h)
		}
	}
}

// setState shows a host in a new state and tells people.
func (m *Machine) setState(h *member, s model.HostState, reason string) {
	if h.state == s {
		h.because(reason)
		return
	}
	was := h.state
	h.state = s
	h.because(reason)
	m.viewDue = true
	defer func() {
		for _, v := range m.sortVMs(h.vms) {
			m.showProtection(v)
		}
	}()
	sev := event.Info
	switch s {
	case model.HostFailed, model.HostIsolated, model.HostPartitioned, model.HostAgentUnreachable, model.HostDisconnected, model.HostInitError:
		sev = event.Warning
	}
	seen := map[string]string{}
	if h.suspect {
		seen = m.evidence(h)
	}
	seen["was"] = string(was)
	m.emit(event.Event{Kind: event.HostState, Severity: sev, Host: h.name,
		Text: fmt.Sprintf("%s is %s", h.name, s), Cause: reason, Evidence: seen})
}
