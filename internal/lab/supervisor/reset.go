package supervisor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hanok.dev/hanok/internal/lab/journal"
)

// bite is called when the watchdog expires. The host is killed first: the lab's
// own files may be on the disk that made its guard late.
func (n *node) bite(r *running) {
	reset := journal.Event{Boot: journal.Now(), Kind: journal.Reset, Host: n.name}
	reset.Detail = fmt.Sprintf("watchdog expired; %s; in the last %v this machine stood still for at most %v at a time",
		guardThreads(string(n.group)), latenessKept, n.s.machine.worst(time.Now()).Round(time.Millisecond))
	n.s.background.Go(func() {
		n.power.Lock()
		if n.current() != r {
			n.power.Unlock()
			n.s.journal.Add(reset)
			return
		}
		n.mu.Lock()
		n.resets++
		n.mu.Unlock()
		err := n.dismantle(r)
		n.power.Unlock()
		n.s.journal.Add(reset)
		n.event(journal.Power, "off: reset by its watchdog")
		if err != nil {
			n.s.log.Error("reset host", "host", n.name, "err", err)
		}
		if n.s.settings.RebootOnReset && n.s.ctx.Err() == nil {
			if err := n.on(n.s.ctx, r.watchdog == nil); err != nil {
				n.s.log.Error("boot host after its reset", "host", n.name, "err", err)
			}
		}
	})
}

// guardThreads says what the threads of a host's guard do: which wait in the
// kernel for what. A guard that was held up by a disk shows it there.
func guardThreads(group string) string {
	pid := 0
	_ = filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
		if err != nil || pid != 0 || d.Name() != "cgroup.procs" {
			return nil // what vanishes meanwhile is of no interest
		}
		data, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(data)) {
			if comm, _ := os.ReadFile("/proc/" + f + "/comm"); strings.TrimSpace(string(comm)) == "hanok-guard" {
				pid, _ = strconv.Atoi(f)
			}
		}
		return nil
	})
	if pid == 0 {
		return "no guard ran"
	}
	count := map[string]int{}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, t := range tasks {
		stat, _ := os.ReadFile(t + "/stat")
		_, after, _ := strings.Cut(string(stat), ") ")
		wchan, _ := os.ReadFile(t + "/wchan")
		state := after[:min(1, len(after))]
		if w := strings.TrimSpace(string(wchan)); w != "" && w != "0" {
			state += " in " + w
		}
		count[state]++
	}
	var out []string
	for _, s := range slices.Sorted(maps.Keys(count)) {
		out = append(out, fmt.Sprintf("%d %s", count[s], s))
	}
	return "threads of the guard: " + strings.Join(out, ", ")
}

const (
	latenessTick = 50 * time.Millisecond
	latenessKept = 10 * time.Second
)

// lateness remembers how late the supervisor itself woke up of late. It has a
// high priority: when it is late the whole machine stood still.
type lateness struct {
	mu   sync.Mutex
	last time.Time // it woke up
	late []wake
}

type wake struct {
	at   time.Time
	late time.Duration
}

// watch runs until ctx ends.
func (l *lateness) watch(ctx context.Context) {
	tick := time.NewTicker(latenessTick)
	defer tick.Stop()
	l.note(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.note(time.Now())
		}
	}
}

// note takes in that the supervisor woke up.
func (l *lateness) note(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if late := now.Sub(l.last) - latenessTick; !l.last.IsZero() && late > latenessTick {
		l.late = append(l.late, wake{now, late})
	}
	l.last = now
	l.late = slices.DeleteFunc(l.late, func(w wake) bool { return now.Sub(w.at) > latenessKept })
}

// worst is the longest that the machine stood still lately; what goes on counts.
func (l *lateness) worst(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		return 0
	}
	worst := max(now.Sub(l.last)-latenessTick, 0)
	for _, w := range l.late {
		worst = max(worst, w.late)
	}
	return worst
}
