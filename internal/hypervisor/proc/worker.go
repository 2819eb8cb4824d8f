package proc

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// A freeze that is not confirmed after settle is looked at thread by thread,
// again every recheck.
const (
	settle  = 20 * time.Millisecond
	recheck = 20 * time.Millisecond
)

// Options configure a Worker. All fields but Now and Deliver have defaults.
type Options struct {
	// Root is where cgroup v2 is mounted; CgroupRoot by default.
	Root string
	// ProcDir is /proc, LibvirtRun /run/libvirt/qemu.
	ProcDir    string
	LibvirtRun string
	// Now is CLOCK_BOOTTIME.
	Now func() time.Duration
	// Deliver takes EvScanned, EvFroze and EvGone. It is called from the
	// worker's goroutine and may block it.
	Deliver func(lease.Event)
}

// Worker is the one goroutine that touches the units. Its methods never block;
// what they order is carried out in their order.
type Worker struct {
	opts   Options
	parent string // <root>/hanok
	epoll  int
	wake   int

	mu    sync.Mutex
	queue []command // bounded: the machine keeps one of a kind outstanding for each VM
	stop  bool

	done   chan struct{}
	finder *finder
	units  map[model.VMID]*unit
	byFD   map[int32]*unit
	last   map[model.VMID][]*qemu // as found last
}

type command struct {
	kind   lease.EffectKind
	op     uint64
	vm     model.VMID
	before time.Duration
	track  map[model.VMID]lease.ManagedVM
}

// Used reports whether a guard ran in this boot before: its parent cgroup is
// there. root may be empty, as in Options.
func Used(root string) bool {
	if root == "" {
		root, _ = CgroupRoot()
	}
	_, err := os.Stat(filepath.Join(root, "hanok"))
	return err == nil
}

// Start makes the parent cgroup and starts the worker.
func Start(opts Options) (*Worker, error) {
	if opts.Root == "" {
		root, err := CgroupRoot()
		if err != nil {
			return nil, err
		}
		opts.Root = root
	}
	if opts.ProcDir == "" {
		opts.ProcDir = "/proc"
	}
	if opts.LibvirtRun == "" {
		opts.LibvirtRun = "/run/libvirt/qemu"
	}
	w := &Worker{opts: opts, parent: filepath.Join(opts.Root, "hanok"), done: make(chan struct{}),
		finder: newFinder(opts.ProcDir), units: map[model.VMID]*unit{}, byFD: map[int32]*unit{}}
	if err := os.MkdirAll(w.parent, 0o755); err != nil {
		return nil, fmt.Errorf("make the cgroup of all VMs: %w", err)
	}
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(w.epoll)
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.wake)}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, w.wake, &ev); err != nil {
		_ = unix.Close(w.epoll)
		_ = unix.Close(w.wake)
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	go w.run()
	return w, nil
}

// Scan orders a list of all QEMU processes. Those of tracked VMs are placed in
// their units. EvScanned answers.
func (w *Worker) Scan(op uint64, track map[model.VMID]lease.ManagedVM) {
	w.submit(command{kind: lease.EffScan, op: op, track: track})
}

// Freeze orders a VM to be placed and frozen. EvFroze answers, and again when
// the state changes.
func (w *Worker) Freeze(op uint64, vm model.VMID) {
	w.submit(command{kind: lease.EffFreeze, op: op, vm: vm})
}

// Thaw lets a VM run again, unless it is later than before by then.
func (w *Worker) Thaw(vm model.VMID, before time.Duration) {
	w.submit(command{kind: lease.EffThaw, vm: vm, before: before})
}

// Kill ends all processes of a VM. EvGone follows when they are gone.
func (w *Worker) Kill(vm model.VMID) { w.submit(command{kind: lease.EffKill, vm: vm}) }

// Close stops the worker and waits for it. Units stay as they are.
func (w *Worker) Close() {
	w.mu.Lock()
	w.stop = true
	w.mu.Unlock()
	w.kick()
	<-w.done
}

func (w *Worker) submit(c command) {
	w.mu.Lock()
	w.queue = append(w.queue, c)
	w.mu.Unlock()
	w.kick()
}

func (w *Worker) kick() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wake, one[:]) // full means it is awake already
}

func (w *Worker) run() {
	defer close(w.done)
	defer w.cleanUp()
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epoll, events, w.timeout())
		if err != nil && err != unix.EINTR {
			n = 0
			time.Sleep(recheck) // cannot happen; do not spin
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == w.wake {
				var buf [8]byte
				_, _ = unix.Read(w.wake, buf[:])
			} else if u := w.byFD[e.Fd]; u != nil {
				w.inspect(u)
			}
		}
		w.mu.Lock()
		queue, stop := w.queue, w.stop
		w.queue = nil
		w.mu.Unlock()
		if stop {
			return
		}
		w.carryOut(queue)
		w.recheckFreezes()
	}
}

