package agent

import (
	"context"
	"encoding/json"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/wire"
)

// Bounds of what is decoded. The transport has bounds of its own; these hold
// whatever it does.
const (
	maxBeat    = 1 << 10
	maxMessage = wire.MaxMessage
)

func (a *Agent) sendBeat(e fdm.SendHeartbeat) {
	if a.quiet() {
		a.beatQuietly(e)
		return
	}
	b, err := json.Marshal(e.Beat)
	if err != nil {
		a.count.add("encode-failed")
		return
	}
	a.transport.Datagram(e.To, e.Network, b)
}

func (a *Agent) sendMessage(to model.HostID, m fdm.Message) {
	if m.Config != nil && a.control != nil && (a.quiet() || !a.share.linked[to]) {
		// Its own port may be closed. If both ways work, the second changes nothing.
		a.control.tell(to, local.Word{Offer: m.Config})
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > maxMessage {
		a.count.add("encode-failed")
		a.log.Error("a message to another host cannot be sent", "to", to, "bytes", len(b), "err", err)
		return
	}
	a.transport.Message(to, b)
}

// receiver takes what the transport delivers. What cannot be decoded is counted
// and dropped: it comes from a member, so it is a mistake and no attack.
type receiver struct {
	a   *Agent
	ctx context.Context // of Run
}

func (r receiver) Datagram(from model.HostID, network string, payload []byte) {
	var b fdm.Heartbeat
	if len(payload) > maxBeat || json.Unmarshal(payload, &b) != nil {
		r.a.count.add("heartbeats-unreadable")
		return
	}
	select {
	case r.a.beats <- fdm.HeartbeatReceived{From: from, Network: network, Beat: b}:
	default:
		r.a.count.add("heartbeats-dropped")
	}
}

func (r receiver) Message(from model.HostID, payload []byte) {
	var m fdm.Message
	if len(payload) > maxMessage || json.Unmarshal(payload, &m) != nil {
		r.a.count.add("messages-unreadable")
		return
	}
	r.a.post(r.ctx, fdm.MessageReceived{From: from, Message: m})
}

func (r receiver) Link(host model.HostID, up bool, reason string) {
	r.a.post(r.ctx, fdm.LinkChanged{Host: host, Up: up, Reason: reason})
}
