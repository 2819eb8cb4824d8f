package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lab/cgroup"
	"hanok.dev/hanok/internal/lab/supervisor"
	"hanok.dev/hanok/internal/pki"
)

const (
	// serverAddress is the server's on the lab's first network; hosts end at .250.
	serverAddress = "10.99.0.254"
	serverTimeout = 30 * time.Second
)

// StartServer starts `hanok server` on a machine of its own beside the hosts:
// its network namespace has one cable, to their first network. It answers at
// Layout().ServerSocket, keeps its state in Layout().ServerDir, and goes down
// with the lab. A server that runs already is left as it is.
func (c *Client) StartServer(ctx context.Context) error {
	if conn, err := net.Dial("unix", c.layout.ServerSocket()); err == nil {
		return conn.Close()
	}
	if !pathExists(c.layout.ServerPKI()) {
		if err := pki.IssueServer(c.layout.PKIDir(), c.layout.ServerPKI(), "control", pki.Options{}); err != nil {
			return err
		}
	}
	group, err := cgroup.At(c.layout.ServerCgroup())
	if err != nil {
		return err
	}
	if err := group.Create(); err != nil {
		return err
	}
	dir, err := os.Open(string(group))
	if err != nil {
		return err
	}
	defer dir.Close()
	log, err := os.OpenFile(c.layout.ServerLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	binary, err := c.binary()
	if err != nil {
		return err
	}
	cmd := exec.Command(binary, "server", "--name", "control", "--data", c.layout.ServerDir(), "--cluster-pki", c.layout.ServerPKI(),
		"--server-socket", c.layout.ServerSocket(), "--listen", "none", "--metrics-address", "", "--log", "stderr")
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	died := make(chan error, 1)
	go func() { died <- errors.Join(errors.New("it ended"), cmd.Wait()) }() // ends with the server
	if err := c.call(ctx, http.MethodPost, "/plug", supervisor.PlugRequest{Pid: cmd.Process.Pid, Address: serverAddress}, nil); err != nil {
		return errors.Join(err, group.Kill())
	}
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if conn, err := net.Dial("unix", c.layout.ServerSocket()); err == nil {
			tick.Stop()
			return conn.Close()
		}
		select {
		case <-tick.C:
		case err := <-died:
			return fmt.Errorf("the server: %w; see %s", err, c.layout.ServerLog())
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w; see %s", ctx.Err(), c.layout.ServerLog())
		}
	}
}

// StopServer kills the server, as by a loss of power.
func (c *Client) StopServer(ctx context.Context) error {
	group, err := cgroup.At(c.layout.ServerCgroup())
	if err != nil {
		return err
	}
	if !group.Exists() {
		return nil
	}
	if err := group.Kill(); err != nil {
		return err
	}
	if err := group.WaitEmpty(ctx); err != nil {
		return err
	}
	// Linux ends what is started in a cgroup that was killed once.
	for {
		if err := group.Remove(); !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // the kernel still counts the last dead
	}
}

// AskServer runs hanok through the server, on this machine, and returns its
// output. An error says what it wrote to its error output.
func (c *Client) AskServer(ctx context.Context, argv ...string) ([]byte, error) {
	binary, err := c.binary()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, append([]string{"--server", c.layout.ServerSocket()}, argv...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+c.layout.RunDir()) // no login of the person's own
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("hanok %v: %w: %s", argv, err, exit.Stderr)
	}
	return out, err
}

// AdoptHosts has the server take over the cluster file that the hosts have.
func (c *Client) AdoptHosts(ctx context.Context, host string) error {
	file, err := c.Exec(ctx, host, "hanok", "cluster", "show")
	if err != nil {
		return err
	}
	path := filepath.Join(c.layout.RunDir(), "server-cluster.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		return err
	}
	_, err = c.AskServer(ctx, "apply", "-f", path)
	return err
}

// UseServer has StartServer and AskServer run another build of hanok than the
// hosts do, from now on.
func (c *Client) UseServer(binary string) { c.serverBinary = binary }

// binary is the program of the server: that of the lab, or UseServer's.
func (c *Client) binary() (string, error) {
	if c.serverBinary != "" {
		return c.serverBinary, nil
	}
	data, err := os.ReadFile(supervisor.SettingsFile(c.layout))
	if err != nil {
		return "", err
	}
	var s supervisor.Settings
	if err := json.Unmarshal(data, &s); err != nil {
		return "", err
	}
	return filepath.Join(s.BinDir, "hanok"), nil
}
