package fusefs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/fusefs"
)

// writeEnv makes this test binary a process that writes 4 KiB at offset 0 of
// the named file with O_DIRECT, so that a test can kill it.
const writeEnv = "HANOK_TEST_WRITE"

func TestMain(m *testing.M) {
	if path := os.Getenv(writeEnv); path != "" {
		if err := writeDirect(path, 'x'); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func writeDirect(path string, fill byte) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd)
	raw := make([]byte, 8192)
	shift := 4096 - int(uintptr(unsafe.Pointer(&raw[0]))%4096)
	buf := raw[shift : shift+4096]
	for i := range buf {
		buf[i] = fill
	}
	_, err = unix.Pwrite(fd, buf, 0)
	return err
}

// mount returns n mounts of one backing directory and that directory.
func mount(t *testing.T, n int) (string, []string, []*fusefs.FS) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("FUSE mounts need root: run the tests of internal/lab as root")
	}
	backing := t.TempDir()
	var dirs []string
	var mounts []*fusefs.FS
	for range n {
		dir := t.TempDir()
		m, err := fusefs.Mount(backing, dir, fusefs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Unmount(); err != nil {
				t.Error(err)
			}
		})
		dirs, mounts = append(dirs, dir), append(mounts, m)
	}
	return backing, dirs, mounts
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func mustWrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOtherMountSeesEveryChangeAtOnce(t *testing.T) {
	_, dirs, _ := mount(t, 2)
	a, b := filepath.Join(dirs[0], "f"), filepath.Join(dirs[1], "f")
	if _, err := os.Stat(b); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("stat before creation: %v", err)
	}
	for i := range 20 {
		want := bytes.Repeat([]byte{byte('a' + i)}, 1000+i)
		mustWrite(t, a, want)
		got, err := os.ReadFile(b)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: read %d bytes, %v", i, len(got), err)
		}
	}
	d, err := os.Open(dirs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		t.Errorf("fsync of a directory: %v", err)
	}
}

func TestLinkHasOneWinnerAcrossMounts(t *testing.T) {
	const rounds = 50
	backing, dirs, mounts := mount(t, 4)
	for i, m := range mounts {
		m.SetDelay(func(op string) time.Duration {
			if op == "link" {
				return time.Duration(i%2) * time.Millisecond
			}
			return 0
		})
	}
	for round := range rounds {
		var won atomic.Int32
		var wg sync.WaitGroup
		for i, dir := range dirs {
			own := filepath.Join(dir, fmt.Sprintf("tmp-%d", i))
			mustWrite(t, own, []byte{byte('0' + i)})
			wg.Go(func() {
				switch err := os.Link(own, filepath.Join(dir, fmt.Sprint(round))); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, os.ErrExist):
					t.Errorf("round %d racer %d: %v", round, i, err)
				}
				if err := os.Remove(own); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d winners", round, won.Load())
		}
	}
	entries, err := os.ReadDir(backing)
	if err != nil || len(entries) != rounds {
		t.Fatalf("%d records in the backing directory, want %d: %v", len(entries), rounds, err)
	}
}

func TestLocksConflictAcrossMounts(t *testing.T) {
	_, dirs, _ := mount(t, 2)
	mustWrite(t, filepath.Join(dirs[0], "f"), []byte("x"))
	lock := func(dir string, cmd int) (*os.File, error) {
		f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f, unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: unix.F_WRLCK, Len: 1})
	}
	first, err := lock(dirs[0], unix.F_OFD_SETLK)
	if err != nil {
		t.Fatal(err)
	}
	second, err := lock(dirs[1], unix.F_OFD_SETLK)
	second.Close()
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("second lock: %v, want EAGAIN", err)
	}
	first.Close()
	// The kernel tells a FUSE server of a close a moment later: wait for it.
	third, err := lock(dirs[1], unix.F_OFD_SETLKW)
	third.Close()
	if err != nil {
		t.Fatalf("lock after its owner closed: %v", err)
	}
}

func TestFaultsAnswerAtOnceAndHeal(t *testing.T) {
	tests := []struct {
		fault       fusefs.Fault
		read, write error
	}{
		{fusefs.Lost, unix.EIO, unix.EIO},
		{fusefs.Readonly, nil, unix.EROFS},
		{fusefs.None, nil, nil},
	}
	_, dirs, mounts := mount(t, 2)
	path := filepath.Join(dirs[0], "f")
	mustWrite(t, path, make([]byte, 8192))
	open, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for _, tt := range tests {
		mounts[0].SetFault(tt.fault)
		if _, err := open.ReadAt(make([]byte, 10), 0); !errors.Is(err, tt.read) {
			t.Errorf("%s: read of an open file: %v, want %v", tt.fault, err, tt.read)
		}
		if _, err := open.WriteAt([]byte("y"), 0); !errors.Is(err, tt.write) {
			t.Errorf("%s: write to an open file: %v, want %v", tt.fault, err, tt.write)
		}
		if err := writeDirect(path, 'y'); !errors.Is(err, tt.write) {
			t.Errorf("%s: open and write: %v, want %v", tt.fault, err, tt.write)
		}
		if err := writeDirect(filepath.Join(dirs[1], "f"), 'z'); err != nil {
			t.Errorf("%s: the other host's path: %v", tt.fault, err)
		}
	}
}

