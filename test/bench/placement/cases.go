package main

import (
	"fmt"
	"runtime"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
	"hanok.dev/hanok/internal/snapshot"
)

// task is one figure to measure, in a process of its own so that its memory is
// its own.
type task struct {
	name   string
	target time.Duration // 0 is none
	// prepare makes what is measured; run is measured, again and again.
	prepare func() (run func() (note string, err error), err error)
	// times that run does the thing at one go.
	times int
	// memory is the most that the process may take, in MiB; 0 is not checked.
	memory float64
}

const seed = 1

// losing makes a cluster and says which hosts it loses.
func losing(hosts, vms, lost int) (*cluster, map[int]bool, error) {
	c, err := generate(hosts, vms, seed)
	if err != nil {
		return nil, nil, err
	}
	gone := map[int]bool{}
	for i := range lost {
		gone[1+i*hosts/lost] = true
	}
	return c, gone, nil
}

func restart(hosts, vms, lost int, whole bool) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		c, gone, err := losing(hosts, vms, lost)
		if err != nil {
			return nil, err
		}
		wants := c.on(gone)
		plan := func(s *placement.State) (string, error) {
			p := s.PlaceAll(wants)
			if p.Placed != len(wants) {
				return "", fmt.Errorf("%d of %d VMs have a place", p.Placed, len(wants))
			}
			return fmt.Sprintf("%d VMs placed", p.Placed), nil
		}
		if whole {
			return func() (string, error) { return plan(c.lose(gone)) }, nil
		}
		s := c.lose(gone)
		return func() (string, error) { return plan(s) }, nil
	}
}

// lose is the state after the loss.
func (c *cluster) lose(gone map[int]bool) *placement.State {
	s := c.state()
	for i := range c.hosts {
		if gone[i] {
			h, _, _ := s.Host(s.Hosts()[i].Name)
			h.Unfit = "it has failed"
			s.SetHost(h)
		}
	}
	for _, w := range c.on(gone) {
		s.Stop(w.VM)
	}
	return s
}

const placeTimes = 10_000

func placeOne(hosts, vms int) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		c, err := generate(hosts, vms, seed)
		if err != nil {
			return nil, err
		}
		s := c.state()
		return func() (string, error) {
			for i := range placeTimes {
				g := c.vms[i%len(c.vms)]
				if s.Place(placement.Want{VM: g.name, Purpose: placement.PowerOn}).Host == "" {
					return "", fmt.Errorf("no place for %s", g.name)
				}
			}
			return fmt.Sprintf("mean of %d different VMs", placeTimes), nil
		}, nil
	}
}

func survive(hosts, vms, n int) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		c, err := generate(hosts, vms, seed)
		if err != nil {
			return nil, err
		}
		s := c.state()
		return func() (string, error) {
			r := s.Survives(placement.Failures{Hosts: n})
			if r.Verdict == placement.Unknown {
				return "", fmt.Errorf("not decided: %s", r.Reason)
			}
			if r.Counted {
				return fmt.Sprintf("%s, counted", r.Verdict), nil
			}
			return fmt.Sprintf("%s, %d combinations with a witness", r.Verdict, r.Checked), nil
		}, nil
	}
}

func ruleCheck(hosts, vms, n, contradictions, failures int) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		c, err := generate(hosts, vms, seed)
		if err != nil {
			return nil, err
		}
		file := c.withRules(n-3*contradictions, contradictions, seed)
		return func() (string, error) {
			r := snapshot.Check(file, rules.Options{HostFailures: failures})
			if len(r.Undecided) > 0 || len(r.Conflicts) < contradictions {
				return "", fmt.Errorf("%d parts undecided, %d contradictions found, %d planted", len(r.Undecided), len(r.Conflicts), contradictions)
			}
			return fmt.Sprintf("%d rules, %d contradictions, %d weak after %d failures", len(file.Rules), len(r.Conflicts), len(r.Weak), failures), nil
		}, nil
	}
}

func ruleFile(hosts, vms, n int) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		c, err := generate(hosts, vms, seed)
		if err != nil {
			return nil, err
		}
		data, err := c.withRules(n, 0, seed).Marshal()
		if err != nil {
			return nil, err
		}
		return func() (string, error) {
			file, err := config.Parse(data)
			if err != nil {
				return "", err
			}
			r := snapshot.Check(file, rules.Options{})
			return fmt.Sprintf("%d KiB of YAML read and checked, %d contradictions", len(data)>>10, len(r.Conflicts)), nil
		}, nil
	}
}

var tasks = []task{
	{"restart plan, 64 hosts x 2,000 VMs, 1 lost", 20 * time.Millisecond, restart(64, 2000, 1, false), 1, 0},
	{"the same, state built anew", 20 * time.Millisecond, restart(64, 2000, 1, true), 1, 0},
	{"restart plan, 100 x 4,000, 1 lost", 50 * time.Millisecond, restart(100, 4000, 1, false), 1, 0},
	{"the same, state built anew", 50 * time.Millisecond, restart(100, 4000, 1, true), 1, 0},
	{"restart plan, 1,000 x 50,000, 10 lost", 2 * time.Second, restart(1000, 50_000, 10, false), 1, 1024},
	{"the same, state built anew", 2 * time.Second, restart(1000, 50_000, 10, true), 1, 1024},
	{"place one VM, 64 x 10,000", 20 * time.Microsecond, placeOne(64, 10_000), placeTimes, 0},
	{"failure check, 32 x 640, N=2", 100 * time.Millisecond, survive(32, 640, 2), 1, 0},
	{"failure check, 64 x 2,000, N=1", 50 * time.Millisecond, survive(64, 2000, 1), 1, 0},
	{"failure check, 64 x 2,000, N=2", 2 * time.Second, survive(64, 2000, 2), 1, 0},
	{"failure check, 1,000 x 50,000, N=1", 0, survive(1000, 50_000, 1), 1, 0},
	{"failure check, 1,000 x 50,000, N=2", 0, survive(1000, 50_000, 2), 1, 0},
	{"rule check, 10,000 VMs, 2,000 rules", 2 * time.Second, ruleCheck(100, 10_000, 2000, 0, 0), 1, 0},
	{"the same, 20 contradictions planted, N=1", 2 * time.Second, ruleCheck(100, 10_000, 2000, 20, 1), 1, 0},
	{"the same from a cluster file", 2 * time.Second, ruleFile(100, 10_000, 2000), 1, 0},
}

// outcome of a task: seconds of each run, for one thing done.
type outcome struct {
	Seconds []float64 `json:"seconds"`
	Note    string    `json:"note"`
}

func (t task) measure(runs int) (outcome, error) {
	run, err := t.prepare()
	if err != nil {
		return outcome{}, err
	}
	var out outcome
	for range runs {
		runtime.GC()
		start := time.Now()
		note, err := run()
		if err != nil {
			return outcome{}, err
		}
		out.Seconds = append(out.Seconds, time.Since(start).Seconds()/float64(t.times))
		out.Note = note
	}
	return out, nil
}
