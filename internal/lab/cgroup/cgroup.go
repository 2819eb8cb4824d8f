// Package cgroup creates, freezes, kills and removes cgroups of the unified
// hierarchy.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the directory of a cgroup.
type Group string

// Mount returns where the machine has mounted the unified hierarchy.
func Mount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted; mount it with `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`")
}

// At returns the group at a path relative to the mount of the unified
// hierarchy.
func At(relative string) (Group, error) {
	mount, err := Mount()
	if err != nil {
		return "", err
	}
	return Group(filepath.Join(mount, relative)), nil
}

// Create makes the group and its parents; an existing one is no error.
func (g Group) Create() error { return os.MkdirAll(string(g), 0o755) }

// Exists tells whether the group exists.
func (g Group) Exists() bool {
	_, err := os.Stat(string(g))
	return err == nil
}

// Add moves a process into the group.
func (g Group) Add(pid int) error { return g.write("cgroup.procs", strconv.Itoa(pid)) }

// Kill sends SIGKILL to every process in the group and below, as one step
// that no fork escapes.
func (g Group) Kill() error { return g.write("cgroup.kill", "1") }

// Freeze freezes or thaws the group and all below. It does not wait.
func (g Group) Freeze(on bool) error {
	if on {
		return g.write("cgroup.freeze", "1")
	}
	return g.write("cgroup.freeze", "0")
}

func (g Group) write(file, value string) error {
	return os.WriteFile(filepath.Join(string(g), file), []byte(value), 0)
}

// State is what cgroup.events says.
type State struct {
	// Populated: a live process is in the group or below.
	Populated bool
	// Frozen: no process of the group or below can run.
	Frozen bool
}

// State reads cgroup.events.
func (g Group) State() (State, error) {
	data, err := os.ReadFile(filepath.Join(string(g), "cgroup.events"))
	if err != nil {
		return State{}, err
	}
	var s State
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "populated":
			s.Populated = value == "1"
		case "frozen":
			s.Frozen = value == "1"
		}
	}
	return s, nil
}

// Wait returns when the state satisfies ok. A group that vanished counts as
// unpopulated.
func (g Group) Wait(ctx context.Context, what string, ok func(State) bool) error {
	f, err := os.Open(filepath.Join(string(g), "cgroup.events"))
	if errors.Is(err, os.ErrNotExist) && ok(State{}) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		s, err := g.State()
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		if ok(s) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("cgroup %s: not %s: %w", g, what, ctx.Err())
		}
		// The kernel signals changes as priority events; the time-out only
		// lets the context be seen.
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int((20 * time.Millisecond).Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// WaitEmpty returns when no live process is left.
func (g Group) WaitEmpty(ctx context.Context) error {
	return g.Wait(ctx, "empty", func(s State) bool { return !s.Populated })
}

// WaitFrozen returns when everything in the group is frozen.
func (g Group) WaitFrozen(ctx context.Context) error {
	return g.Wait(ctx, "frozen", func(s State) bool { return s.Frozen })
}

// Remove removes the empty group and all below it. A missing group is no
// error.
func (g Group) Remove() error {
	entries, err := os.ReadDir(string(g))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := Group(filepath.Join(string(g), e.Name())).Remove(); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(string(g)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", g, err)
	}
	return nil
}
