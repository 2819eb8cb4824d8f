package hook_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/guard/hook"
	"hanok.dev/hanok/internal/lease"
)

// script installs the hook for a guard binary that does what body says.
func script(t *testing.T, body string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "it's a guard")
	if body != "" {
		if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "hooks", "qemu.d", "50-hanok")
	if err := hook.Install(path, binary); err != nil {
		t.Fatal(err)
	}
	return path
}

func call(t *testing.T, path string, args ...string) (status int, stderr string) {
	t.Helper()
	c := exec.Command(path, args...)
	c.Stdin = strings.NewReader("<domain/>")
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Run(); err != nil && c.ProcessState == nil {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), errs.String()
}

// TestScript: whatever became of the guard's binary, operations that may start
// a VM are refused and all others succeed: libvirt destroys the running VM
// whose reconnect hook fails.
func TestScript(t *testing.T) {
	closed := []string{"prepare", "start", "restore", "migrate", "attach"}
	open := []string{"reconnect", "started", "stopped", "release", "something-new"}
	for _, op := range append(closed, open...) {
		if want := slices.Contains(closed, op); lease.FailsClosed(op) != want {
			t.Errorf("the guard fails closed for %s: %v", op, !want)
		}
	}
	for name, body := range map[string]string{"missing": "", "crashes": "exit 2", "killed": "kill -9 $$", "answers": `test "$1 $2 $4" = "hook web begin" && exit 0; exit 1`} {
		t.Run(name, func(t *testing.T) {
			path := script(t, body)
			for _, op := range closed {
				if status, stderr := call(t, path, "web", op, "begin", "-"); (status == 0) != (name == "answers") {
					t.Errorf("%s exits with %d: %s", op, status, stderr)
				}
			}
			for _, op := range open {
				if status, stderr := call(t, path, "web", op, "begin", "-"); status != 0 {
					t.Errorf("%s exits with %d: %s", op, status, stderr)
				}
			}
		})
	}
	t.Run("reconnect asks nobody", func(t *testing.T) {
		mark := filepath.Join(t.TempDir(), "asked")
		path := script(t, "echo $HANOK_LIBVIRTD > "+mark)
		if status, _ := call(t, path, "web", "reconnect", "begin", "-"); status != 0 {
			t.Errorf("reconnect exits with %d", status)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("the guard's binary ran for reconnect")
		}
		if call(t, path, "web", "release", "end", "-"); !exists(mark) {
			t.Error("the guard was not told of a release")
		}
		if daemon, _ := os.ReadFile(mark); strings.TrimSpace(string(daemon)) != strconv.Itoa(os.Getpid()) {
			t.Errorf("the guard was told that process %s asks, want the one that ran the script, %d", daemon, os.Getpid())
		}
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
