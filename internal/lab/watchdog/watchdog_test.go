package watchdog_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/watchdog"
)

func mount(t *testing.T) (*watchdog.Device, <-chan time.Time) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("FUSE mounts need root: run the tests of internal/lab as root")
	}
	expired := make(chan time.Time, 1)
	d, err := watchdog.Mount(t.TempDir(), func() { expired <- time.Now() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d, expired
}

func open(t *testing.T, d *watchdog.Device) *os.File {
	t.Helper()
	f, err := os.OpenFile(d.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func setTimeout(t *testing.T, f *os.File, seconds int) {
	t.Helper()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, seconds); err != nil {
		t.Fatalf("WDIOC_SETTIMEOUT: %v", err)
	}
}

func TestExpiresAfterTheLastWriteAlthoughItsOwnerIsDead(t *testing.T) {
	d, expired := mount(t)
	f := open(t, d)
	setTimeout(t, f, 1)
	if got, err := unix.IoctlGetUint32(int(f.Fd()), unix.WDIOC_GETTIMEOUT); err != nil || got != 1 {
		t.Fatalf("WDIOC_GETTIMEOUT: %d, %v", got, err)
	}
	if _, err := os.OpenFile(d.Path(), os.O_WRONLY, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("second open: %v, want EBUSY", err)
	}
	if _, err := f.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	fed := time.Now()
	f.Close() // no 'V': as when the process dies
	if after := (<-expired).Sub(fed); after < 990*time.Millisecond || after > 1500*time.Millisecond {
		t.Errorf("expired %v after the last write, want 1s", after)
	}
}

func TestMagicCloseStopsIt(t *testing.T) {
	d, expired := mount(t)
	f := open(t, d)
	setTimeout(t, f, 1)
	if _, err := f.WriteString("V"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	select {
	case <-expired:
		t.Error("expired after a magic close")
	case <-time.After(1300 * time.Millisecond): // it must not expire: nothing to wait for
	}
	if running, _ := d.Running(); running {
		t.Error("still running after a magic close")
	}
}
