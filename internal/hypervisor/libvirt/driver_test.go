package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	lv "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/model"
)

// patience is how long a test waits for something that takes well under a
// second on an idle machine.
const patience = 20 * time.Second

// rig is a driver on the test host with all events that it has given.
type rig struct {
	*Driver
	t    *testing.T
	host *host

	mu     sync.Mutex
	news   chan struct{}
	events []hypervisor.Event
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	h := testHost(t)
	cfg.Socket = h.socket()
	r := &rig{Driver: New(cfg), t: t, host: h, news: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range r.Events() {
			r.mu.Lock()
			r.events = append(r.events, e)
			close(r.news)
			r.news = make(chan struct{})
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		r.killAll()
		r.Close()
		<-done
	})
	r.await(0, func(e hypervisor.Event) bool { return e.Kind == hypervisor.EventResync }, "first connection")
	return r
}

// mark is the number of events so far.
func (r *rig) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// await returns the first event from mark on that fits.
func (r *rig) await(mark int, fits func(hypervisor.Event) bool, what string) hypervisor.Event {
	r.t.Helper()
	limit := time.After(patience)
	for {
		r.mu.Lock()
		events, news := r.events, r.news
		r.mu.Unlock()
		for ; mark < len(events); mark++ {
			if fits(events[mark]) {
				return events[mark]
			}
		}
		select {
		case <-news:
		case <-limit:
			log, _ := os.ReadFile(r.host.path("libvirtd.log"))
			r.t.Fatalf("no event: %s; got %+v; connection %+v; libvirtd's log:\n%s", what, events, r.Connection(), log)
		}
	}
}

func (r *rig) awaitOf(mark int, vm model.VMID, kind hypervisor.EventKind) hypervisor.Event {
	r.t.Helper()
	return r.await(mark, func(e hypervisor.Event) bool { return e.VM == vm && e.Kind == kind }, string(kind))
}

func (r *rig) awaitKind(mark int, kind hypervisor.EventKind) hypervisor.Event {
	r.t.Helper()
	return r.await(mark, func(e hypervisor.Event) bool { return e.Kind == kind }, string(kind))
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) kind(err error, want hypervisor.Kind, text string) {
	r.t.Helper()
	if hypervisor.KindOf(err) != want || err != nil && !strings.Contains(err.Error(), text) {
		r.t.Fatalf("got %q (%s), want %s with %q", err, hypervisor.KindOf(err), want, text)
	}
}

// killAll leaves the host without domains for the next test.
func (r *rig) killAll() {
	list, err := r.List(context.Background())
	if err != nil {
		r.t.Errorf("clean up: %v", err)
	}
	for _, d := range list {
		r.Kill(context.Background(), d.VM)
		if d.Persistent {
			if err := r.Undefine(context.Background(), d.VM); err != nil {
				r.t.Errorf("clean up: %v", err)
			}
		}
	}
}

// define makes a small domain known. It has no kernel; devices are extra.
func (r *rig) define(name, devices string) model.VMID {
	r.t.Helper()
	vm := model.VMID(uuid.NewString())
	got, err := r.Define(context.Background(), domainText(name, vm, 16, devices))
	r.ok(err)
	if got != vm {
		r.t.Fatalf("defined %s, got %s", vm, got)
	}
	return vm
}

func domainText(name string, vm model.VMID, mib int, devices string) string {
	if !strings.Contains(devices, "<memballoon") {
		devices += "<memballoon model='none'/>"
	}
	return fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>%d</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><on_crash>destroy</on_crash>
<devices><controller type='usb' model='none'/>%s</devices></domain>`, name, vm, mib, devices)
}

// disk writes an image that starts with code as its boot sector.
func (r *rig) disk(code ...byte) (path, device string) {
	r.t.Helper()
	image := make([]byte, 1<<20)
	copy(image, code)
	image[510], image[511] = 0x55, 0xaa
	path = filepath.Join(r.t.TempDir(), "disk.raw")
	r.ok(os.WriteFile(path, image, 0o600))
	return path, fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='hda' bus='ide'/></disk>`, path)
}

