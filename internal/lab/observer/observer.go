package observer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/journal"
)

const (
	samplePeriod = 10 * time.Millisecond  // of an instance that has not run yet,
	patience     = 3 * time.Second        // for so long;
	slowPeriod   = 100 * time.Millisecond // later, until it runs
	ranProof     = 50 * time.Millisecond  // processor time that proves running
	tolerance    = 25 * time.Millisecond  // the observer's own reaction time
	remember     = time.Minute            // ended instances are kept so long
	maxKept      = 1000                   // violations kept
)

// Config says what to watch.
type Config struct {
	// Hosts is the cgroup whose children are the hosts' cgroups.
	Hosts cgroup.Group
	// Journal gets what is seen.
	Journal *journal.Journal
}

// Instance is one QEMU process of a VM, as it is now.
type Instance struct {
	VM   string `json:"vm"` // UUID
	Name string `json:"name"`
	Host string `json:"host"`
	Pid  int    `json:"pid"`
	// Frozen: its cgroup is confirmed frozen.
	Frozen bool `json:"frozen"`
	// Paused: its virtual processors have not run yet.
	Paused bool `json:"paused"`
	// Since is CLOCK_BOOTTIME in nanoseconds of its exec.
	Since int64 `json:"since"`
}

// Observer watches until it is stopped.
type Observer struct {
	cfg       Config
	mount     string
	connector int
	inotify   int
	wake      int
	done      chan struct{}

	// of the watching goroutine
	watches map[int32]watch
	offset  int64 // CLOCK_BOOTTIME minus CLOCK_MONOTONIC

	mu         sync.Mutex
	instances  map[int]*instance // by pid
	violations []string
	err        error
}

type watch struct {
	dir    string
	events bool // of cgroup.events; else of the directory
}

type instance struct {
	Instance
	group       string
	runs        bool
	runSince    int64 // when runs: running at the latest since then
	frozenSince int64 // when Frozen
	frozenRan   time.Duration
	ended       int64 // 0 while alive
	nextSample  int64 // when to look whether it runs
	reported    map[int]bool
}

// Start subscribes and returns once nothing that happens later is missed.
func Start(cfg Config) (*Observer, error) {
	mount, err := cgroup.Mount()
	if err != nil {
		return nil, err
	}
	o := &Observer{cfg: cfg, mount: mount, done: make(chan struct{}), watches: map[int32]watch{}, instances: map[int]*instance{}}
	if o.connector, err = openConnector(); err != nil {
		return nil, err
	}
	if o.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		unix.Close(o.connector)
		return nil, os.NewSyscallError("inotify_init", err)
	}
	if o.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(o.connector)
		unix.Close(o.inotify)
		return nil, os.NewSyscallError("eventfd", err)
	}
	o.offset = bootOffset()
	o.watchTree(string(cfg.Hosts))
	o.rescan()
	go o.run()
	return o, nil
}

func bootOffset() int64 {
	var m unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &m)
	return journal.Now() - m.Nano()
}

// Stop ends the watching and waits for it.
func (o *Observer) Stop() {
	_, _ = unix.Write(o.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-o.done
	unix.Close(o.connector)
	unix.Close(o.inotify)
	unix.Close(o.wake)
}

// Instances returns the living instances, by VM name and host.
func (o *Observer) Instances() []Instance {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Instance
	for _, i := range o.instances {
		if i.ended == 0 {
			out = append(out, i.Instance)
		}
	}
	slices.SortFunc(out, func(a, b Instance) int {
		return strings.Compare(a.Name+"\x00"+a.Host, b.Name+"\x00"+b.Host)
	})
	return out
}

// Violations returns what went wrong so far, and whether the observer itself
// failed.
func (o *Observer) Violations() ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.violations), o.err
}

func (o *Observer) run() {
	defer close(o.done)
	for {
		timeout := o.timeout()
		fds := []unix.PollFd{{Fd: int32(o.connector), Events: unix.POLLIN}, {Fd: int32(o.inotify), Events: unix.POLLIN}, {Fd: int32(o.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, timeout); err != nil && !errors.Is(err, unix.EINTR) {
			o.fail(err)
			return
		}
		if fds[2].Revents != 0 {
			return
		}
		if err := o.turn(); err != nil {
			o.fail(err)
			return
		}
	}
}

// turn handles all that has happened. Cgroup changes come first: a freeze that
// precedes a start must be known when the start is judged.
func (o *Observer) turn() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.readInotify()
	err := readConnector(o.connector, o.process)
	if errors.Is(err, errLost) {
		o.cfg.Journal.Add(journal.Event{Kind: journal.Lost, Detail: "process events; reading all processes afresh"})
		o.rescan()
		err = nil
	}
	o.sample()
	o.forget()
	return err
}

func (o *Observer) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.err = fmt.Errorf("observer: %w", err)
	o.cfg.Journal.Add(journal.Event{Kind: journal.Lost, Detail: o.err.Error()})
}

// timeout is how many milliseconds the observer may wait for an event: for
// ever (-1), unless an instance must be sampled.
func (o *Observer) timeout() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	wait := time.Duration(-1)
	for _, i := range o.instances {
		if i.ended == 0 && !i.runs {
			next := time.Duration(i.nextSample - journal.Now())
			if wait < 0 || next < wait {
				wait = max(next, 0)
			}
		}
	}
	if wait < 0 {
		return -1
	}
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}

