package fdm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// bench is one machine whose surroundings are played by the test.
type bench struct {
	t   *testing.T
	m   *Machine
	now time.Duration
	out []Effect // of all steps since the last take
}

func newBench(t *testing.T, conf Cluster) *bench {
	b := &bench{t: t, m: New(Config{Self: "b", Boot: "boot-b", Incarnation: 1, Start: 1})}
	b.step(ConfigLoaded{conf})
	b.step(GuardChanged{Up: true})
	b.step(GuardNoticed{lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{Host: "b", Boot: "boot-b", Armed: true, HookSeen: true,
		Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true}, {Name: "ds2", OK: true}}}}})
	b.step(HypervisorChanged{Up: true})
	b.step(DomainsListed{})
	return b
}

func (b *bench) step(ev Event) {
	b.out = append(b.out, byValue(b.m.Step(b.now, ev))...)
}

func (b *bench) pass(d time.Duration) {
	for end := b.now + d; b.now < end; {
		b.now = min(end, b.m.Next())
		b.step(Tick{})
	}
}

// take returns and forgets the effects of a kind.
// byValue are effects that a test keeps for longer than a Step.
func byValue(effects []Effect) []Effect {
	out := slices.Clone(effects)
	for i, e := range out {
		if b, ok := e.(*SendHeartbeat); ok {
			out[i] = *b
		}
	}
	return out
}

func take[E Effect](b *bench) []E {
	var got []E
	keep := b.out[:0:0]
	for _, e := range b.out {
		if x, ok := e.(E); ok {
			got = append(got, x)
		} else {
			keep = append(keep, e)
		}
	}
	b.out = keep
	return got
}

// lead makes the machine primary, owning its lists with these VMs on ds1.
func (b *bench) lead(vms ...model.ProtectedVM) {
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Settled: true, ConfigVersion: 1}})
	b.pass(3 * time.Second)
	for i := 0; i < 6; i++ {
		for _, e := range take[ReadList](b) {
			r := ListRead{Op: e.Op, Datastore: e.Datastore, Lock: model.LockRecord{Lock: model.ListLock, Epoch: 4, State: model.LockReleased}}
			if b.m.stores[e.Datastore].list.phase == listCopying {
				r.Lock.Epoch = 5
			}
			r.List = model.ProtectedList{Term: 3, Version: 8}
			if e.Datastore == "ds1" {
				r.List.VMs = vms
			}
			b.step(r)
		}
		for _, e := range take[AskGuard](b) {
			if e.Request.ClaimList != nil {
				b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeOK, Epoch: 5}})
			}
		}
		b.written()
	}
	if b.m.stores["ds1"].list.phase != listOwned {
		b.t.Fatalf("list of ds1: phase %v, %s", b.m.stores["ds1"].list.phase, b.m.stores["ds1"].list.problem)
	}
}

func (b *bench) written() {
	for _, e := range take[WriteList](b) {
		b.step(ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version})
	}
	b.kept(lease.Reply{Code: lease.CodeOK, Status: &lease.Status{Datastores: []lease.DatastoreStatus{
		{Name: "ds1", OK: true, ListTerm: 5}, {Name: "ds2", OK: true, ListTerm: 5}}}})
}

// kept answers who asks the guard for its status, and tells how many did.
func (b *bench) kept(r lease.Reply) (asked int) {
	keep := b.out[:0:0]
	var ops []OpID
	for _, e := range b.out {
		if x, ok := e.(AskGuard); ok && x.Request.Status != nil {
			ops = append(ops, x.Op)
		} else {
			keep = append(keep, e)
		}
	}
	b.out = keep
	for _, op := range ops {
		b.step(GuardReplied{Op: op, Reply: r})
	}
	return len(ops)
}

func (b *bench) report(h model.HostID, boot model.BootID, vms ...LocalVM) {
	b.step(MessageReceived{From: h, Message: Message{Report: &Report{Host: h, Boot: boot, GuardUp: true, HypervisorUp: true, Armed: true, HookSeen: true,
		Memory: 4096, Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: true}, {Name: "ds2", OK: true}}, VMs: vms}}})
}

