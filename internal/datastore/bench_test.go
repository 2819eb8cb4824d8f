package datastore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/datastore/datastoretest"
	"hanok.dev/hanok/internal/model"
)

// paths are the ways in which the benchmarks reach a datastore.
func benchPaths(b *testing.B, run func(b *testing.B, p *datastore.Posix)) {
	b.Run("directory", func(b *testing.B) {
		dir := b.TempDir()
		initialise(b, dir)
		run(b, open(b, dir, datastore.Options{}))
	})
	b.Run("fuse", func(b *testing.B) {
		backing := b.TempDir()
		initialise(b, backing)
		dir, _ := mount(b, backing)
		run(b, open(b, dir, datastore.Options{}))
	})
}

// percentiles reports the distribution of single operations.
func percentiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 {
		return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
}

func BenchmarkSlotWrite(b *testing.B) {
	benchPaths(b, func(b *testing.B, p *datastore.Posix) {
		index, err := p.ClaimSlot("host1", "m1")
		if err != nil {
			b.Fatal(err)
		}
		var known []string
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			id, err := p.WriteSlot(index, known, slot("host1", uint64(len(took)+1)))
			if err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			known = []string{id.Digest}
		}
		percentiles(b, took)
	})
}

func BenchmarkReadAllSlots(b *testing.B) {
	benchPaths(b, func(b *testing.B, p *datastore.Posix) {
		for i := range datastoretest.Slots {
			if _, err := p.ClaimSlot(model.HostID(fmt.Sprintf("host%d", i)), "m"); err != nil {
				b.Fatal(err)
			}
		}
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			if _, err := p.ReadSlots(); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		percentiles(b, took)
	})
}

func BenchmarkClaimLock(b *testing.B) {
	benchPaths(b, func(b *testing.B, p *datastore.Posix) {
		if err := p.CreateLock(raceLock, lockRecord(0, "host1", model.LockHeld)); err != nil {
			b.Fatal(err)
		}
		var took []time.Duration
		for b.Loop() {
			epoch := model.Epoch(len(took) + 2)
			start := time.Now()
			won, _, err := datastore.Claim(p, lockRecord(epoch, "host1", model.LockHeld))
			if !won {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
			if epoch%16 == 0 {
				if err := p.Prune(raceLock); err != nil {
					b.Fatal(err)
				}
			}
		}
		percentiles(b, took)
	})
}