// get lists the domains and returns one.
func (r *rig) get(vm model.VMID) hypervisor.Domain {
	r.t.Helper()
	list, err := r.List(context.Background())
	r.ok(err)
	for _, d := range list {
		if d.VM == vm {
			return d
		}
	}
	r.t.Fatalf("%s is not in %+v", vm, list)
	return hypervisor.Domain{}
}

func (r *rig) start(vm model.VMID) {
	r.t.Helper()
	r.ok(r.StartPaused(context.Background(), vm))
	r.ok(r.Resume(context.Background(), vm))
}

func TestLifeOfADomain(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	vm := r.define("life", "")
	r.awaitOf(0, vm, hypervisor.EventDefined)
	if d := r.get(vm); d.Active || d.ID != -1 || d.State != hypervisor.StateShutOff || !d.Persistent || d.Autostart || d.Name != "life" {
		t.Fatalf("defined: %+v", d)
	}
	r.ok(r.SetAutostart(ctx, vm, true))
	if !r.get(vm).Autostart {
		t.Fatal("autostart not set")
	}
	r.ok(r.SetAutostart(ctx, vm, false))

	r.ok(r.StartPaused(ctx, vm))
	if e := r.awaitOf(0, vm, hypervisor.EventStarted); e.Detail != "booted" {
		t.Fatalf("started: %+v", e)
	}
	if d := r.get(vm); !d.Active || d.ID < 1 || d.State != hypervisor.StatePaused || d.Cause != hypervisor.StopNone {
		t.Fatalf("started paused: %+v", d)
	}
	r.kind(r.StartPaused(ctx, vm), hypervisor.KindRunning, "already running")
	r.ok(r.Resume(ctx, vm))
	r.awaitOf(0, vm, hypervisor.EventResumed)
	if d := r.get(vm); d.State != hypervisor.StateRunning {
		t.Fatalf("resumed: %+v", d)
	}
	r.kind(r.AgentPing(ctx, vm, time.Second), hypervisor.KindNoAgent, "agent")
	if how, err := r.Shutdown(ctx, vm); err != nil || how != hypervisor.ShutdownByACPI {
		t.Fatalf("shutdown: %v, %v", how, err)
	}
	for _, inactive := range []bool{false, true} {
		text, err := r.XML(ctx, vm, inactive)
		if err != nil || !strings.Contains(text, string(vm)) || strings.Contains(text, "<seclabel type='none' model") && inactive {
			t.Fatalf("XML: %v\n%s", err, text)
		}
	}

	r.ok(r.Kill(ctx, vm))
	if e := r.awaitOf(0, vm, hypervisor.EventStopped); e.Cause != hypervisor.StopDestroyed || e.Name != "life" {
		t.Fatalf("killed: %+v", e)
	}
	if d := r.get(vm); d.Active || d.Cause != hypervisor.StopDestroyed || d.ID != -1 {
		t.Fatalf("killed: %+v", d)
	}
	r.ok(r.Kill(ctx, vm))
	r.kind(r.Resume(ctx, vm), hypervisor.KindNotRunning, "not running")
	r.ok(r.Undefine(ctx, vm))
	r.awaitOf(0, vm, hypervisor.EventUndefined)
	r.kind(r.StartPaused(ctx, vm), hypervisor.KindNoDomain, string(vm))
	r.kind(r.Kill(ctx, "not a uuid"), hypervisor.KindNoDomain, "UUID")
}

