package sim

import (
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/scenario"
)

// nic is a host's port on one network. A cut survives a power cycle, as a
// pulled cable would.
type nic struct {
	deaf, mute bool
	side       int // of a partition; 0: in none
	loss       int // in a thousand
}

// Times of the reliable transport, as of package wire.
const (
	linkSilence  = 1600 * time.Millisecond // nothing came for too long
	linkConnect  = 4 * time.Millisecond
	linkLimit    = 2 * time.Second // a handshake is given up
	linkBackoff  = 500 * time.Millisecond
	linkIdle     = 10 * time.Second
	messageDelay = 300 * time.Microsecond
)

// hears tells whether what from sends reaches h on a network.
func (h *host) hears(from *host, net int) bool {
	if !h.on || !from.on || h.suspend || from.suspend {
		return false
	}
	a, b := &from.nics[net], &h.nics[net]
	return !a.mute && !b.deaf && (a.side == b.side || a.side == 0 || b.side == 0)
}

// net is the index of a network; -1: there is none of that name. There are few.
func (s *Sim) net(name string) int {
	for i, n := range s.nets {
		if n == name {
			return i
		}
	}
	return -1
}

// host is the host of a name, or nil. Heartbeats go to one host on all networks,
// one after the other.
func (s *Sim) host(name model.HostID) *host {
	if s.lastHost == nil || s.lastHost.name != name {
		s.lastHost = s.byName[name]
	}
	return s.lastHost
}

// heartbeatNets are the indices of the networks that agents talk on.
func (s *Sim) heartbeatNets() []string { return s.conf.HeartbeatNetworks }

// joined tells whether a connection between two hosts can carry anything.
func (s *Sim) joined(a, b *host) bool {
	for _, n := range s.heartbeatNets() {
		i := s.net(n)
		if a.hears(b, i) && b.hears(a, i) {
			return true
		}
	}
	return false
}

// sendBeat puts a datagram on a network.
func (s *Sim) sendBeat(from *host, e *fdm.SendHeartbeat) {
	to, net := s.host(e.To), s.net(e.Network)
	if net < 0 || to == nil || from.nics[net].mute {
		return
	}
	q := &s.opts.Network
	if s.rng.chance(q.Loss + from.nics[net].loss + to.nics[net].loss) {
		return
	}
	n := 1
	if s.rng.chance(q.Duplicate) {
		n = 2
	}
	for range n {
		l := s.queue.load()
		l.from, l.net, l.beat = from, net, e.Beat
		s.queue.push(item{at: s.now + q.Latency + time.Duration(s.rng.below(int64(q.Spread)+1)), kind: kindBeat, h: to, p: l})
	}
}

func (s *Sim) beatArrives(h *host, l *load) {
	if h.agent.m != nil && h.hears(l.from, l.net) {
		h.agent.beat(l.from, l.net, &l.beat)
	}
}

// link is the reliable transport between two hosts: made when there is
// something to send, broken by silence.
type link struct {
	a, b     *host
	up       bool
	trying   bool
	used     time.Duration // for the last time
	last     time.Duration // arrival of the last message, so that none overtakes
	waiting  []parcel
	breaking bool
	born     uint64 // grows with each connection
}

// parcel is a message on its way.
type parcel struct {
	from, to *host
	msg      fdm.Message
}

func (s *Sim) link(a, b *host) *link {
	if a.links == nil {
		a.links = make([]*link, len(s.hosts))
	}
	l := a.links[b.i]
	if l == nil {
		l = &link{a: a, b: b}
		if b.links == nil {
			b.links = make([]*link, len(s.hosts))
		}
		a.links[b.i], b.links[a.i] = l, l
	}
	return l
}

func (s *Sim) sendMessage(from *host, e *fdm.SendMessage) {
	to := s.byName[e.To]
	if to == nil || to == from {
		return
	}
	l := s.link(from, to)
	l.used = s.now
	if l.up && s.joined(from, to) {
		l.carry(parcel{from, to, e.Message})
		return
	}
	if len(l.waiting) < 1024 {
		l.waiting = append(l.waiting, parcel{from, to, e.Message})
	}
	if l.up {
		l.suspect()
	} else {
		l.connect()
	}
}

func (l *link) carry(p parcel) {
	s := l.a.s
	at := max(l.last, s.now+messageDelay+s.rng.between(0, messageDelay))
	l.last = at
	born := l.born
	s.after(at-s.now, func() {
		switch {
		case !l.up || l.born != born:
		case s.joined(l.a, l.b):
			p.to.agent.post(fdm.MessageReceived{From: p.from.name, Message: p.msg})
		default:
			l.waiting = append(l.waiting, p)
			l.suspect()
		}
	})
}

