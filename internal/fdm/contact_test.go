package fdm

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// lastContact is what the guard was told last.
func lastContact(b *bench) lease.BeatRequest {
	b.t.Helper()
	var last *lease.BeatRequest
	for _, e := range take[AskGuard](b) {
		if e.Request.Beat != nil {
			last = e.Request.Beat
		}
		b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeOK}})
	}
	if last == nil {
		b.t.Fatal("the guard was told nothing")
	}
	return *last
}

// TestContactIsConfirmed: a secondary has contact as of the heartbeat that its
// primary heard and vouched for, whenever the answer arrives.
func TestContactIsConfirmed(t *testing.T) {
	const second = time.Second
	for _, c := range []struct {
		name string
		beat Heartbeat
		want time.Duration // age; negative is none
	}{
		{"vouched", Heartbeat{Kind: BeatPrimary, Echo: 9 * second, EchoStart: 1, Vouches: true}, second},
		{"vouched by others' older word", Heartbeat{Kind: BeatPrimary, Echo: 9 * second, EchoStart: 1, Vouches: true, VouchAge: second}, second + second + second/25},
		{"late", Heartbeat{Kind: BeatPrimary, Echo: 4 * second, EchoStart: 1, Vouches: true}, -1},
		{"heard, not vouched", Heartbeat{Kind: BeatPrimary, Echo: 9 * second, EchoStart: 1, Hears: true}, -1},
		{"never heard", Heartbeat{Kind: BeatPrimary, Vouches: true}, -1},
		{"another life's", Heartbeat{Kind: BeatPrimary, Echo: 9 * second, EchoStart: 2, Vouches: true}, -1},
		{"another boot's", Heartbeat{Kind: BeatPrimary, Echo: 99 * second, EchoStart: 1, Vouches: true}, -1},
		{"of a neighbour", Heartbeat{Kind: BeatSecondary, Primary: "a", Echo: 9 * second, EchoStart: 1, Vouches: true}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, chaosConfig(1))
			b.now = 10 * second
			c.beat.ConfigVersion = 1
			b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: c.beat})
			b.out = nil
			b.m.beatGuard()
			b.out = byValue(b.m.out)
			got := lastContact(b)
			if got.Contact != (c.want >= 0) || got.Contact && got.ContactAge != c.want {
				t.Errorf("contact %v %v ago, want %v", got.Contact, got.ContactAge, c.want)
			}
		})
	}
}

// TestContactOfOneHost: alone in the cluster file there is nobody who could
// take its VMs.
func TestContactOfOneHost(t *testing.T) {
	conf := chaosConfig(1)
	conf.Hosts = []ClusterHost{{Name: "b", Datastores: chaosDS}}
	b := newBench(t, conf)
	b.pass(time.Second)
	if got := lastContact(b); !got.Contact || got.ContactAge != 0 {
		t.Errorf("contact %v %v ago", got.Contact, got.ContactAge)
	}
}

// lastBeat is the last heartbeat sent to h.
func lastBeat(b *bench, h model.HostID) (last Heartbeat) {
	for _, e := range take[SendHeartbeat](b) {
		if e.To == h {
			last = e.Beat
		}
	}
	return last
}

// TestVouching: the owner of the lists vouches by its lease; without, only by
// the word of all other hosts, and the same holds for its own contact.
func TestVouching(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead()
	b.m.beatsOut = 0 // lead answers no beats
	confirm := func(h model.HostID, at time.Duration, follows model.HostID) {
		b.step(HeartbeatReceived{From: h, Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Primary: follows, ConfigVersion: 1, Stamp: 77, Start: 5, Echo: at, EchoStart: 1}})
	}
	confirm("a", b.now, "b")
	b.pass(500 * time.Millisecond)
	if x := lastBeat(b, "a"); !x.Vouches || x.VouchAge != 0 || x.Echo != 77 || x.EchoStart != 5 || x.Answer {
		t.Errorf("with the lists: %+v", x)
	}
	if got := lastContact(b); got.Contact {
		t.Error("a list gives its own holder no contact: its lease ends with the VMs'")
	}
	status := &lease.Status{Host: "b", Boot: "boot-b", Armed: true, Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true, ListTerm: 5}, {Name: "ds2"}}}
	b.step(GuardNoticed{lease.Notice{What: lease.NoticeStatus, Status: status}})
	b.pass(500 * time.Millisecond)
	if x := lastBeat(b, "a"); x.Vouches || !x.Answer {
		t.Errorf("without the lease on a list: %+v", x)
	}
	asked := b.now
	confirm("a", asked, "b")
	b.pass(100 * time.Millisecond)
	if x := lastBeat(b, "a"); x.Vouches {
		t.Errorf("c said nothing: %+v", x)
	}
	confirm("c", asked, "x")
	if x := lastBeat(b, "a"); x.Vouches {
		t.Errorf("c follows another: %+v", x)
	}
	confirm("c", asked, "b")
	if x := lastBeat(b, "a"); !x.Vouches || x.VouchAge != b.now-asked || x.Answer {
		t.Errorf("all have answered, but at once is told: %+v", x)
	}
	b.m.out = nil
	b.m.beatGuard()
	b.out = byValue(b.m.out)
	if got := lastContact(b); !got.Contact || got.ContactAge != b.now-asked {
		t.Errorf("own contact %+v", got)
	}
	confirm("a", b.now+5*time.Second, "b") // a clock that is not this host's
	b.pass(4900 * time.Millisecond)
	if x := lastBeat(b, "a"); x.Vouches && x.VouchAge < 4*time.Second {
		t.Errorf("nobody spoke since: %+v", x)
	}
}