// Saved memory is older than the disks may be; it must not be restored.
func TestSavedMemoryIsNotRestored(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	vm := r.define("saved", "")
	r.start(vm)
	mark := r.mark()
	r.ok(r.callDomain(ctx, "save", vm, patience, func(l *lv.Libvirt, dom lv.Domain) error {
		return l.DomainManagedSave(dom, 0)
	}))
	if e := r.awaitOf(mark, vm, hypervisor.EventStopped); e.Cause != hypervisor.StopSaved {
		t.Errorf("event says %+v", e)
	}
	if d := r.get(vm); d.Cause != hypervisor.StopSaved {
		t.Errorf("state says %+v", d)
	}
	r.ok(r.StartPaused(ctx, vm))
	if e := r.awaitOf(mark, vm, hypervisor.EventStarted); e.Detail != "booted" {
		t.Errorf("started by %+v", e)
	}
}

// Why a domain stopped must be told by its event, and by its state for those
// who missed the event.
func TestStopCauses(t *testing.T) {
	r := newRig(t, Config{})
	halt := []byte{0xf4, 0xeb, 0xfd}                                                            // hlt, and again
	_, powerOff := r.disk(append([]byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef}, halt...)...) // out 0x604, 0x2000: ACPI S5
	_, panics := r.disk(append([]byte{0xba, 0x05, 0x05, 0xb0, 0x01, 0xee}, halt...)...)         // out 0x505, 1: pvpanic
	signal := func(s unix.Signal) func(model.VMID) {
		return func(vm model.VMID) { r.ok(unix.Kill(r.host.qemu(t, vm), s)) }
	}
	for _, test := range []struct {
		name, devices string
		act           func(model.VMID)
		event, state  hypervisor.StopCause
		panicked      bool
	}{
		{name: "poweroff", devices: powerOff, event: hypervisor.StopGuestShutdown, state: hypervisor.StopGuestShutdown},
		{name: "sigterm", act: signal(unix.SIGTERM), event: hypervisor.StopHostSignal, state: hypervisor.StopGuestShutdown},
		{name: "sigkill", act: signal(unix.SIGKILL), event: hypervisor.StopCrashed, state: hypervisor.StopCrashed},
		{name: "panic", devices: panics + "<panic model='isa'/>", panicked: true, event: hypervisor.StopCrashed, state: hypervisor.StopCrashed},
	} {
		t.Run(test.name, func(t *testing.T) {
			vm, mark := r.define(test.name, test.devices), r.mark()
			r.start(vm)
			if test.act != nil {
				test.act(vm)
			}
			if test.panicked {
				r.awaitOf(mark, vm, hypervisor.EventPanicked)
			}
			if e := r.awaitOf(mark, vm, hypervisor.EventStopped); e.Cause != test.event {
				t.Errorf("event says %+v, want %s", e, test.event)
			}
			if d := r.get(vm); d.Cause != test.state || d.Active {
				t.Errorf("state says %+v, want %s", d, test.state)
			}
		})
	}
}

func TestStartFailures(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	path, disk := r.disk()

	r.kind(r.StartPaused(ctx, r.define("refused-1", "")), hypervisor.KindHook, "web runs on host9")

	owner := r.define("owner", disk)
	r.start(owner)
	other := r.define("other", disk)
	r.kind(r.StartPaused(ctx, other), hypervisor.KindImageLocked, "lock")
	r.ok(r.Kill(ctx, owner))
	r.ok(r.StartPaused(ctx, other))
	r.ok(r.Kill(ctx, other))

	r.ok(os.Remove(path))
	r.kind(r.StartPaused(ctx, other), hypervisor.KindNoDisk, path)

	big := model.VMID(uuid.NewString())
	_, err := r.Define(ctx, domainText("big", big, 8<<20, ""))
	r.ok(err)
	r.kind(r.StartPaused(ctx, big), hypervisor.KindNoMemory, "memory")

	_, err = r.Define(ctx, domainText("big", model.VMID(uuid.NewString()), 16, ""))
	r.kind(err, hypervisor.KindExists, "big")
	_, err = r.Define(ctx, "<domain/>")
	r.kind(err, hypervisor.KindInvalid, "")
}

