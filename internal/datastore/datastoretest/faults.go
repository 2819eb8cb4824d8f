package datastoretest

import (
	"fmt"
	"os"
	"testing"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

func runFaults(t *testing.T, makeWorld func(t *testing.T) *World) {
	if w := makeWorld(t); w.Fault == nil {
		return // a driver whose path cannot fail
	}
	t.Run("lost", func(t *testing.T) { testLost(t, furnish(t, makeWorld(t))) })
	t.Run("read-only", func(t *testing.T) { testReadOnly(t, furnish(t, makeWorld(t))) })
	t.Run("full", func(t *testing.T) { testFull(t, furnish(t, makeWorld(t))) })
}

// healed checks that everything works and that nothing was lost.
func (x *damaged) healed() {
	x.t.Helper()
	x.Fault(FaultNone)
	for name, err := range x.everything() {
		if err != nil {
			x.t.Errorf("%s after the path healed: %v", name, err)
		}
	}
}

func testLost(t *testing.T, x *damaged) {
	x.Fault(FaultLost)
	x.gone(datastore.KindLost)
	x.healed()
}

func testReadOnly(t *testing.T, x *damaged) {
	x.Fault(FaultReadOnly)
	for name, err := range x.everything() {
		switch name {
		case "ReadSlots", "ReadSlot", "Highest", "ReadList", "ReadPoweredOff":
			wantKind(t, name, err, "")
		case "ClaimSlot", "CreateLock", "Prune": // nothing to do for them
			wantKind(t, name, err, "", datastore.KindReadOnly)
		default:
			wantKind(t, name, err, datastore.KindReadOnly)
		}
	}
	// A driver that starts now can read as well.
	must[model.LockRecord](t)(x.Open().Highest(model.VMLock(vm1)))
	must[[]model.SlotReading](t)(x.Open().ReadSlots())
	_, err := x.d.ClaimSlot("host3", "m3")
	wantKind(t, "claim a new slot", err, datastore.KindReadOnly)
	wantKind(t, "create a new lock", x.d.CreateLock(model.ListLock, record("", 0, "host1")), datastore.KindReadOnly)
	x.healed()
}

// testFull uses up a full file system: heartbeats go on, a claim and a release
// succeed from the ballast, and in the end the error says so and damages
// nothing.
func testFull(t *testing.T, x *damaged) {
	x.Fault(FaultFull)
	lock := model.VMLock(vm1)
	for sequence := uint64(2); sequence < 6; sequence++ {
		id, err := x.d.WriteSlot(x.index, x.known, slotOf("host1", sequence))
		ok(t, err)
		x.known = []string{id.Digest}
	}
	epoch := model.Epoch(3)
	won, _, err := datastore.Claim(x.d, released(record(lock, epoch, "host1"), model.ReasonUserOff))
	if !won {
		t.Fatalf("no release on a full datastore: %v", err)
	}
	won, _, err = datastore.Claim(x.d, record(lock, epoch+1, "host2"))
	if !won {
		t.Fatalf("no claim on a full datastore: %v", err)
	}
	// New locks, until nothing gives room any more.
	full := false
	for i := 0; i < 5000 && !full; i++ {
		err := x.d.CreateLock(model.VMLock(model.VMID(fmt.Sprintf("00000000-0000-4000-8000-%012x", i))), record("", 0, "host1"))
		if full = err != nil; full {
			wantKind(t, "create one lock too many", err, datastore.KindFull)
		}
	}
	if !full {
		t.Error("a full datastore never said so")
	}
	// Prune gives room even then.
	ok(t, x.d.Prune(lock))
	if rec := must[model.LockRecord](t)(x.d.Highest(lock)); rec.Epoch != epoch+1 || rec.Owner != "host2" {
		t.Errorf("the lock reads %v", rec)
	}
	if list := must[model.ProtectedList](t)(x.d.ReadList()); list.Term != 2 {
		t.Errorf("the list reads term %d", list.Term)
	}
	must[model.SlotIdentity](t)(x.d.WriteSlot(x.index, x.known, slotOf("host1", 7)))
	x.Fault(FaultNone)
	if n := x.ballast(); n != 0 {
		t.Errorf("%d files of the ballast were never used", n)
	}
	ok(t, x.d.Link(record(lock, epoch+2, "host2")))
	ok(t, x.d.Prune(lock)) // makes the ballast again
	full1 := x.ballast()
	x.Fault(FaultFull)
	ok(t, x.d.Link(record(lock, epoch+3, "host2")))
	x.Fault(FaultNone)
	if full2 := x.ballast(); full1 != 16 || full2 != 15 {
		t.Errorf("%d files of the ballast after pruning, %d after one more claim", full1, full2)
	}
}

// ballast counts the files that are left to make room.
func (x *damaged) ballast() int {
	x.t.Helper()
	return len(must[[]os.DirEntry](x.t)(os.ReadDir(x.path("ballast"))))
}
