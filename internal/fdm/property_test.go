package fdm

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// TestRandomEvents feeds a machine whatever might arrive, in any order, with
// right, wrong, late and foreign answers: it never panics, always wants its
// next tick in the future, never lets an event happen in the future, and never
// commands a VM to two hosts under one epoch while the first may still act.
func TestRandomEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &chaos{t: t, m: New(Config{Self: "b", Boot: "boot-b", Incarnation: 1, Start: 1}), sent: map[string]sentOrder{}}
		c.step(ConfigLoaded{chaosConfig(1)})
		c.step(GuardChanged{Up: true})
		c.step(GuardNoticed{lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{Host: "b", Boot: "boot-b", Armed: true, HookSeen: true,
			Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true}, {Name: "ds2", OK: true}}}}})
		c.step(HypervisorChanged{Up: true})
		c.step(DomainsListed{})
		c.lead()
		n := rapid.IntRange(50, 400).Draw(t, "steps")
		for i := 0; i < n; i++ {
			c.step(c.event())
		}
		if c.m.View(c.now).Version == 0 {
			t.Fatal("the view has no version")
		}
	})
}

// lead brings the machine to where most happens: primary, with its lists owned
// and members that report.
func (c *chaos) lead() {
	for i := 0; i < 60 && c.m.stores["ds1"].list.phase != listOwned; i++ {
		c.now += 200 * time.Millisecond
		c.step(Tick{})
		for len(c.open) > 0 {
			e := c.open[0]
			c.open = c.open[1:]
			c.step(c.good(e))
		}
		for _, h := range []model.HostID{"a", "c"} {
			c.step(HeartbeatReceived{From: h, Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Primary: "b", Settled: true, ConfigVersion: 1}})
		}
	}
	if c.m.stores["ds1"].list.phase != listOwned {
		c.t.Fatalf("role %v, list %v: %s", c.m.role, c.m.stores["ds1"].list.phase, c.m.stores["ds1"].list.problem)
	}
}

// good answers an operation well.
func (c *chaos) good(e Effect) Event {
	switch e := e.(type) {
	case ReadList:
		r := ListRead{Op: e.Op, Datastore: e.Datastore, Lock: model.LockRecord{Lock: model.ListLock, Epoch: 5, State: model.LockReleased}}
		if l := &c.m.stores[e.Datastore].list; l.phase == listCopying {
			r.Lock.Epoch = model.Epoch(l.term)
		}
		r.List = model.ProtectedList{Term: 1, Version: 1, VMs: c.protected(e.Datastore)}
		return r
	case WriteList:
		return ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version}
	case AskGuard:
		r := lease.Reply{Code: lease.CodeOK}
		switch {
		case e.Request.Claim != nil:
			r.Epoch = e.Request.Claim.Epoch + 1
		case e.Request.ClaimList != nil:
			r.Epoch = e.Request.ClaimList.Epoch + 1
		case e.Request.Release != nil:
			r.Epoch = e.Request.Release.Epoch + 1
		}
		return GuardReplied{Op: e.Op, Reply: r}
	case Hypervise:
		return HypervisorDone{Op: e.Op}
	}
	return c.reply(e)
}

type chaos struct {
	t    *rapid.T
	m    *Machine
	now  time.Duration
	open []Effect // operations not yet answered
	sent map[string]sentOrder
	cmds []Command
}

var (
	chaosHosts = []model.HostID{"a", "b", "c", "x"} // x is no member
	chaosVMs   = []model.VMID{"v1", "v2", "v3"}
	chaosDS    = []model.DatastoreName{"ds1", "ds2"}
)

func chaosConfig(version uint64) Cluster {
	c := Cluster{Version: version, File: []byte("f"), Enabled: version%5 != 0, HostMonitoring: version%7 != 0, Timing: model.TimingFast, HeartbeatNetworks: []string{"n1", "n2"},
		Datastores: []ClusterDatastore{{Name: "ds1", Fence: model.FenceReset}, {Name: "ds2", Fence: model.FenceNone}}}
	for _, h := range []model.HostID{"a", "b", "c"} {
		if version%11 == 0 && h == "a" {
			continue
		}
		c.Hosts = append(c.Hosts, ClusterHost{Name: h, Datastores: chaosDS, Memory: 4096})
	}
	return c
}

func pick[T any](t *rapid.T, list []T, label string) T {
	return list[rapid.IntRange(0, len(list)-1).Draw(t, label)]
}

