package guard_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/guard"
	"hanok.dev/hanok/internal/guard/ipc"
	"hanok.dev/hanok/internal/lab/fusefs"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

const (
	webID   = model.VMID("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")
	waitMax = 10 * time.Second
)

// TestMain also is the QEMU of these tests: a process with its command line.
func TestMain(m *testing.M) {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "qemu-system-") {
		fmt.Println("up")
		fakeGuest(os.Getenv("HANOK_TEST_DISK"))
	}
	os.Exit(m.Run())
}

// fakeGuest writes to its disk for ever, if it has one.
func fakeGuest(disk string) {
	if disk == "" {
		for {
			time.Sleep(time.Hour)
		}
	}
	f, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE|unix.O_DSYNC, 0o600)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := int64(0); ; i++ {
		_, _ = f.WriteAt([]byte(strconv.FormatInt(i, 10)), 0)
		time.Sleep(20 * time.Millisecond)
	}
}

// host is a host of one cluster below a temporary directory.
type host struct {
	t      *testing.T
	name   string
	dir    string
	ds     string // the datastore's mount
	fs     *fusefs.FS
	cgroup string
	opts   guard.Options
	stop   context.CancelFunc
	done   chan error
}

// newBacking makes the shared storage of a cluster.
func newBacking(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := datastore.Initialise(dir, "test", datastore.InitOptions{Slots: 8}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newHost makes a host with its own path to the storage; more is added to the
// datastore's entry in the cluster file.
func newHost(t *testing.T, name, backing, more string) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, name: name, dir: dir, ds: filepath.Join(dir, "ds1")}
	h.mkdir("ds1")
	h.mkdir("etc")
	fs, err := fusefs.Mount(backing, h.ds, fusefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h.fs = fs
	t.Cleanup(func() {
		fs.SetFault(fusefs.None)
		eventually(t, "the storage path is unmounted", func() bool { return fs.Unmount() == nil })
	})
	h.write("etc/host", name+"\n")
	h.write("etc/boot", "boot-1-of-"+name+"\n")
	h.write("etc/machine", "machine-of-"+name+"\n")
	h.write("etc/cluster.yaml", fmt.Sprintf(`version: 1
name: test
ha: {timing: fast}
networks: [{name: mgmt, heartbeat: true}]
datastores: [{name: ds1, path: %s%s}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1}, cpu: {cores: 1, mhz: 1000}, memory: 1GiB, datastores: [ds1]}
- {name: host2, address: {mgmt: 10.0.0.2}, cpu: {cores: 1, mhz: 1000}, memory: 1GiB, datastores: [ds1]}
`, h.ds, more))
	root := cgroupRoot(t)
	h.cgroup = filepath.Join(root, fmt.Sprintf("hanok-test-%d-%s-%s", os.Getpid(), t.Name(), name))
	if err := os.MkdirAll(h.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.removeCgroups() })
	p := func(s string) string { return filepath.Join(dir, s) }
	h.opts = guard.Options{
		ClusterFile: p("etc/cluster.yaml"), HostFile: p("etc/host"), BootIDFile: p("etc/boot"), MachineFile: p("etc/machine"),
		RunDir: p("run"), Socket: p("run/guard.sock"), StateFile: p("run/state.json"), ManagedFile: p("lib/managed.json"),
		CgroupRoot: h.cgroup, UID: uint32(os.Getuid()),
		Datastore: datastore.Options{AllowBuffered: true},
		Log:       slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	return h
}

// ownProcesses lets the host see only the processes that it started, as on
// hosts with their own process ids.
func (h *host) ownProcesses() {
	h.mkdir("proc")
	h.opts.ProcDir = filepath.Join(h.dir, "proc")
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func cgroupRoot(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if head, tail, ok := strings.Cut(line, " - "); ok && strings.HasPrefix(tail, "cgroup2 ") {
			return strings.Fields(head)[4]
		}
	}
	t.Fatal("these tests need cgroup v2 and root")
	return ""
}

func (h *host) removeCgroups() {
	var dirs []string
	_ = filepath.WalkDir(h.cgroup, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = os.WriteFile(filepath.Join(dirs[i], "cgroup.kill"), []byte("1"), 0)
		eventually(h.t, "cgroup "+dirs[i]+" is removed", func() bool {
			err := unix.Rmdir(dirs[i])
			return err == nil || os.IsNotExist(err)
		})
	}
}

func (h *host) mkdir(name string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.dir, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// start runs the guard until the test ends or stopGuard is called.
func (h *host) start() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h.stop, h.done = cancel, make(chan error, 1)
	done := h.done
	go func() { done <- guard.Run(ctx, h.opts) }()
	h.t.Cleanup(h.stopGuard)
}

func (h *host) stopGuard() {
	if h.done == nil {
		return
	}
	h.stop()
	if err := <-h.done; err != nil {
		h.t.Error("guard:", err)
	}
	h.done = nil
}

func (h *host) dial() *ipc.Client {
	h.t.Helper()
	var c *ipc.Client
	eventually(h.t, "the guard's socket answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var err error
		c, err = ipc.Dial(ctx, h.opts.Socket)
		return err == nil
	})
	h.t.Cleanup(c.Close)
	return c
}

