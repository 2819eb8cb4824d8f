// Package datastoretest holds the conformance suite that every
// datastore.Driver must pass, and an in-memory driver that passes it.
package datastoretest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// World is one freshly initialised datastore with Slots slots.
type World struct {
	// Open returns a driver as one more host of the cluster would have it. It
	// may be called from several goroutines.
	Open func() datastore.Driver
	// Dir is the cluster's directory behind all hosts' paths, whose files the
	// suite damages; empty for a driver without such files.
	Dir string
	// Fault switches the path of all drivers opened so far to a failure; nil
	// where the driver has none to switch.
	Fault func(Fault)
}

// Fault is a failure of the path to the datastore.
type Fault string

// The faults that the suite asks for.
const (
	FaultNone     Fault = "none"
	FaultLost     Fault = "lost"
	FaultFull     Fault = "full"
	FaultReadOnly Fault = "readonly"
)

// Slots is the number of slots of a World: small, so that the suite can use up
// all of them.
const Slots = 8

// The VMs that the suite uses.
const (
	vm1 = model.VMID("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")
	vm2 = model.VMID("0f0a6b1f-1d3a-4c58-9a4e-2b9f0c7d1e55")
)

// Run runs the suite. makeWorld is called once for each test.
func Run(t *testing.T, makeWorld func(t *testing.T) *World) {
	tests := []struct {
		name string
		run  func(t *testing.T, w *World)
	}{
		{"check", testCheck},
		{"slot claims", testSlotClaims},
		{"slot claims at once", testSlotClaimsAtOnce},
		{"slots", testSlots},
		{"slot changed", testSlotChanged},
		{"locks", testLocks},
		{"lock order", testLockOrder},
		{"claims at once", testClaimsAtOnce},
		{"reads during links", testReadsDuringLinks},
		{"lists", testLists},
		{"power-off notes", testNotes},
		{"invalid values", testInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, makeWorld(t)) })
	}
	t.Run("damage", func(t *testing.T) { runDamage(t, makeWorld) })
	t.Run("faults", func(t *testing.T) { runFaults(t, makeWorld) })
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t *testing.T, what string, err error, want ...datastore.Kind) {
	t.Helper()
	if got := datastore.KindOf(err); !slices.Contains(want, got) {
		t.Errorf("%s: kind %q, want %q (error: %v)", what, got, want, err)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func slotOf(host model.HostID, sequence uint64) model.Slot {
	return model.Slot{Host: host, Boot: "5d1b9f6e-0000-4000-8000-000000000001", Incarnation: 7, Sequence: sequence,
		AgentSequence: sequence / 2, Flags: model.SlotArmed, Running: 42, Lease: 5 * time.Second}
}

// record makes a held record; its nonce is unique within a test.
func record(lock model.LockID, epoch model.Epoch, owner model.HostID) model.LockRecord {
	return model.LockRecord{Lock: lock, Epoch: epoch, Owner: owner, Boot: "boot-" + model.BootID(owner), Incarnation: 7,
		Nonce: fmt.Sprintf("%s-%d", owner, epoch), State: model.LockHeld}
}

func released(r model.LockRecord, reason string) model.LockRecord {
	r.State, r.Reason = model.LockReleased, reason
	return r
}

func testCheck(t *testing.T, w *World) {
	h := must[datastore.Header](t)(w.Open().Check())
	if h.Slots != Slots || h.Generation != 1 || h.FirstEpoch() != 1 || h.ID.Validate() != nil || h.Cluster == "" {
		t.Errorf("header %+v", h)
	}
	again := must[datastore.Header](t)(w.Open().Check())
	if h != again {
		t.Errorf("two hosts see two headers: %+v and %+v", h, again)
	}
}

func testSlotClaims(t *testing.T, w *World) {
	a, b := w.Open(), w.Open()
	if got := must[[]model.SlotReading](t)(a.ReadSlots()); len(got) != 0 {
		t.Errorf("slots of a new datastore: %+v", got)
	}
	first := must[int](t)(a.ClaimSlot("host1", "machine-1"))
	if again := must[int](t)(b.ClaimSlot("host1", "machine-1")); again != first {
		t.Errorf("the second claim of host1 returned slot %d, the first %d", again, first)
	}
	if other := must[int](t)(b.ClaimSlot("host2", "machine-2")); other == first {
		t.Errorf("two hosts share slot %d", other)
	}
	_, err := b.ClaimSlot("host1", "machine-2")
	wantKind(t, "claim of host1 by another machine", err, datastore.KindConflict)
	_, err = a.ReadSlot("host9")
	wantKind(t, "slot of a host without claim", err, datastore.KindMissing)

	for i := 3; i <= Slots; i++ {
		host := model.HostID(fmt.Sprintf("host%d", i))
		must[int](t)(a.ClaimSlot(host, "machine"))
	}
	_, err = a.ClaimSlot("one-more", "machine")
	wantKind(t, "claim when all slots are taken", err, datastore.KindFull)
	if again := must[int](t)(a.ClaimSlot("host1", "machine-1")); again != first {
		t.Errorf("host1 has slot %d on a full datastore, had %d", again, first)
	}
	if got := must[[]model.SlotReading](t)(b.ReadSlots()); len(got) != Slots {
		t.Errorf("%d slots are read, %d are claimed", len(got), Slots)
	}
}

func testSlotClaimsAtOnce(t *testing.T, w *World) {
	type claim struct {
		host  model.HostID
		index int
		err   error
	}
	claims := make(chan claim, 3*(Slots-1))
	var wg sync.WaitGroup
	for i := range Slots - 1 {
		host := model.HostID(fmt.Sprintf("host%d", i))
		for range 2 { // a host may meet itself
			wg.Go(func() {
				index, err := w.Open().ClaimSlot(host, "m-"+string(host))
				claims <- claim{host, index, err}
			})
		}
		wg.Go(func() {
			_, err := w.Open().ClaimSlot("twin", fmt.Sprintf("m-%d", i))
			if kind := datastore.KindOf(err); kind != "" && kind != datastore.KindConflict {
				t.Errorf("claim of twin: %v", err)
			}
			if err == nil {
				claims <- claim{"twin", 0, nil}
			}
		})
	}
	wg.Wait()
	close(claims)
	indexOf := make(map[model.HostID]int)
	twins := 0
	for c := range claims {
		if c.host == "twin" {
			twins++
			continue
		}
		if c.err != nil {
			t.Errorf("claim of %s: %v", c.host, c.err)
		}
		if before, there := indexOf[c.host]; there && before != c.index {
			t.Errorf("%s has slots %d and %d", c.host, before, c.index)
		}
		indexOf[c.host] = c.index
	}
	if twins != 1 {
		t.Errorf("%d machines claimed one name", twins)
	}
	seen := make(map[model.HostID]bool)
	for _, r := range must[[]model.SlotReading](t)(w.Open().ReadSlots()) {
		if seen[r.Host] {
			t.Errorf("%s has two slots", r.Host)
		}
		seen[r.Host] = true
	}
}

func testSlots(t *testing.T, w *World) {
	d, reader := w.Open(), w.Open()
	index := must[int](t)(d.ClaimSlot("host1", "m1"))
	must[int](t)(d.ClaimSlot("host2", "m2"))

	empty := must[model.SlotReading](t)(reader.ReadSlot("host1"))
	if empty.Valid || empty.Damage != model.SlotEmpty || empty.Host != "host1" || empty.Identity.Digest == "" {
		t.Errorf("a slot never written: %+v", empty)
	}
	known := []string{}
	for sequence := uint64(1); sequence <= 5; sequence++ {
		next := slotOf("host1", sequence)
		id := must[model.SlotIdentity](t)(d.WriteSlot(index, known, next))
		if want := d.SlotIdentityOf(next); id != want {
			t.Errorf("identity %+v, announced as %+v", id, want)
		}
		got := must[model.SlotReading](t)(reader.ReadSlot("host1"))
		want := model.SlotReading{Host: "host1", Identity: id, Valid: true, Slot: next}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("slot after write %d (-want +got):\n%s", sequence, diff)
		}
		known = []string{id.Digest}
	}
	all := must[[]model.SlotReading](t)(reader.ReadSlots())
	if len(all) != 2 || all[0].Host != "host1" || all[1].Host != "host2" || !all[0].Valid || all[1].Valid {
		t.Errorf("all slots: %+v", all)
	}
	// A claim made later is seen by a reader that has listed before.
	must[int](t)(d.ClaimSlot("host3", "m3"))
	if all := must[[]model.SlotReading](t)(reader.ReadSlots()); len(all) != 3 {
		t.Errorf("%d slots after the third claim", len(all))
	}
	_, err := d.WriteSlot(index+2, nil, slotOf("host1", 9))
	wantKind(t, "write into another host's slot", err, datastore.KindMissing)
	_, err = d.WriteSlot(index+5, nil, slotOf("host1", 9))
	wantKind(t, "write into an unclaimed slot", err, datastore.KindMissing)
}

func testSlotChanged(t *testing.T, w *World) {
	d := w.Open()
	index := must[int](t)(d.ClaimSlot("host1", "m1"))
	first := must[model.SlotIdentity](t)(d.WriteSlot(index, nil, slotOf("host1", 1)))
	second := must[model.SlotIdentity](t)(d.WriteSlot(index, []string{first.Digest}, slotOf("host1", 2)))

	_, err := d.WriteSlot(index, []string{first.Digest}, slotOf("host1", 3))
	wantKind(t, "write over a slot that somebody else wrote", err, datastore.KindChanged)
	if got := must[model.SlotReading](t)(d.ReadSlot("host1")); got.Identity != second {
		t.Errorf("the refused write left %+v", got.Identity)
	}
	// What may be in flight is acceptable too.
	inFlight := d.SlotIdentityOf(slotOf("host1", 3))
	third := must[model.SlotIdentity](t)(d.WriteSlot(index, []string{inFlight.Digest, second.Digest}, slotOf("host1", 3)))
	must[model.SlotIdentity](t)(d.WriteSlot(index, []string{inFlight.Digest, second.Digest}, slotOf("host1", 4)))
	if third != inFlight {
		t.Errorf("written %+v, announced %+v", third, inFlight)
	}
	// A host without memory accepts whatever is there.
	must[model.SlotIdentity](t)(d.WriteSlot(index, nil, slotOf("host1", 1)))
}

func testLocks(t *testing.T, w *World) {
	a, b := w.Open(), w.Open()
	for _, lock := range []model.LockID{model.VMLock(vm1), model.ListLock} {
		_, err := a.Highest(lock)
		wantKind(t, "a lock never made", err, datastore.KindMissing)
		err = a.Link(record(lock, 1, "host1"))
		wantKind(t, "link into a lock never made", err, datastore.KindMissing)

		by := record("", 0, "host1")
		ok(t, a.CreateLock(lock, by))
		want := datastore.FirstRecord(datastore.Header{Generation: 1}, lock, by)
		if want.Epoch != 1 || want.State != model.LockReleased || want.Reason != model.ReasonCreated {
			t.Errorf("first record %+v", want)
		}
		if got := must[model.LockRecord](t)(b.Highest(lock)); got != want {
			t.Errorf("a new lock reads %+v, want %+v", got, want)
		}
		held := record(lock, 2, "host1")
		ok(t, a.Link(held))
		wantKind(t, "link of a taken epoch", b.Link(record(lock, 2, "host2")), datastore.KindExists)
		if got := must[model.LockRecord](t)(b.Highest(lock)); got != held {
			t.Errorf("highest %+v, want %+v", got, held)
		}
		ok(t, b.CreateLock(lock, record("", 0, "host2")))
		if got := must[model.LockRecord](t)(b.Highest(lock)); got != held {
			t.Errorf("creating it again changed the lock to %+v", got)
		}
		full := model.LockRecord{Lock: lock, Epoch: 3, Owner: "host1", Boot: "b", Incarnation: 1<<64 - 1, Nonce: "n",
			State: model.LockMoving, MoveID: "move-1", Target: "host2"}
		ok(t, a.Link(full))
		if got := must[model.LockRecord](t)(b.Highest(lock)); got != full {
			t.Errorf("highest %+v, want %+v", got, full)
		}
	}
	ok(t, a.CreateLock(model.VMLock(vm2), record("", 41, "host1")))
	if got := must[model.LockRecord](t)(b.Highest(model.VMLock(vm2))); got.Epoch != 41 {
		t.Errorf("a lock made to begin at 41 begins at %d", got.Epoch)
	}
}

func testLockOrder(t *testing.T, w *World) {
	d := w.Open()
	lock := model.VMLock(vm1)
	ok(t, d.CreateLock(lock, record("", 0, "host1")))
	const last = 120 // over two changes in the number of digits
	for epoch := model.Epoch(2); epoch <= last; epoch++ {
		rec := record(lock, epoch, "host1")
		ok(t, d.Link(rec))
		if got := must[model.LockRecord](t)(d.Highest(lock)); got != rec {
			t.Fatalf("highest %+v, want %+v", got, rec)
		}
		if epoch%40 == 0 {
			ok(t, d.Prune(lock))
		}
	}
	ok(t, d.Prune(lock))
	for epoch := model.Epoch(last - datastore.KeepRecords + 1); epoch <= last; epoch++ {
		wantKind(t, fmt.Sprintf("link of epoch %d, which must be kept", epoch), d.Link(record(lock, epoch, "host2")), datastore.KindExists)
	}
	// Epochs may leave gaps, up to the highest number.
	for _, epoch := range []model.Epoch{1 << 33, 1 << 53, 1<<64 - 1} {
		rec := record(lock, epoch, "host1")
		ok(t, d.Link(rec))
		if got := must[model.LockRecord](t)(d.Highest(lock)); got != rec {
			t.Fatalf("highest %+v, want %+v", got, rec)
		}
	}
	// A late link into the past changes nothing.
	ok(t, d.Link(record(lock, last+1, "host3")))
	if got := must[model.LockRecord](t)(d.Highest(lock)); got.Epoch != 1<<64-1 {
		t.Errorf("a late link of the past made %d the highest", got.Epoch)
	}
}

func testClaimsAtOnce(t *testing.T, w *World) {
	const racers, rounds = 6, 8
	lock := model.VMLock(vm1)
	first := w.Open()
	ok(t, first.CreateLock(lock, record("", 0, "host0")))
	drivers := make([]datastore.Driver, racers)
	for i := range drivers {
		drivers[i] = w.Open()
	}
	for round := range rounds {
		base := must[model.LockRecord](t)(first.Highest(lock)).Epoch
		won := make([]bool, racers)
		var wg sync.WaitGroup
		for i, d := range drivers {
			wg.Go(func() {
				rec := record(lock, base+1, model.HostID(fmt.Sprintf("host%d", i)))
				w, highest, err := datastore.Claim(d, rec)
				if err != nil {
					t.Errorf("round %d racer %d: %v", round, i, err)
				}
				if highest.Epoch <= base {
					t.Errorf("round %d racer %d: highest %v after a claim above %d", round, i, highest, base)
				}
				won[i] = w
			})
		}
		wg.Wait()
		winner := slices.Index(won, true)
		if n := len(won) - len(slices.DeleteFunc(slices.Clone(won), func(w bool) bool { return w })); n != 1 {
			t.Fatalf("round %d: %d winners", round, n)
		}
		top := must[model.LockRecord](t)(first.Highest(lock))
		if want := model.HostID(fmt.Sprintf("host%d", winner)); top.Owner != want || top.Epoch != base+1 {
			t.Fatalf("round %d: %s won, the record says %v", round, want, top)
		}
		won2, _, err := datastore.Claim(drivers[winner], released(record(lock, base+2, top.Owner), model.ReasonUserOff))
		if err != nil || !won2 {
			t.Fatalf("round %d: release: %v, %v", round, won2, err)
		}
	}
	// A claim that the caller judged against an older record is not made.
	w2, highest, err := datastore.Claim(first, record(lock, 2, "late"))
	if w2 || err != nil || highest.Owner == "late" {
		t.Errorf("a stale claim: won %v, highest %v, %v", w2, highest, err)
	}
	// Nothing may follow a held record but its owner's own records.
	top := must[model.LockRecord](t)(first.Highest(lock))
	bad := record(lock, top.Epoch+1, "host1")
	bad.State, bad.MoveID = model.LockHanded, "move"
	_, _, err = datastore.Claim(first, bad)
	wantKind(t, "handed after released", err, datastore.KindInvalid)
}

// testReadsDuringLinks uses one driver from several goroutines.
func testReadsDuringLinks(t *testing.T, w *World) {
	const last = 60
	lock := model.VMLock(vm1)
	d := w.Open()
	ok(t, d.CreateLock(lock, record("", 0, "host1")))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var before model.Epoch
			for before < last {
				rec, err := d.Highest(lock)
				if err != nil || rec.Epoch < before {
					t.Errorf("highest %v after %d: %v", rec, before, err)
					return
				}
				before = rec.Epoch
			}
		})
	}
	for epoch := model.Epoch(2); epoch <= last; epoch++ {
		ok(t, d.Link(record(lock, epoch, "host1")))
		ok(t, d.Prune(lock))
	}
	wg.Wait()
}

