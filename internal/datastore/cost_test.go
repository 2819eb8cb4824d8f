package datastore_test

import (
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// diskUsage is what a directory occupies, in bytes.
func diskUsage(tb testing.TB, dir string) int64 {
	tb.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		sum += st.Blocks * 512
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return sum
}

func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHeartbeatCost measures what a host's heartbeats cost: the space of a
// new datastore, that of a VM's lock after many changes, and processor time,
// system calls included, for each write and each reading of all slots.
func BenchmarkHeartbeatCost(b *testing.B) {
	dir := b.TempDir()
	initialise(b, dir)
	p := open(b, dir, datastore.Options{})
	space := diskUsage(b, dir)
	index, err := p.ClaimSlot("host1", "m1")
	if err != nil {
		b.Fatal(err)
	}
	var known []string
	n, start := 0, processorTime(b)
	for b.Loop() {
		n++
		id, err := p.WriteSlot(index, known, slot("host1", uint64(n)))
		if err != nil {
			b.Fatal(err)
		}
		known = []string{id.Digest}
	}
	b.ReportMetric(float64((processorTime(b)-start).Microseconds())/float64(n), "cpu-µs/write")
	start = processorTime(b)
	for range n {
		if _, err := p.ReadSlots(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((processorTime(b)-start).Microseconds())/float64(n), "cpu-µs/read")
	b.ReportMetric(float64(datastore.SlotSize), "B/write")
	b.ReportMetric(float64(space)/1024, "KiB-datastore")
	if err := p.CreateLock(raceLock, lockRecord(0, "host1", model.LockHeld)); err != nil {
		b.Fatal(err)
	}
	before := diskUsage(b, dir)
	for epoch := model.Epoch(2); epoch <= 64; epoch++ {
		if won, _, err := datastore.Claim(p, lockRecord(epoch, "host1", model.LockHeld)); !won {
			b.Fatal(err)
		}
		if err := p.Prune(raceLock); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(diskUsage(b, dir)-before)/1024, "KiB-lock")
}