// connect makes the connection, or gives up and says that what waited is lost.
func (l *link) connect() {
	s := l.a.s
	if l.up || l.trying {
		return
	}
	l.trying = true
	if s.joined(l.a, l.b) && l.a.agent.runs() && l.b.agent.runs() {
		s.after(linkConnect, func() {
			l.trying = false
			if s.joined(l.a, l.b) && l.a.agent.up() && l.b.agent.up() {
				l.establish()
			} else {
				l.fail("unreachable")
			}
		})
		return
	}
	s.after(linkLimit, func() {
		l.trying = false
		l.fail("unreachable")
	})
}

func (l *link) establish() {
	l.up = true
	l.born++
	l.a.agent.post(fdm.LinkChanged{Host: l.b.name, Up: true})
	l.b.agent.post(fdm.LinkChanged{Host: l.a.name, Up: true})
	waiting := l.waiting
	l.waiting = nil
	for _, p := range waiting {
		l.carry(p)
	}
}

// fail drops what waits and tells both sides; it is tried again when the link
// was used lately.
func (l *link) fail(why string) {
	s := l.a.s
	was := l.up
	l.up, l.breaking = false, false
	lost := map[*host]bool{l.a: was, l.b: was}
	for _, p := range l.waiting {
		lost[p.from] = true
	}
	l.waiting = nil
	for _, h := range []*host{l.a, l.b} {
		if lost[h] {
			h.agent.post(fdm.LinkChanged{Host: l.other(h).name, Reason: why})
		}
	}
	if s.now-l.used < linkIdle && l.a.on && l.b.on {
		s.after(linkBackoff, func() {
			if s.now-l.used < linkIdle && !l.up {
				l.connect()
			}
		})
	}
}

func (l *link) other(h *host) *host {
	if h == l.a {
		return l.b
	}
	return l.a
}

// suspect breaks the link unless it works again before the silence is noticed.
func (l *link) suspect() {
	s := l.a.s
	if l.breaking || !l.up {
		return
	}
	l.breaking = true
	born := l.born
	s.after(linkSilence, func() {
		if l.born != born || !l.up {
			return
		}
		l.breaking = false
		if !s.joined(l.a, l.b) || l.a.halted() || l.b.halted() {
			l.fail("silent")
			return
		}
		waiting := l.waiting
		l.waiting = nil
		for _, p := range waiting {
			l.carry(p)
		}
	})
}

// topology looks at a host's links after its network or power changed.
func (s *Sim) topology(h *host) {
	for _, l := range h.links {
		if l == nil {
			continue
		}
		if l.up && !s.joined(l.a, l.b) && s.now-l.used < linkIdle {
			l.suspect()
		} else if !l.up && s.now-l.used < linkIdle && s.joined(l.a, l.b) {
			l.connect()
		}
	}
	s.seeAlone()
	s.disturbed()
}

// seeAlone notes which hosts no other agent can speak to, after a change: a host
// that boots is not heard before its agent runs.
func (s *Sim) seeAlone() {
	for _, h := range s.hosts {
		alone := true
		for _, o := range s.hosts {
			alone = alone && (o == h || !o.agent.runs() || !s.joined(o, h))
		}
		if h.alone && !alone {
			h.aloneEnd = s.now
		}
		h.alone = alone
	}
}

// agentGone: a process that ends closes its connections, which the others are
// told unless its host lost power.
func (s *Sim) agentGone(h *host, told bool) {
	for _, l := range h.links {
		if l == nil || !l.up {
			continue
		}
		if told && s.joined(l.a, l.b) {
			l.fail("closed")
		} else {
			l.suspect()
		}
	}
}

// cut severs or mends ports of a host.
func (s *Sim) cut(h *host, network string, dir scenario.Direction) {
	for i, n := range s.nets {
		if network != "" && n != network {
			continue
		}
		c := &h.nics[i]
		c.deaf = c.deaf || dir != scenario.Out
		c.mute = c.mute || dir != scenario.In
	}
	s.topology(h)
}

func (s *Sim) heal(h *host) {
	for i := range h.nics {
		h.nics[i] = nic{}
	}
	for _, p := range h.paths {
		if p != nil {
			p.set(pathGood)
		}
	}
	s.topology(h)
}

func (s *Sim) partition(p scenario.Partition) {
	s.cover[Partitions]++
	for g, group := range p.Groups {
		for _, name := range group {
			h := s.byName[name]
			for i := range h.nics {
				h.nics[i].side = g + 1
			}
		}
	}
	for _, group := range p.Groups {
		for _, name := range group {
			s.topology(s.byName[name])
		}
	}
}