func call(t *testing.T, c *ipc.Client, r lease.Request) lease.Reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	reply, err := c.Call(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func mustOK(t *testing.T, c *ipc.Client, r lease.Request) lease.Reply {
	t.Helper()
	reply := call(t, c, r)
	if reply.Code != lease.CodeOK {
		t.Fatalf("refused: %s: %s", reply.Code, reply.Text)
	}
	return reply
}

func status(t *testing.T, c *ipc.Client) lease.Status {
	t.Helper()
	return *mustOK(t, c, lease.Request{Status: &lease.StatusRequest{}}).Status
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(waitMax)
	for !ok() {
		if time.Now().After(limit) {
			t.Fatalf("it did not come true in %v that %s", waitMax, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func waitLease(t *testing.T, c *ipc.Client) {
	t.Helper()
	eventually(t, "the lease is valid", func() bool {
		s := status(t, c)
		return len(s.Datastores) == 1 && s.Datastores[0].OK
	})
}

// qemu starts a process that looks like a VM's.
func (h *host) qemu(vm model.VMID, name, disk string) *exec.Cmd {
	h.t.Helper()
	link := filepath.Join(h.dir, "qemu-system-x86_64")
	exe, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.Symlink(exe, link); err != nil && !os.IsExist(err) {
		h.t.Fatal(err)
	}
	cmd := exec.Command(link, "-name", "guest="+name+",debug-threads=on", "-S", "-uuid", string(vm))
	cmd.Env = append(os.Environ(), "HANOK_TEST_DISK="+disk)
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if h.opts.ProcDir != "" {
		pid := strconv.Itoa(cmd.Process.Pid)
		if err := os.Symlink("/proc/"+pid, filepath.Join(h.opts.ProcDir, pid)); err != nil {
			h.t.Fatal(err)
		}
	}
	return cmd
}

func web() lease.ManagedVM {
	return lease.ManagedVM{ID: webID, Name: "web", Home: "ds1", Datastores: []model.DatastoreName{"ds1"}}
}

func phaseOf(s lease.Status, vm model.VMID) lease.VMPhase {
	for _, v := range s.VMs {
		if v.VM == vm {
			return v.Phase
		}
	}
	return ""
}

func (h *host) unit(vm model.VMID) string { return filepath.Join(h.cgroup, "hanok", string(vm)) }

// protect creates the lock of web on a healthy host, wins it and starts the
// VM.
func (h *host) protect(c *ipc.Client, disk string) *exec.Cmd {
	t := h.t
	t.Helper()
	mustOK(t, c, lease.Request{Create: &lease.CreateRequest{VM: web()}})
	mustOK(t, c, lease.Request{Managed: &lease.ManagedRequest{VMs: []lease.ManagedVM{web()}}})
	won := mustOK(t, c, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 1}})
	cmd := h.qemu(webID, "web", disk)
	mustOK(t, c, lease.Request{Confirm: &lease.ConfirmRequest{VM: webID, Epoch: won.Epoch}})
	return cmd
}

func (h *host) frozen(vm model.VMID) bool {
	data, err := os.ReadFile(filepath.Join(h.unit(vm), "cgroup.events"))
	return err == nil && strings.Contains(string(data), "frozen 1")
}

// TestLifeOfAVM claims, confirms, kills and releases on a healthy datastore.
func TestLifeOfAVM(t *testing.T) {
	h := newHost(t, "host1", newBacking(t), "")
	h.start()
	c := h.dial()
	waitLease(t, c)
	mustOK(t, c, lease.Request{Create: &lease.CreateRequest{VM: web()}})
	mustOK(t, c, lease.Request{Managed: &lease.ManagedRequest{VMs: []lease.ManagedVM{web()}}})

	won := mustOK(t, c, lease.Request{Claim: &lease.ClaimRequest{VM: web(), Epoch: 1}})
	if won.Epoch != 2 {
		t.Fatalf("won epoch %d, want 2", won.Epoch)
	}
	if r := call(t, c, lease.Request{Confirm: &lease.ConfirmRequest{VM: webID, Epoch: 2}}); r.Code != lease.CodeNoProcess {
		t.Fatalf("confirm without a process: %s", r.Code)
	}
	h.qemu(webID, "web", "")
	mustOK(t, c, lease.Request{Confirm: &lease.ConfirmRequest{VM: webID, Epoch: 2}})
	if p := phaseOf(status(t, c), webID); p != lease.PhaseRunning {
		t.Fatalf("phase %q, want running", p)
	}
	if r := call(t, c, lease.Request{Release: &lease.ReleaseRequest{VM: webID, Epoch: 2, Reason: model.ReasonUserOff}}); r.Code != lease.CodeNotGone {
		t.Fatalf("release of a running VM: %s", r.Code)
	}
	mustOK(t, c, lease.Request{Kill: &lease.KillRequest{VM: webID, Epoch: 2}})
	if p := phaseOf(status(t, c), webID); p != lease.PhaseGone {
		t.Fatalf("phase %q, want gone", p)
	}
	r := mustOK(t, c, lease.Request{Release: &lease.ReleaseRequest{VM: webID, Epoch: 2, Reason: model.ReasonUserOff}})
	if r.Epoch != 3 || phaseOf(status(t, c), webID) != "" {
		t.Fatalf("released with epoch %d, phase %q", r.Epoch, phaseOf(status(t, c), webID))
	}
	vms, err := guard.ReadManaged(h.opts.ManagedFile)
	if err != nil || len(vms) != 1 {
		t.Fatalf("managed file: %v, %v", vms, err)
	}
}
