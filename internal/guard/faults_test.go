package guard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/guard/hook"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/logging"
	"hanok.dev/hanok/internal/model"
)

func vmOf(s lease.Status) lease.VMStatus {
	for _, v := range s.VMs {
		if v.VM == webID {
			return v
		}
	}
	return lease.VMStatus{}
}

// TestHungStorageFreezesAndThaws hangs the storage path past the lease while
// the guest writes.
func TestHungStorageFreezesAndThaws(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.start()
	c := h.dial()
	waitLease(t, c)
	h.protect(c, filepath.Join(h.ds, "disk0.raw"))
	h.fs.SetFault(fusefs.Hang)
	eventually(t, "the VM is frozen with its write outstanding", func() bool {
		v := vmOf(status(t, c))
		return v.Phase == lease.PhaseFrozen && v.Outstanding
	})
	if s := status(t, c); s.Datastores[0].OK || s.Datastores[0].Kind != "hung" {
		t.Errorf("datastore status %+v", s.Datastores[0])
	}
	h.fs.SetFault(fusefs.None)
	eventually(t, "the VM runs again under a new epoch", func() bool {
		v := vmOf(status(t, c))
		return v.Phase == lease.PhaseRunning && v.Epoch == 3 && !h.frozen(webID)
	})
}

// stuckLog is a log on a disk that does not answer: the first line that is
// written to it says so, and none ever returns before the test's end.
type stuckLog struct {
	reached chan struct{}
	once    sync.Once
	end     chan struct{}
}

func (l *stuckLog) Write(b []byte) (int, error) {
	l.once.Do(func() { close(l.reached) })
	<-l.end
	return len(b), nil
}

// TestHungLogDoesNotStarveTheWatchdog: a guard logs when a new cluster file comes
// into force. The disk under its log may hang just then, on all hosts at once: a
// reason to lose lines, not hosts.
func TestHungLogDoesNotStarveTheWatchdog(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.write("watchdog", "") // counts what it is fed with, one byte each time
	h.opts.Watchdog = filepath.Join(h.dir, "watchdog")
	stuck := &stuckLog{reached: make(chan struct{}), end: make(chan struct{})}
	log, _, err := logging.New(logging.Stderr, "guard", stuck)
	if err != nil {
		t.Fatal(err)
	}
	h.opts.Log = log
	h.start()
	t.Cleanup(func() { close(stuck.end) })
	c := h.dial()
	waitLease(t, c)
	fed := func() int64 {
		st, err := os.Stat(h.opts.Watchdog)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	<-stuck.reached
	mustOK(t, c, lease.Request{Reload: &lease.ReloadRequest{}})
	before := fed()
	eventually(t, "the watchdog is fed on", func() bool { return fed() > before+3 })
	if s := status(t, c); !s.Datastores[0].OK {
		t.Errorf("datastore status %+v", s.Datastores[0])
	}
}

// TestGuardRestartsBesideARunningVM: the VM is untouched and protected again.
func TestGuardRestartsBesideARunningVM(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.start()
	c := h.dial()
	waitLease(t, c)
	h.protect(c, "")
	h.stopGuard()
	h.start()
	c = h.dial()
	waitLease(t, c)
	if v := vmOf(status(t, c)); v.Phase != lease.PhaseRunning || v.Epoch != 2 {
		t.Errorf("after the restart: %+v", v)
	}
	if h.frozen(webID) {
		t.Error("the VM was frozen")
	}
}

// TestGuardWithoutMemory: same boot, no state. The VM is frozen first, its lock
// is found to be this boot's, and it runs on.
func TestGuardWithoutMemory(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.start()
	c := h.dial()
	waitLease(t, c)
	h.protect(c, "")
	h.stopGuard()
	if err := os.Remove(h.opts.StateFile); err != nil {
		t.Fatal(err)
	}
	h.start()
	c = h.dial()
	eventually(t, "the VM runs under a lock claimed again", func() bool {
		v := vmOf(status(t, c))
		return v.Phase == lease.PhaseRunning && v.Epoch == 3
	})
}

// TestTakeOver: host1's guard dies beside its VM; host2 takes the lock when
// the slot rests, and the VM on host1 is killed when its guard returns.
func TestTakeOver(t *testing.T) {
	backing := newBacking(t)
	h1 := newHost(t, "host1", backing, ", unfenced: accept")
	h2 := newHost(t, "host2", backing, ", unfenced: accept")
	h1.ownProcesses()
	h2.ownProcesses()
	h1.start()
	c1 := h1.dial()
	waitLease(t, c1)
	qemu := h1.protect(c1, "")
	h1.stopGuard()

	h2.start()
	c2 := h2.dial()
	waitLease(t, c2)
	take := &lease.Takeover{Owner: "host1", Slot: slotOf(t, h2, "host1").Identity}
	if r := call(t, c2, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 2}}); r.Code != lease.CodeHeldByOther {
		t.Fatalf("claim without evidence: %s", r.Code)
	}
	wrong := *take
	wrong.Slot.Digest = "another"
	if r := call(t, c2, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 2, Takeover: &wrong}}); r.Code != lease.CodeOwnerAlive {
		t.Fatalf("claim with another slot: %s", r.Code)
	}
	won := mustOK(t, c2, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 2, Takeover: take}})
	if won.Epoch != 3 {
		t.Fatalf("won epoch %d", won.Epoch)
	}

	// The lease of host1 is over by the time its guard comes back.
	waitLapsed(t, h1)
	h1.ownProcesses()
	h2.ownProcesses()
	h1.start()
	if err := qemu.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the VM on host1 ended with %v", err)
	}
}

