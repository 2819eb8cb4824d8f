package observer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// emulator is how the file name of every QEMU system emulator begins.
const emulator = "qemu-system-"

// identify tells whether a process is an instance of a VM, and of which.
func identify(pid int) (uuid, name string, ok bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || !strings.HasPrefix(filepath.Base(exe), emulator) {
		return "", "", false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", "", false
	}
	args := bytes.Split(data, []byte{0})
	for i := 0; i+1 < len(args); i++ {
		switch string(args[i]) {
		case "-uuid":
			uuid = strings.ToLower(string(args[i+1]))
		case "-name":
			name = string(args[i+1])
			if _, after, found := strings.Cut(name, "guest="); found {
				name = after
			}
			name, _, _ = strings.Cut(name, ",")
		}
	}
	return uuid, name, uuid != ""
}

// cgroupOf returns a process's cgroup relative to the root of the unified
// hierarchy, "" if it is gone.
func cgroupOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	return ""
}

// processors looks at the threads of an instance's virtual processors: whether
// one is alive, and the longest time that one has run.
func processors(pid int) (alive bool, ran time.Duration) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false, 0
	}
	for _, t := range tasks {
		dir := filepath.Join("/proc", strconv.Itoa(pid), "task", t.Name())
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if open < 0 || end < open || end+2 >= len(stat) || !bytes.HasPrefix(stat[open+1:], []byte("CPU ")) {
			continue
		}
		if state := stat[end+2]; state == 'Z' || state == 'X' {
			continue
		}
		alive = true
		if data, err := os.ReadFile(filepath.Join(dir, "schedstat")); err == nil {
			first, _, _ := strings.Cut(string(data), " ")
			if ns, err := strconv.ParseInt(first, 10, 64); err == nil {
				ran = max(ran, time.Duration(ns))
			}
		}
	}
	return alive, ran
}

// started tells whether the process still exists at all.
func exists(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}
