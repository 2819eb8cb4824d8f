package fdm

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// settled is a world of three hosts, host3 being primary, that has run for 20 s.
// VMs come from add, which is called when the hosts are on.
func settled(conf func(*Cluster), add func(*world), datastores ...model.DatastoreName) *world {
	w := newWorld(3, datastores...)
	w.gateway = true
	if conf != nil {
		conf(&w.conf)
	}
	w.files[1] = w.conf
	for _, name := range w.names {
		w.nodes[name].conf = w.conf
		w.nodes[name].powerOn()
	}
	if add != nil {
		add(w)
	}
	w.run(20 * time.Second)
	return w
}

func (w *world) said(text string) bool { return strings.Contains(strings.Join(w.log, "\n"), text) }

// runUntil runs until people were told a text.
func (w *world) runUntil(t *testing.T, limit time.Duration, text string) {
	t.Helper()
	for end := w.now + limit; !w.said(text); w.run(10 * time.Millisecond) {
		if w.now >= end {
			t.Fatalf("nobody said %q within %v:\n%s", text, limit, strings.Join(w.log, "\n"))
		}
	}
}

func (w *world) wantOn(t *testing.T, id model.VMID, hosts ...string) {
	t.Helper()
	on := w.runningOn(id)
	ok := len(on) == 0 && len(hosts) == 0
	for _, h := range hosts {
		ok = ok || len(on) == 1 && on[0] == h
	}
	if !ok || len(w.broken) > 0 {
		t.Errorf("%s runs on %v, want one of %v; violations %v\n%s", id, on, hosts, w.broken, strings.Join(w.log, "\n"))
	}
}

// An isolated host's agent restarts while a guest shuts down by its order: its
// next life knows from the note why the guest ended, or gives the order again.
func TestAgentRestartsDuringIsolationResponse(t *testing.T) {
	const web = model.VMID("vm-web")
	begin := func(t *testing.T, stubborn bool) *world {
		w := settled(func(c *Cluster) {
			c.Isolation = Isolation{Response: IsolationShutdown, Delay: 5 * time.Second, ShutdownLimit: 20 * time.Second}
		}, func(w *world) { w.addVM("web", "ds1", "host1", 512) }, "ds1")
		w.stubborn[web] = stubborn
		w.nodes["host1"].cut = true
		w.runUntil(t, 12*time.Second, "web is shut down on host1 by HA")
		w.run(100 * time.Millisecond) // its guest is asked
		return w
	}
	restart := func(w *world) {
		n := w.nodes["host1"]
		n.killAgent()
		w.run(200 * time.Millisecond)
		n.startAgent()
	}
	t.Run("the guest ends", func(t *testing.T) {
		w := begin(t, false)
		restart(w)
		w.run(15 * time.Second)
		w.wantOn(t, web, "host2", "host3")
	})
	t.Run("the guest ends while no agent runs, and the network is back", func(t *testing.T) {
		w := begin(t, false)
		n := w.nodes["host1"]
		n.killAgent()
		n.cut = false
		w.run(3 * time.Second)
		n.startAgent()
		w.run(15 * time.Second)
		w.wantOn(t, web, "host1", "host2", "host3")
	})
	t.Run("the guest does not end", func(t *testing.T) {
		w := begin(t, true)
		restart(w)
		w.run(15 * time.Second)
		w.wantOn(t, web, "host1") // asked again
		w.run(30 * time.Second)   // and powered off when its time is over
		w.wantOn(t, web, "host2", "host3")
	})
	t.Run("the host is back and the guest runs on", func(t *testing.T) {
		w := begin(t, true)
		w.nodes["host1"].cut = false
		w.run(25 * time.Second)
		if !w.notes[web].Withdrawn {
			t.Errorf("the note stands: %+v", w.notes[web])
		}
		restart(w)
		w.run(10 * time.Second)
		w.nodes["host1"].endDomain(web, StopGuestShutdown) // by its user, long after
		w.run(15 * time.Second)
		w.wantOn(t, web)
	})
}

