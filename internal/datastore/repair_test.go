package datastore_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// A short lease keeps the watching short.
const testLease = 100 * time.Millisecond

type patient struct {
	t     *testing.T
	dir   string
	id    model.DatastoreID
	d     *datastore.Posix
	index int
	known []string
	seq   uint64
}

func newPatient(t *testing.T) *patient {
	dir := t.TempDir()
	h := initialise(t, dir)
	x := &patient{t: t, dir: dir, id: h.ID, d: open(t, dir, datastore.Options{})}
	var err error
	if x.index, err = x.d.ClaimSlot("host1", "m1"); err != nil {
		t.Fatal(err)
	}
	x.beat()
	for _, lock := range []model.LockID{raceLock, model.ListLock} {
		if err := x.d.CreateLock(lock, lockRecord(0, "host1", model.LockHeld)); err != nil {
			t.Fatal(err)
		}
		x.claim(lock, "host1")
	}
	if err := x.d.WriteList(model.ProtectedList{Term: 2, Version: 1}); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *patient) cluster(names ...string) string {
	return filepath.Join(append([]string{x.dir, datastore.DirName, cluster}, names...)...)
}

// beat writes a heartbeat as a guard does that remembers its last one.
func (x *patient) beat() {
	x.t.Helper()
	if err := x.tryBeat(); err != nil {
		x.t.Fatal(err)
	}
}

func (x *patient) tryBeat() error {
	s := slot("host1", x.seq+1)
	s.Lease = testLease
	id, err := x.d.WriteSlot(x.index, x.known, s)
	if err == nil {
		x.seq++
		x.known = []string{id.Digest}
	}
	return err
}

// claim takes the lock at the next epoch and returns it.
func (x *patient) claim(lock model.LockID, owner model.HostID) model.Epoch {
	x.t.Helper()
	highest, err := x.d.Highest(lock)
	if err != nil {
		x.t.Fatal(err)
	}
	rec := lockRecord(highest.Epoch+1, owner, model.LockHeld)
	rec.Lock = lock
	won, highest, err := datastore.Claim(x.d, rec)
	if !won {
		x.t.Fatalf("claim of %s: highest %v, %v", lock, highest, err)
	}
	return rec.Epoch
}

func (x *patient) repair(opts datastore.RepairOptions) (datastore.Repaired, error) {
	opts.By, opts.Boot, opts.Settle = "admin", "boot", 300*time.Millisecond
	return datastore.Repair(x.t.Context(), x.dir, cluster, opts)
}

func (x *patient) mustRepair(opts datastore.RepairOptions) datastore.Repaired {
	x.t.Helper()
	done, err := x.repair(opts)
	if err != nil {
		x.t.Fatal(err)
	}
	if done.Header.ID != x.id || done.Header.Generation < 2 || len(done.Actions) == 0 {
		x.t.Errorf("repaired: %+v", done)
	}
	if r := open(x.t, x.dir, datastore.Options{Expect: x.id}).Inspect(); len(r.Faults) != 0 {
		x.t.Errorf("faults after the repair: %+v", r.Faults)
	}
	return done
}

func (x *patient) copyTree(from, to string) {
	x.t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		x.t.Fatalf("%v: %s", err, out)
	}
}

func TestRepairOfDeletedDirectory(t *testing.T) {
	t.Parallel()
	x := newPatient(t)
	before := x.claim(raceLock, "host1")
	if err := os.RemoveAll(x.cluster()); err != nil {
		t.Fatal(err)
	}
	if _, err := x.repair(datastore.RepairOptions{PlainDirectory: true}); datastore.KindOf(err) != datastore.KindInvalid || !strings.Contains(err.Error(), "--uuid") {
		t.Errorf("without a UUID: %v", err)
	}
	if _, err := x.repair(datastore.RepairOptions{ID: x.id}); datastore.KindOf(err) != datastore.KindNotMounted {
		t.Errorf("where nothing is mounted: %v", err)
	}
	x.mustRepair(datastore.RepairOptions{ID: x.id, Slots: 16, Locks: []model.LockID{raceLock}, PlainDirectory: true})

	// The guard goes on with the same driver: claim the slot anew, beat, claim.
	if err := x.tryBeat(); datastore.KindOf(err) != datastore.KindMissing {
		t.Errorf("beat without a claim: %v", err)
	}
	var err error
	if x.index, err = x.d.ClaimSlot("host1", "m1"); err != nil {
		t.Fatal(err)
	}
	x.beat()
	x.beat()
	if after := x.claim(raceLock, "host1"); after <= before {
		t.Errorf("epoch %d after the repair, %d before", after, before)
	}
	x.claim(model.ListLock, "host1")
}

