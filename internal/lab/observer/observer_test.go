package observer_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/observer"
)

// dummyEnv makes this test binary a process that looks like QEMU: it is named
// and called so, and has a virtual processor thread that runs once a line
// arrives on its standard input.
const dummyEnv = "HANOK_TEST_DUMMY"

func TestMain(m *testing.M) {
	if os.Getenv(dummyEnv) != "" {
		dummy()
		return
	}
	os.Exit(m.Run())
}

func dummy() {
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		name := []byte("CPU 0/TCG\x00")
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
		close(ready)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		for {
			for end := time.Now().Add(5 * time.Millisecond); time.Now().Before(end); {
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	<-ready
	fmt.Println("ready")
	select {}
}

// bench is an observer over the cgroups of two hosts.
type bench struct {
	t        *testing.T
	dir      string
	hosts    cgroup.Group
	observer *observer.Observer
	program  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("cgroups and process events need root: run the tests of internal/lab as root")
	}
	b := &bench{t: t, dir: t.TempDir()}
	whole, err := cgroup.At(fmt.Sprintf("hanok-lab-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	b.hosts = cgroup.Group(filepath.Join(string(whole), "hosts"))
	if err := b.hosts.Create(); err != nil {
		t.Fatal(err)
	}
	// A copy under an emulator's name; running it does not need the original.
	b.program = filepath.Join(b.dir, "qemu-system-dummy")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(b.dir, "events"))
	if err != nil {
		t.Fatal(err)
	}
	if b.observer, err = observer.Start(observer.Config{Hosts: b.hosts, Journal: j}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := whole.Kill(); err != nil {
			t.Error(err)
		}
		if err := whole.WaitEmpty(ctx); err != nil {
			t.Error(err)
		}
		b.observer.Stop()
		j.Close()
		for whole.Remove() != nil && ctx.Err() == nil {
			runtime.Gosched() // the kernel still counts the last dead process
		}
	})
	return b
}

type vm struct {
	cmd   *exec.Cmd
	stdin io.Writer
	group cgroup.Group
}

// start starts a stopped instance of a VM on a host, in the cgroup that a
// guard would make for it.
func (b *bench) start(host, uuid string) *vm {
	b.t.Helper()
	v := &vm{group: cgroup.Group(filepath.Join(string(b.hosts), host, "hanok", uuid))}
	if err := v.group.Create(); err != nil {
		b.t.Fatal(err)
	}
	dir, err := os.Open(string(v.group))
	if err != nil {
		b.t.Fatal(err)
	}
	defer dir.Close()
	v.cmd = exec.Command(b.program, "-name", "guest=web,debug-threads=on", "-uuid", uuid)
	v.cmd.Env = append(os.Environ(), dummyEnv+"=1")
	v.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	v.stdin, err = v.cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bench) cont(v *vm) {
	b.t.Helper()
	if _, err := v.stdin.Write([]byte("\n")); err != nil {
		b.t.Fatal(err)
	}
}

// await waits for a picture such as "a:frozen b:running", by host.
func (b *bench) await(want string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	err := b.observer.WaitFor(ctx, func(list []observer.Instance) bool { return picture(list) == want })
	if err != nil {
		b.t.Fatalf("want %q, have %q: %v", want, picture(b.observer.Instances()), err)
	}
}

func picture(list []observer.Instance) string {
	var out []string
	for _, i := range list {
		state := "running"
		switch {
		case i.Paused:
			state = "paused"
		case i.Frozen:
			state = "frozen"
		}
		out = append(out, i.Host+":"+state)
	}
	return strings.Join(out, " ")
}

func (b *bench) violations(want int) {
	b.t.Helper()
	got, err := b.observer.Violations()
	if err != nil || len(got) != want {
		b.t.Fatalf("%d violations, want %d: %q, %v", len(got), want, got, err)
	}
}

const (
	web   = "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55"
	other = "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e56"
)

func TestSeesStartRunFreezeAndExit(t *testing.T) {
	b := newBench(t)
	v := b.start("a", web)
	b.await("a:paused")
	b.cont(v)
	b.await("a:running")
	if err := v.group.Freeze(true); err != nil {
		t.Fatal(err)
	}
	b.await("a:frozen")
	if err := v.group.Freeze(false); err != nil {
		t.Fatal(err)
	}
	b.await("a:running")
	host := cgroup.Group(filepath.Join(string(b.hosts), "a"))
	if err := host.Freeze(true); err != nil {
		t.Fatal(err)
	}
	b.await("a:frozen")
	if err := host.Kill(); err != nil {
		t.Fatal(err)
	}
	b.await("")
	b.violations(0)
}

func TestTakeoverOfAFrozenVMIsNoViolationUntilItIsThawed(t *testing.T) {
	b := newBench(t)
	first := b.start("a", web)
	b.cont(first)
	b.await("a:running")
	second := b.start("b", web)
	b.await("a:running b:paused")
	b.violations(0) // a stopped instance may stand by
	if err := first.group.Freeze(true); err != nil {
		t.Fatal(err)
	}
	b.await("a:frozen b:paused")
	b.cont(second)
	b.await("a:frozen b:running")
	b.violations(0)
	if err := first.group.Freeze(false); err != nil {
		t.Fatal(err)
	}
	b.await("a:running b:running")
	b.violations(1)
}

func TestTwoRunningInstancesAreAViolation(t *testing.T) {
	b := newBench(t)
	for _, host := range []string{"a", "b"} {
		b.cont(b.start(host, web))
	}
	b.cont(b.start("c", other))
	b.await("a:running b:running c:running")
	b.violations(1)
}

func TestOneAfterTheOtherIsNoViolation(t *testing.T) {
	b := newBench(t)
	first := b.start("a", web)
	b.cont(first)
	b.await("a:running")
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	b.await("")
	b.cont(b.start("b", web))
	b.await("b:running")
	b.violations(0)
}