func (c *chaos) step(ev Event) {
	c.now += time.Duration(rapid.SampledFrom([]int{0, 1, 20, 100, 300, 600}).Draw(c.t, "ms")) * time.Millisecond
	if p, ok := ev.(MessageReceived); ok && p.Message.Progress != nil && p.Message.Progress.Done {
		for k, o := range c.sent {
			if o.id == p.Message.Progress.Command && o.host == p.From {
				o.over = true
				c.sent[k] = o
			}
		}
	}
	for _, e := range c.m.Step(c.now, ev) {
		switch e := e.(type) {
		case ReadSlots, ReadList, WriteList, ReadLock, Hypervise, PingGuest, PingHost:
			c.open = append(c.open, e)
		case AskGuard:
			c.open = append(c.open, e)
			if cl := e.Request.Claim; cl != nil && c.m.orders[cl.Command] != nil {
				c.started(c.m.cfg.Self, cl.VM.ID, cl.Epoch, cl.Command)
			}
		case SendMessage:
			if x := e.Message.Command; x != nil {
				c.cmds = append(c.cmds, *x)
				if x.Kind == CommandStart {
					c.started(e.To, x.VM.ID, x.Epoch, x.ID)
				}
			}
		case Emit:
			if e.Event.At > c.now {
				c.t.Fatalf("event from the future: %+v", e.Event)
			}
			if e.Event.Kind == "" || e.Event.Text == "" || e.Event.Severity == "" {
				c.t.Fatalf("event says nothing: %+v", e.Event)
			}
		}
	}
	if next := c.m.Next(); next <= c.now {
		c.t.Fatalf("Next %v is not after %v", next, c.now)
	}
	for _, h := range c.m.members {
		if h.orderMem < 0 {
			c.t.Fatalf("%s: memory of starts under way is %d", h.name, h.orderMem)
		}
	}
}

func (c *chaos) started(host model.HostID, vm model.VMID, epoch model.Epoch, id string) {
	key := fmt.Sprintf("%s/%d/%d", vm, epoch, c.m.reign)
	o, ok := c.sent[key]
	if _, done := c.m.results[o.id]; done {
		o.over = true // carried out here, and answered
	}
	if first := c.m.orders[o.id]; first != nil && first.over {
		o.over = true // the VM ran; what came after is a new story
	}
	if ok && o.host != host && !o.over && c.now-o.at < commandExpires {
		if h := c.m.members[o.host]; h != nil && !h.failed && !h.suspect {
			if st := c.m.vms[vm]; st != nil && st.st.list.term == model.Term(o.term) {
				c.t.Fatalf("%s commanded to %s (%s) and %s (%s) under epoch %d", vm, o.host, o.id, host, id, epoch)
			}
		}
	}
	var term model.Term
	if v := c.m.vms[vm]; v != nil {
		term = v.st.list.term
	}
	c.sent[key] = sentOrder{host: host, id: id, at: c.now, term: term, over: ok && o.over && o.id == id}
}

func (c *chaos) epoch() model.Epoch { return model.Epoch(rapid.IntRange(0, 6).Draw(c.t, "epoch")) }

func (c *chaos) record(lock model.LockID) model.LockRecord {
	return model.LockRecord{Lock: lock, Epoch: c.epoch(), Owner: pick(c.t, chaosHosts, "owner"), Boot: model.BootID(pick(c.t, []string{"boot-a", "boot-b", "boot-c"}, "boot")),
		State:  pick(c.t, []model.LockState{model.LockHeld, model.LockReleased, model.LockReleased}, "state"),
		Reason: pick(c.t, []string{model.ReasonCrashed, model.ReasonUserOff, model.ReasonGuestOff, model.ReasonStartFail}, "reason")}
}

func (c *chaos) status() *lease.Status {
	s := &lease.Status{Host: "b", Boot: "boot-b", Incarnation: 1, Armed: true, HookSeen: true}
	for _, d := range chaosDS {
		x := lease.DatastoreStatus{Name: d, OK: rapid.IntRange(0, 29).Draw(c.t, "ok") > 0}
		if st := c.m.stores[d]; st != nil {
			x.ListTerm = st.list.term
		}
		if rapid.IntRange(0, 19).Draw(c.t, "other term") == 0 {
			x.ListTerm = model.Term(rapid.IntRange(0, 9).Draw(c.t, "term"))
		}
		s.Datastores = append(s.Datastores, x)
	}
	for _, v := range chaosVMs {
		if rapid.Bool().Draw(c.t, "held") {
			s.VMs = append(s.VMs, lease.VMStatus{VM: v, Name: string(v), Home: "ds1", Epoch: c.epoch(),
				Phase: pick(c.t, []lease.VMPhase{lease.PhaseRunning, lease.PhaseGranted, lease.PhaseGone, lease.PhaseFrozen, lease.PhaseClaiming}, "phase")})
		}
	}
	return s
}

