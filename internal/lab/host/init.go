package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/layout"
)

// The descriptors that Start hands to PID 1.
const (
	specFD   = 3
	statusFD = 4
)

// stageEnv tells the second image of PID 1 from the first.
const stageEnv = "HANOK_LAB_STAGE"

// Init runs as PID 1 of a host and returns when the host is shut down in
// order. A namespace of cgroups can only be entered from inside the cgroup,
// and only by one thread, so the first image enters it and executes the same
// binary again.
func Init() error {
	if os.Getpid() != 1 {
		return errors.New("host-init is the first process of a lab host; use `hanok lab up`")
	}
	if os.Getenv(stageEnv) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return report(fmt.Errorf("enter a cgroup namespace: %w", err))
		}
		// The supervisor's own priority is not the host's.
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 0); err != nil {
			return report(fmt.Errorf("reset the priority: %w", err))
		}
		return report(unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), stageEnv+"=2")))
	}
	os.Unsetenv(stageEnv)
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(statusFD)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	status := os.NewFile(statusFD, "status")
	if _, err := status.WriteString(waiting + "\n"); err != nil {
		return err
	}
	var spec Spec
	in := os.NewFile(specFD, "spec")
	err := json.NewDecoder(in).Decode(&spec)
	in.Close()
	if err != nil {
		return report(fmt.Errorf("read what this host is: %w", err))
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return report(err)
	}
	if err := buildRoot(spec); err != nil {
		return report(err)
	}
	if err := os.MkdirAll(layout.HostRun, 0o755); err != nil {
		return report(err)
	}
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return report(err)
	}
	if spec.packaged() {
		return report(becomeSystemd(func() error { _, err := status.WriteString(ready + "\n"); return err }))
	}
	os.Setenv("PATH", layout.HostBin+":"+os.Getenv("PATH"))
	if _, err := status.WriteString(ready + "\n"); err != nil {
		return err
	}
	status.Close()
	newServices().run(signals)
	return nil
}

func report(err error) error {
	if err != nil {
		fmt.Fprintln(os.NewFile(statusFD, "status"), err)
	}
	return err
}
