// Command hanok-lab-guest is what a lab guest runs: it appends a record to its
// data disk five times a second and prints a tick on the console every second.
package main

import (
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/disk"
)

const (
	device   = "/dev/vda"
	interval = 200 * time.Millisecond
	perTick  = 5
	align    = 4096
)

func main() {
	if err := run(); err != nil {
		fmt.Println("hanok-lab-guest:", err)
		os.Exit(1)
	}
}

func run() error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	in := &reader{fd: fd, buf: aligned(256 << 10)}
	last, sum, err := disk.End(in)
	if err != nil {
		return fmt.Errorf("scan %s: %w", device, err)
	}
	next := disk.Record{Epoch: last.Epoch + 1, Counter: 1, Previous: sum}
	if last.Epoch > 0 {
		next.Slot = last.Slot + 1
	}
	fmt.Printf("writer: epoch %d begins at record %d\n", next.Epoch, next.Slot)
	buf := aligned(disk.Size)
	for {
		up := uptime()
		next.Monotonic = uint64(up)
		next.Previous = next.Encode(buf)
		if _, err := unix.Pwrite(fd, buf, int64(next.Slot*disk.Size)); err != nil {
			return fmt.Errorf("write record %d: %w", next.Slot, err)
		}
		if next.Counter%perTick == 0 {
			fmt.Printf("tick epoch=%d counter=%d uptime=%.1f\n", next.Epoch, next.Counter, up.Seconds())
		}
		next.Slot++
		next.Counter++
		// A raw sleep keeps the Go scheduler asleep: an idle guest is cheap.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(interval)}, nil)
	}
}

func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return time.Duration(t.Nano())
}

// aligned returns n bytes as direct I/O wants them.
func aligned(n int) []byte {
	raw := make([]byte, n+align)
	shift := align - int(uintptr(unsafe.Pointer(&raw[0]))%align)
	return raw[shift : shift+n : shift+n]
}

// reader reads a device sequentially through an aligned buffer.
type reader struct {
	fd  int
	off int64
	buf []byte
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := unix.Pread(r.fd, r.buf, r.off)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	n = copy(p, r.buf[:n])
	r.off += int64(n)
	return n, nil
}