func TestFullSparesWhatIsAllocated(t *testing.T) {
	_, dirs, mounts := mount(t, 1)
	slots, sparse, ballast := filepath.Join(dirs[0], "slots"), filepath.Join(dirs[0], "sparse"), filepath.Join(dirs[0], "ballast")
	for _, path := range []string{slots, sparse} {
		mustWrite(t, path, nil)
		if err := os.Truncate(path, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(slots, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 64<<10); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, ballast, make([]byte, 16<<10))

	mounts[0].SetFault(fusefs.Full)
	if err := writeDirect(slots, 'x'); err != nil {
		t.Errorf("write into a preallocated slot: %v", err)
	}
	if err := writeDirect(sparse, 'x'); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write into a hole: %v, want ENOSPC", err)
	}
	record := filepath.Join(dirs[0], "record")
	if err := os.WriteFile(record, []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("create: %v, want ENOSPC", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte("x"), 0o600); err != nil {
		t.Errorf("create after the ballast is gone: %v", err)
	}
}

func TestHungWriteCompletesAfterHealing(t *testing.T) {
	backing, dirs, mounts := mount(t, 1)
	mustWrite(t, filepath.Join(backing, "f"), make([]byte, 4096))
	mounts[0].SetFault(fusefs.Hang)
	done := make(chan error, 1)
	go func() { done <- writeDirect(filepath.Join(dirs[0], "f"), 'w') }()
	if err := mounts[0].WaitBlocked(within(t, 10*time.Second), 1); err != nil {
		t.Fatal(err)
	}
	mounts[0].SetFault(fusefs.None)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(backing, "f")); got[0] != 'w' {
		t.Error("the write did not reach the disk")
	}
}

// hungWriter starts a process whose write is blocked at the mount.
func hungWriter(t *testing.T, m *fusefs.FS, path string, fault fusefs.Fault) *exec.Cmd {
	t.Helper()
	opened := make(chan struct{}, 1)
	m.SetDelay(func(op string) time.Duration {
		if op == "write" { // all before is through: now hang
			m.SetFault(fault)
			select {
			case opened <- struct{}{}:
			default:
			}
		}
		return 0
	})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), writeEnv+"="+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-opened
	if err := m.WaitBlocked(within(t, 10*time.Second), 1); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestKilledWriterOfAHangLeavesNothing(t *testing.T) {
	backing, dirs, mounts := mount(t, 1)
	mustWrite(t, filepath.Join(backing, "f"), make([]byte, 4096))
	cmd := hungWriter(t, mounts[0], filepath.Join(dirs[0], "f"), fusefs.Hang)
	// A first, harmless signal must neither free it nor hide the deadly one.
	if err := cmd.Process.Signal(unix.SIGURG); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		t.Fatalf("a harmless signal ended the hung write: %v", err)
	case <-time.After(100 * time.Millisecond): // it may not end: nothing to wait for
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err == nil {
		t.Fatal("the writer was not killed")
	}
	mounts[0].SetFault(fusefs.None)
	if got, _ := os.ReadFile(filepath.Join(backing, "f")); got[0] != 0 {
		t.Error("a write arrived after its process was killed")
	}
}

func TestHardHangKeepsTheKilledWriterAndItsWrite(t *testing.T) {
	backing, dirs, mounts := mount(t, 1)
	mustWrite(t, filepath.Join(backing, "f"), make([]byte, 4096))
	cmd := hungWriter(t, mounts[0], filepath.Join(dirs[0], "f"), fusefs.HangHard)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case <-exited:
		t.Fatal("the writer died while its I/O was outstanding")
	case <-time.After(200 * time.Millisecond): // it may not die: nothing to wait for
	}
	mounts[0].SetFault(fusefs.None)
	<-exited
	if got, _ := os.ReadFile(filepath.Join(backing, "f")); got[0] != 'x' {
		t.Error("the outstanding write did not reach the disk after healing")
	}
}

func TestAbortFreesBlockedCallersWithoutEffect(t *testing.T) {
	backing, dirs, mounts := mount(t, 1)
	mustWrite(t, filepath.Join(backing, "f"), make([]byte, 4096))
	cmd := hungWriter(t, mounts[0], filepath.Join(dirs[0], "f"), fusefs.HangHard)
	mounts[0].Abort()
	if err := cmd.Wait(); err == nil {
		t.Error("the write succeeded on a dead path")
	}
	mounts[0].SetFault(fusefs.None)
	if err := writeDirect(filepath.Join(dirs[0], "f"), 'y'); !errors.Is(err, unix.EIO) {
		t.Errorf("write after the abort: %v, want EIO", err)
	}
	if got, _ := os.ReadFile(filepath.Join(backing, "f")); got[0] != 0 {
		t.Error("a write took effect on a dead path")
	}
}

func TestParseFault(t *testing.T) {
	for _, f := range fusefs.Faults() {
		if got, err := fusefs.ParseFault(string(f)); err != nil || got != f {
			t.Errorf("ParseFault(%q) = %q, %v", f, got, err)
		}
	}
	if _, err := fusefs.ParseFault("hung"); err == nil {
		t.Error("an unknown fault was accepted")
	}
}
