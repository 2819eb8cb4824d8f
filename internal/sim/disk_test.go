package sim

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/datastore/datastoretest"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// twin is a simulated disk beside a driver that passes the conformance suite:
// whatever is done to both, both say the same.
type twin struct {
	t      *rapid.T
	s      *Sim
	disk   *disk
	driver datastore.Driver
	index  map[model.HostID]int
	wrote  map[model.HostID]uint64 // the sequence in its slot
	nonce  int
}

func kindOf(f *lease.Fault) string {
	if f == nil {
		return ""
	}
	return f.Kind
}

func (w *twin) same(what string, f *lease.Fault, err error) {
	w.t.Helper()
	if kindOf(f) != string(datastore.KindOf(err)) {
		w.t.Fatalf("%s: the simulated disk says %q, the driver %q (%v)", what, kindOf(f), datastore.KindOf(err), err)
	}
}

var twinLocks = []model.LockID{model.ListLock, model.VMLock("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")}

func (w *twin) record(lock model.LockID, epoch model.Epoch) model.LockRecord {
	w.nonce++
	return model.LockRecord{Lock: lock, Epoch: epoch, Owner: "host1", Boot: "5d1b9f6e-0000-4000-8000-000000000001", Incarnation: 7,
		Nonce: fmt.Sprintf("nonce-%d", w.nonce), State: model.LockHeld}
}

func (w *twin) create(t *rapid.T) {
	lock := rapid.SampledFrom(twinLocks).Draw(t, "lock")
	r := w.record(lock, 1)
	w.same("create", w.disk.createLock(lock, r), w.driver.CreateLock(lock, r))
}

// link tries an epoch that is taken, or the next one: nobody tries others.
func (w *twin) link(t *rapid.T) {
	lock := rapid.SampledFrom(twinLocks).Draw(t, "lock")
	next := model.Epoch(1)
	if rec, f := w.disk.highest(lock); f == nil {
		next = rec.Epoch + 1
	}
	r := w.record(lock, next-min(next-1, model.Epoch(rapid.IntRange(0, 1).Draw(t, "late"))))
	w.same(fmt.Sprintf("link %d", r.Epoch), w.disk.link(r), w.driver.Link(r))
}

func (w *twin) list(t *rapid.T) {
	l := model.ProtectedList{Term: model.Term(rapid.IntRange(1, 12).Draw(t, "term")), Version: uint64(rapid.IntRange(1, 9).Draw(t, "version"))}
	w.same("write list", w.disk.writeList(l), w.driver.WriteList(l))
}

func (w *twin) note(t *rapid.T) {
	n := model.PoweredOffNote{VM: "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", LockEpoch: model.Epoch(rapid.IntRange(1, 9).Draw(t, "epoch")), Host: "host1"}
	w.same("note", w.disk.writeNote(n), w.driver.WritePoweredOff(n))
}

// slot writes a heartbeat that knows what is in the slot, or something else.
func (w *twin) slot(t *rapid.T) {
	h := rapid.SampledFrom(w.s.hosts).Draw(t, "host")
	of := func(sequence uint64) model.Slot {
		return model.Slot{Host: h.name, Boot: "5d1b9f6e-0000-4000-8000-000000000001", Incarnation: 7, Sequence: sequence, Lease: 5 * time.Second}
	}
	if _, claimed := w.index[h.name]; !claimed {
		i, err := w.driver.ClaimSlot(h.name, "machine-"+string(h.name))
		if err != nil {
			w.t.Fatal(err)
		}
		w.index[h.name] = i
		w.disk.claimSlot(h)
	}
	next := of(w.wrote[h.name] + uint64(rapid.IntRange(1, 3).Draw(t, "step")))
	var known, knownDigest []string
	if w.wrote[h.name] > 0 {
		before := of(w.wrote[h.name])
		if rapid.IntRange(0, 3).Draw(t, "stale") == 0 {
			before.Sequence++
		}
		known, knownDigest = []string{digestOf(&before)}, []string{w.driver.SlotIdentityOf(before).Digest}
	}
	f := w.disk.writeSlot(h, known, &next, digestOf(&next))
	_, err := w.driver.WriteSlot(w.index[h.name], knownDigest, next)
	w.same("slot", f, err)
	if f == nil {
		w.wrote[h.name] = next.Sequence
	}
}

// check compares all that can be read.
func (w *twin) check(*rapid.T) {
	for _, lock := range twinLocks {
		a, f := w.disk.highest(lock)
		b, err := w.driver.Highest(lock)
		w.same("highest", f, err)
		if a.Epoch != b.Epoch || a.Nonce != b.Nonce || a.State != b.State {
			w.t.Fatalf("%s: %+v on the simulated disk, %+v on the driver", lock, a, b)
		}
	}
	a := w.disk.lists[w.disk.term]
	b, err := w.driver.ReadList()
	if err != nil || a.Term != b.Term || a.Version != b.Version {
		w.t.Fatalf("list %d/%d on the simulated disk, %d/%d on the driver (%v)", a.Term, a.Version, b.Term, b.Version, err)
	}
	const vm = "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55"
	if n, _ := w.driver.ReadPoweredOff(vm); n != w.disk.notes[vm] {
		w.t.Fatalf("note %+v on the simulated disk, %+v on the driver", w.disk.notes[vm], n)
	}
	all, err := w.driver.ReadSlots()
	if err != nil || len(all) != len(w.disk.slots) {
		w.t.Fatalf("%d slots on the simulated disk, %d on the driver (%v)", len(w.disk.slots), len(all), err)
	}
	for i, b := range all {
		if a := w.disk.slots[i]; a.Host != b.Host || a.Valid != b.Valid || a.Slot.Sequence != b.Slot.Sequence {
			w.t.Fatalf("slot %d: %+v on the simulated disk, %+v on the driver", i, a, b)
		}
	}
}

func TestDiskIsADatastore(t *testing.T) {
	c, err := config.Parse([]byte(rehearsed))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(c, Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		w := &twin{t: t, s: s, disk: newDisk(s, 0, "ds1"), index: map[model.HostID]int{}, wrote: map[model.HostID]uint64{},
			driver: datastoretest.NewMemory("c1", datastoretest.Slots).Open()}
		// The lock of the list is there from the beginning, on real ones too.
		if err := w.driver.CreateLock(model.ListLock, model.LockRecord{Owner: "host1", Boot: "5d1b9f6e-0000-4000-8000-000000000001", Incarnation: 1, Nonce: "created", Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		t.Repeat(map[string]func(*rapid.T){"create": w.create, "link": w.link, "list": w.list, "note": w.note, "slot": w.slot, "": w.check})
	})
}