func (w *Worker) cleanUp() {
	for _, u := range w.units {
		u.close()
	}
	_ = unix.Close(w.epoll)
	_ = unix.Close(w.wake)
}

// timeout is until the next look at a freeze that is not confirmed.
func (w *Worker) timeout() int {
	for _, u := range w.units {
		if u.freeze != nil && u.freeze.reported != 1+uint8(lease.FrozenYes) && u.freeze.reported != 1+uint8(lease.FrozenNone) {
			return int(recheck / time.Millisecond)
		}
	}
	return -1
}

// carryOut does a batch of commands; one look at the processes serves all of
// them.
func (w *Worker) carryOut(queue []command) {
	var findErr error
	if slices.ContainsFunc(queue, func(c command) bool { return c.kind != lease.EffThaw }) {
		findErr = w.find()
	}
	for _, c := range queue {
		switch c.kind {
		case lease.EffScan:
			w.scan(c, findErr)
		case lease.EffFreeze:
			w.freeze(c, findErr)
		case lease.EffThaw:
			w.thaw(c)
		case lease.EffKill:
			w.kill(c)
		}
	}
}

func (w *Worker) find() error {
	found, err := w.finder.find(w.opts.Now())
	if err != nil {
		return err
	}
	w.last = make(map[model.VMID][]*qemu, len(found))
	for _, q := range found {
		w.last[q.vm] = append(w.last[q.vm], q)
	}
	return nil
}

// unit returns the VM's unit, opening it if there is reason to: it is made for
// its processes, found from an earlier guard, or wanted as a watcher.
func (w *Worker) unit(vm model.VMID, dir string, own bool) (*unit, error) {
	if u := w.units[vm]; u != nil {
		if u.dir == dir {
			return u, nil
		}
		w.forget(u)
	}
	u, err := openUnit(vm, dir, own)
	if err != nil {
		return nil, err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLPRI | unix.EPOLLERR, Fd: int32(u.events)}
	if err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, u.events, &ev); err != nil {
		u.close()
		return nil, fmt.Errorf("watch cgroup of %s: %w", vm, err)
	}
	w.units[vm] = u
	w.byFD[int32(u.events)] = u
	return u, nil
}

func (w *Worker) forget(u *unit) {
	delete(w.units, u.vm)
	delete(w.byFD, int32(u.events))
	u.close() // leaves the epoll set with it
}

func (w *Worker) ownDir(vm model.VMID) string { return filepath.Join(w.parent, string(vm)) }

// place makes sure that all processes of a VM are in its unit, and returns it.
// A VM without processes gets its own unit.
func (w *Worker) place(vm model.VMID) (*unit, error) {
	procs := w.last[vm]
	dir, own := w.ownDir(vm), true
	cgroups := make([]string, len(procs))
	for i, q := range procs {
		c, err := cgroupOf(w.opts.ProcDir, q.pid)
		if err != nil {
			continue // it has just ended
		}
		cgroups[i] = c
		if scope := scopeOf(c); scope != "" {
			dir, own = filepath.Join(w.opts.Root, scope), false
		}
	}
	u, err := w.unit(vm, dir, own)
	if err != nil {
		return nil, err
	}
	for i, q := range procs {
		if cgroups[i] != "" && !u.holds(cgroups[i], w.opts.Root) {
			if err := u.add(q.pid); err != nil {
				return u, err
			}
		}
		for _, pid := range w.finder.helpers(q, w.opts.LibvirtRun) {
			if c, err := cgroupOf(w.opts.ProcDir, pid); err == nil && !u.holds(c, w.opts.Root) {
				if err := u.add(pid); err != nil {
					return u, err
				}
			}
		}
	}
	return u, nil
}

func (w *Worker) scan(c command, findErr error) {
	ev := lease.Event{Kind: lease.EvScanned, Op: c.op}
	if findErr != nil {
		ev.Fault = &lease.Fault{Kind: "processes", Text: findErr.Error()}
		w.opts.Deliver(ev)
		return
	}
	w.adoptUnits(c.track)
	disks := map[string]model.VMID{}
	for id, v := range c.track {
		for _, d := range v.Disks {
			disks[d] = id
		}
	}
	for vm, procs := range w.last {
		p := lease.Proc{VM: vm, Name: procs[0].name}
		_, tracked := c.track[vm]
		if !tracked {
			for _, q := range procs {
				p.Holds = append(p.Holds, w.held(q, disks)...)
			}
			if len(p.Holds) > 0 {
				ev.Procs = append(ev.Procs, p)
			}
			continue
		}
		u, err := w.place(vm)
		if err != nil {
			ev.Fault = &lease.Fault{Kind: "processes", Text: err.Error()}
		}
		p.Frozen = u != nil && u.ordered()
		ev.Procs = append(ev.Procs, p)
	}
	// What is left of a VM in its unit counts as the VM.
	for vm, u := range w.units {
		if _, seen := w.last[vm]; seen {
			continue
		}
		populated, _, err := u.state()
		switch {
		case err == nil && populated:
			u.populated = true
			ev.Procs = append(ev.Procs, lease.Proc{VM: vm, Frozen: u.ordered()})
		case u.own && c.track[vm].ID == "":
			w.forget(u)
			_ = os.Remove(u.dir)
		case err != nil:
			w.forget(u) // libvirt removed its scope
		}
	}
	slices.SortFunc(ev.Procs, func(a, b lease.Proc) int { return strings.Compare(string(a.VM), string(b.VM)) })
	w.opts.Deliver(ev)
}

