package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// Processes become QEMU by exec some time after they appear, so a young one is
// looked at in every scan and an old one now and then.
const (
	youngFor    = 30 * time.Second
	recheckOld  = 10 * time.Second
	maxCmdline  = 256 << 10
	maxMounts   = 1 << 20
	maxPidFiles = 4096
)

// CgroupRoot finds where cgroup v2 is mounted, from /proc/self/mountinfo.
func CgroupRoot() (string, error) {
	data, err := readLimited("/proc/self/mountinfo", maxMounts)
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		head, tail, ok := strings.Cut(line, " - ")
		f := strings.Fields(head)
		if ok && strings.HasPrefix(tail, "cgroup2 ") && len(f) >= 5 {
			return f[4], nil
		}
	}
	return "", fmt.Errorf("find cgroup v2: it is not mounted; mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), VMs cannot be frozen without it")
}

// readLimited reads a small file. It does not use os.Open, which offers every
// file to the poller: system calls that cost more than the read, for files that
// are read many times a second.
func readLimited(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n := 0
	for {
		k, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		n += max(k, 0)
		if err != nil || k == 0 {
			return buf[:n], nil // a process that ended reads as far as it got
		}
		if n == len(buf) {
			if n >= limit {
				return buf, nil
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

// listNames returns the names in a directory, at most limit if that is positive.
func listNames(path string, limit int) ([]string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	return dir.Readdirnames(limit)
}

// qemu is a QEMU process.
type qemu struct {
	pid   int
	start uint64 // start time in ticks, tells a reused pid
	vm    model.VMID
	name  string
	short string // as libvirt names its files, "<id>-<name cut short>"; "" if not known
}

type seenPid struct {
	first, checked time.Duration
	q              *qemu // nil: not QEMU
	daemon         bool  // libvirt's daemon, or its child that is to become QEMU
}

// finder lists QEMU processes and remembers what it saw.
type finder struct {
	dir  string
	seen map[int]*seenPid
	buf  []byte
	// pidFiles are libvirt's, read once after each find; nil: not yet.
	pidFiles []string
}

func newFinder(dir string) *finder {
	return &finder{dir: dir, seen: map[int]*seenPid{}, buf: make([]byte, 4096)}
}

// find returns all QEMU processes. Processes that exist all the time during
// the call are not missed.
func (f *finder) find(now time.Duration) ([]*qemu, error) {
	f.pidFiles = nil
	names, err := listNames(f.dir, -1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []*qemu
	alive := make(map[int]bool, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		alive[pid] = true
		if q := f.look(pid, now); q != nil {
			out = append(out, q)
		}
	}
	for pid := range f.seen {
		if !alive[pid] {
			delete(f.seen, pid)
		}
	}
	return out, nil
}

func (f *finder) look(pid int, now time.Duration) *qemu {
	s := f.seen[pid]
	if s == nil {
		s = &seenPid{first: now}
		f.seen[pid] = s
	}
	switch {
	case s.q != nil:
		if start, ok := f.startTime(pid); ok && start == s.q.start {
			return s.q
		}
		*s = seenPid{first: now} // the pid was reused
	case s.checked != 0 && !s.daemon && now-s.first > youngFor && now-s.checked < recheckOld:
		return nil
	}
	s.checked = now
	s.q, s.daemon = f.identify(pid)
	return s.q
}

// identify reads a process's command line. daemon: it is not QEMU, but libvirt,
// whose child becomes QEMU when the storage lets it.
func (f *finder) identify(pid int) (q *qemu, daemon bool) {
	path := filepath.Join(f.dir, strconv.Itoa(pid), "cmdline")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	n, err := unix.Read(fd, f.buf)
	_ = unix.Close(fd)
	if err != nil || n <= 0 {
		return nil, false
	}
	first, _, _ := bytes.Cut(f.buf[:n], []byte{0})
	if !isQEMU(string(first)) {
		base := filepath.Base(string(first))
		return nil, base == "libvirtd" || base == "virtqemud"
	}
	start, ok := f.startTime(pid)
	if !ok {
		return nil, false
	}
	all, err := readLimited(path, maxCmdline)
	if err != nil {
		return nil, false
	}
	args := strings.Split(strings.TrimSuffix(string(all), "\x00"), "\x00")
	q = &qemu{pid: pid, start: start, short: shortName(args)}
	q.vm, q.name = parseCmdline(args)
	if q.vm == "" {
		q.vm = model.VMID(fmt.Sprintf("pid-%d", pid))
	}
	return q, false
}

// isQEMU reports whether argv[0] is an emulator of whole machines.
func isQEMU(arg0 string) bool {
	base := filepath.Base(arg0)
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm"
}

// parseCmdline finds -uuid and the guest's name as libvirt writes them.
func parseCmdline(args []string) (vm model.VMID, name string) {
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "-uuid", "--uuid":
			if id := model.VMID(strings.ToLower(args[i+1])); id.Validate() == nil {
				vm = id
			}
		case "-name", "--name":
			for j, part := range strings.Split(args[i+1], ",") {
				if v, ok := strings.CutPrefix(part, "guest="); ok {
					name = v
				} else if j == 0 && !strings.Contains(part, "=") {
					name = part
				}
			}
		}
	}
	return vm, name
}

// shortName finds the name of the VM's directory in libvirt's state, without
// its "domain-". libvirt builds the names of pid files from the same.
func shortName(args []string) string {
	for _, a := range args {
		if _, tail, ok := strings.Cut(a, "/domain-"); ok {
			short, _, ok := strings.Cut(tail, "/")
			if id, _, hasName := strings.Cut(short, "-"); ok && hasName {
				if _, err := strconv.Atoi(id); err == nil {
					return short
				}
			}
		}
	}
	return ""
}

// helperFile reports whether the pid file is one of a helper of the VM.
func (q *qemu) helperFile(file string) bool {
	base, ok := strings.CutSuffix(file, ".pid")
	if q.short != "" {
		return ok && strings.HasPrefix(base, q.short+"-")
	}
	id, rest, hasName := strings.Cut(base, "-")
	_, err := strconv.Atoi(id)
	return ok && hasName && err == nil && strings.HasPrefix(rest, q.name+"-")
}

// startTime reads field 22 of /proc/PID/stat. ok is false if the process is
// gone or a zombie.
func (f *finder) startTime(pid int) (ticks uint64, ok bool) {
	fields := f.stat(pid)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	return ticks, err == nil
}

// stat returns the fields of /proc/PID/stat after the command's name: state,
// parent, ...
func (f *finder) stat(pid int) []string {
	data, err := readLimited(filepath.Join(f.dir, strconv.Itoa(pid), "stat"), 4096)
	if err != nil {
		return nil
	}
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return nil
	}
	return strings.Fields(string(data[i+1:]))
}

// disks returns the paths that a process holds open.
func (f *finder) disks(pid int) []string {
	dir := filepath.Join(f.dir, strconv.Itoa(pid), "fd")
	names, _ := listNames(dir, -1)
	var out []string
	for _, n := range names {
		if target, err := os.Readlink(filepath.Join(dir, n)); err == nil && strings.HasPrefix(target, "/") {
			out = append(out, target)
		}
	}
	return out
}

// helpers returns the processes beside QEMU that work for a VM: children of
// QEMU, and those that libvirt started for it and keeps pid files of
// (<id>-<name cut short>-<what>.pid: virtiofsd, swtpm and others).
func (f *finder) helpers(q *qemu, libvirtRun string) []int {
	var out []int
	if data, err := readLimited(fmt.Sprintf("%s/%d/task/%d/children", f.dir, q.pid, q.pid), 64<<10); err == nil {
		for _, s := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(s); err == nil {
				out = append(out, pid)
			}
		}
	}
	if q.name == "" {
		return out
	}
	if f.pidFiles == nil {
		names, _ := listNames(libvirtRun, maxPidFiles) // what could be read counts
		f.pidFiles = slices.DeleteFunc(append([]string{}, names...), func(n string) bool { return !strings.HasSuffix(n, ".pid") })
	}
	for _, n := range f.pidFiles {
		if !q.helperFile(n) {
			continue
		}
		data, err := readLimited(filepath.Join(libvirtRun, n), 64)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && pid > 1 {
			out = append(out, pid)
		}
	}
	return out
}