func listOf(term model.Term, version uint64, vms int) model.ProtectedList {
	l := model.ProtectedList{Term: term, Version: version}
	for i := range vms {
		l.VMs = append(l.VMs, model.ProtectedVM{
			ID: model.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i)), Name: fmt.Sprintf("vm%d", i),
			Home: "ds1", Datastores: []model.DatastoreName{"ds1", "ds2"}, Config: "/srv/ds1/vm/vm.xml", Disks: []string{"/srv/ds1/vm/disk0.raw"},
			Memory: 96, CPUs: 1, Priority: model.PriorityHigh, Requested: model.RequestedStarted, DependsOn: []string{"dns"},
			Host: "host1", LastEpoch: 3,
			Down: &model.DownState{Cause: "host1 failed", Attempts: 2, Hosts: []model.HostID{"host2"}, Reason: "no memory", RetryIn: time.Second},
		})
	}
	return l
}

func testLists(t *testing.T, w *World) {
	d, reader := w.Open(), w.Open()
	read := func(want model.ProtectedList) {
		t.Helper()
		got := must[model.ProtectedList](t)(reader.ReadList())
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("list (-want +got):\n%s", diff)
		}
	}
	read(model.ProtectedList{})
	ok(t, d.WriteList(listOf(3, 1, 2)))
	read(listOf(3, 1, 2))
	ok(t, d.WriteList(listOf(3, 2, 5)))
	read(listOf(3, 2, 5))
	ok(t, d.WriteList(listOf(10, 1, 1)))
	read(listOf(10, 1, 1))
	ok(t, d.WriteList(listOf(3, 9, 7))) // a stalled predecessor
	read(listOf(10, 1, 1))
	for term := model.Term(11); term <= 20; term++ {
		ok(t, d.WriteList(listOf(term, 1, 1)))
	}
	read(listOf(20, 1, 1))
	ok(t, d.WriteList(listOf(5, 1, 1))) // the same, after its term was pruned
	read(listOf(20, 1, 1))
	ok(t, d.WriteList(listOf(21, 1, 10_000)))
	read(listOf(21, 1, 10_000))
	tooLarge := listOf(22, 1, 1)
	tooLarge.VMs[0].Config = string(make([]byte, 17<<20))
	wantKind(t, "a list above the limit", d.WriteList(tooLarge), datastore.KindInvalid)
	read(listOf(21, 1, 10_000))
	ok(t, d.WriteList(model.ProtectedList{Term: 30, Version: 1}))
	read(model.ProtectedList{Term: 30, Version: 1})
}