// adoptUnits opens the units that an earlier guard left.
func (w *Worker) adoptUnits(track map[model.VMID]lease.ManagedVM) {
	entries, err := os.ReadDir(w.parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		vm := model.VMID(e.Name())
		if _, ok := track[vm]; ok && e.IsDir() && w.units[vm] == nil {
			_, _ = w.unit(vm, w.ownDir(vm), true) // tried again with the next scan
		}
	}
}

// held returns the tracked VMs whose disks a process of another VM holds.
func (w *Worker) held(q *qemu, disks map[string]model.VMID) []model.VMID {
	if len(disks) == 0 {
		return nil
	}
	var out []model.VMID
	for _, path := range w.finder.disks(q.pid) {
		if id, ok := disks[path]; ok && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

func (w *Worker) freeze(c command, findErr error) {
	u, err := w.place(c.vm)
	if u == nil {
		w.opts.Deliver(lease.Event{Kind: lease.EvFroze, Op: c.op, VM: c.vm, Frozen: lease.FrozenFailed, Text: err.Error()})
		return
	}
	started := w.opts.Now()
	if werr := u.write("cgroup.freeze", "1"); werr != nil {
		err = werr
	}
	if findErr != nil {
		err = findErr
	}
	if err != nil {
		w.opts.Deliver(lease.Event{Kind: lease.EvFroze, Op: c.op, VM: c.vm, Frozen: lease.FrozenFailed, Text: err.Error()})
		return
	}
	u.freeze = &pendingFreeze{op: c.op, started: started}
	w.inspect(u)
}

func (w *Worker) thaw(c command) {
	u := w.units[c.vm]
	if u == nil {
		// Nothing of it is known; an earlier guard's trap may be.
		if _, err := os.Stat(w.ownDir(c.vm)); err != nil {
			return
		}
		var err error
		if u, err = w.unit(c.vm, w.ownDir(c.vm), true); err != nil {
			return // a scan shows it frozen, and the thaw comes again
		}
	}
	u.freeze = nil
	if c.before == 0 || w.opts.Now() <= c.before {
		_ = u.write("cgroup.freeze", "0") // if it fails a scan shows it
	}
}

func (w *Worker) kill(c command) {
	u, err := w.place(c.vm)
	if u == nil {
		return // the machine asks again
	}
	populated, _, stateErr := u.state()
	if err == nil && stateErr == nil && !populated && len(w.last[c.vm]) == 0 {
		u.populated = false
		w.opts.Deliver(lease.Event{Kind: lease.EvGone, VM: c.vm})
		return
	}
	u.populated = true
	_ = u.write("cgroup.kill", "1") // asked again if it failed
}

// inspect looks at a unit after its events changed.
func (w *Worker) inspect(u *unit) {
	populated, frozen, err := u.state()
	if err != nil {
		populated = false // the directory is gone, and what was in it
	}
	if u.freeze != nil {
		w.inspectFreeze(u, populated, frozen)
	}
	was := u.populated
	u.populated = populated
	if was && !populated {
		w.opts.Deliver(lease.Event{Kind: lease.EvGone, VM: u.vm})
	}
	if err != nil {
		w.forget(u)
	}
}

func (w *Worker) inspectFreeze(u *unit, populated, frozen bool) {
	f := u.freeze
	now := w.opts.Now()
	state := lease.FrozenOutstanding
	switch {
	case !populated:
		state = lease.FrozenNone
	case frozen:
		state = lease.FrozenYes
	case now-f.started < settle:
		return
	default:
		if runnable, blocked := u.threads(w.opts.ProcDir); runnable > 0 || blocked == 0 {
			return // still on its way
		}
	}
	if f.reported == 1+uint8(state) {
		return
	}
	if f.reported == 1+uint8(lease.FrozenYes) && state == lease.FrozenOutstanding {
		// A process was moved in, or somebody thawed it.
		f.reported, f.started = 0, now
		_ = u.write("cgroup.freeze", "1") // looked at again
		return
	}
	f.reported = 1 + uint8(state)
	w.opts.Deliver(lease.Event{Kind: lease.EvFroze, Op: f.op, VM: u.vm, Frozen: state, Took: now - f.started})
}

func (w *Worker) recheckFreezes() {
	for _, u := range w.units {
		if u.freeze != nil && u.freeze.reported != 1+uint8(lease.FrozenYes) && u.freeze.reported != 1+uint8(lease.FrozenNone) {
			w.inspect(u)
		}
	}
}