// TestUnarmedOwnerIsNotTaken: class reset without a watchdog.
func TestUnarmedOwnerIsNotTaken(t *testing.T) {
	backing := newBacking(t)
	h1, h2 := newHost(t, "host1", backing, ""), newHost(t, "host2", backing, "")
	h1.ownProcesses()
	h2.ownProcesses()
	h1.start()
	c1 := h1.dial()
	waitLease(t, c1)
	h1.protect(c1, "")
	if s := status(t, c1); s.Armed || s.ArmedWhy == "" {
		t.Errorf("armed %v, %q", s.Armed, s.ArmedWhy)
	}
	h1.stopGuard()
	h2.start()
	c2 := h2.dial()
	waitLease(t, c2)
	r := call(t, c2, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 2,
		Takeover: &lease.Takeover{Owner: "host1", Slot: slotOf(t, h2, "host1").Identity}}})
	if r.Code != lease.CodeNotArmed || !strings.Contains(r.Text, "host1") {
		t.Errorf("%s: %s", r.Code, r.Text)
	}
}

// TestHook asks as libvirt does.
func TestHook(t *testing.T) {
	backing := newBacking(t)
	h1, h2 := newHost(t, "host1", backing, ""), newHost(t, "host2", backing, "")
	h1.ownProcesses()
	h2.ownProcesses()
	h1.start()
	h2.start()
	c1, c2 := h1.dial(), h2.dial()
	waitLease(t, c1)
	waitLease(t, c2)
	mustOK(t, c1, lease.Request{Create: &lease.CreateRequest{VM: web()}})
	for _, c := range []*ipc.Client{c1, c2} {
		mustOK(t, c, lease.Request{Managed: &lease.ManagedRequest{VMs: []lease.ManagedVM{web()}}})
	}
	ask := func(h *host, op, uuid, name string) (int, string) {
		var out bytes.Buffer
		in := strings.NewReader(fmt.Sprintf("<domain><name>%s</name><uuid>%s</uuid></domain>", name, uuid))
		code := hook.Run([]string{name, op, "begin", "-"}, in, &out, hook.Options{Socket: h.opts.Socket, ManagedFile: h.opts.ManagedFile})
		return code, out.String()
	}
	expect := func(h *host, op, uuid, name string, code int, word string) {
		t.Helper()
		if got, text := ask(h, op, uuid, name); got != code || !strings.Contains(text, word) {
			t.Errorf("%s %s on %s: %d %q, want %d %q", op, name, h.name, got, text, code, word)
		}
	}
	expect(h1, "prepare", string(webID), "web", 0, "") // claims the free lock
	if v := vmOf(status(t, c1)); v.Phase != lease.PhaseGranted || v.Epoch != 2 {
		t.Errorf("after prepare: %+v", v)
	}
	h1.qemu(webID, "web", "")
	eventually(t, "the VM counts as running", func() bool { return vmOf(status(t, c1)).Phase == lease.PhaseRunning })
	expect(h2, "prepare", string(webID), "web", 1, "host1")
	expect(h2, "migrate", string(webID), "web", 1, "hanok vm migrate")
	expect(h2, "reconnect", string(webID), "web", 0, "")
	other := "7b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55"
	expect(h2, "start", other, "other", 0, "")
	expect(h2, "prepare", other, "hanok-canary-ab12", 1, "hanok-canary-ab12")
	if !status(t, c2).HookSeen {
		t.Error("the canary was not noted")
	}
	h2.stopGuard()
	expect(h2, "prepare", string(webID), "web", 1, "the guard does not answer")
	expect(h2, "start", other, "other", 0, "")
	expect(h2, "reconnect", string(webID), "web", 0, "")

	// A guard whose list of managed VMs is damaged knows of no domain that it is
	// not one of them, until the agent sends the list.
	h2.write("lib/managed.json", "{")
	h2.start()
	c2 = h2.dial()
	waitLease(t, c2)
	expect(h2, "prepare", string(webID), "web", 1, "cannot be read")
	expect(h2, "start", other, "other", 1, "cannot be read")
	mustOK(t, c2, lease.Request{Managed: &lease.ManagedRequest{VMs: []lease.ManagedVM{web()}}})
	expect(h2, "start", other, "other", 0, "")
	expect(h2, "prepare", string(webID), "web", 1, "host1")
}

// TestForeignProcessIsFrozen: guard rule 7.
func TestForeignProcessIsFrozen(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.start()
	c := h.dial()
	waitLease(t, c)
	disk := filepath.Join(h.ds, "disk0.raw")
	v := web()
	v.Disks = []string{disk}
	mustOK(t, c, lease.Request{Create: &lease.CreateRequest{VM: v}})
	mustOK(t, c, lease.Request{Managed: &lease.ManagedRequest{VMs: []lease.ManagedVM{v}}})
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if err := c.Subscribe(ctx); err != nil {
		t.Fatal(err)
	}
	const stranger = model.VMID("8b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")
	h.qemu(stranger, "stranger", disk)
	eventually(t, "the stranger is frozen", func() bool { return h.frozen(stranger) })
	eventually(t, "subscribers hear of it", func() bool {
		select {
		case n := <-c.Notices():
			return n.What == lease.NoticeForeign && n.VM == stranger
		case <-time.After(time.Second):
			return false
		}
	})
}

// slotOf reads a host's slot through another's path.
func slotOf(t *testing.T, through *host, of model.HostID) model.SlotReading {
	t.Helper()
	d, err := datastore.Open(through.ds, "test", datastore.Options{AllowBuffered: true})
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.ReadSlot(of)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// waitLapsed waits until the lease that a stopped guard left is over.
func waitLapsed(t *testing.T, h *host) {
	t.Helper()
	data, err := os.ReadFile(h.opts.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	var s lease.Saved
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease is over", func() bool { return datastore.BootTime() > s.Stores[0].Limits.End })
}
