// Isolation measures, in a real lab: from the loss of all networks of a host
// until it is declared isolated, and until its VMs, powered off by the default
// delay, run elsewhere; and from the healing of a partition until one primary is
// left. It fails if a target is missed.
//
// "Isolated" is taken from the host's own agent, which is asked without pause;
// "running elsewhere" from the processes; "one primary" from the agents of all
// hosts, each asked without pause.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"hanok.dev/hanok/internal/lab/drill"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/model"
)

// The targets, in seconds.
const (
	targetDeclared = 6
	targetRunning  = 20
	targetHealed   = 3
)

// Run is one measured series; all figures are seconds.
type Run struct {
	Host     string   `json:"host"`
	Lost     string   `json:"lost"` // secondary or primary
	VMs      []string `json:"vms"`
	Declared float64  `json:"declared"`
	Running  float64  `json:"running"`
	Healed   float64  `json:"healed"` // of a partition of the same host
}

// Report is what is printed.
type Report struct {
	Machine string             `json:"machine"`
	At      time.Time          `json:"at"`
	Median  map[string]float64 `json:"median"`
	Worst   map[string]float64 `json:"worst"`
	Runs    []Run              `json:"runs"`
}

// cluster is the lab: three hosts, two datastores, VMs powered off on isolation.
const cluster = `version: 1
name: bench
ha: {isolationResponse: powerOff, options: {das.isolationaddress0: 10.99.0.1, das.usedefaultisolationaddress: false}}
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1, backing: array-a}, {name: ds2, backing: array-b}]
hosts:
- {name: host1, cpu: {cores: 4, mhz: 2000}, memory: 2GiB, datastores: [ds1, ds2]}
- {name: host2, cpu: {cores: 4, mhz: 2000}, memory: 2GiB, datastores: [ds1, ds2]}
- {name: host3, cpu: {cores: 4, mhz: 2000}, memory: 2GiB, datastores: [ds1, ds2]}
vms:
- {name: vm101, host: host1, datastore: ds1, memory: 96MiB}
- {name: vm102, host: host2, datastore: ds2, memory: 96MiB}
- {name: vm103, host: host3, datastore: ds1, memory: 96MiB}
- {name: vm104, host: host1, datastore: ds2, memory: 96MiB}
`

func main() {
	runs := flag.Int("runs", 5, "isolations of each kind")
	flag.Parse()
	os.Exit(drill.Bench("bench-isolation", []byte(cluster), func(ctx context.Context, d drill.Drill) error { return bench(ctx, d, *runs) }))
}

func bench(ctx context.Context, d drill.Drill, runs int) error {
	r := Report{Machine: fmt.Sprintf("%s/%s, %d cores, VMs emulated", runtime.GOOS, runtime.GOARCH, runtime.NumCPU()), At: time.Now().UTC()}
	for i := range runs {
		for _, kind := range []string{"secondary", "primary"} {
			run, err := once(ctx, d, kind)
			if err != nil {
				return fmt.Errorf("run %d, %s: %w", i+1, kind, err)
			}
			drill.Say(fmt.Sprintf("run %d/%d: %s %s, %d VMs: isolated %.2f s, running elsewhere %.2f s; partition healed to one primary %.2f s",
				i+1, runs, kind, run.Host, len(run.VMs), run.Declared, run.Running, run.Healed))
			r.Runs = append(r.Runs, run)
		}
	}
	if v, err := d.Violations(ctx); err != nil || len(v) > 0 {
		return fmt.Errorf("violations %v, %v", v, err)
	}
	missed := r.summarise()
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return errors.Join(out.Encode(r), missed)
}

func once(ctx context.Context, d drill.Drill, kind string) (Run, error) {
	run := Run{Lost: kind}
	host, err := victim(ctx, d, kind)
	if err != nil {
		return run, err
	}
	run.Host = host
	st, err := d.State(ctx)
	if err != nil {
		return run, err
	}
	run.VMs = drill.On(st, host)
	cut := time.Now()
	if err := d.Cut(ctx, host, "", "both"); err != nil {
		return run, err
	}
	declared := make(chan error, 1)
	go func() {
		declared <- poll(ctx, 30*time.Second, host+" is isolated", func() error {
			s, err := d.StatusOf(ctx, host)
			if err == nil && s.State != model.HostIsolated {
				err = fmt.Errorf("it is %s", s.State)
			}
			run.Declared = time.Since(cut).Seconds()
			return err
		})
	}()
	err = poll(ctx, time.Minute, "its VMs run elsewhere", func() error {
		st, err := d.State(ctx)
		if err != nil {
			return err
		}
		run.Running = time.Since(cut).Seconds()
		return elsewhere(st, run.VMs, host)
	})
	if err = errors.Join(err, <-declared); err != nil {
		return run, err
	}
	if err := d.Heal(ctx, host); err != nil {
		return run, err
	}
	run.Healed, err = partition(ctx, d, kind)
	return run, err
}

