package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/layout"
)

const downTimeout = 60 * time.Second

// Down removes a lab with all its processes, mounts, namespaces, cgroups,
// links and files, whether its supervisor lives, was killed or never came up.
// A lab that does not exist is removed already. progress may be nil.
func Down(ctx context.Context, name string, progress func(string)) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab belongs to root: run the command as root")
	}
	c, err := Open(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	say := func(s string) {
		if progress != nil {
			progress(s)
		}
	}
	whole, err := cgroup.At(c.layout.Cgroup())
	if err != nil {
		return err
	}
	if !whole.Exists() && !pathExists(c.layout.RunDir()) && !pathExists(c.layout.DataDir()) {
		say(fmt.Sprintf("lab %s is not up", name))
		return nil
	}
	if err := c.call(ctx, http.MethodPost, "/down", struct{}{}, nil); err != nil {
		say("the supervisor does not answer: removing what is left")
	} else if err := waitSupervisor(ctx, c.layout); err != nil {
		say("the supervisor does not end: removing what is left")
	}
	// Networks, mounts and namespaces live only in the lab's processes.
	if whole.Exists() {
		if err := whole.Kill(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("kill what is left of lab %s: %w", name, err)
		}
		if err := whole.WaitEmpty(ctx); err != nil {
			return fmt.Errorf("lab %s: processes do not end: %w", name, err)
		}
	}
	if err := removeCgroups(ctx, whole); err != nil {
		return err
	}
	for _, dir := range []string{c.layout.RunDir(), c.layout.DataDir()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{layout.RunRoot, layout.DataRoot} { // the last lab takes them away
		_ = os.Remove(dir)
	}
	say(fmt.Sprintf("lab %s is down", name))
	return nil
}

func waitSupervisor(ctx context.Context, l layout.Lab) error {
	group, err := cgroup.At(l.SupervisorCgroup())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downTimeout/2)
	defer cancel()
	return group.WaitEmpty(ctx)
}

func removeCgroups(ctx context.Context, whole cgroup.Group) error {
	for {
		err := whole.Remove()
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // the kernel still counts the last dead
	}
	parent, err := cgroup.At(layout.CgroupParent)
	if err != nil {
		return err
	}
	_ = unix.Rmdir(string(parent)) // fails while another lab is up
	return nil
}