func protectedVM(id model.VMID) model.ProtectedVM {
	return model.ProtectedVM{ID: id, Name: "web", Home: "ds1", Memory: 512, Requested: model.RequestedStarted, Host: "a", LastEpoch: 2}
}

func startCommand(id string, term model.Term) Command {
	return Command{ID: id, Kind: CommandStart, Term: term, VM: protectedVM("v1"), Epoch: 2, Expires: time.Second}
}

func claims(b *bench) int {
	n := 0
	for _, e := range take[AskGuard](b) {
		if e.Request.Claim != nil {
			n++
		}
	}
	return n
}

// TestVerdictTable is the table of spec/behaviour.md, row by row.
func TestVerdictTable(t *testing.T) {
	type slot struct {
		known, stale, alive, isolated bool
	}
	for _, c := range []struct {
		name string
		ds1  slot
		ds2  slot
		ping bool
		want model.HostState
		// silent, if not 6 s
		silent time.Duration
	}{
		{"stale everywhere, ping", slot{known: true, stale: true}, slot{known: true, stale: true}, true, model.HostFailed, 0},
		{"stale everywhere, no ping", slot{known: true, stale: true}, slot{known: true, stale: true}, false, model.HostFailed, 0},
		{"stale everywhere, heard within a lease", slot{known: true, stale: true}, slot{known: true, stale: true}, false, model.HostConnected, 5 * time.Second},
		{"stale where it can be read", slot{known: true, stale: true}, slot{}, false, model.HostFailed, 0},
		{"fresh on one, ping", slot{known: true, stale: true}, slot{known: true, alive: true}, true, model.HostAgentUnreachable, 0},
		{"fresh, no ping, isolated", slot{known: true, alive: true, isolated: true}, slot{}, false, model.HostIsolated, 0},
		{"fresh, no ping", slot{known: true, alive: true}, slot{}, false, model.HostPartitioned, 0},
		{"unknown, ping", slot{}, slot{}, true, model.HostAgentUnreachable, 0},
		{"unknown, no ping", slot{}, slot{}, false, model.HostDisconnected, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, chaosConfig(1))
			b.lead()
			h := b.m.members["a"]
			b.now += 10 * time.Second
			b.m.now = b.now
			if c.silent == 0 {
				c.silent = 6 * time.Second
			}
			h.state = model.HostConnected
			h.heard, h.base, h.suspect, h.pinged, h.answered = b.now-c.silent, 0, true, true, c.ping
			h.aliveAt = b.now - time.Second
			for i, s := range []slot{c.ds1, c.ds2} {
				st := b.m.storeBy[i]
				st.slots = map[model.HostID]*slotSeen{}
				st.ok, st.readAt = true, b.now
				if !s.known {
					continue
				}
				x := &slotSeen{valid: true, changed: true, latest: b.now, first: b.now - time.Second, slot: model.Slot{Lease: 5 * time.Second}}
				if s.stale {
					x.first = b.now - 6*time.Second
				}
				if s.isolated {
					x.slot.Flags = model.SlotIsolated
				}
				st.slots["a"] = x
			}
			b.m.judge(h)
			if h.state != c.want {
				t.Errorf("state %s (%s), want %s", h.state, h.why(), c.want)
			}
		})
	}
}

