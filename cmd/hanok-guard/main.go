// Command hanok-guard keeps this host's leases and VM locks, freezes or kills
// VMs that lost theirs, and feeds the watchdog. It also is the libvirt hook.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hanok.dev/hanok/internal/guard"
	"hanok.dev/hanok/internal/guard/hook"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/logging"
	"hanok.dev/hanok/internal/paths"
)

const usage = `hanok-guard run           guard this host until told to stop; --log auto|journal|syslog|stderr
hanok-guard status        show the guard's view as JSON
hanok-guard may-stop      wait until the guard may be stopped for good, at most 30 s
hanok-guard hook ARGS     answer libvirt's hook; the domain's XML is on standard input
hanok-guard install-hook [BINARY]  install the libvirt hook script
`

// statusLimit is how long status waits for the guard.
const statusLimit = 3 * time.Second

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "run":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		target, ok := logTarget(args[1:])
		if !ok {
			fmt.Fprint(os.Stderr, usage)
			return 2
		}
		log, flush, err := logging.New(target, "guard", os.Stderr)
		if err != nil {
			return report(err)
		}
		defer flush()
		opts := guard.DefaultOptions()
		opts.Log = log
		return report(guard.Run(ctx, opts))
	case "status":
		return report(status())
	case "may-stop":
		return report(mayStop())
	case "hook":
		daemon, _ := strconv.Atoi(os.Getenv(hook.DaemonVariable)) // 0: unknown, the canary proves nothing
		return hook.Run(args[1:], os.Stdin, os.Stderr,
			hook.Options{Socket: paths.GuardSocket, ManagedFile: paths.ManagedFile, Daemon: daemon})
	case "install-hook":
		var binary string
		var err error
		if len(args) == 2 { // where there is no /proc, as in the making of an image
			binary = args[1]
		} else {
			binary, err = os.Executable()
		}
		if err == nil {
			err = hook.Install(paths.Hook, binary)
		}
		return report(err)
	case "help", "-h", "--help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}

// logTarget reads run's only flag.
func logTarget(args []string) (logging.Target, bool) {
	switch {
	case len(args) == 0:
		return logging.Auto, true
	case len(args) == 2 && args[0] == "--log":
		return logging.Target(args[1]), true
	case len(args) == 1:
		t, ok := strings.CutPrefix(args[0], "--log=")
		return logging.Target(t), ok
	}
	return "", false
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "hanok-guard:", err)
		return 1
	}
	return 0
}

// mayStopLimit is how long may-stop waits, mayStopPoll how often it asks.
const (
	mayStopLimit = 30 * time.Second
	mayStopPoll  = 500 * time.Millisecond
)

// mayStop is for the removal of the package: it succeeds when the guard would
// disarm the watchdog at its end.
func mayStop() error {
	for limit := time.Now().Add(mayStopLimit); ; time.Sleep(mayStopPoll) {
		s, err := ask()
		if err != nil {
			return err
		}
		if s.StopProblem == "" {
			return nil
		}
		if time.Now().After(limit) {
			return errors.New("the guard must not be stopped for good: " + s.StopProblem)
		}
	}
}

func status() error {
	s, err := ask()
	if err != nil {
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

func ask() (*lease.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	c, err := ipc.Dial(ctx, paths.GuardSocket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r, err := c.Call(ctx, lease.Request{Status: &lease.StatusRequest{}})
	if err != nil {
		return nil, err
	}
	if r.Status == nil {
		return nil, errors.New("the guard answered without its status: " + r.Text)
	}
	return r.Status, nil
}
