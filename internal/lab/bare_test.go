package lab_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/journal"
	"hanok.dev/hanok/internal/lab/observer"
	"hanok.dev/hanok/internal/lab/supervisor"
)

// binary builds the program that the tests run, once; its directory is what
// the hosts see.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hanok-lab-test-")
	if err != nil {
		return "", err
	}
	built = dir
	for _, command := range []string{"hanok", "hanok-lab-guest"} {
		build := exec.Command("go", "build", "-o", dir, "hanok.dev/hanok/cmd/"+command)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	return filepath.Join(dir, "hanok"), nil
})

// built is the directory of the binary, once there is one.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// up brings a lab up that is removed after the test.
func up(t *testing.T, o lab.Options) *lab.Client {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	o.Name, o.Binary = fmt.Sprintf("t%d", os.Getpid()), path
	o.Progress = func(line string) { t.Log(line) }
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), o.Name, nil); err != nil {
			t.Error(err)
		}
	})
	c, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hostsOf(s supervisor.State, vm string) []string {
	var out []string
	for _, i := range s.Instances {
		if i.Name == vm {
			out = append(out, i.Host)
		}
	}
	return out
}

// TestLabBare is the lab without Hanok: what it must do for all other tests.
func TestLabBare(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, VMs: 2, Bare: true})
	ctx := within(t, 4*time.Minute)
	name := c.Layout().Name()

	t.Run("a second start of a VM is refused by its image lock", func(t *testing.T) {
		if _, err := c.Exec(ctx, "host2", "virsh", "-q", "define", "/srv/ds1/vm101/vm101.xml"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(ctx, "host2", "virsh", "-q", "start", "vm101"); err == nil {
			t.Error("vm101 was started twice")
		}
	})

	t.Run("power loss is silent, total, and lets the VM start elsewhere", func(t *testing.T) {
		before, err := c.State(ctx)
		must(t, err)
		must(t, c.PowerOff(ctx, "host1"))
		s, err := c.State(ctx)
		must(t, err)
		if got := hostsOf(s, "vm101"); len(got) > 0 {
			t.Errorf("vm101 still runs on %v", got)
		}
		_, err = c.Exec(ctx, "host2", "virsh", "-q", "start", "vm101")
		must(t, err)
		must(t, c.WaitGuest(ctx, "host2", "vm101"))
		must(t, c.PowerOn(ctx, "host1", false))
		s, err = c.State(ctx)
		must(t, err)
		if s.Hosts[0].BootID == before.Hosts[0].BootID || s.Hosts[0].BootID == "" {
			t.Errorf("boot id %q after the reboot, %q before", s.Hosts[0].BootID, before.Hosts[0].BootID)
		}
	})

	t.Run("disks show every boot and one writer", func(t *testing.T) {
		var s lab.Status
		// The guest's writer begins a moment after its agent answers.
		for s.VM("vm101") == nil || s.VM("vm101").Disk == nil || s.VM("vm101").Disk.Epoch < 2 {
			var err error
			s, err = c.Status(ctx, true)
			must(t, err)
			if len(s.Violations) > 0 {
				t.Fatalf("violations: %+v", s.Violations)
			}
		}
		if got := s.VM("vm101").RunningOn; !slices.Equal(got, []string{"host2"}) {
			t.Errorf("vm101 runs on %v, want host2", got)
		}
	})

	t.Run("a watchdog that is not fed resets its host", func(t *testing.T) {
		// Opening the device starts it; the writer dies without a magic close.
		_, err := c.Exec(ctx, "host1", "busybox", "sh", "-c", "busybox watchdog -F -T 1 -t 60 /dev/watchdog & sleep 0.2; kill -9 $!")
		must(t, err)
		must(t, c.WaitState(ctx, "host1 is reset", func(s supervisor.State) bool {
			return s.Hosts[0].Power == "off" && s.Hosts[0].Resets == 1
		}))
	})

	t.Run("a hung path holds processes until they are killed", func(t *testing.T) {
		must(t, c.Storage(ctx, "host2", "ds1", "hang"))
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if _, err := c.Exec(short, "host2", "ls", "/srv/ds1"); err == nil {
			t.Error("ls answered on a hung path")
		}
		must(t, c.Heal(ctx, "host2"))
		_, err := c.Exec(ctx, "host2", "ls", "/srv/ds1")
		must(t, err)
	})

	t.Run("a frozen host is seen frozen", func(t *testing.T) {
		must(t, c.Freeze(ctx, "host2"))
		must(t, c.WaitState(ctx, "all instances are frozen", func(s supervisor.State) bool {
			return !slices.ContainsFunc(s.Instances, notFrozen)
		}))
		must(t, c.Thaw(ctx, "host2"))
	})

	t.Run("down leaves nothing, even of a lab whose supervisor was killed", func(t *testing.T) {
		s, err := c.State(ctx)
		must(t, err)
		must(t, unix.Kill(s.Pid, unix.SIGKILL))
		must(t, lab.Down(ctx, name, nil))
		group, err := cgroup.At(c.Layout().Cgroup())
		must(t, err)
		for _, path := range []string{string(group), c.Layout().RunDir(), c.Layout().DataDir()} {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is left", path)
			}
		}
		for _, h := range s.Hosts {
			// A dead process that nobody has reaped yet has no command line.
			if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.Pid)); h.Pid != 0 && err == nil && len(args) > 0 {
				t.Errorf("init of %s (pid %d) is left", h.Name, h.Pid)
			}
		}
	})
}

func notFrozen(i observer.Instance) bool { return !i.Frozen }

// TestObserverSeesADoubledVM makes what must never happen, to prove that the
// lab would notice: a copy of a disk, so that no image lock is in the way.
func TestObserverSeesADoubledVM(t *testing.T) {
	c := up(t, lab.Options{Hosts: 2, VMs: 1, Bare: true})
	ctx := within(t, 2*time.Minute)
	const double = `sed 's,/srv/ds1/vm101/disk0.raw,/srv/ds1/vm101/copy.raw,' /srv/ds1/vm101/vm101.xml >/tmp/double.xml &&
cp /srv/ds1/vm101/disk0.raw /srv/ds1/vm101/copy.raw && virsh -q define /tmp/double.xml && virsh -q start vm101`
	seen := make(chan error, 1)
	following := make(chan struct{})
	go func() {
		seen <- c.Observe(ctx, func(e journal.Event) bool {
			if e.Kind == "" {
				close(following)
			}
			return e.Kind != journal.Violation
		})
	}()
	<-following
	_, err := c.Exec(ctx, "host2", "sh", "-c", double)
	must(t, err)
	must(t, <-seen)
	s, err := c.Status(ctx, false)
	must(t, err)
	if len(s.Violations) != 1 || s.Violations[0].Invariant != lab.InvariantOnce {
		t.Errorf("violations %+v, want one of %q", s.Violations, lab.InvariantOnce)
	}
}