// TestAgeCountsOnlyWhatWasRead: a datastore that does not answer proves
// nothing, however long.
func TestAgeCountsOnlyWhatWasRead(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead()
	b.pass(time.Second)
	read := take[ReadSlots](b)
	reading := model.SlotReading{Host: "a", Identity: model.SlotIdentity{Digest: "1"}, Valid: true, Slot: model.Slot{Host: "a", Boot: "boot-a", Lease: 5 * time.Second}}
	for _, r := range read {
		b.step(SlotsRead{Op: r.Op, Datastore: r.Datastore, Started: b.now, Completed: b.now, Slots: []model.SlotReading{reading}})
	}
	b.pass(20 * time.Second) // no read is answered
	if h := b.m.members["a"]; h.failed || !h.suspect {
		t.Fatalf("failed %v, suspect %v: only silence was seen", h.failed, h.suspect)
	}
	// A read submitted earlier than that many seconds after proves less.
	start := b.now - 16*time.Second
	for _, r := range take[ReadSlots](b) {
		b.step(SlotsRead{Op: r.Op, Datastore: r.Datastore, Started: start, Completed: b.now, Slots: []model.SlotReading{reading}})
	}
	if h := b.m.members["a"]; h.failed {
		t.Fatal("failed: the read began before the slot could be stale")
	}
	b.pass(time.Second)
	for _, r := range take[ReadSlots](b) {
		b.step(SlotsRead{Op: r.Op, Datastore: r.Datastore, Started: b.now, Completed: b.now, Slots: []model.SlotReading{reading}})
	}
	if h := b.m.members["a"]; !h.failed {
		t.Fatalf("not failed: %s, %s", h.state, h.why())
	}
}

// TestCommandOnce: a repeated command is answered, not carried out again.
func TestCommandOnce(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
	cmd := startCommand("c1", 5)
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd}})
	var op OpID
	for _, e := range take[AskGuard](b) {
		if e.Request.Claim != nil {
			op = e.Op
		}
	}
	if op == 0 {
		t.Fatal("no claim")
	}
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd}})
	b.step(GuardReplied{Op: op, Reply: lease.Reply{Code: lease.CodeEpochMoved, Text: "moved"}})
	take[SendMessage](b)
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd}})
	if n := claims(b); n != 0 {
		t.Errorf("%d more claims", n)
	}
	told := 0
	for _, e := range take[SendMessage](b) {
		if p := e.Message.Progress; p != nil && p.Done && p.Code == string(lease.CodeEpochMoved) {
			told++
		}
	}
	if told != 1 {
		t.Errorf("the repeated command was answered %d times", told)
	}
}

// TestStaleTerm: a command of an older term is refused without touching
// anything.
func TestStaleTerm(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
	now, old := startCommand("c1", 6), startCommand("c2", 5)
	old.VM.ID = "v2"
	b.step(MessageReceived{From: "a", Message: Message{Command: &now}})
	claims(b)
	b.step(MessageReceived{From: "c", Message: Message{Command: &old}})
	if n := claims(b); n != 0 {
		t.Error("a command of a stale term was carried out")
	}
	for _, e := range take[SendMessage](b) {
		if p := e.Message.Progress; p != nil && p.Command == "c2" && p.Code == codeStaleTerm {
			return
		}
	}
	t.Error("the stale command was not refused")
}

// TestCommandExpires: a command waits for guard and libvirt only as long as it
// is valid.
func TestCommandExpires(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.step(HypervisorChanged{})
	cmd := startCommand("c1", 5)
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd}})
	b.pass(1500 * time.Millisecond)
	b.step(HypervisorChanged{Up: true})
	b.pass(time.Second)
	if n := claims(b); n != 0 {
		t.Error("an expired command was carried out")
	}
	cmd2 := startCommand("c2", 5)
	b.step(HypervisorChanged{})
	b.step(MessageReceived{From: "a", Message: Message{Command: &cmd2}})
	b.pass(500 * time.Millisecond)
	b.step(HypervisorChanged{Up: true})
	b.pass(300 * time.Millisecond)
	if n := claims(b); n != 1 {
		t.Errorf("%d claims, want the waiting command carried out", n)
	}
}