// An agent dies when it has written the note, and no guest ends by it.
// Its next life takes the note back when the guest could have shut down by then; what
// the guest's user does later counts, whatever life of the agent is about.
func TestNoteOutlivesItsAgent(t *testing.T) {
	const web = model.VMID("vm-web")
	w := settled(func(c *Cluster) {
		c.Isolation = Isolation{Response: IsolationShutdown, Delay: 5 * time.Second, ShutdownLimit: 20 * time.Second}
	}, func(w *world) { w.addVM("web", "ds1", "host1", 512) }, "ds1")
	n := w.nodes["host1"]
	n.cut = true
	for end := w.now + 15*time.Second; w.notes[web].LockEpoch == 0; w.run(time.Millisecond) {
		if w.now >= end {
			t.Fatalf("no note was written:\n%s", strings.Join(w.log, "\n"))
		}
	}
	n.killAgent()
	n.cut = false
	w.stubborn[web] = true // who is asked does not end, and the note says no more than that
	if w.notes[web].Withdrawn {
		t.Fatalf("the agent died too late: %+v\n%s", w.notes[web], strings.Join(w.log, "\n"))
	}
	w.run(200 * time.Millisecond)
	n.startAgent()
	w.run(15 * time.Second)
	if w.notes[web].Withdrawn {
		t.Error("the note was taken back while a shutdown might be under way")
	}
	w.run(15 * time.Second)
	if !w.notes[web].Withdrawn {
		t.Errorf("the note stands: %+v", w.notes[web])
	}
	w.wantOn(t, web, "host1")
	n.killAgent()
	w.run(200 * time.Millisecond)
	n.startAgent()
	w.run(5 * time.Second)
	n.endDomain(web, StopGuestShutdown) // by its user
	w.run(30 * time.Second)
	w.wantOn(t, web)
}

// A guest that shuts down while its host has lost storage of it.
func TestMaskCleanShutdown(t *testing.T) {
	const web = model.VMID("vm-web")
	for _, c := range []struct {
		name  string
		lost  model.DatastoreName // ds1 is its home
		mask  bool
		cause StopCause
		runs  bool
	}{
		{"disk, guest, masked", "ds2", true, StopGuestShutdown, true},
		{"disk, guest", "ds2", false, StopGuestShutdown, false},
		{"disk, user, masked", "ds2", true, StopDestroyed, false},
		{"disk, died", "ds2", false, StopFailed, true},
		{"home, guest, masked", "ds1", true, StopGuestShutdown, true},
		{"home, guest", "ds1", false, StopGuestShutdown, false},
		{"home, user, masked", "ds1", true, StopDestroyed, false},
		{"home, died", "ds1", false, StopFailed, true},
		{"nothing lost, guest, masked", "", true, StopGuestShutdown, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := settled(func(x *Cluster) { x.MaskCleanShutdown = c.mask }, func(w *world) {
				w.addVM("web", "ds1", "host1", 512)
				d := w.disks["ds1"]
				l := d.lists[1]
				l.VMs[0].Datastores = []model.DatastoreName{"ds1", "ds2"}
				d.lists[1] = l
			}, "ds1", "ds2", "ds3")
			n := w.nodes["host1"]
			if c.lost != "" {
				n.loseStorage(c.lost, kindHung)
				n.notice(lease.Notice{What: lease.NoticeDatastore, Datastore: c.lost, Text: "it hangs"})
			}
			w.run(time.Second)
			n.endDomain(web, c.cause)
			w.run(20 * time.Second)
			if c.runs {
				w.wantOn(t, web, "host2", "host3")
			} else {
				w.wantOn(t, web)
			}
			if c.lost != "" {
				n.regainStorage(c.lost)
				w.run(20 * time.Second)
			}
			if c.runs {
				w.wantOn(t, web, "host2", "host3")
				return
			}
			w.wantOn(t, web)
			w.nodes["host3"].step(AdminAsked{ID: 77, Request: AdminRequest{Start: &VMRef{Name: "web"}}})
			w.run(20 * time.Second) // it stays down only until somebody wants it
			w.wantOn(t, web, "host1", "host2", "host3")
		})
	}
}

