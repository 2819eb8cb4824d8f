package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/lab/supervisor"
)

// Command prepares a command inside a host: in its namespaces and its cgroup,
// so that it ends with the host. The caller sets its input and output, then
// runs it; release must be called after Start or Run has returned.
func (c *Client) Command(ctx context.Context, host string, argv ...string) (cmd *exec.Cmd, release func(), err error) {
	s, err := c.State(ctx)
	if err != nil {
		return nil, nil, err
	}
	h := findHost(s, host)
	switch {
	case h == nil:
		return nil, nil, fmt.Errorf("no host %q in lab %s", host, c.layout.Name())
	case h.Power != "on":
		return nil, nil, fmt.Errorf("host %s is off: `hanok lab power-on %s`", host, host)
	case h.Frozen:
		return nil, nil, fmt.Errorf("host %s is frozen: `hanok lab thaw %s`", host, host)
	}
	group, err := cgroup.At(c.layout.HostCgroup(host))
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.Open(string(group))
	if err != nil {
		return nil, nil, fmt.Errorf("cgroup of host %s: %w", host, err)
	}
	args := append([]string{"--target", strconv.Itoa(h.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"}, argv...)
	cmd = exec.CommandContext(ctx, "nsenter", args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + layout.HostBin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM")}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.WaitDelay = time.Second
	return cmd, func() { dir.Close() }, nil
}

func findHost(s supervisor.State, name string) *supervisor.Host {
	for i := range s.Hosts {
		if s.Hosts[i].Name == name {
			return &s.Hosts[i]
		}
	}
	return nil
}

// Exec runs a command inside a host and returns its output. An error says what
// the command wrote to its error output.
func (c *Client) Exec(ctx context.Context, host string, argv ...string) ([]byte, error) {
	cmd, release, err := c.Command(ctx, host, argv...)
	if err != nil {
		return nil, err
	}
	defer release()
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, context.Cause(ctx))
		}
		return out.Bytes(), fmt.Errorf("%s: %s: %w: %s", host, strings.Join(argv, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.Bytes(), nil
}