func TestRepairOfRolledBackDatastore(t *testing.T) {
	t.Parallel()
	x := newPatient(t)
	aside := filepath.Join(t.TempDir(), "copy")
	x.copyTree(x.cluster(), aside)
	x.beat()
	before := x.claim(raceLock, "host1")
	if err := os.RemoveAll(x.cluster()); err != nil {
		t.Fatal(err)
	}
	x.copyTree(aside, x.cluster())
	if err := x.tryBeat(); datastore.KindOf(err) != datastore.KindChanged {
		t.Fatalf("beat on the older copy: %v", err)
	}
	if _, err := x.repair(datastore.RepairOptions{}); datastore.KindOf(err) != datastore.KindExists || !strings.Contains(err.Error(), "--rolled-back") {
		t.Errorf("repair of what looks healthy: %v", err)
	}
	x.mustRepair(datastore.RepairOptions{RolledBack: true})
	highest, err := x.d.Highest(raceLock)
	if err != nil || highest.State != model.LockReleased || highest.Reason != model.ReasonRepaired || highest.Epoch <= before {
		t.Errorf("the lock after the repair: %+v, %v", highest, err)
	}
	x.beat()
	x.beat()
	x.claim(raceLock, "host1")
	if list, err := x.d.ReadList(); err != nil || list.Term != 2 {
		t.Errorf("list %+v, %v", list, err)
	}
	// Rolled back once more, repaired once more: numbers still grow.
	last, err := x.d.Highest(raceLock)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(x.cluster()); err != nil {
		t.Fatal(err)
	}
	x.copyTree(aside, x.cluster())
	x.mustRepair(datastore.RepairOptions{RolledBack: true, Generation: uint64(time.Now().Unix()) + 60})
	if again, err := x.d.Highest(raceLock); err != nil || again.Epoch <= last.Epoch {
		t.Errorf("epoch %d after the second repair, %d before: %v", again.Epoch, last.Epoch, err)
	}
}

