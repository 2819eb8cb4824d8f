package guard

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/resident"
)

// The guard is to fit in 40 MiB; the collector works harder near this limit.
const (
	memoryLimit = 24 << 20
	gcPercent   = 50
)

// protectProcess keeps the guard running when the host is short of memory or
// processor time, and says what could not be done.
func protectProcess(runDir string) (warnings []string) {
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		warnings = append(warnings, fmt.Sprintf("the guard is not protected from the OOM killer: %v", err))
	}
	if err := resident.Lock(); err != nil {
		warnings = append(warnings, fmt.Sprintf("the guard is not all in memory: %v", err))
	}
	if why := notInMemory(runDir); why != "" {
		warnings = append(warnings, why)
	}
	if n, err := threadsWithoutFIFO(); err != nil {
		warnings = append(warnings, fmt.Sprintf("the guard's priority is not known: %v", err))
	} else if n > 0 {
		warnings = append(warnings, fmt.Sprintf("%d threads of the guard have no real-time priority; start it through its service (SCHED_FIFO before exec)", n))
	}
	return warnings
}

// notInMemory says why what is written in dir may wait for a disk, or "".
func notInMemory(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Sprintf("it is not known whether %s is in memory: %v", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return fmt.Sprintf("%s is on a disk, and the guard waits for it before each heartbeat: make it a tmpfs", dir)
	}
	return ""
}

// threadsWithoutFIFO counts this process's threads that are not SCHED_FIFO.
// Later threads inherit it.
func threadsWithoutFIFO() (int, error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, t := range tasks {
		data, err := os.ReadFile("/proc/self/task/" + t.Name() + "/stat")
		if err != nil {
			continue // it has just ended
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		// Field 41 of the line, policy; the state, field 3, is the first here.
		if len(f) > 38 && f[38] != strconv.Itoa(unix.SCHED_FIFO) {
			n++
		}
	}
	return n, nil
}

// daemonWatch notices the end of the libvirt daemon that last ran the hook.
type daemonWatch struct {
	pid   int
	start string
}

func (d *daemonWatch) note(pid int) {
	if start := startOf(pid); start != "" {
		d.pid, d.start = pid, start
	}
}

// ended reports that the daemon is gone.
func (d *daemonWatch) ended() bool { return d.pid != 0 && startOf(d.pid) != d.start }

// startOf returns a process's start time, or "".
func startOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" {
		return ""
	}
	return f[19]
}
