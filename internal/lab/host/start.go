package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"hanok.dev/hanok/internal/lab/cgroup"
)

// Bind presents a directory of the machine inside the host.
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

// Spec is what a host is made of. All paths are absolute.
type Spec struct {
	// Name is the host's name, also its host name.
	Name string
	// BootID is this boot's identification.
	BootID string
	// NewRoot is an empty directory where the root file system is assembled.
	NewRoot string
	// Etc and Var are the host's own directories.
	Etc, Var string
	// Usr, if not empty, makes the host one that is installed from packages: its
	// /usr is its own, with the changes kept in this directory, it has no binary
	// of Hanok's until a package brings one, and its PID 1 is systemd.
	Usr string
	// Binds are further directories: binaries, guest image, datastores.
	Binds []Bind
	// Watchdog is the file to present as /dev/watchdog; empty: none.
	Watchdog string
	// CgroupMount is where cgroup v2 is to be mounted.
	CgroupMount string
}

func (s Spec) packaged() bool { return s.Usr != "" }

// Process is a booted host. Wait must be called.
type Process struct {
	// Pid is the host's PID 1 as the machine sees it.
	Pid int

	cmd    *exec.Cmd
	spec   *os.File
	status *os.File
	lines  *bufio.Reader // of status
}

// InitArgs are the arguments with which the running binary becomes a host's
// PID 1.
var InitArgs = []string{"lab", "host-init"}

// Start makes the host's namespaces and its PID 1, in the given cgroup. The
// host waits: cable it by its Pid, then call Boot.
func Start(binary string, group cgroup.Group, log io.Writer) (*Process, error) {
	dir, err := os.Open(string(group))
	if err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	defer dir.Close()
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specR.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		specW.Close()
		return nil, err
	}
	defer statusW.Close()
	cmd := exec.Command(binary, InitArgs...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{specR, statusW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET,
		UseCgroupFD: true, CgroupFD: int(dir.Fd()), Setsid: true,
	}
	if err := cmd.Start(); err != nil {
		specW.Close()
		statusR.Close()
		return nil, fmt.Errorf("start host: %w", err)
	}
	p := &Process{Pid: cmd.Process.Pid, cmd: cmd, spec: specW, status: statusR, lines: bufio.NewReader(statusR)}
	// While a process executes another image from a thread that is not its
	// first, /proc knows no namespaces of it: wait until that is over.
	if err := p.expect(waiting); err != nil {
		_ = cmd.Process.Kill()
		p.Wait()
		return nil, fmt.Errorf("start host: %w", err)
	}
	return p, nil
}

// startTimeout is how long a new process may take to wait for its Spec.
const startTimeout = 20 * time.Second

// expect reads a line of the new process and fails unless it is want.
func (p *Process) expect(want string) error {
	if err := p.status.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	line, err := p.lines.ReadString('\n')
	if line = strings.TrimSpace(line); line == want {
		return p.status.SetReadDeadline(time.Time{})
	}
	if line != "" {
		return errors.New(line)
	}
	return fmt.Errorf("its init ended at once: %w", err)
}

// Boot tells the waiting host what it is and returns when its file systems
// are in place and its init runs.
func (p *Process) Boot(ctx context.Context, spec Spec) error {
	stop := context.AfterFunc(ctx, func() { _ = p.status.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := json.NewEncoder(p.spec).Encode(spec)
	p.spec.Close()
	if err != nil {
		return fmt.Errorf("boot %s: %w", spec.Name, err)
	}
	line, err := p.lines.ReadString('\n')
	switch line = strings.TrimSpace(line); {
	case line == ready:
		return nil
	case line != "":
		return fmt.Errorf("boot %s: %s", spec.Name, line)
	case ctx.Err() != nil:
		return fmt.Errorf("boot %s: %w", spec.Name, ctx.Err())
	case errors.Is(err, io.EOF):
		return fmt.Errorf("boot %s: its init ended before it was ready", spec.Name)
	}
	return fmt.Errorf("boot %s: %w", spec.Name, err)
}

// Wait returns when the host's PID 1 is gone, whatever ended it.
func (p *Process) Wait() {
	_ = p.cmd.Wait()
	p.spec.Close()
	p.status.Close()
}

// What a host's init says on its way.
const (
	waiting = "waiting"
	ready   = "ready"
)
