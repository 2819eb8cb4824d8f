// Placement measures the placement library on generated clusters: plans of
// restarts, single placements, failure checks and rule checks, each against its
// target; and, if crm_simulate is installed, the same restarts by Pacemaker's
// scheduler, side by side.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	runs := flag.Int("runs", 9, "runs of each task; the median counts")
	peerRuns := flag.Int("peer-runs", 1, "runs of each task by crm_simulate, 0 for none; the balanced ones take minutes")
	one := flag.Int("task", -1, "measure this task only and print it as JSON (what the program calls itself with)")
	flag.Parse()
	if *one >= 0 {
		os.Exit(single(*one, *runs))
	}
	if err := all(*runs, *peerRuns); err != nil {
		fmt.Fprintln(os.Stderr, "bench-placement:", err)
		os.Exit(1)
	}
}

func single(i, runs int) int {
	if i >= len(tasks) {
		fmt.Fprintln(os.Stderr, "no such task")
		return 2
	}
	out, err := tasks[i].measure(runs)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func all(runs, peerRuns int) error {
	fmt.Printf("machine: %s, %d processors, %s, load %s\n\n", processor(), runtime.NumCPU(), runtime.Version(), load())
	fmt.Printf("| task | runs | median | best | worst | target | memory | |\n|---|---|---|---|---|---|---|---|\n")
	var missed []string
	for i, t := range tasks {
		out, memory, err := child(i, runs)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		slices.Sort(out.Seconds)
		median := out.Seconds[len(out.Seconds)/2]
		fmt.Printf("| %s | %d | **%s** | %s | %s | %s | %.0f MiB | %s |\n", t.name, len(out.Seconds), show(median), show(out.Seconds[0]),
			show(out.Seconds[len(out.Seconds)-1]), target(t), memory, out.Note)
		if t.target > 0 && median > t.target.Seconds() || t.memory > 0 && memory > t.memory {
			missed = append(missed, t.name)
		}
	}
	if err := peer(peerRuns); err != nil {
		return err
	}
	fmt.Printf("\nload at the end: %s\n", load())
	if len(missed) > 0 {
		return errors.New("targets missed: " + strings.Join(missed, "; "))
	}
	return nil
}

// child measures one task in a process of its own.
func child(i, runs int) (outcome, float64, error) {
	self, err := os.Executable()
	if err != nil {
		return outcome{}, 0, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(self, "-task", strconv.Itoa(i), "-runs", strconv.Itoa(runs))
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return outcome{}, 0, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var out outcome
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		return outcome{}, 0, err
	}
	usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return out, float64(usage.Maxrss) / 1024, nil
}

// peer lets Pacemaker's scheduler plan the restarts.
func peer(runs int) error {
	const program = "crm_simulate"
	if runs <= 0 {
		return nil
	}
	if _, err := exec.LookPath(program); err != nil {
		fmt.Printf("\n%s is not installed (package pacemaker-cli-utils): no figures of the peer\n", program)
		return nil
	}
	version, _ := exec.Command(program, "--version").Output()
	line, _, _ := strings.Cut(string(version), "\n")
	dir, err := os.MkdirTemp("", "bench-placement")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("\n%s (%s) on the same clusters, one host lost; processor seconds of the whole process, that of reading its XML included.\n\n", program, line)
	fmt.Printf("| cluster | strategy | runs | median, host lost | nothing lost |\n|---|---|---|---|---|\n")
	for _, size := range [][2]int{{64, 2000}, {100, 4000}} {
		c, gone, err := losing(size[0], size[1], 1)
		if err != nil {
			return err
		}
		for _, strategy := range []string{"default", "balanced"} {
			failed, err := simulate(program, filepath.Join(dir, "fail.xml"), c, strategy, gone, runs)
			if err != nil {
				return err
			}
			steady, err := simulate(program, filepath.Join(dir, "steady.xml"), c, strategy, nil, 1)
			if err != nil {
				return err
			}
			fmt.Printf("| %d x %d | %s | %d | %s | %s |\n", size[0], size[1], strategy, runs, show(failed), show(steady))
		}
	}
	return nil
}

// simulate is the median of the processor time that the peer takes.
func simulate(program, path string, c *cluster, strategy string, gone map[int]bool, runs int) (float64, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	err = c.writeCIB(f, strategy, gone)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	var seconds []float64
	for range runs {
		cmd := exec.Command(program, "-R", "-x", path)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%s: %w: %.500s", program, err, out.String())
		}
		starts := strings.Count(out.String(), "(ocf:heartbeat:VirtualDomain):\t Started")
		moves := strings.Count(out.String(), " * Recover ") + strings.Count(out.String(), " * Start ") + strings.Count(out.String(), " * Move ")
		if starts == 0 || len(gone) > 0 && moves < len(c.on(gone)) {
			return 0, fmt.Errorf("%s plans %d restarts of %d VMs, %d run: it did not understand its input", program, moves, len(c.on(gone)), starts)
		}
		seconds = append(seconds, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
	}
	slices.Sort(seconds)
	return seconds[len(seconds)/2], nil
}

func target(t task) string {
	if t.target == 0 {
		return "–"
	}
	return show(t.target.Seconds())
}

func show(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return fmt.Sprintf("%.3g µs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.3g ms", seconds*1e3)
	}
	return (time.Duration(seconds*100) * time.Second / 100).String()
}

func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(data))
	if len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}
