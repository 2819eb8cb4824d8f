package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/pki"
)

// peers are the other hosts as a rig dials them.
type peers struct {
	mu      sync.Mutex
	version uint64 // of the cluster file that they keep
	off     bool
	words   chan wordTo
}

type wordTo struct {
	to   model.HostID
	word local.Word
}

type fakePeer struct {
	p  *peers
	to model.HostID
}

func (f fakePeer) Tell(_ context.Context, w local.Word) (local.WordAnswer, error) {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if f.p.off {
		return local.WordAnswer{}, errors.New("no route")
	}
	f.p.words <- wordTo{f.to, w}
	if w.Offer != nil {
		f.p.version = w.Offer.Version
	}
	return local.WordAnswer{Version: f.p.version}, nil
}

func (p *peers) dial(_ *config.Cluster, to model.HostID) (Teller, error) {
	return fakePeer{p, to}, nil
}

func (p *peers) await(t *testing.T) wordTo {
	t.Helper()
	select {
	case w := <-p.words:
		return w
	case <-time.After(10 * time.Second):
		t.Fatal("no word came")
		return wordTo{}
	}
}

// newQuietRig is an agent with remote listeners whose cluster file has HA off,
// and that dials p.
func newQuietRig(t *testing.T, p *peers) *remoteRig {
	p.words = make(chan wordTo, 64)
	return newRemoteRigWith(t, func(r *rig) {
		r.dialPeer = p.dial
		r.write("cluster.yaml", strings.Replace(r.read("cluster.yaml"), "name: test", "name: test\nha: {enabled: false}", 1))
	})
}

// While HA is off heartbeats go by the control port, one for all networks, and
// whoever keeps an older cluster file is given this host's.
func TestHeartbeatsGoQuietlyWhileHAIsOff(t *testing.T) {
	p := &peers{version: 2}
	r := newQuietRig(t, p)
	r.core.do(&fdm.SendHeartbeat{To: "host2", Network: "mgmt", Beat: fdm.Heartbeat{Kind: fdm.BeatSecondary, ConfigVersion: 3}},
		&fdm.SendHeartbeat{To: "host2", Network: "hb2", Beat: fdm.Heartbeat{Kind: fdm.BeatSecondary, ConfigVersion: 3}})
	if w := p.await(t); w.to != "host2" || w.word.Beat == nil || w.word.Beat.ConfigVersion != 3 || w.word.Network != "mgmt" {
		t.Errorf("the first word is %+v, want the heartbeat", w)
	}
	if w := p.await(t); w.word.Offer == nil || w.word.Offer.Version != 3 || !strings.Contains(string(w.word.Offer.File), "version: 3") {
		t.Errorf("the second word is %+v, want the cluster file", w)
	}
	select {
	case w := <-p.words:
		t.Errorf("and a third came: %+v", w)
	case b := <-r.net.beats:
		t.Errorf("a datagram left: %s", b)
	case <-time.After(50 * time.Millisecond): // nothing is to come
	}
	// Another host that is off is counted and holds nothing up.
	p.mu.Lock()
	p.off = true
	p.mu.Unlock()
	r.core.do(&fdm.SendHeartbeat{To: "host2", Network: "mgmt", Beat: fdm.Heartbeat{Kind: fdm.BeatSecondary}})
	for end := time.Now().Add(10 * time.Second); r.agent.count.all()["control-failed"] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a word that could not be given is not counted")
		}
	}
}

// An offer of a cluster file takes both ways where the link is down, so that a
// host whose port is closed hears that HA is on again.
func TestOffersGoBothWays(t *testing.T) {
	p := &peers{words: make(chan wordTo, 64)}
	r := newRemoteRigWith(t, func(r *rig) { r.dialPeer = p.dial })
	offer := fdm.SendMessage{To: "host2", Message: fdm.Message{Config: &fdm.ConfigOffer{Version: 4, File: []byte("x")}}}
	r.core.do(offer)
	if w := p.await(t); w.word.Offer == nil || w.word.Offer.Version != 4 {
		t.Errorf("%+v", w)
	}
	<-r.net.messages
	r.net.recv.Link("host2", true, "")
	await(t, r.core, func(e fdm.LinkChanged) bool { return e.Up })
	r.core.do(offer)
	<-r.net.messages
	select {
	case w := <-p.words:
		t.Errorf("with a link it took the other way too: %+v", w)
	case <-time.After(50 * time.Millisecond): // nothing is to come
	}
}

// The other side: a member's words reach the machine; nobody else has any.
func TestWordsOfMembers(t *testing.T) {
	r := newRemoteRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tell := func(host model.HostID, w local.Word) (local.WordAnswer, error) {
		return r.peer(t, host).Tell(ctx, w)
	}
	a, err := tell("host2", local.Word{Network: "mgmt", Beat: &fdm.Heartbeat{Kind: fdm.BeatSecondary, ConfigVersion: 2}})
	if err != nil || a.Version != 3 {
		t.Errorf("answer %+v, %v; want version 3", a, err)
	}
	got := await(t, r.core, func(e fdm.HeartbeatReceived) bool { return true })
	if got.From != "host2" || got.Network != "mgmt" || got.Beat.ConfigVersion != 2 {
		t.Errorf("%+v", got)
	}
	if _, err := tell("host2", local.Word{Offer: &fdm.ConfigOffer{Version: 9, File: []byte("y")}}); err != nil {
		t.Error(err)
	}
	if m := await(t, r.core, func(e fdm.MessageReceived) bool { return e.Message.Config != nil }); m.From != "host2" || m.Message.Config.Version != 9 {
		t.Errorf("%+v", m)
	}
	for _, stranger := range []model.HostID{"host1", "host9"} {
		if _, err := tell(stranger, local.Word{}); err == nil {
			t.Errorf("%s was heard", stranger)
		}
	}
	// A host asks for nothing else, a server leaves no word.
	if _, err := r.peer(t, "host2").Status(ctx); err == nil {
		t.Error("a host was given the status")
	}
	if _, err := r.ask(t, r.credentials(t, "", "control"), "host1").Tell(ctx, local.Word{}); err == nil {
		t.Error("a server left a word")
	}
}

func (r *remoteRig) peer(t *testing.T, host model.HostID) *local.Client {
	creds := r.credentials(t, host, "")
	return local.NewPeerClient(func() (*pki.Credentials, error) { return creds, nil }, "host1", r.at())
}
