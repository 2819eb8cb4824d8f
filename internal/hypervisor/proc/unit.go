package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// unit is the cgroup of one VM.
type unit struct {
	vm     model.VMID
	dir    string
	own    bool // below our own parent, not libvirt's scope
	events int  // open cgroup.events, watched by epoll

	populated bool // as last reported
	freeze    *pendingFreeze
}

// pendingFreeze is a freeze that was ordered and whose state is watched.
type pendingFreeze struct {
	op       uint64
	started  time.Duration
	reported uint8 // 1 + lease.Frozen as last reported, 0 for none
}

// openUnit makes the directory if it is ours and opens its events.
func openUnit(vm model.VMID, dir string, own bool) (*unit, error) {
	if own {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make cgroup of %s: %w", vm, err)
		}
	}
	fd, err := unix.Open(filepath.Join(dir, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("watch cgroup %s: %w", dir, err)
	}
	return &unit{vm: vm, dir: dir, own: own, events: fd}, nil
}

func (u *unit) write(file, value string) error {
	fd, err := unix.Open(filepath.Join(u.dir, file), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s of %s: %w", file, u.vm, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("write %s to %s of %s: %w", value, file, u.vm, err)
	}
	return nil
}

func (u *unit) read(file string) (string, error) {
	data, err := readLimited(filepath.Join(u.dir, file), 1<<20)
	return strings.TrimSpace(string(data)), err
}

// state reads cgroup.events.
func (u *unit) state() (populated, frozen bool, err error) {
	var buf [256]byte
	n, err := unix.Pread(u.events, buf[:], 0)
	if err != nil {
		return false, false, fmt.Errorf("read cgroup.events of %s: %w", u.vm, err)
	}
	for _, line := range strings.Split(string(buf[:n]), "\n") {
		switch line {
		case "populated 1":
			populated = true
		case "frozen 1":
			frozen = true
		}
	}
	return populated, frozen, nil
}

// ordered reports whether the unit is ordered to be frozen.
func (u *unit) ordered() bool {
	s, err := u.read("cgroup.freeze")
	return err == nil && s == "1"
}

// add moves a process into the unit. A process that has ended is no error.
func (u *unit) add(pid int) error {
	err := u.write("cgroup.procs", strconv.Itoa(pid))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// holds reports whether a process is in the unit or below it.
func (u *unit) holds(cgroup string, root string) bool {
	rel, err := filepath.Rel(root, u.dir)
	if err != nil {
		return false
	}
	want := "/" + rel
	return cgroup == want || strings.HasPrefix(cgroup, want+"/")
}

// threads counts the unit's threads that are runnable and those in D state.
func (u *unit) threads(procDir string) (runnable, blocked int) {
	dirs := []string{""}
	for len(dirs) > 0 {
		d := dirs[0]
		dirs = dirs[1:]
		data, err := readLimited(filepath.Join(u.dir, d, "cgroup.threads"), 1<<20)
		if err != nil {
			runnable++ // unknown: not confirmed
			return runnable, blocked
		}
		for _, tid := range strings.Fields(string(data)) {
			stat, err := readLimited(filepath.Join(procDir, tid, "stat"), 4096)
			if err != nil {
				continue
			}
			i := strings.LastIndexByte(string(stat), ')')
			if i < 0 || i+2 >= len(stat) {
				continue
			}
			switch stat[i+2] {
			case 'R':
				runnable++
			case 'D':
				blocked++
			}
		}
		if entries, err := os.ReadDir(filepath.Join(u.dir, d)); err == nil {
			for _, e := range entries {
				if e.IsDir() {
					dirs = append(dirs, filepath.Join(d, e.Name()))
				}
			}
		}
	}
	return runnable, blocked
}

func (u *unit) close() { _ = unix.Close(u.events) }

// cgroupOf reads a process's place in cgroup v2, such as "/hanok/<uuid>".
func cgroupOf(procDir string, pid int) (string, error) {
	data, err := readLimited(filepath.Join(procDir, strconv.Itoa(pid), "cgroup"), 64<<10)
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(data), "\n") {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			return p, nil
		}
	}
	return "", fmt.Errorf("process %d has no place in cgroup v2", pid)
}

// scopeOf returns the part of a cgroup path that is a scope which libvirt made
// for one VM alone, or "".
func scopeOf(cgroup string) string {
	parts := strings.Split(cgroup, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "machine-qemu") && strings.HasSuffix(p, ".scope") {
			return strings.Join(parts[:i+1], "/")
		}
	}
	return ""
}
