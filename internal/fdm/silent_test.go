package fdm

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// TestSilentHosts walks through every way a host falls silent, and every row of
// the table of verdicts; each verdict's event names what it rests on.
func TestSilentHosts(t *testing.T) {
	type row struct {
		name string
		do   func(w *world, n *node) // to host1
		wait time.Duration
		want model.HostState
		// says is in the reason or the evidence, evidence are keys of the event.
		says     string
		evidence []string
		restart  bool // its VM runs elsewhere afterwards
	}
	lose := func(n *node, kind string, hosts ...string) {
		for _, h := range hosts {
			n.w.nodes[model.HostID(h)].loseStorage("ds1", kind)
		}
	}
	seen := []string{"network", "ping", "heartbeat slot on ds1"}
	rows := []row{
		{"no power: stale, no ping", func(_ *world, n *node) { n.powerOff() }, 8 * time.Second, model.HostFailed, "stale", seen, true},
		{"frozen host: stale, but it answers ping", func(_ *world, n *node) {
			n.frozen, n.guardOn = true, false
			n.guardVMs, n.doms = map[model.VMID]*lease.VMStatus{}, map[model.VMID]*Domain{}
		}, 8 * time.Second, model.HostFailed, "stale", seen, true},
		{"stale and flagged isolated: failed all the same", func(w *world, n *node) {
			n.cut = true
			w.at(6*time.Second, n.powerOff)
		}, 14 * time.Second, model.HostFailed, "stale", seen, true},
		{"dead agent: fresh, answers ping", func(_ *world, n *node) { n.killAgent() }, 15 * time.Second, model.HostAgentUnreachable, "answers ping", seen, false},
		{"network lost, gateway answers: fresh, no ping", func(_ *world, n *node) { n.side = 1 }, 15 * time.Second, model.HostPartitioned, "does not answer ping", seen, false},
		{"network lost: fresh, no ping, flag", func(_ *world, n *node) { n.cut = true }, 8 * time.Second, model.HostIsolated, "says that it is isolated", seen, false},
		{"mute: it hears the others, they hear nothing", func(_ *world, n *node) { n.mute = true }, 15 * time.Second, model.HostPartitioned, "does not answer ping", seen, false},
		{"deaf: the others hear it", func(_ *world, n *node) { n.deaf = true }, 15 * time.Second, model.HostConnected, "", nil, false},
		{"storage lost, but it answers", func(_ *world, n *node) { lose(n, "hung", "host1") }, 15 * time.Second, model.HostConnected, "", nil, false},
		{"slow: fresh by a heartbeat every four seconds, no ping", func(w *world, n *node) {
			n.side = 1
			n.hung["ds1"], n.leased["ds1"] = true, true
			for d := time.Duration(0); d < 40*time.Second; d += 4 * time.Second {
				w.at(d, func() { n.writeSlot("ds1") })
			}
		}, 25 * time.Second, model.HostPartitioned, "does not answer ping", seen, false},
		{"slot unknown, answers ping", func(_ *world, n *node) {
			lose(n, "hung", "host1", "host2", "host3")
			n.killAgent()
		}, 15 * time.Second, model.HostAgentUnreachable, "cannot be seen", seen, false},
		{"slot unknown, no ping", func(_ *world, n *node) {
			lose(n, "hung", "host1", "host2", "host3")
			n.cut = true
		}, 15 * time.Second, model.HostDisconnected, "verdict unknown", seen, false},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			w := newWorld(3, "ds1")
			w.gateway = true
			var verdict *event.Event
			w.onEvent = func(n *node, e event.Event) {
				if n.name == "host3" && e.Host == "host1" && (e.Kind == event.HostState || e.Kind == event.Verdict) {
					verdict = &e
				}
			}
			for _, name := range w.names {
				w.nodes[name].powerOn()
			}
			id := w.addVM("web", "ds1", "host1", 512)
			w.run(20 * time.Second)
			r.do(w, w.nodes["host1"])
			w.run(r.wait)
			h := hostIn(w.nodes["host3"].m.View(w.now), "host1")
			if h.State != r.want || !strings.Contains(h.Reason, r.says) {
				t.Errorf("host1 is %s (%s), want %s (%s)", h.State, h.Reason, r.want, r.says)
			}
			for _, key := range r.evidence {
				if verdict == nil || verdict.Evidence[key] == "" {
					t.Errorf("the event %+v has no evidence %q", verdict, key)
				}
			}
			on := w.runningOn(id)
			if elsewhere := len(on) == 1 && on[0] != "host1"; elsewhere != r.restart {
				t.Errorf("its VM runs on %v, want elsewhere %v", on, r.restart)
			}
			for _, b := range w.broken {
				t.Error(b)
			}
		})
	}
}

