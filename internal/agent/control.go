package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// tellLimit is how long a host may take to hear a word.
const tellLimit = 6 * time.Second

// Teller gives words to one other host.
type Teller interface {
	Tell(ctx context.Context, w local.Word) (local.WordAnswer, error)
}

// control hands on, over the port of the servers, what hosts must know of each
// other while HA is off and their own port is closed: that they live, and which
// cluster file they keep. Whoever is found to keep an older one is given this
// host's, so that HA can be switched on again from any host.
type control struct {
	a    *Agent
	ctx  context.Context // of Run
	mu   sync.Mutex
	busy map[model.HostID]bool
	next map[model.HostID]local.Word // the newest that waits, of each host
}

func newControl(ctx context.Context, a *Agent) *control {
	return &control{a: a, ctx: ctx, busy: map[model.HostID]bool{}, next: map[model.HostID]local.Word{}}
}

// tell sends a word without blocking; a newer one takes the place of one that
// waits.
func (c *control) tell(to model.HostID, w local.Word) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if was, ok := c.next[to]; ok && was.Offer != nil && w.Offer == nil {
		return // the answer to the offer tells all that a heartbeat would ask
	}
	c.next[to] = w
	if !c.busy[to] {
		c.busy[to] = true
		c.a.goes(func() { c.run(to) })
	}
}

func (c *control) run(to model.HostID) {
	for {
		c.mu.Lock()
		w, ok := c.next[to]
		delete(c.next, to)
		if !ok || c.ctx.Err() != nil {
			delete(c.busy, to)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.give(to, w)
	}
}

// give sends a word, and this host's cluster file after it to whom keeps an older.
func (c *control) give(to model.HostID, w local.Word) {
	ctx, cancel := context.WithTimeout(c.ctx, tellLimit)
	defer cancel()
	now := c.a.setup.Load().cluster
	peer, err := c.a.cfg.Ports.DialPeer(now, to)
	if err != nil {
		c.a.count.add("control-failed")
		return
	}
	answer, err := peer.Tell(ctx, w)
	if err == nil && answer.Version < now.Version && w.Offer == nil {
		var file []byte
		if file, err = now.Marshal(); err == nil {
			_, err = peer.Tell(ctx, local.Word{Offer: &fdm.ConfigOffer{Version: now.Version, File: file}})
		}
	}
	if err != nil { // it is off, or of a version that hears nothing here
		c.a.count.add("control-failed")
	}
}

// servePeer takes a word of another host.
func (a *Agent) servePeer(run context.Context, w http.ResponseWriter, r *http.Request) {
	if !a.ready(w) {
		return
	}
	id, err := callerOf(r)
	if err != nil {
		refuse(w, http.StatusForbidden, err, "")
		return
	}
	var word local.Word
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, local.MaxBody)).Decode(&word); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("word: %w", err), "")
		return
	}
	switch {
	case word.Offer != nil:
		a.post(run, fdm.MessageReceived{From: id.Host, Message: fdm.Message{Config: word.Offer}})
	case word.Beat != nil:
		select {
		case a.beats <- fdm.HeartbeatReceived{From: id.Host, Network: word.Network, Beat: *word.Beat}:
		default:
			a.count.add("heartbeats-dropped")
		}
	}
	reply(w, local.WordAnswer{Version: a.setup.Load().cluster.Version})
}

// quiet tells whether HA is off, so that what hosts say goes by control.
func (a *Agent) quiet() bool { return a.control != nil && !a.setup.Load().cluster.HA.Enabled }

// beatQuietly is sendBeat while HA is off: one for all networks.
func (a *Agent) beatQuietly(e fdm.SendHeartbeat) {
	if n := a.setup.Load().cluster.HeartbeatNetworks(); len(n) > 0 && n[0] == e.Network {
		beat := e.Beat
		a.control.tell(e.To, local.Word{Network: e.Network, Beat: &beat})
	}
}

// dialHostPeer is Ports.DialPeer of a real host.
func dialHostPeer(keeper *pki.Keeper, c *config.Cluster, to model.HostID) (Teller, error) {
	h := c.HostByName(to)
	if h == nil {
		return nil, fmt.Errorf("the cluster file does not name %s", to)
	}
	var addresses []netip.AddrPort
	for _, n := range c.HeartbeatNetworks() {
		if at := h.AddressOf(n); at.IsValid() {
			addresses = append(addresses, netip.AddrPortFrom(at, local.RemotePort))
		}
	}
	return local.NewPeerClient(keeper.Load, to, addresses), nil
}
