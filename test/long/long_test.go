// Package long_test holds lab tests that take longer than CI should: flapping
// networks and repeated power loss, on real hosts and VMs, in real time.
package long_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
)

const settleLimit = 3 * time.Minute

// up brings a lab up for one test and checks at its end that no VM ran twice
// and every disk is intact.
func up(t *testing.T) (context.Context, drill.Drill) {
	t.Helper()
	return upWith(t, lab.Options{})
}

// upWith does so with a lab of other options.
func upWith(t *testing.T, o lab.Options) (context.Context, drill.Drill) {
	t.Helper()
	ctx := context.Background()
	name := "long"
	binary, err := filepath.Abs("../../bin/hanok")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(ctx, name, nil); err != nil {
		t.Fatal(err)
	}
	o.Name, o.Binary, o.Progress = name, binary, func(s string) { fmt.Println("lab:", s) }
	client, err := lab.Up(ctx, o)
	if client != nil {
		t.Cleanup(func() {
			if err := lab.Down(ctx, name, nil); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	d := drill.Drill{Client: client}
	if err := d.Settle(ctx, settleLimit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v, err := d.Violations(ctx)
		if err != nil || len(v) > 0 {
			t.Errorf("violations %v, %v", v, err)
		}
	})
	return ctx, d
}

// choose returns a random source that says how to repeat it.
func choose(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// For five minutes networks of random hosts fail and heal every 0.5 to 5 s.
// Storage answers all the time, so no VM may be touched.
func TestFlappingNetworks(t *testing.T) {
	ctx, d := up(t)
	r := choose(t)
	st, err := d.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string]int{}
	for _, v := range st.VMs {
		before[v.Name] = drill.Instances(st, v.Name)[0].Pid
	}
	pause := func() {
		time.Sleep(500*time.Millisecond + time.Duration(r.Int64N(int64(4500*time.Millisecond)))) // the fault itself
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
		host := st.Hosts[r.IntN(len(st.Hosts))].Name
		network := []string{"mgmt", "hb2", ""}[r.IntN(3)]
		direction := []string{"in", "out", "both"}[r.IntN(3)]
		if err := d.Cut(ctx, host, network, direction); err != nil {
			t.Fatal(err)
		}
		pause()
		if err := d.Heal(ctx, host); err != nil {
			t.Fatal(err)
		}
		pause()
	}
	if err := d.Settle(ctx, settleLimit); err != nil {
		t.Fatal(err)
	}
	if st, err = d.State(ctx); err != nil {
		t.Fatal(err)
	}
	for vm, pid := range before {
		if got := drill.Instances(st, vm)[0].Pid; got != pid {
			t.Errorf("%s was touched: process %d became %d", vm, pid, got)
		}
	}
}

// Twelve times a random host loses power and comes back.
func TestRepeatedPowerLoss(t *testing.T) {
	ctx, d := up(t)
	r := choose(t)
	for range 12 {
		st, err := d.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		host := st.Hosts[r.IntN(len(st.Hosts))].Name
		if err := d.PowerOff(ctx, host); err != nil {
			t.Fatal(err)
		}
		err = drill.Until(ctx, time.Minute, "every VM runs while "+host+" is off", func() error {
			st, err := d.State(ctx)
			if err != nil {
				return err
			}
			for _, v := range st.VMs {
				if err := drill.Once(st, v.Name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.PowerOn(ctx, host, false); err != nil {
			t.Fatal(err)
		}
		if err := d.Settle(ctx, settleLimit); err != nil {
			t.Fatal(err)
		}
	}
}