// TestWriteBeforeCommand: the attempt is on the datastore before the command
// leaves, and a command whose term is gone by then does not leave.
func TestWriteBeforeCommand(t *testing.T) {
	for _, lost := range []bool{false, true} {
		b := newBench(t, chaosConfig(1))
		b.lead(protectedVM("v1"))
		b.report("a", "boot-a")
		for _, e := range take[ReadLock](b) {
			b.step(LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: model.LockRecord{Lock: model.VMLock(e.VM), Epoch: 3, State: model.LockReleased, Reason: model.ReasonCrashed, Owner: "a"}})
		}
		commands := func() (n int) {
			for _, e := range take[SendMessage](b) {
				if e.Message.Command != nil {
					n++
				}
			}
			return n
		}
		if n := commands(); n != 0 {
			t.Fatal("the command left before the list was written")
		}
		writes := take[WriteList](b)
		if len(writes) != 1 || len(writes[0].List.VMs) != 1 || writes[0].List.VMs[0].Down == nil || writes[0].List.VMs[0].Down.Attempts != 1 {
			t.Fatalf("writes: %+v", writes)
		}
		if lost {
			b.step(GuardNoticed{lease.Notice{What: lease.NoticeListLost, Datastore: "ds1"}})
		}
		w := writes[0]
		b.step(ListWritten{Op: w.Op, Datastore: w.Datastore, Term: w.List.Term, Version: w.List.Version})
		want := 1
		if lost {
			want = 0
		}
		if n := commands(); n != want {
			t.Errorf("list lost %v: %d commands, want %d", lost, n, want)
		}
	}
}

// TestOldConfigRefused: the highest version wins.
func TestOldConfigRefused(t *testing.T) {
	b := newBench(t, chaosConfig(4))
	b.step(ConfigLoaded{chaosConfig(3)})
	if v := b.m.conf.Version; v != 4 {
		t.Errorf("version %d", v)
	}
	b.step(MessageReceived{From: "a", Message: Message{Config: &ConfigOffer{Version: 3}}})
	if s := take[SaveConfig](b); len(s) != 0 {
		t.Errorf("an older version is to be saved: %v", s)
	}
}

// TestForeignAnswers: answers to nothing, of the wrong kind, and second ones
// have no effect.
func TestForeignAnswers(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead(protectedVM("v1"))
	b.pass(time.Second)
	reads := take[ReadSlots](b)
	b.out = nil
	b.step(LockRead{Op: reads[0].Op, Record: model.LockRecord{Epoch: 9}})
	b.step(LockRead{Op: 99999, VM: "v1", Record: model.LockRecord{Epoch: 9}})
	b.step(SlotsRead{Op: reads[0].Op, Datastore: reads[0].Datastore, Started: b.now, Completed: b.now})
	b.step(SlotsRead{Op: reads[0].Op, Datastore: reads[0].Datastore, Started: b.now, Completed: b.now, Kind: "hung"})
	if st := b.m.stores[reads[0].Datastore]; !st.ok {
		t.Error("a second answer to the same read was taken")
	}
	if v := b.m.vms["v1"]; v.lock.Epoch == 9 {
		t.Error("a foreign answer was taken")
	}
}

// TestOversleptIsNotSilence: an agent that did not run for a while does not
// take its own absence for the silence of others.
func TestOversleptIsNotSilence(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
	b.now += 10 * time.Second
	b.step(Tick{})
	b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
	if b.m.role != roleSecondary {
		t.Error("an election was begun")
	}
	for _, e := range take[Emit](b) {
		if e.Event.Kind == event.Election && e.Event.Host != "a" {
			t.Errorf("unexpected: %+v", e.Event)
		}
	}
}

// TestTakeoverNamesTheSlotAsRead: the target compares the owner's slot with
// exactly what the primary judged.
func TestTakeoverNamesTheSlotAsRead(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead(protectedVM("v1"))
	b.report("a", "boot-a", LocalVM{ID: "v1", Name: "web", Managed: true, Active: true, Epoch: 2, Phase: lease.PhaseRunning, Memory: 512})
	id := model.SlotIdentity{Boot: "boot-a", Sequence: 7, Digest: "d7"}
	for i := 0; i < 80; i++ {
		b.pass(100 * time.Millisecond)
		if i < 50 {
			b.step(HeartbeatReceived{From: "c", Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, ConfigVersion: 1}})
		}
		for _, r := range take[ReadSlots](b) {
			b.step(SlotsRead{Op: r.Op, Datastore: r.Datastore, Started: b.now, Completed: b.now, Slots: []model.SlotReading{
				{Host: "a", Identity: id, Valid: true, Slot: model.Slot{Host: "a", Boot: "boot-a", Flags: model.SlotArmed, Lease: 5 * time.Second}}}})
		}
		for _, e := range take[ReadLock](b) {
			b.step(LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: model.LockRecord{Epoch: 2, State: model.LockHeld, Owner: "a", Boot: "boot-a"}})
		}
		b.written()
		for _, e := range take[AskGuard](b) {
			if c := e.Request.Claim; c != nil {
				if c.Epoch != 2 || c.Takeover == nil || c.Takeover.Owner != "a" || c.Takeover.Slot != id || c.Takeover.Evidence == "" || c.Term != 5 {
					t.Errorf("claim %+v, takeover %+v", c, c.Takeover)
				}
				return
			}
		}
	}
	t.Fatal("no take-over")
}