// TestOutstandingIsUrgent: with I/O outstanding the guard hears of a new
// contact at once, and a primary asks for one.
func TestOutstandingIsUrgent(t *testing.T) {
	vouch := func(b *bench, at time.Duration) int {
		b.out = nil
		b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1, Echo: at, EchoStart: 1, Vouches: true}})
		n := 0
		for _, e := range take[AskGuard](b) {
			if x := e.Request.Beat; x != nil && x.Contact && x.ContactAge == b.now-at {
				n++
			}
		}
		return n
	}
	status := &lease.Status{Host: "b", Boot: "boot-b", Armed: true, Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true, ListTerm: 5}, {Name: "ds2", OK: true, ListTerm: 5}},
		VMs: []lease.VMStatus{{VM: "v9", Home: "ds1", Phase: lease.PhaseFrozen, Outstanding: true}}}
	b := newBench(t, chaosConfig(1))
	b.now = 10 * time.Second
	if n := vouch(b, b.now-2); n != 0 {
		t.Errorf("%d beats without need", n)
	}
	b.m.beatsOut = 0
	b.step(GuardNoticed{lease.Notice{What: lease.NoticeStatus, Status: status}})
	if n := vouch(b, b.now-1); n != 1 {
		t.Errorf("%d beats for a new contact", n)
	}
	if n := vouch(b, b.now-1); n != 0 {
		t.Errorf("%d beats for a contact that is known", n)
	}
	b.out = nil
	b.pass(500 * time.Millisecond)
	if x := lastBeat(b, "a"); x.Kind != BeatSecondary || !x.Answer {
		t.Errorf("a secondary does not ask for its contact: %+v", x)
	}
	p := newBench(t, chaosConfig(1))
	p.lead()
	p.out = nil
	ask := HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Primary: "b", ConfigVersion: 1, Answer: true, Stamp: 44, Start: 3}}
	p.step(ask)
	if x := lastBeat(p, "a"); x.Kind != BeatPrimary || x.Echo != 44 || !x.Vouches || x.Answer {
		t.Errorf("the primary's answer is %+v", x)
	}
	p.step(ask)
	if n := len(take[SendHeartbeat](p)); n != 0 {
		t.Errorf("answered twice: %d", n)
	}
	p.pass(time.Second)
	if x := lastBeat(p, "a"); x.Answer {
		t.Errorf("asks without need: %+v", x)
	}
	p.step(GuardNoticed{lease.Notice{What: lease.NoticeStatus, Status: status}})
	p.pass(500 * time.Millisecond)
	if x := lastBeat(p, "a"); !x.Answer {
		t.Errorf("does not ask: %+v", x)
	}
	p.out = nil
	p.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, Datastores: 9, ConfigVersion: 1}}) // follows
	p.out = nil
	q := HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, Datastores: 9, ConfigVersion: 1, Answer: true, Stamp: 50, Start: 3}}
	p.step(q)
	if x := lastBeat(p, "a"); x.Kind != BeatSecondary || x.Echo != 50 || x.EchoStart != 3 || x.Primary != model.HostID("a") {
		t.Errorf("the answer is %+v", x)
	}
	p.step(q)
	if n := len(take[SendHeartbeat](p)); n != 0 {
		t.Errorf("a question that came over two networks is answered twice: %d", n)
	}
}

// TestVerdictShowsBothProofs: people read how long the host was silent and how
// old its slot was, each beside what a verdict needs; and the verdict comes at
// the moment at which the second of them is given.
func TestVerdictShowsBothProofs(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead()
	b.report("a", "boot-a")
	heard := b.now
	read := func() {
		for _, r := range take[ReadSlots](b) {
			b.step(SlotsRead{Op: r.Op, Datastore: r.Datastore, Started: b.now, Completed: b.now, Slots: []model.SlotReading{
				{Host: "a", Identity: model.SlotIdentity{Digest: "1"}, Valid: true, Slot: model.Slot{Host: "a", Boot: "boot-a", Lease: 5 * time.Second}}}})
		}
	}
	read()
	for b.now-heard < 3*time.Second {
		b.pass(100 * time.Millisecond)
		read()
	}
	b.report("a", "boot-a") // a last word
	heard = b.now
	var verdict *event.Event
	for i := 0; i < 1000 && verdict == nil; i++ {
		b.pass(10 * time.Millisecond)
		read()
		for _, e := range take[Emit](b) {
			if e.Event.Kind == event.Verdict {
				verdict = &e.Event
			}
		}
	}
	if verdict == nil {
		t.Fatal("no verdict")
	}
	if d, need := b.now-heard, model.TimingFast.StaleAfter(); d < need || d > need+15*time.Millisecond {
		t.Errorf("verdict after %v of silence, want %v", d, need)
	}
	for key, want := range map[string]string{"network": "no heartbeat for 5.1 s (a verdict needs 5.1 s)", "heartbeat slot on ds1": "(stale from 5.1 s)"} {
		if got := verdict.Evidence[key]; !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", key, got, want)
		}
	}
}

// TestFollowsNobodyWhoFollows: a primary that says later that it is none is
// followed no more; what it said before does not count.
func TestFollowsNobodyWhoFollows(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	say := func(k BeatKind, stamp time.Duration) {
		b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: k, Primary: "b", ConfigVersion: 1, Stamp: stamp, Start: 5, Settled: true}})
	}
	say(BeatPrimary, 70)
	if b.m.role != roleSecondary || b.m.primary != "a" {
		t.Fatalf("role %v, primary %q", b.m.role, b.m.primary)
	}
	say(BeatSecondary, 60)
	if b.m.role != roleSecondary {
		t.Error("a heartbeat from before ended the allegiance")
	}
	say(BeatSecondary, 80)
	if b.m.role != roleElection {
		t.Errorf("role %v: two hosts follow each other", b.m.role)
	}
}