func TestCanary(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	r.ok(r.Canary(ctx, "canary-1", "canary-token"))
	r.kind(r.Canary(ctx, "canary-other-token", "other-token"), hypervisor.KindHook, "as it should be")
	r.kind(r.Canary(ctx, "canary-1", ""), hypervisor.KindInvalid, "token")

	mark := r.mark()
	err := r.Canary(ctx, "unhooked", "canary-token")
	if !errors.Is(err, errHookNotLoaded) {
		t.Fatalf("without the hook: %v", err)
	}
	r.await(mark, func(e hypervisor.Event) bool { return e.Name == "unhooked" && e.Kind == hypervisor.EventStopped }, "canary destroyed")
	list, err := r.List(ctx)
	if err != nil || len(list) > 0 {
		t.Fatalf("left behind: %+v, %v", list, err)
	}
}

func TestLibvirtdKilledAndRestarted(t *testing.T) {
	r, ctx := newRig(t, Config{}), context.Background()
	stays, dies := r.define("stays", ""), r.define("dies", "")
	r.start(stays)
	r.start(dies)
	pid, mark := r.host.qemu(t, stays), r.mark()

	r.host.libvirtd(t, "signal 9")
	r.awaitKind(mark, hypervisor.EventDisconnected)
	_, err := r.List(ctx)
	r.kind(err, hypervisor.KindUnavailable, "libvirtd")
	if c := r.Connection(); c.Up || c.Err == nil {
		t.Fatalf("connection: %+v", c)
	}
	r.ok(unix.Kill(r.host.qemu(t, dies), unix.SIGKILL))

	r.host.libvirtd(t, "start")
	r.awaitKind(mark, hypervisor.EventResync)
	if got := r.host.qemu(t, stays); got != pid {
		t.Fatalf("process %d became %d", pid, got)
	}
	if d := r.get(stays); d.State != hypervisor.StateRunning {
		t.Fatalf("stays: %+v", d)
	}
	// The event was missed; the state must tell that it did not stop by will.
	// libvirtd reconnects to its domains in the background.
	poll(t, "the dead domain to be noticed", func() bool { return !r.get(dies).Active })
	if d := r.get(dies); !d.Cause.Restart() {
		t.Fatalf("dies: %+v", d)
	}

	// Resume waits for the job that libvirtd's reconnecting holds. A domain
	// that is killed before has no event.
	if err := r.Resume(ctx, stays); err != nil {
		r.kind(err, hypervisor.KindRunning, "")
	}
	mark = r.mark()
	r.ok(r.Kill(ctx, stays))
	if e := r.awaitOf(mark, stays, hypervisor.EventStopped); e.Cause != hypervisor.StopDestroyed {
		t.Fatalf("event after reconnect: %+v", e)
	}
}