// TestOneContentProvesNoReboot: a slot that shows another boot id once may be a
// late write of an older boot; two heartbeats in a row prove the boot.
func TestOneContentProvesNoReboot(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	st := b.m.stores["ds1"]
	rec := model.LockRecord{Lock: "v1", Epoch: 2, State: model.LockHeld, Owner: "a", Boot: "old"}
	read := func(boot model.BootID, inc, seq uint64) bool {
		b.now += 500 * time.Millisecond
		b.m.now, st.ok, st.readAt = b.now, true, b.now
		s := model.Slot{Host: "a", Boot: boot, Incarnation: inc, Sequence: seq, Lease: 5 * time.Second}
		b.m.noteSlot(st, 0, &model.SlotReading{Host: "a", Valid: true, Slot: s,
			Identity: model.SlotIdentity{Boot: boot, Sequence: seq, Digest: fmt.Sprint(boot, inc, seq)}}, b.now, b.now)
		return b.m.disowned(st, rec)
	}
	for i, c := range []struct {
		boot     model.BootID
		inc, seq uint64
		want     bool
	}{
		{"new", 1, 7, false}, {"new", 1, 7, false}, {"late", 1, 3, false}, {"new", 1, 8, false},
		{"new", 2, 1, false}, {"new", 2, 2, true}, {"new", 2, 2, true}, {"old", 1, 9, false},
	} {
		if got := read(c.boot, c.inc, c.seq); got != c.want {
			t.Errorf("reading %d (%s, %d, %d): disowned %v, want %v", i, c.boot, c.inc, c.seq, got, c.want)
		}
	}
}

// TestAgeOfASlot: from the end of the first read that returned its bytes to
// the start of the last.
func TestAgeOfASlot(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	st := b.m.stores["ds1"]
	r := &model.SlotReading{Host: "a", Identity: model.SlotIdentity{Digest: "1"}}
	b.m.noteSlot(st, 0, r, 10*time.Second, 11*time.Second)
	if age := st.slots["a"].age(); age != 0 {
		t.Errorf("age %v after one read", age)
	}
	b.m.noteSlot(st, 0, r, 15*time.Second, 19*time.Second)
	if age := st.slots["a"].age(); age != 4*time.Second {
		t.Errorf("age %v, want 4s", age)
	}
	torn := &model.SlotReading{Host: "a", Identity: model.SlotIdentity{Digest: "torn"}}
	b.m.noteSlot(st, 0, torn, 20*time.Second, 20*time.Second)
	if age := st.slots["a"].age(); age != 0 {
		t.Errorf("age %v though the bytes changed", age)
	}
}

// TestSameTermGoesOn: the guard kept the list for a former life of this agent;
// versions go on, so that no reader prefers the older copy.
func TestSameTermGoesOn(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.pass(6 * time.Second)
	for i := 0; i < 6; i++ {
		for _, e := range take[ReadList](b) {
			b.step(ListRead{Op: e.Op, Datastore: e.Datastore, Lock: model.LockRecord{Lock: model.ListLock, Epoch: 5, State: model.LockHeld, Owner: "b", Boot: "boot-b"},
				List: model.ProtectedList{Term: 5, Version: 8}})
		}
		for _, e := range take[AskGuard](b) {
			if e.Request.ClaimList != nil {
				b.step(GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeOK, Epoch: 5}})
			}
		}
	}
	w := take[WriteList](b)
	if len(w) == 0 || w[0].List.Version != 9 || w[0].List.Term != 5 {
		t.Errorf("writes %+v, want version 9 of term 5", w)
	}
}

