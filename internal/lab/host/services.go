package host

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/paths"
)

const logDir = paths.LogDir

// guardWait is how long libvirtd waits for the guard, which must answer the
// hook, before it starts all the same.
const guardWait = 3 * time.Second

const (
	tick      = 50 * time.Millisecond // how often conditions to start are looked at
	stopGrace = 10 * time.Second      // from TERM to KILL at an orderly shutdown
	guardFIFO = 50                    // as in the guard's systemd unit
	agentNice = -10                   // as in the agent's systemd unit
	oomNever  = -1000
)

// service is a daemon that init keeps running.
type service struct {
	name    string
	argv    []string
	fifo    int // real-time priority; 0: ordinary
	nice    int
	oom     int
	restart time.Duration // from its death to its next start
	// ready says whether it may start now.
	ready func() bool

	pid   int
	after time.Time // not before
}

type services struct {
	list []*service
	boot time.Time
	// ending is when TERM came, stop when the services were told: in between
	// last runs, which stops VMs.
	ending, stop time.Time
	last         *service
}

// stopVMs is what the unit hanok-host-shutdown.service does before anything else
// stops.
var stopVMs = []string{"hanok", "host", "stop-vms", "--force", "--timeout", "10m"}

// lastLimit is longer than stopVMs takes by itself.
const lastLimit = 11 * time.Minute

func newServices() *services {
	bin := func(name string) string { return filepath.Join(layout.HostBin, name) }
	s := &services{boot: time.Now(), last: &service{name: "host-shutdown", argv: append([]string{bin(stopVMs[0])}, stopVMs[1:]...)}}
	configured := func(binary string) func() bool {
		return func() bool { return !exists(layout.HoldFile) && exists(binary) && exists(paths.ClusterFile) }
	}
	guard, agent := configured(bin("hanok-guard")), configured(bin("hanok"))
	s.list = []*service{
		{name: "guard", argv: []string{bin("hanok-guard"), "run"}, fifo: guardFIFO, oom: oomNever, restart: tick, ready: guard},
		{name: "libvirtd", argv: []string{"/usr/sbin/libvirtd"}, restart: time.Second, ready: func() bool {
			if exists(layout.HoldFile) {
				return false
			}
			return !guard() || exists(paths.GuardSocket) || time.Since(s.boot) > guardWait
		}},
		{name: "agent", argv: []string{bin("hanok"), "agent"}, nice: agentNice, oom: oomNever, restart: tick, ready: agent},
	}
	return s
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// run starts the services, restarts those that die, reaps orphans, and returns
// after SIGTERM when all services have ended.
func (s *services) run(signals <-chan os.Signal) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		s.startDue()
		select {
		case sig := <-signals:
			if sig == unix.SIGTERM && s.ending.IsZero() {
				s.ending = time.Now()
				s.beginLast()
			}
		case <-ticker.C:
		}
		s.reap()
		if !s.ending.IsZero() && s.stop.IsZero() && (s.last.pid == 0 || time.Since(s.ending) > lastLimit) {
			s.stop = time.Now()
			s.signalAll(unix.SIGTERM)
		}
		if !s.stop.IsZero() {
			if time.Since(s.stop) > stopGrace {
				s.signalAll(unix.SIGKILL)
			}
			if !s.anyRunning() {
				return
			}
		}
	}
}

// beginLast stops the VMs in order, while everything that this takes runs; a
// host that is not set up has none.
func (s *services) beginLast() {
	if exists(layout.HoldFile) || !exists(paths.AgentSocket) {
		return
	}
	if err := s.last.start(); err != nil {
		fmt.Fprintf(os.Stderr, "init: stop the VMs: %v\n", err)
	}
}

func (s *services) startDue() {
	if !s.stop.IsZero() {
		return
	}
	if exists(layout.HoldFile) {
		s.boot = time.Now()
	}
	for _, v := range s.list {
		if v.pid != 0 || time.Now().Before(v.after) || !v.ready() {
			continue
		}
		if err := v.start(); err != nil {
			fmt.Fprintf(os.Stderr, "init: start %s: %v\n", v.name, err)
			v.after = time.Now().Add(time.Second)
		}
	}
}

func (s *services) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return
		}
		for _, v := range append(s.list[:len(s.list):len(s.list)], s.last) {
			if v.pid == pid {
				v.pid, v.after = 0, time.Now().Add(v.restart)
				_ = os.Remove(v.pidFile())
				fmt.Fprintf(os.Stderr, "init: %s (pid %d) ended: %s\n", v.name, pid, describe(status))
			}
		}
	}
}

func describe(w unix.WaitStatus) string {
	if w.Signaled() {
		return "signal " + w.Signal().String()
	}
	return "exit status " + strconv.Itoa(w.ExitStatus())
}

func (s *services) signalAll(sig unix.Signal) {
	for _, v := range s.list {
		if v.pid != 0 {
			_ = unix.Kill(v.pid, sig)
		}
	}
}

func (s *services) anyRunning() bool {
	for _, v := range s.list {
		if v.pid != 0 {
			return true
		}
	}
	return false
}

func (v *service) pidFile() string { return filepath.Join(layout.HostRun, v.name+".pid") }

// start executes the service with its priorities already set, so that every
// one of its threads has them from the first instruction.
func (v *service) start() error {
	log, err := os.OpenFile(filepath.Join(logDir, v.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if v.fifo > 0 {
		if err := schedule(unix.SCHED_FIFO, v.fifo); err != nil {
			fmt.Fprintf(log, "init: no real-time priority: %v\n", err)
		}
	}
	if v.nice != 0 {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, v.nice)
	}
	v.pid, err = syscall.ForkExec(v.argv[0], v.argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if v.fifo > 0 {
		_ = schedule(unix.SCHED_NORMAL, 0)
	}
	if v.nice != 0 {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	}
	if err != nil {
		v.pid = 0
		return err
	}
	if v.nice != 0 {
		// Where the kernel schedules by session, a nice value counts only
		// within it; under systemd the unit's weight has this effect.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", v.pid), []byte(strconv.Itoa(v.nice)), 0)
	}
	if v.oom != 0 {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", v.pid), []byte(strconv.Itoa(v.oom)), 0)
	}
	return os.WriteFile(v.pidFile(), []byte(strconv.Itoa(v.pid)+"\n"), 0o644)
}

// schedule sets the policy of the calling thread.
func schedule(policy, priority int) error {
	param := struct{ priority int32 }{int32(priority)}
	if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&param))); errno != 0 {
		return errno
	}
	return nil
}