// poll asks another process, which has no way to tell, until it says yes.
func poll(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !yes(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

func TestLibvirtdHung(t *testing.T) {
	r, ctx := newRig(t, Config{CallTimeout: 1500 * time.Millisecond}), context.Background()
	vm := r.define("calm", "")
	r.start(vm)

	mark, began := r.mark(), time.Now()
	r.host.libvirtd(t, fmt.Sprintf("signal %d", unix.SIGSTOP))
	thaw := sync.OnceFunc(func() { r.host.libvirtd(t, fmt.Sprintf("signal %d", unix.SIGCONT)) })
	t.Cleanup(thaw)
	_, err := r.List(ctx)
	r.kind(err, hypervisor.KindTimeout, "")
	if took := time.Since(began); took > 3*time.Second {
		t.Fatalf("List took %v", took)
	}
	if e := r.awaitKind(mark, hypervisor.EventDisconnected); !strings.Contains(e.Detail, errUnresponded.Error()) {
		t.Fatalf("noticed as %+v", e)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Fatalf("hung libvirtd noticed after %v", took)
	}
	r.kind(r.Kill(ctx, vm), hypervisor.KindUnavailable, errUnresponded.Error())

	thaw()
	r.awaitKind(mark, hypervisor.EventResync)
	if d := r.get(vm); d.State != hypervisor.StateRunning {
		t.Fatalf("afterwards: %+v", d)
	}
}

func TestFrozenVMs(t *testing.T) {
	r, ctx := newRig(t, Config{CallTimeout: 2500 * time.Millisecond}), context.Background()
	_, disk := r.disk()
	cold, warm := r.define("cold", "<memballoon model='virtio'/>"), r.define("warm", disk)
	r.start(cold)
	r.start(warm)
	poll(t, "the firmware to read the disk", func() bool {
		all, err := r.Stats(ctx, func(vm model.VMID) bool { return vm == cold })
		r.ok(err)
		return slices.ContainsFunc(all, func(s hypervisor.Stats) bool { return len(s.Disks) == 1 && s.Disks[0].ReadBytes > 0 })
	})
	thaw := r.host.freeze(t, r.host.qemu(t, cold))

	quick := func(what string, limit time.Duration, call func()) {
		t.Helper()
		began := time.Now()
		call()
		if took := time.Since(began); took > limit {
			t.Errorf("%s took %v", what, took)
		}
	}
	stats := func(frozen func(model.VMID) bool) (c, w hypervisor.Stats) {
		t.Helper()
		all, err := r.Stats(ctx, frozen)
		if err != nil || len(all) != 2 {
			t.Fatalf("stats: %+v, %v", all, err)
		}
		for _, s := range all {
			switch s.VM {
			case cold:
				c = s
			case warm:
				w = s
			}
		}
		if w.NoDisks != "" || len(w.Disks) != 1 || w.Disks[0].Target != "hda" || w.Disks[0].ReadBytes == 0 {
			t.Errorf("disks of the VM that runs: %+v", w)
		}
		if w.CPUTime <= 0 || w.MaxMemory != 16 || w.VCPUs != 1 {
			t.Errorf("figures of the VM that runs: %+v", w)
		}
		return c, w
	}

	quick("List", time.Second, func() { r.get(cold) })
	quick("Stats, told", time.Second, func() {
		if c, _ := stats(func(vm model.VMID) bool { return vm == cold }); c.NoDisks != "frozen" {
			t.Errorf("frozen: %+v", c)
		}
	})
	quick("Stats, not told", 2*lanePatience, func() {
		if c, _ := stats(nil); c.Disks != nil || c.NoDisks == "" {
			t.Errorf("frozen, not told: %+v", c)
		}
	})
	quick("Stats again", lanePatience, func() {
		if c, _ := stats(nil); c.NoDisks != errStillWaiting.Error() {
			t.Errorf("frozen, again: %+v", c)
		}
	})
	quick("List again", time.Second, func() { r.get(cold) })
	began := time.Now()
	var hung sync.WaitGroup
	for range maxCalls {
		hung.Go(func() { r.Resume(ctx, cold) })
	}
	poll(t, "all connections to be in use", func() bool { return len(r.pool.slots) == maxCalls })
	quick("List beside hung calls", time.Second, func() { r.get(cold) })
	r.kind(r.Resume(ctx, cold), hypervisor.KindTimeout, "")
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a call that hangs on a frozen VM took %v", took)
	}
	hung.Wait()

	thaw()
	poll(t, "statistics after the thaw", func() bool { c, _ := stats(nil); return c.NoDisks == "" })
}

func TestClose(t *testing.T) {
	r := newRig(t, Config{})
	d := New(Config{Socket: r.host.socket()})
	for e := range d.Events() {
		if e.Kind == hypervisor.EventResync {
			break
		}
	}
	r.ok(d.Close())
	if _, open := <-d.Events(); open {
		t.Error("events go on")
	}
	_, err := d.List(context.Background())
	r.kind(err, hypervisor.KindUnavailable, "closed")
}