func hostIn(v ClusterView, name model.HostID) HostView {
	for _, h := range v.Hosts {
		if h.Name == name {
			return h
		}
	}
	return HostView{}
}

// The time to a verdict, and from there to the first order to start, does not
// grow with the number of VMs or hosts: what varies is the phase of heartbeats,
// less than an interval.
func TestVerdictTakesAsLongForManyVMs(t *testing.T) {
	type times struct{ verdict, order time.Duration }
	took := func(hosts, vms int) (out times) {
		w := newWorld(hosts, "ds1")
		const lossAt = 20 * time.Second
		w.onEvent = func(_ *node, e event.Event) {
			switch {
			case e.Kind == event.Verdict && out.verdict == 0:
				out.verdict = w.now - lossAt
			case e.Kind == event.StartIssued && out.order == 0:
				out.order = w.now - lossAt
			}
		}
		for _, name := range w.names {
			w.nodes[name].powerOn()
		}
		for i := range vms {
			w.addVM(fmt.Sprintf("vm%d", i), "ds1", "host1", 1)
		}
		w.run(lossAt)
		w.nodes["host1"].powerOff()
		w.run(8 * time.Second)
		return out
	}
	const interval = 500 * time.Millisecond
	few := took(3, 1)
	if few.verdict <= 0 || few.verdict > 6*time.Second || few.order < few.verdict || few.order > few.verdict+100*time.Millisecond {
		t.Fatalf("with 3 hosts and 1 VM: %+v", few)
	}
	for _, size := range []struct{ hosts, vms int }{{3, 200}, {12, 1}, {12, 200}} {
		many := took(size.hosts, size.vms)
		if d := (many.verdict - few.verdict).Abs(); d >= interval {
			t.Errorf("a verdict took %v with 3 hosts and 1 VM, %v with %d hosts and %d VMs", few.verdict, many.verdict, size.hosts, size.vms)
		}
		if many.order < many.verdict || many.order > many.verdict+100*time.Millisecond {
			t.Errorf("with %d hosts and %d VMs the first start was ordered %v after the verdict", size.hosts, size.vms, many.order-many.verdict)
		}
	}
}

// A secondary answers also whoever leads, or wants to, without hearing the primary
// that it follows: that host is not alone, and must not take itself for isolated.
func TestSecondaryAnswersOtherPrimaries(t *testing.T) {
	for _, kind := range []BeatKind{BeatPrimary, BeatElection} {
		b := newBench(t, chaosConfig(1))
		b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
		take[SendHeartbeat](b)
		b.now += 100 * time.Millisecond
		for range 10 {
			b.step(HeartbeatReceived{From: "c", Network: "n1", Beat: Heartbeat{Kind: kind, ConfigVersion: 1}})
		}
		answers := 0
		for _, e := range take[SendHeartbeat](b) {
			if e.To != "c" {
				continue
			}
			answers++
			if e.Beat.Kind != BeatSecondary || e.Beat.Primary != "a" {
				t.Errorf("%s: answered with %s of primary %q", kind, e.Beat.Kind, e.Beat.Primary)
			}
		}
		if answers != 2 { // one on each network
			t.Errorf("%s: %d heartbeats in answer to ten, want one on each network", kind, answers)
		}
	}
}

// What a host said before it fell silent is no account of it any more when it is
// heard again: it may have rebooted, and run other VMs since.
func TestReportDoesNotOutliveSilence(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead(protectedVM("v1"))
	b.report("a", "boot-1", LocalVM{ID: "v1", Name: "web", Active: true, Epoch: 2})
	b.pass(10 * time.Second) // silent
	if h := b.m.members["a"]; !h.suspect || h.failed {
		t.Fatalf("suspect %v, failed %v, want a silent host", h.suspect, h.failed)
	}
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Primary: "c", ConfigVersion: 1}})
	rec := model.LockRecord{Lock: model.VMLock("v1"), Epoch: 4, State: model.LockHeld, Owner: "a", Boot: "boot-2"}
	if h := b.m.members["a"]; h.suspect || b.m.disowned(b.m.stores["ds1"], rec) {
		t.Errorf("suspect %v, and a lock of its present boot counts as disowned by its former one's word", h.suspect)
	}
	b.report("a", "boot-3")
	if !b.m.disowned(b.m.stores["ds1"], rec) {
		t.Error("its new word does not count")
	}
}