func (c *chaos) event() Event {
	t := c.t
	host := pick(t, chaosHosts, "host")
	switch rapid.IntRange(0, 19).Draw(t, "kind") {
	case 0, 1:
		return Tick{}
	case 2, 3, 4:
		return HeartbeatReceived{From: host, Network: pick(t, []string{"n1", "n2", "zz"}, "net"), Beat: Heartbeat{
			Kind: pick(t, []BeatKind{BeatSecondary, BeatSecondary, BeatSecondary, BeatSecondary, BeatSecondary, BeatSecondary, BeatSecondary, BeatSecondary, BeatElection, BeatYield, "?", BeatPrimary}, "beat"), Datastores: rapid.IntRange(0, 2).Draw(t, "ds"), Primary: "b",
			Round: uint64(rapid.IntRange(0, 9).Draw(t, "round")), ConfigVersion: uint64(rapid.IntRange(0, 3).Draw(t, "version")), Settled: true}}
	case 5, 6:
		return MessageReceived{From: host, Message: c.message(host)}
	case 7:
		return LinkChanged{Host: host, Up: rapid.Bool().Draw(t, "up")}
	case 8:
		return GuardNoticed{lease.Notice{What: pick(t, []lease.NoticeKind{lease.NoticeStatus, lease.NoticeStatus, lease.NoticeStatus, lease.NoticeListLost, lease.NoticeGone, lease.NoticeFrozen}, "what"),
			VM: pick(t, chaosVMs, "vm"), Datastore: pick(t, chaosDS, "ds"), Status: c.status(), Text: "text"}}
	case 9:
		return DomainChanged{c.domain()}
	case 10:
		return pick(t, []Event{GuardChanged{Up: true}, GuardChanged{Up: true}, GuardChanged{}, HypervisorChanged{Up: true}, HypervisorChanged{}, DomainsListed{}, DomainsListed{Domains: []Domain{c.domain()}}}, "conn")
	case 11:
		if rapid.IntRange(0, 3).Draw(t, "keep") > 0 {
			return Tick{}
		}
		return ConfigLoaded{chaosConfig(uint64(rapid.IntRange(0, 30).Draw(t, "config")))}
	case 12:
		ref := &VMRef{Name: string(pick(t, chaosVMs, "vm"))}
		return AdminAsked{ID: 7, Request: pick(t, []AdminRequest{{Start: ref}, {Shutdown: ref}, {Kill: ref}, {Unprotect: ref}, {},
			{Protect: &model.ProtectedVM{ID: pick(t, chaosVMs, "vm"), Name: "p", Home: "ds1"}}, {Apply: &ConfigOffer{Version: 40}}}, "ask")}
	}
	if len(c.open) == 0 {
		return Tick{}
	}
	i := rapid.IntRange(0, len(c.open)-1).Draw(t, "op")
	e := c.open[i]
	if rapid.IntRange(0, 9).Draw(t, "again") > 0 { // now and then answered twice
		c.open = append(c.open[:i:i], c.open[i+1:]...)
	}
	if rapid.IntRange(0, 3).Draw(t, "good") > 0 {
		return c.good(e)
	}
	return c.reply(e)
}

func (c *chaos) domain() Domain {
	v := pick(c.t, chaosVMs, "vm")
	return Domain{VM: v, Name: string(v), Active: rapid.Bool().Draw(c.t, "active"), Paused: rapid.Bool().Draw(c.t, "paused"), Memory: 512,
		Cause: pick(c.t, []StopCause{StopUnknown, StopCrashed, StopGuestShutdown, StopDestroyed, StopMigrated}, "cause")}
}

func (c *chaos) protected(home model.DatastoreName) []model.ProtectedVM {
	var list []model.ProtectedVM
	for i, v := range chaosVMs {
		if rapid.IntRange(0, 3).Draw(c.t, "listed") == 0 {
			continue
		}
		p := model.ProtectedVM{ID: v, Name: string(v), Home: home, Memory: 512, Requested: pick(c.t, []model.Requested{model.RequestedStarted, model.RequestedStarted, model.RequestedStopped}, "requested"), Host: "a", LastEpoch: c.epoch()}
		if i == 0 {
			p.Home = "ds1"
		}
		if rapid.Bool().Draw(c.t, "down") {
			p.Down = &model.DownState{Cause: "x", Attempts: rapid.IntRange(0, 6).Draw(c.t, "attempts"), Failover: "fo-1", RetryIn: time.Second}
		}
		list = append(list, p)
	}
	return list
}

