package libvirt

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// The tests run a real libvirtd in namespaces of its own. Its first process
// is this test binary, told so by an environment variable. It takes commands
// on its standard input and ends, with all that runs in there, when that is
// closed: also if the tests die.
const initVariable = "HANOK_LIBVIRT_TEST_INIT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(initVariable); dir != "" {
		if err := hostInit(dir); err != nil {
			fmt.Fprintln(os.Stderr, "test host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if sharedHost != nil {
		sharedHost.stop()
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// host is the test's side of the namespaces.
type host struct {
	dir    string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	cgroup string
}

var (
	sharedHost *host
	startHost  sync.Once
	hostError  error
)

// testHost returns the host that the tests share, with libvirtd running.
func testHost(t *testing.T) *host {
	t.Helper()
	startHost.Do(func() { sharedHost, hostError = newHost() })
	if hostError != nil {
		t.Fatalf("no libvirtd to test with: %v; run scripts/install-deps.sh and test as root", hostError)
	}
	return sharedHost
}

const hookScript = `#!/bin/sh
[ "$2" = prepare ] || exit 0
case "$1" in
canary-*) echo "canary-token: refused, as it should be" >&2; exit 1;;
refused*) echo "web runs on host9" >&2; exit 1;;
esac
`

func newHost() (*host, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("not root")
	}
	for _, tool := range []string{"libvirtd", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "hanok-libvirt-test-")
	if err != nil {
		return nil, err
	}
	h := &host{dir: dir}
	files := map[string]string{
		"libvirtd.conf": fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nunix_sock_group = \"root\"\n"+
			"host_uuid = \"3b0e7a52-6ad1-4f4b-8d0e-0c9d7b3c2a11\"\n", h.path("sock")),
		"etc/qemu.conf": "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n" +
			"security_driver = \"none\"\nstdio_handler = \"file\"\ncgroup_controllers = []\n",
		"etc/hooks/qemu.d/10-test": hookScript,
		"passwd":                   "root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:64055::/var/lib/libvirt:/bin/false\n",
		"group":                    "root:x:0:\nkvm:x:64054:\nlibvirt-qemu:x:64055:\nlibvirt:x:64056:\n",
		"lib/x":                    "", "log/x": "", "cache/x": "", "sock/x": "",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(h.path(name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(h.path(name), []byte(text), 0o755); err != nil {
			return nil, err
		}
	}
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Env = append(os.Environ(), initVariable+"="+dir)
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID |
		unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out = bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	if err := h.command("start"); err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }
func (h *host) socket() string          { return h.path("sock/libvirt-sock") }

// command has the init carry out one command.
func (h *host) command(line string) error {
	fmt.Fprintln(h.in, line)
	if !h.out.Scan() {
		return fmt.Errorf("test host ended: %v", h.out.Err())
	}
	if answer := h.out.Text(); answer != "ok" {
		return fmt.Errorf("test host: %s: %s", line, answer)
	}
	return nil
}

// libvirtd starts or signals libvirtd: "start", "signal 9".
func (h *host) libvirtd(t *testing.T, line string) {
	t.Helper()
	if err := h.command(line); err != nil {
		t.Fatal(err)
	}
}

func (h *host) stop() {
	h.in.Close()
	_ = h.cmd.Wait() // it ends by the closed pipe; its status says nothing
	if h.cgroup != "" {
		_ = os.Remove(h.cgroup)
	}
	_ = os.RemoveAll(h.dir)
}

// qemu finds the process of a running domain.
func (h *host) qemu(t *testing.T, vm model.VMID) int {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		text, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(text), "\x00-uuid\x00"+string(vm)+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	t.Fatalf("no QEMU process of %s", vm)
	return 0
}

// freeze moves a process into a frozen cgroup until the returned function
// thaws it.
func (h *host) freeze(t *testing.T, pid int) (thaw func()) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		root += "/unified"
	}
	h.cgroup = filepath.Join(root, filepath.Base(h.dir))
	if err := os.MkdirAll(h.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file, text string) {
		if err := os.WriteFile(filepath.Join(h.cgroup, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.procs", strconv.Itoa(pid))
	write("cgroup.freeze", "1")
	deadline := time.Now().Add(5 * time.Second)
	for {
		text, err := os.ReadFile(filepath.Join(h.cgroup, "cgroup.events"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "frozen 1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the cgroup does not freeze")
		}
		time.Sleep(5 * time.Millisecond) // the kernel has no blocking call for it
	}
	thaw = sync.OnceFunc(func() { write("cgroup.freeze", "0") })
	t.Cleanup(thaw)
	return thaw
}

// hostInit is the first process in the namespaces.
func hostInit(dir string) error {
	if err := hostMounts(dir); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	lines := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			lines <- in.Text()
		}
		close(lines)
	}()
	libvirtd := 0
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			if err := hostCommand(dir, line, &libvirtd); err != nil {
				fmt.Println(err)
			} else {
				fmt.Println("ok")
			}
		case <-children:
			for {
				pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
				if err != nil || pid <= 0 {
					break
				}
			}
		}
	}
}

func hostCommand(dir, line string, libvirtd *int) error {
	verb, argument, _ := strings.Cut(line, " ")
	switch verb {
	case "start":
		log, err := os.OpenFile(filepath.Join(dir, "libvirtd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer log.Close()
		path, err := exec.LookPath("libvirtd")
		if err != nil {
			return err
		}
		*libvirtd, err = syscall.ForkExec(path, []string{"libvirtd", "-f", filepath.Join(dir, "libvirtd.conf")},
			&syscall.ProcAttr{Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
				Files: []uintptr{log.Fd(), log.Fd(), log.Fd()}})
		return err
	case "signal":
		n, err := strconv.Atoi(argument)
		if err != nil {
			return err
		}
		return unix.Kill(*libvirtd, unix.Signal(n))
	}
	return fmt.Errorf("unknown command %q", line)
}

func hostMounts(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// No cgroups in here: libvirt does without.
	_ = unix.Unmount("/sys", unix.MNT_DETACH)
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"tmpfs", "/run", "tmpfs"},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// A libvirtd that was only installed has never made its directories.
	for _, d := range []string{"/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make a place to bind to: %w", err)
		}
	}
	for from, to := range map[string]string{"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt",
		"cache": "/var/cache/libvirt", "passwd": "/etc/passwd", "group": "/etc/group"} {
		if err := unix.Mount(filepath.Join(dir, from), to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", to, err)
		}
	}
	return nil
}