// A host that leaves is not done with a VM whose process is gone before its lock
// is released and the primary had time to hear of it; a release that does not
// come holds it up for a while only.
func TestLeaveWaitsForTheLocks(t *testing.T) {
	w := settled(nil, func(w *world) { w.addVM("web", "ds1", "host1", 512) }, "ds1", "ds2")
	n := w.nodes["host1"]
	ask := func() (text string) {
		n.m.goOnLeaving(LeaveRequest{GuestLimit: time.Minute}, func(r AdminReply) { text = r.Text })
		return text
	}
	w.stubborn["vm-web"] = true
	if got := ask(); got != "web" {
		t.Fatalf("it waits for %q, want web", got)
	}
	gone := n.m.guarded["vm-web"]
	gone.Phase = lease.PhaseGone
	n.m.guarded["vm-web"] = gone
	if got := ask(); got != "web" {
		t.Errorf("with the process gone and the lock held it waits for %q, want web", got)
	}
	n.m.now += releaseWait
	if got := ask(); got != tellingNow {
		t.Errorf("after %v of it it waits for %q, want the primary to be told", releaseWait, got)
	}
	n.m.now += tellWait
	if got := ask(); got != "" {
		t.Errorf("it still waits for %q", got)
	}
}

// A host that leaves in order is no failure, also for a primary elected after
// its announcement, and VMs that libvirt's own service saves go elsewhere.
func TestAnnouncedLeaveOutlivesThePrimary(t *testing.T) {
	w := settled(nil, func(w *world) {
		w.addVM("web", "ds1", "host1", 512)
		w.addVM("db", "ds1", "host2", 512)
	}, "ds1", "ds2")
	w.stubborn["vm-web"] = true
	w.nodes["host1"].step(AdminAsked{ID: 1, Request: AdminRequest{Leave: &LeaveRequest{GuestLimit: time.Minute}}})
	w.run(2 * time.Second)
	if h := hostIn(w.nodes["host3"].m.View(w.now), "host1"); h.Reason != leavingNow {
		t.Errorf("shown as %s: %q", h.State, h.Reason)
	}
	w.nodes["host1"].endDomain("vm-web", StopSaved) // by libvirt-guests
	w.run(5 * time.Second)
	w.wantOn(t, "vm-web", "host2", "host3")
	var verdicts []string
	w.onEvent = func(_ *node, e event.Event) {
		if e.Kind == event.Verdict {
			verdicts = append(verdicts, e.Text)
		}
	}
	w.nodes["host1"].powerOff()
	w.nodes["host3"].powerOff() // who heard the announcement
	w.run(30 * time.Second)
	if h := hostIn(w.nodes["host2"].m.View(w.now), "host1"); h.State != model.HostDisconnected || h.Reason != leftWhy {
		t.Errorf("the next primary shows it as %s: %q", h.State, h.Reason)
	}
	if got := strings.Join(verdicts, "; "); got != "host3 has failed" {
		t.Errorf("verdicts: %s", got)
	}
	w.wantOn(t, "vm-web", "host2")
	w.nodes["host1"].powerOn()
	w.run(20 * time.Second)
	if h := hostIn(w.nodes["host2"].m.View(w.now), "host1"); h.State != model.HostConnected || h.Reason != "" {
		t.Errorf("after its return: %s %q", h.State, h.Reason)
	}
}

func TestHostTimeout(t *testing.T) {
	took := func(limit time.Duration) (silent, verdict time.Duration) {
		w := settled(func(c *Cluster) { c.HostTimeout = limit }, nil, "ds1")
		at := w.now
		w.onEvent = func(_ *node, e event.Event) {
			switch {
			case e.Text == "host1 is silent" && silent == 0:
				silent = w.now - at
			case e.Kind == event.Verdict && verdict == 0:
				verdict = w.now - at
			}
		}
		w.nodes["host1"].powerOff()
		w.run(25 * time.Second)
		return silent, verdict
	}
	if s, v := took(0); s > 2*time.Second || v > 6*time.Second {
		t.Errorf("by default silent after %v, failed after %v", s, v)
	}
	if s, v := took(12 * time.Second); s < 11*time.Second || v < s || v > 14*time.Second {
		t.Errorf("with 12 s silent after %v, failed after %v", s, v)
	}
}

func TestDeadPingInterval(t *testing.T) {
	pings := func(pause time.Duration) int {
		w := settled(func(c *Cluster) { c.DeadPing = pause }, nil, "ds1")
		w.nodes["host1"].powerOff()
		w.run(10 * time.Second) // failed
		before := w.pings["host1"]
		w.run(time.Minute)
		return w.pings["host1"] - before
	}
	for pause, want := range map[time.Duration]int{0: 6, time.Second: 60, 30 * time.Second: 2} {
		if n := pings(pause); n < want-1-want/5 || n > want+1 {
			t.Errorf("interval %v: %d pings in a minute, want about %d", pause, n, want)
		}
	}
}
