// Package lab_test proves Hanok on real hosts: namespaces with their own
// libvirtd, real QEMU guests, real files and sockets, in real time. An observer
// outside the hosts watches throughout; a VM that ran twice, or a disk that
// shows two writers, fails the test in which it happened.
//
// Needs root and the packages of scripts/install-deps.sh, and fails without.
package lab_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
)

// labName keeps the tests' lab apart from one that a person has up.
const labName = "test"

// limits of the whole lab; single steps have their own.
const (
	upLimit     = 5 * time.Minute
	settleLimit = 90 * time.Second
)

var (
	theLab drill.Drill
	upErr  error
)

// TestMain brings one lab up for all tests: they leave it settled, each for the
// next.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == floodFlag {
		if err := floodMain(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 4 && os.Args[1] == probeFlag {
		if err := probeMain(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	binary, err := filepath.Abs("../../bin/hanok")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := os.Stat(binary); err != nil {
		fmt.Fprintln(os.Stderr, "the lab tests need the binaries: run `make build` first:", err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), upLimit)
	defer cancel()
	say := func(s string) { fmt.Println("lab:", s) }
	if err := lab.Down(ctx, labName, nil); err != nil { // of an earlier run that was killed
		fmt.Fprintln(os.Stderr, "removing an old lab:", err)
		return 1
	}
	client, err := lab.Up(ctx, lab.Options{Name: labName, Binary: binary, Progress: say})
	theLab, upErr = drill.Drill{Client: client}, err
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "lab up:", err)
		dumpLogs(client)
	}
	if os.Getenv("HANOK_KEEP_LAB") != "" {
		return code
	}
	if err := lab.Down(context.Background(), labName, nil); err != nil {
		fmt.Fprintln(os.Stderr, "lab down:", err)
		return 1
	}
	return code
}

// dumpLogs prints the ends of all hosts' logs and of what happened to the hosts:
// the lab is gone afterwards.
func dumpLogs(c *lab.Client) {
	if c == nil {
		return
	}
	files, _ := filepath.Glob(filepath.Join(c.Layout().DataDir(), "hosts", "*", "var", "log", "hanok", "*.log"))
	files = append(files, c.Layout().EventLog())
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		const most = 6000
		if len(data) > most {
			data = data[len(data)-most:]
		}
		fmt.Printf("---- %s\n%s\n", f, data)
	}
}
