// Soak saturates all cores with other work while a lab runs and fails if
// anything happened: a failover, an election, a freeze. It reports the longest
// heartbeat write.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lab/drill"
)

// Report is what is printed.
type Report struct {
	Minutes float64 `json:"minutes"`
	Cores   int     `json:"cores"`
	Workers int     `json:"workers"`
	// Failovers, Elections and Freezes must be 0.
	Failovers int `json:"failovers"`
	Elections int `json:"elections"`
	Freezes   int `json:"freezes"`
	// LongestWrite is the longest heartbeat write of each host in seconds.
	LongestWrite map[string]float64 `json:"longestWriteSeconds"`
}

func main() {
	span := flag.Duration("for", 10*time.Minute, "how long to soak")
	flag.Parse()
	os.Exit(drill.Bench("soak", nil, func(ctx context.Context, d drill.Drill) error { return soak(ctx, d, *span) }))
}

func soak(ctx context.Context, d drill.Drill, span time.Duration) error {
	r := Report{Minutes: span.Minutes(), Cores: runtime.NumCPU(), Workers: runtime.NumCPU(), LongestWrite: map[string]float64{}}
	drill.Say(fmt.Sprintf("%d cores busy for %v", r.Cores, span))
	began := time.Now()
	busy(ctx, r.Workers, span)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := r.collect(ctx, d, began); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	if err := out.Encode(r); err != nil {
		return err
	}
	if n := r.Failovers + r.Elections + r.Freezes; n > 0 {
		return fmt.Errorf("%d things happened that must not", n)
	}
	if v, err := d.Violations(ctx); err != nil || len(v) > 0 {
		return fmt.Errorf("violations %v, %v", v, err)
	}
	return d.Settled(ctx)
}

// busy keeps n workers computing for span.
func busy(ctx context.Context, n int, span time.Duration) {
	end := time.Now().Add(span)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			x := uint64(1)
			for ctx.Err() == nil && time.Now().Before(end) {
				for range 1 << 20 {
					x = x*6364136223846793005 + 1442695040888963407
				}
			}
			runtime.KeepAlive(x)
		})
	}
	wg.Wait()
}

// collect counts what the hosts say happened since began.
func (r *Report) collect(ctx context.Context, d drill.Drill, began time.Time) error {
	st, err := d.State(ctx)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, h := range st.Hosts {
		out, err := d.Exec(ctx, h.Name, "hanok", "events", "-o", "json", "--limit", "20000")
		if err != nil {
			return err
		}
		events, err := decode(out)
		if err != nil {
			return err
		}
		for _, e := range events {
			if seen[e.ID] || e.Wall.Before(began) {
				continue
			}
			seen[e.ID] = true
			switch e.Kind {
			case event.Verdict:
				r.Failovers++
			case event.Election:
				r.Elections++
			case event.VMFrozen:
				r.Freezes++
			default:
				continue
			}
			drill.Say(fmt.Sprintf("%s %s %s: %s (%s)", e.Wall.Format(time.TimeOnly), e.By, e.Kind, e.Text, e.Cause))
		}
		s, err := d.StatusOf(ctx, h.Name)
		if err != nil {
			return err
		}
		r.LongestWrite[h.Name] = s.Local.LongestWriteSeconds
	}
	return nil
}

// decode reads events as JSON lines.
func decode(data []byte) ([]event.Event, error) {
	var list []event.Event
	for in := json.NewDecoder(bytes.NewReader(data)); in.More(); {
		var e event.Event
		if err := in.Decode(&e); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}
