// Idle measures what guard and agent cost while nothing happens: share of one
// core and resident memory on every host of a lab with ten VMs on one host.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"hanok.dev/hanok/internal/lab/drill"
)

const (
	// cluster puts ten VMs on host1.
	cluster = `version: 1
name: lab-bench
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}, {name: vm}]
datastores: [{name: ds1, backing: array-a}, {name: ds2, backing: array-b}]
hosts:
- {name: host1, cpu: {cores: 4, mhz: 2000}, memory: 4GiB, datastores: [ds1, ds2]}
- {name: host2, cpu: {cores: 4, mhz: 2000}, memory: 4GiB, datastores: [ds1, ds2]}
- {name: host3, cpu: {cores: 4, mhz: 2000}, memory: 4GiB, datastores: [ds1, ds2]}
vms:
`
	vms = 10
)

// Cost is what one daemon took.
type Cost struct {
	Host   string `json:"host"`
	Daemon string `json:"daemon"`
	VMs    int    `json:"vms"`
	// Core is the share of one core in per cent, Resident is MiB at the end.
	Core     float64 `json:"corePercent"`
	Resident float64 `json:"residentMiB"`
}

func main() {
	span := flag.Duration("for", time.Minute, "how long to measure")
	flag.Parse()
	var file strings.Builder
	file.WriteString(cluster)
	for i := range vms {
		fmt.Fprintf(&file, "- {name: vm%d, host: host1, datastore: ds%d, memory: 96MiB}\n", 101+i, i%2+1)
	}
	os.Exit(drill.Bench("bench-idle", []byte(file.String()), func(ctx context.Context, d drill.Drill) error { return bench(ctx, d, *span) }))
}

func bench(ctx context.Context, d drill.Drill, span time.Duration) error {
	if err := d.EnsureVMs(ctx, "host1", vms); err != nil {
		return err
	}
	drill.Say(fmt.Sprintf("measuring for %v", span))
	before, err := snapshot(ctx, d)
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(span):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := snapshot(ctx, d)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	st, err := d.State(ctx)
	if err != nil {
		return err
	}
	var costs []Cost
	for _, h := range st.Hosts {
		for _, daemon := range []string{"guard", "agent"} {
			a, b := before[h.Name+daemon], after[h.Name+daemon]
			if a.pid != b.pid {
				return fmt.Errorf("%s of %s was restarted meanwhile", daemon, h.Name)
			}
			costs = append(costs, Cost{Host: h.Name, Daemon: daemon, VMs: len(drill.On(st, h.Name)),
				Core: 100 * (b.cpu - a.cpu).Seconds() / took, Resident: float64(b.resident) / (1 << 20)})
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(costs)
}

// usage is what /proc says of a process.
type usage struct {
	pid      string
	cpu      time.Duration
	resident int64
}

// snapshot reads the usage of both daemons on every host.
func snapshot(ctx context.Context, d drill.Drill) (map[string]usage, error) {
	st, err := d.State(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]usage{}
	for _, h := range st.Hosts {
		for daemon, pattern := range drill.Daemons {
			if daemon == "libvirtd" {
				continue
			}
			u, err := read(ctx, d, h.Name, pattern)
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", daemon, h.Name, err)
			}
			out[h.Name+daemon] = u
		}
	}
	return out, nil
}

func read(ctx context.Context, d drill.Drill, host, pattern string) (usage, error) {
	pid, err := d.Exec(ctx, host, "pgrep", "-o", "-f", pattern)
	if err != nil {
		return usage{}, err
	}
	u := usage{pid: strings.TrimSpace(string(pid))}
	data, err := d.Exec(ctx, host, "cat", "/proc/"+u.pid+"/stat")
	if err != nil {
		return u, err
	}
	// Fields after the name in parentheses, proc(5): 14 utime, 15 stime in
	// clock ticks of 10 ms, 24 rss in pages of 4 KiB.
	text := string(data)
	f := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	if len(f) < 22 {
		return u, fmt.Errorf("cannot read %q", text)
	}
	var n [3]int64
	for i, at := range []int{11, 12, 21} {
		if n[i], err = strconv.ParseInt(f[at], 10, 64); err != nil {
			return u, err
		}
	}
	u.cpu = time.Duration(n[0]+n[1]) * 10 * time.Millisecond
	u.resident = n[2] * 4096
	return u, nil
}