func (c *chaos) message(from model.HostID) Message {
	t := c.t
	switch rapid.IntRange(0, 7).Draw(t, "message") {
	case 0:
		return Message{}
	case 1, 2:
		r := &Report{Host: from, Boot: model.BootID("boot-" + from), GuardUp: true, HypervisorUp: true, Armed: true, HookSeen: true, Memory: 4096,
			Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true}, {Name: "ds2", OK: true}}}
		for _, v := range chaosVMs {
			if rapid.IntRange(0, 3).Draw(t, "has") == 0 {
				r.VMs = append(r.VMs, LocalVM{ID: v, Name: string(v), Managed: true, Active: rapid.Bool().Draw(t, "active"), Epoch: c.epoch(), Phase: lease.PhaseRunning, Memory: 512})
			}
		}
		return Message{Report: r}
	case 3:
		cmd := Command{ID: fmt.Sprint("foreign-", rapid.IntRange(0, 5).Draw(t, "id")), Kind: pick(t, []CommandKind{CommandStart, CommandShutdown, CommandKill, "?"}, "command"),
			Term: model.Term(rapid.IntRange(0, 5).Draw(t, "term")), Epoch: c.epoch(), Expires: time.Second,
			VM: model.ProtectedVM{ID: pick(t, chaosVMs, "vm"), Name: "v", Home: "ds1", Memory: 512}}
		return Message{Command: &cmd}
	case 4:
		if len(c.cmds) == 0 {
			return Message{Progress: &Progress{Command: "none"}}
		}
		x := pick(t, c.cmds, "cmd")
		s := pick(t, []Stage{StageAccepted, StageLocked, StageRunning, StageAlive, StageGone, StageFailed}, "stage")
		return Message{Progress: &Progress{Command: x.ID, VM: x.VM.ID, Stage: s, Done: s == StageFailed || s == StageGone || s == StageAlive, Epoch: x.Epoch + 1,
			Code: pick(t, []string{string(FaultMissingDisk), string(FaultImageLocked), string(lease.CodeEpochMoved), string(lease.CodeNotArmed)}, "code"), Text: "t"}}
	case 5:
		return Message{Welcome: &Welcome{Unknown: []model.DatastoreName{"ds2"}, Managed: []lease.ManagedVM{{ID: "v1", Home: "ds1"}}}}
	case 6:
		return Message{Admin: &AdminRelay{ID: 3, Request: AdminRequest{Start: &VMRef{Name: "v2"}}}}
	default:
		return Message{View: &ClusterView{Primary: from, VMs: []VMView{{ID: "v1", State: model.VMStarted, Host: "a"}}}}
	}
}

// reply answers an operation: mostly well, sometimes with an error.
func (c *chaos) reply(e Effect) Event {
	t := c.t
	kind, text := "", ""
	if rapid.IntRange(0, 5).Draw(t, "bad") == 0 {
		kind, text = "hung", "no answer"
	}
	switch e := e.(type) {
	case ReadSlots:
		r := SlotsRead{Op: e.Op, Datastore: e.Datastore, Started: max(0, c.now-10*time.Millisecond), Completed: c.now, Kind: kind, Err: text}
		for _, h := range []model.HostID{"a", "c", "x"} {
			n := uint64(rapid.IntRange(0, 2).Draw(t, "seq"))
			r.Slots = append(r.Slots, model.SlotReading{Host: h, Valid: n > 0, Identity: model.SlotIdentity{Sequence: n, Digest: fmt.Sprint(n)},
				Slot: model.Slot{Host: h, Boot: model.BootID("boot-" + h), Flags: model.SlotArmed, Lease: 5 * time.Second}})
		}
		return r
	case ReadList:
		ep := c.epoch()
		return ListRead{Op: e.Op, Datastore: e.Datastore, Kind: kind, Err: text, Lock: c.record(model.ListLock), List: model.ProtectedList{Term: model.Term(ep), Version: 1, VMs: c.protected(e.Datastore)}}
	case WriteList:
		return ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version, Kind: kind, Err: text}
	case ReadLock:
		return LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: c.record(model.VMLock(e.VM)), Kind: kind, Err: text}
	case AskGuard:
		return GuardReplied{Op: e.Op, Reply: lease.Reply{Code: pick(t, []lease.Code{lease.CodeOK, lease.CodeOK, lease.CodeOK, lease.CodeOK, lease.CodeEpochMoved, lease.CodeHeldByOther, lease.CodeStorage, lease.CodeNotGone}, "code"), Epoch: 7, Text: "t"}}
	case Hypervise:
		return HypervisorDone{Op: e.Op, Fault: pick(t, []HypervisorFault{"", "", "", FaultMissingDisk, FaultTimeout}, "fault")}
	case PingGuest:
		if rapid.Bool().Draw(t, "wrong") {
			return HypervisorDone{Op: e.Op} // an answer of the wrong kind
		}
		return GuestPinged{Op: e.Op, Alive: rapid.Bool().Draw(t, "alive")}
	case PingHost:
		return HostPinged{Op: e.Op, Host: e.Host, Answered: rapid.Bool().Draw(t, "answered")}
	}
	return Tick{}
}