func (o *Observer) process(e processEvent) {
	at := int64(e.nanosecond) + o.offset
	if !e.exit {
		o.appeared(e.process, at)
		return
	}
	if i := o.instances[e.process]; i != nil && i.ended == 0 {
		if alive, _ := processors(e.process); !alive && (i.runs || e.thread == e.process || !exists(e.process)) {
			o.end(i, at)
		}
	}
}

// rescan looks at all processes.
func (o *Observer) rescan() {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			o.appeared(pid, journal.Now())
		}
	}
	for pid, i := range o.instances {
		if alive, _ := processors(pid); i.ended == 0 && !alive && (i.runs || !exists(pid)) {
			o.end(i, journal.Now())
		}
	}
}

func (o *Observer) appeared(pid int, at int64) {
	if i := o.instances[pid]; i != nil && i.ended == 0 {
		return
	}
	uuid, name, ok := identify(pid)
	if !ok {
		return
	}
	group := cgroupOf(pid)
	host := o.hostOf(group)
	if host == "" {
		return
	}
	i := &instance{Instance: Instance{VM: uuid, Name: name, Host: host, Pid: pid, Paused: true, Since: at}, group: group, reported: map[int]bool{}}
	o.instances[pid] = i
	o.log(i, journal.Started, at, "")
	o.look(i)
}

// hostOf returns the host that a cgroup, relative to the hierarchy, belongs to.
func (o *Observer) hostOf(group string) string {
	rest, ok := strings.CutPrefix(filepath.Join(o.mount, group), string(o.cfg.Hosts)+"/")
	if !ok {
		return ""
	}
	host, _, _ := strings.Cut(rest, "/")
	return host
}

func (o *Observer) log(i *instance, kind journal.Kind, at int64, detail string) {
	o.cfg.Journal.Add(journal.Event{Boot: at, Kind: kind, Host: i.Host, VM: i.VM, Name: i.Name, Pid: i.Pid, Detail: detail})
}

func (o *Observer) end(i *instance, at int64) {
	i.ended = at
	o.log(i, journal.Exited, at, "")
}

// sample looks whether instances have begun to run.
func (o *Observer) sample() {
	for _, i := range o.instances {
		now := journal.Now()
		if i.ended != 0 || i.runs || now < i.nextSample {
			continue
		}
		i.nextSample = now + int64(samplePeriod)
		if time.Duration(now-i.Since) > patience {
			i.nextSample = now + int64(slowPeriod)
		}
		alive, ran := processors(i.Pid)
		now = journal.Now()
		switch {
		case !alive && !exists(i.Pid):
			o.end(i, now)
		case ran > ranProof:
			i.runs, i.Paused, i.runSince = true, false, now-int64(ran)
			o.log(i, journal.Running, i.runSince, "")
			o.judge(i)
		}
	}
}

// look reads whether an instance is frozen.
func (o *Observer) look(i *instance) {
	if i.ended != 0 {
		return
	}
	if group := cgroupOf(i.Pid); group != "" {
		i.group = group
	}
	state, err := cgroup.Group(filepath.Join(o.mount, i.group)).State()
	if err != nil {
		return // removed: it was empty
	}
	now := journal.Now()
	_, ran := processors(i.Pid)
	switch {
	case state.Frozen && !i.Frozen:
		i.Frozen, i.frozenSince, i.frozenRan = true, now, ran
		o.log(i, journal.Frozen, now, i.group)
	case !state.Frozen && i.Frozen:
		i.Frozen = false
		o.log(i, journal.Thawed, now, i.group)
		o.judge(i)
	case state.Frozen && ran > i.frozenRan+time.Millisecond:
		// It was thawed and frozen again before this look.
		i.Frozen = false
		o.log(i, journal.Thawed, now, i.group+" (for a moment)")
		o.judge(i)
		i.Frozen, i.frozenSince, i.frozenRan = true, now, ran
		o.log(i, journal.Frozen, now, i.group)
	}
}

// judge compares an instance, which has just become able to run, with the
// others of its VM.
func (o *Observer) judge(i *instance) {
	if !i.runs || i.Frozen {
		return
	}
	since := i.runSince
	if i.frozenSince > since {
		since = journal.Now() - int64(tolerance) - 1 // thawed just now
	}
	for _, other := range o.instances {
		if other == i || other.VM != i.VM || !other.runs || other.reported[i.Pid] {
			continue
		}
		until := journal.Now()
		if other.Frozen {
			until = other.frozenSince
		}
		if other.ended != 0 && other.ended < until {
			until = other.ended
		}
		overlap := time.Duration(until - max(since, other.runSince))
		if overlap <= tolerance {
			continue
		}
		other.reported[i.Pid], i.reported[other.Pid] = true, true
		detail := fmt.Sprintf("VM %s (%s) could run twice for at least %v: on %s (pid %d) and on %s (pid %d)",
			i.Name, i.VM, overlap.Round(time.Millisecond), other.Host, other.Pid, i.Host, i.Pid)
		if len(o.violations) < maxKept {
			o.violations = append(o.violations, detail)
		}
		o.log(i, journal.Violation, 0, detail)
	}
}

func (o *Observer) forget() {
	limit := journal.Now() - int64(remember)
	for pid, i := range o.instances {
		if i.ended != 0 && i.ended < limit {
			delete(o.instances, pid)
		}
	}
}

// WaitFor returns when ok holds for the living instances.
func (o *Observer) WaitFor(ctx context.Context, ok func([]Instance) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := o.cfg.Journal.Follow(ctx)
	for {
		if ok(o.Instances()) {
			return nil
		}
		if _, more := <-events; !more {
			return fmt.Errorf("instances are %+v: %w", o.Instances(), context.Cause(ctx))
		}
	}
}