func TestRepairOfDamagedParts(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(x *patient) error{
		"heartbeats deleted":   func(x *patient) error { return os.Remove(x.cluster("heartbeats")) },
		"heartbeats truncated": func(x *patient) error { return os.Truncate(x.cluster("heartbeats"), 5000) },
		"header deleted":       func(x *patient) error { return os.Remove(x.cluster("header")) },
		"header truncated":     func(x *patient) error { return os.Truncate(x.cluster("header"), 20) },
		"locks deleted":        func(x *patient) error { return os.RemoveAll(x.cluster("locks")) },
		"slots deleted":        func(x *patient) error { return os.RemoveAll(x.cluster("slots")) },
		"ballast deleted":      func(x *patient) error { return os.RemoveAll(x.cluster("ballast")) },
		"notes deleted":        func(x *patient) error { return os.RemoveAll(x.cluster("poweredoff")) },
		"claim truncated":      func(x *patient) error { return os.Truncate(x.cluster("slots", "0000"), 5) },
		"list truncated": func(x *patient) error {
			return os.Truncate(x.cluster("protected", "00000000000000000002", "list"), 30)
		},
		"record truncated": func(x *patient) error {
			return os.Truncate(x.cluster("locks", string(raceLock), "00000000000000000002"), 30)
		},
		"records deleted": func(x *patient) error {
			return errors.Join(os.Remove(x.cluster("locks", string(raceLock), "00000000000000000001")),
				os.Remove(x.cluster("locks", string(raceLock), "00000000000000000002")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newPatient(t)
			if err := damage(x); err != nil {
				t.Fatal(err)
			}
			if r := x.d.Inspect(); len(r.Faults) == 0 {
				t.Error("Inspect finds nothing")
			}
			x.mustRepair(datastore.RepairOptions{ID: x.id, Slots: 8, Locks: []model.LockID{raceLock}})
			var err error
			if x.index, err = x.d.ClaimSlot("host1", "m1"); err != nil {
				t.Fatal(err)
			}
			x.beat()
			x.beat()
			if epoch := x.claim(raceLock, "host1"); epoch <= 2 {
				t.Errorf("epoch %d after the repair", epoch)
			}
		})
	}
}

func TestRepairRefuses(t *testing.T) {
	t.Parallel()
	t.Run("while a host writes", func(t *testing.T) {
		t.Parallel()
		x := newPatient(t)
		watching := make(chan struct{})
		result := make(chan error, 1)
		go func() {
			_, err := datastore.Repair(t.Context(), x.dir, cluster, datastore.RepairOptions{
				RolledBack: true, By: "admin", Settle: 3 * time.Second,
				Progress: func(text string) {
					if strings.HasPrefix(text, "watching") {
						close(watching)
					}
				}})
			result <- err
		}()
		<-watching
		x.beat()
		if err := <-result; datastore.KindOf(err) != datastore.KindBusy {
			t.Errorf("answered %v", err)
		}
		x.beat() // and nothing was changed
	})
	t.Run("another datastore", func(t *testing.T) {
		t.Parallel()
		x := newPatient(t)
		_, err := x.repair(datastore.RepairOptions{ID: "11111111-2222-4333-8444-555555555555", RolledBack: true})
		if datastore.KindOf(err) != datastore.KindForeign {
			t.Errorf("answered %v", err)
		}
		x.beat()
	})
	t.Run("when interrupted", func(t *testing.T) {
		t.Parallel()
		x := newPatient(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := datastore.Repair(ctx, x.dir, cluster, datastore.RepairOptions{RolledBack: true, By: "admin"})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("answered %v", err)
		}
		x.beat()
	})
	t.Run("what only its administrator can put right", func(t *testing.T) {
		t.Parallel()
		x := newPatient(t)
		if err := os.Chmod(x.cluster(), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := x.repair(datastore.RepairOptions{RolledBack: true}); datastore.KindOf(err) != datastore.KindPermission {
			t.Errorf("answered %v", err)
		}
	})
}

func TestForgetHost(t *testing.T) {
	t.Parallel()
	x := newPatient(t)
	forget := func(host model.HostID) error {
		return datastore.ForgetHost(t.Context(), x.dir, cluster, x.id, host, 200*time.Millisecond)
	}
	if err := forget("host1"); datastore.KindOf(err) != datastore.KindBusy {
		t.Errorf("a host that holds locks: %v", err)
	}
	if err := forget("host9"); datastore.KindOf(err) != datastore.KindMissing {
		t.Errorf("a host without slot: %v", err)
	}
	index, err := x.d.ClaimSlot("host2", "old-machine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.d.WriteSlot(index, nil, slot("host2", 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := x.d.ClaimSlot("host2", "new-machine"); datastore.KindOf(err) != datastore.KindConflict {
		t.Errorf("a machine installed anew: %v", err)
	}
	// host2's slot names a lease of 5 s, so this waits a little longer.
	if err := forget("host2"); err != nil {
		t.Fatal(err)
	}
	again, err := x.d.ClaimSlot("host2", "new-machine")
	if err != nil || again != index {
		t.Errorf("slot %d after %d: %v", again, index, err)
	}
	if r, err := x.d.ReadSlot("host2"); err != nil || r.Damage != model.SlotEmpty {
		t.Errorf("the slot of the new machine: %+v, %v", r, err)
	}
}