// BenchmarkPrimary is one interval of a primary of 1,000 hosts with 20,000
// VMs: heartbeats of all, one tick.
func BenchmarkPrimary(b *testing.B) {
	conf := Cluster{Version: 1, Enabled: true, HostMonitoring: true, Timing: model.TimingFast, HeartbeatNetworks: []string{"n1", "n2"},
		Datastores: []ClusterDatastore{{Name: "ds1", Fence: model.FenceReset}, {Name: "ds2", Fence: model.FenceReset}}}
	name := func(i int) model.HostID { return model.HostID(fmt.Sprintf("host%04d", i)) }
	for i := 0; i < 1000; i++ {
		conf.Hosts = append(conf.Hosts, ClusterHost{Name: name(i), Datastores: chaosDS, Memory: 65536})
	}
	var vms []model.ProtectedVM
	for i := 0; i < 20000; i++ {
		p := protectedVM(model.VMID(fmt.Sprintf("vm%05d", i)))
		p.Name, p.Host = string(p.ID), name(i%1000)
		vms = append(vms, p)
	}
	conf.Hosts = append(conf.Hosts, ClusterHost{Name: "a", Memory: 1}, ClusterHost{Name: "b", Datastores: chaosDS, Memory: 1})
	x := newBench(nil, conf)
	x.lead(vms...)
	for h := 0; h < 1000; h++ {
		var local []LocalVM
		for i := h; i < 20000; i += 1000 {
			local = append(local, LocalVM{ID: vms[i].ID, Name: vms[i].Name, Managed: true, Active: true, Epoch: 2, Phase: lease.PhaseRunning, Memory: 512})
		}
		x.report(name(h), "boot", local...)
	}
	b.ReportAllocs()
	for b.Loop() {
		for h := 0; h < 1000; h++ {
			x.now += 490 * time.Microsecond
			x.step(HeartbeatReceived{From: name(h), Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, ConfigVersion: 1, Primary: "b"}})
		}
		x.now += 10 * time.Millisecond
		x.step(Tick{})
		x.out = nil
	}
}

// TestLateEndOfAStart: that a start ended well is told only after the fact: what
// became of the VM meanwhile its host's report and its lock tell.
func TestLateEndOfAStart(t *testing.T) {
	for _, stage := range []Stage{StageRunning, StageAlive} {
		b := newBench(t, chaosConfig(1))
		b.lead(protectedVM("v1"))
		b.report("a", "boot-a")
		lock := func(epoch model.Epoch) {
			for _, e := range take[ReadLock](b) {
				b.step(LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: model.LockRecord{Lock: model.VMLock(e.VM), Epoch: epoch, State: model.LockReleased, Reason: model.ReasonHAOff, Owner: "a"}})
			}
		}
		commands := func() (list []Command) {
			b.written()
			for _, e := range take[SendMessage](b) {
				if e.Message.Command != nil {
					list = append(list, *e.Message.Command)
				}
			}
			return list
		}
		lock(3)
		first := commands()
		if len(first) != 1 {
			t.Fatalf("commands: %+v", first)
		}
		b.step(MessageReceived{From: "a", Message: Message{Progress: &Progress{Command: first[0].ID, VM: "v1", Stage: stage, Epoch: 4, Done: true}}})
		if v := b.m.vms["v1"]; v.running {
			t.Errorf("%s, told late, counts as running", stage)
		}
		b.pass(100 * time.Millisecond)
		lock(5)
		b.pass(time.Second)
		lock(5)
		if v := b.m.vms["v1"]; v.order == nil || v.order.id == first[0].ID {
			t.Errorf("%s: after the lock was released again the VM is not started: order %+v, reason %q", stage, v.order, v.reason)
		}
	}
}