func testNotes(t *testing.T, w *World) {
	d, reader := w.Open(), w.Open()
	_, err := d.ReadPoweredOff(vm1)
	wantKind(t, "a note never written", err, datastore.KindMissing)
	for epoch := model.Epoch(4); epoch < 6; epoch++ {
		note := model.PoweredOffNote{VM: vm1, LockEpoch: epoch, Host: "host1"}
		ok(t, d.WritePoweredOff(note))
		if got := must[model.PoweredOffNote](t)(reader.ReadPoweredOff(vm1)); got != note {
			t.Errorf("note %+v, want %+v", got, note)
		}
	}
	_, err = d.ReadPoweredOff(vm2)
	wantKind(t, "another VM's note", err, datastore.KindMissing)
}

func testInvalid(t *testing.T, w *World) {
	d := w.Open()
	index := must[int](t)(d.ClaimSlot("host1", "m1"))
	ok(t, d.CreateLock(model.VMLock(vm1), record("", 0, "host1")))
	mutate := func(f func(r *model.LockRecord)) model.LockRecord {
		r := record(model.VMLock(vm1), 2, "host1")
		f(&r)
		return r
	}
	long := string(make([]byte, 5000))
	cases := map[string]func() error{
		"host name":        func() error { _, err := d.ClaimSlot("../x", "m"); return err },
		"no machine":       func() error { _, err := d.ClaimSlot("host2", ""); return err },
		"machine too long": func() error { _, err := d.ClaimSlot("host2", long); return err },
		"slot's host":      func() error { _, err := d.WriteSlot(index, nil, slotOf("a/b", 1)); return err },
		"slot's boot": func() error {
			s := slotOf("host1", 1)
			s.Boot = ""
			_, err := d.WriteSlot(index, nil, s)
			return err
		},
		"slot's lease": func() error {
			s := slotOf("host1", 1)
			s.Lease = time.Microsecond
			_, err := d.WriteSlot(index, nil, s)
			return err
		},
		"slot index":        func() error { _, err := d.WriteSlot(Slots, nil, slotOf("host1", 1)); return err },
		"negative index":    func() error { _, err := d.WriteSlot(-1, nil, slotOf("host1", 1)); return err },
		"lock name":         func() error { _, err := d.Highest("../../etc"); return err },
		"lock to make":      func() error { return d.CreateLock("x", record("", 0, "host1")) },
		"lock to prune":     func() error { return d.Prune("..") },
		"record's lock":     func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Lock = "a" })) },
		"record's epoch":    func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Epoch = 0 })) },
		"record's owner":    func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Owner = "" })) },
		"record's nonce":    func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Nonce = "" })) },
		"record's state":    func() error { return d.Link(mutate(func(r *model.LockRecord) { r.State = "mine" })) },
		"record's reason":   func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Reason = "x" })) },
		"record's text":     func() error { return d.Link(mutate(func(r *model.LockRecord) { r.Target = long })) },
		"list's term":       func() error { return d.WriteList(model.ProtectedList{}) },
		"note's VM":         func() error { return d.WritePoweredOff(model.PoweredOffNote{VM: "x", Host: "h", LockEpoch: 1}) },
		"note's epoch":      func() error { return d.WritePoweredOff(model.PoweredOffNote{VM: vm1, Host: "h"}) },
		"note to read":      func() error { _, err := d.ReadPoweredOff("../x"); return err },
		"first record's by": func() error { return d.CreateLock(model.VMLock(vm2), model.LockRecord{}) },
	}
	for name, do := range cases {
		wantKind(t, name, do(), datastore.KindInvalid)
	}
	if got := must[model.LockRecord](t)(d.Highest(model.VMLock(vm1))); got.Epoch != 1 {
		t.Errorf("a refused record was written: %+v", got)
	}
	if got := must[model.SlotReading](t)(d.ReadSlot("host1")); got.Damage != model.SlotEmpty {
		t.Errorf("a refused heartbeat was written: %+v", got)
	}
}