// victim is a host of that kind in a settled lab, which runs at least one VM.
func victim(ctx context.Context, d drill.Drill, kind string) (string, error) {
	if err := d.Settle(ctx, 3*time.Minute); err != nil {
		return "", err
	}
	host, err := d.Primary(ctx)
	if err == nil && kind == "secondary" {
		host, err = d.BusiestSecondary(ctx)
	}
	if err != nil {
		return "", err
	}
	return host, d.EnsureVMs(ctx, host, 1)
}

func elsewhere(st supervisor.State, vms []string, host string) error {
	for _, vm := range vms {
		if err := drill.Once(st, vm); err != nil {
			return err
		}
		if drill.Instances(st, vm)[0].Host == host {
			return fmt.Errorf("%s still runs on %s", vm, host)
		}
	}
	return nil
}

// partition cuts one host off from the others, with its gateway, until there are
// two primaries, heals it and returns the seconds until there is one.
func partition(ctx context.Context, d drill.Drill, kind string) (float64, error) {
	host, err := victim(ctx, d, kind)
	if err != nil {
		return 0, err
	}
	st, err := d.State(ctx)
	if err != nil {
		return 0, err
	}
	var rest, all []string
	for _, h := range st.Hosts {
		all = append(all, h.Name)
		if h.Name != host {
			rest = append(rest, h.Name)
		}
	}
	if err := d.Partition(ctx, [][]string{{host}, rest}); err != nil {
		return 0, err
	}
	err = poll(ctx, time.Minute, "a primary on each side", func() error {
		return primaries(ctx, d, all, 2)
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	for _, h := range all {
		if err := d.Heal(ctx, h); err != nil {
			return 0, err
		}
	}
	err = poll(ctx, time.Minute, "one primary is left", func() error { return primaries(ctx, d, all, 1) })
	return time.Since(began).Seconds(), err
}

// primaries returns nil if just n hosts say that they are primary, and if n is 1
// all others follow it.
func primaries(ctx context.Context, d drill.Drill, hosts []string, n int) error {
	leads := map[string]bool{}
	follows := map[model.HostID]bool{}
	for _, h := range hosts {
		s, err := d.StatusOf(ctx, h)
		if err != nil {
			return err
		}
		if s.Role == model.RolePrimary {
			leads[h] = true
		}
		follows[s.Primary] = true
	}
	if len(leads) != n || n == 1 && len(follows) != 1 {
		return fmt.Errorf("primaries %v, followed %v", leads, follows)
	}
	return nil
}

// poll calls check until it returns nil, without pause.
func poll(ctx context.Context, limit time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("not within %v: %s: %w", limit, what, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// summarise fills median and worst, and says which targets were missed.
func (r *Report) summarise() error {
	r.Median, r.Worst = map[string]float64{}, map[string]float64{}
	var missed []error
	for _, f := range []struct {
		name   string
		target float64
		of     func(Run) float64
	}{
		{"declared", targetDeclared, func(x Run) float64 { return x.Declared }},
		{"running", targetRunning, func(x Run) float64 { return x.Running }},
		{"healed", targetHealed, func(x Run) float64 { return x.Healed }},
	} {
		var v []float64
		for _, x := range r.Runs {
			v = append(v, f.of(x))
		}
		slices.Sort(v)
		r.Median[f.name], r.Worst[f.name] = v[len(v)/2], v[len(v)-1]
		if r.Worst[f.name] > f.target {
			missed = append(missed, fmt.Errorf("%s: the worst took %.2f s, the target is %v s", f.name, r.Worst[f.name], f.target))
		}
	}
	return errors.Join(missed...)
}