// TestSaysRebooted: a host's word that it runs under another boot counts only
// without a lease, with a slot at rest, and when it is younger than all that the
// boot which took the lock can have done.
func TestSaysRebooted(t *testing.T) {
	rec := model.LockRecord{Lock: model.VMLock("v1"), Epoch: 3, State: model.LockHeld, Owner: "a", Boot: "boot-1"}
	stale := model.TimingFast.StaleAfter()
	rows := []struct {
		name   string
		change func(h *member, s *slotSeen)
		want   bool
	}{
		{"rebooted, storage away", func(*member, *slotSeen) {}, true},
		{"it has a lease", func(h *member, _ *slotSeen) { h.report.Datastores[0].OK = true }, false},
		{"the boot of the record", func(h *member, _ *slotSeen) { h.report.Boot = "boot-1" }, false},
		{"its slot moves", func(_ *member, s *slotSeen) { s.first = s.latest - time.Second }, false},
		{"the report may be of an earlier boot", func(h *member, s *slotSeen) { h.reportAt = s.first + stale }, false},
		{"silent", func(h *member, _ *slotSeen) { h.suspect = true }, false},
	}
	for _, r := range rows {
		b := newBench(t, chaosConfig(1))
		b.lead(protectedVM("v1"))
		b.pass(20 * time.Second)
		m, st := b.m, b.m.stores["ds1"]
		h := m.members["a"]
		h.suspect = false
		h.report = &Report{Host: "a", Boot: "boot-2", Datastores: []lease.DatastoreStatus{{Name: "ds1"}}}
		h.reportAt = m.now
		st.ok, st.readAt = true, m.now
		s := &slotSeen{first: m.now - 2*stale, latest: m.now}
		st.slots["a"] = s
		r.change(h, s)
		if got := m.saysRebooted(st, h, rec); got != r.want {
			t.Errorf("%s: %v, want %v", r.name, got, r.want)
		}
	}
}

// TestEvacuatesWhatIsLostNow: a host gives a VM up only while its storage is
// lost by what its guard says now, within a limit; an agent that stood still takes
// in first what was said to it meanwhile.
func TestEvacuatesWhatIsLostNow(t *testing.T) {
	status := func(kind string) lease.Notice {
		return lease.Notice{What: lease.NoticeStatus, Status: &lease.Status{Host: "b", Boot: "boot-b", HookSeen: true,
			Datastores: []lease.DatastoreStatus{{Name: "ds1", OK: kind == "", Kind: kind}, {Name: "ds2", OK: true}},
			VMs:        []lease.VMStatus{{VM: "v1", Name: "web", Home: "ds1", Epoch: 2, Phase: lease.PhaseFrozen}}}}
	}
	order := Command{ID: "c1", Kind: CommandEvacuate, Term: 5, VM: protectedVM("v1"), Epoch: 2, Expires: 10 * time.Second}
	kills := func(b *bench) (n int) {
		for _, e := range take[AskGuard](b) {
			if k := e.Request.Kill; k != nil {
				n++
				if k.Before == 0 {
					t.Error("the order to kill never ends")
				}
			}
		}
		return n
	}
	for _, r := range []struct {
		name  string
		slept time.Duration
		then  string // of the storage, as the guard says after the order
		want  int
	}{
		{"lost", 0, "hung", 1},
		{"back before the order", 0, "", 0},
		{"the agent stood still, and it is back since", 10 * time.Second, "", 0},
		{"the agent stood still, and it is lost yet", 10 * time.Second, "hung", 1},
	} {
		b := newBench(t, chaosConfig(1))
		b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, ConfigVersion: 1}})
		b.step(GuardNoticed{status("hung")})
		kills(b)
		b.now += r.slept
		if r.slept == 0 {
			b.step(GuardNoticed{status(r.then)})
		}
		b.step(MessageReceived{From: "a", Message: Message{Command: &order}})
		b.step(GuardNoticed{status(r.then)})
		b.pass(2 * time.Second)
		if n := kills(b); n != r.want {
			t.Errorf("%s: %d kills, want %d", r.name, n, r.want)
		}
	}
}
