package fuzz

import (
	"context"
	"testing"
	"time"
)

var small = Config{Hosts: 3, VMs: 6, Duration: 6 * time.Minute}

// TestFuzz runs what fits into a unit test; `make fuzz` runs an hour.
func TestFuzz(t *testing.T) {
	sum, err := RunMany(context.Background(), 1, 40, small, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d seeds, %d quiet: %v", sum.Seeds, sum.Quiet, sum.Coverage.Map())
	if sum.Failed != nil {
		t.Fatalf("seed %d: %+v", sum.Failed.Seed, *sum.Failed.Violation)
	}
	if sum.Quiet > sum.Seeds/4 {
		t.Errorf("%d of %d seeds were quiet: the disasters are too mild", sum.Quiet, sum.Seeds)
	}
}
