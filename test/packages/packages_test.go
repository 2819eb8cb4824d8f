// Package packages_test installs, upgrades and removes the packages in root file
// systems of a fresh Debian: `make test-packages`. Needs root, debootstrap, rpm and
// the network the first time: the fresh root is kept in .cache.
//
// Nothing runs in these roots. How the packages behave on hosts whose VMs run is
// tested in test/long.
package packages_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const release = "bookworm"

// root is a root file system of a fresh Debian, of which changes go with the test.
type root struct {
	t   *testing.T
	dir string
}

// fresh is the tree below all roots.
func fresh(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../.cache/debian-" + release)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp := dir + ".new"
	for _, d := range []string{tmp, filepath.Dir(dir)} {
		if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(d, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "debootstrap", "--variant=minbase", "--include=systemd", release, tmp)
	if err := os.Rename(tmp, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newRoot lays room for changes over a fresh Debian and packages into its /tmp.
func newRoot(t *testing.T, packages string) *root {
	t.Helper()
	lower, dir := fresh(t), t.TempDir()
	mount := func(source, target, kind, data string) {
		t.Helper()
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(source, target, kind, 0, data); err != nil {
			t.Fatalf("mount %s (this test needs root): %v", kind, err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	room, merged := filepath.Join(dir, "room"), filepath.Join(dir, "root")
	mount("tmpfs", room, "tmpfs", "mode=755")
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(room, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", merged, "overlay", fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, filepath.Join(room, "upper"), filepath.Join(room, "work")))
	for _, p := range glob(t, filepath.Join(packages, "*")) {
		run(t, "cp", p, filepath.Join(merged, "tmp"))
	}
	return &root{t, merged}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("nothing matches %s: %v", pattern, err)
	}
	return found
}

// try runs a script inside.
func (r *root) try(script string) (string, error) {
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "HOME=/root"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r *root) sh(script string) string {
	r.t.Helper()
	out, err := r.try(script)
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// has checks the kind, mode and owner of files.
func (r *root) has(want map[string]fs.FileMode) {
	r.t.Helper()
	for path, mode := range want {
		i, err := os.Lstat(filepath.Join(r.dir, path))
		if err != nil {
			r.t.Errorf("%v", err)
			continue
		}
		if s := i.Sys().(*syscall.Stat_t); i.Mode() != mode || s.Uid != 0 || s.Gid != 0 {
			r.t.Errorf("%s is %v of %d:%d, want %v of root", path, i.Mode(), s.Uid, s.Gid, mode)
		}
	}
}

// lacks checks that files are not there.
func (r *root) lacks(paths ...string) {
	r.t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(filepath.Join(r.dir, path)); !errors.Is(err, fs.ErrNotExist) {
			r.t.Errorf("%s is there (%v)", path, err)
		}
	}
}

func (r *root) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, path), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *root) says(path, text string) {
	r.t.Helper()
	if b, err := os.ReadFile(filepath.Join(r.dir, path)); string(b) != text {
		r.t.Errorf("%s is %q (%v), want %q", path, b, err, text)
	}
}

const (
	unitDir = "/usr/lib/systemd/system/"
	wants   = "/etc/systemd/system/multi-user.target.wants/"
	hook    = "/etc/libvirt/hooks/qemu.d/50-hanok"
	options = "/etc/default/hanok-server"
)

// programs are what is gone after a removal, state what stays.
var (
	programs = map[string]fs.FileMode{"/usr/bin/hanok": 0o755, "/usr/bin/hanok-guard": 0o755, hook: 0o755,
		unitDir + "hanok-guard.service": 0o644, unitDir + "hanok-agent.service": 0o644, unitDir + "hanok-host-shutdown.service": 0o644,
		unitDir + "hanok-server.service": 0o644}
	state = map[string]fs.FileMode{"/etc/hanok": fs.ModeDir | 0o755, "/etc/hanok/pki": fs.ModeDir | 0o700,
		"/var/lib/hanok": fs.ModeDir | 0o700, "/var/lib/hanok-server": fs.ModeDir | 0o700, options: 0o644}
	links = map[string]fs.FileMode{}
)

func init() {
	for _, u := range []string{"hanok-guard", "hanok-agent", "hanok-host-shutdown"} {
		links[wants+u+".service"] = fs.ModeSymlink | 0o777
	}
}

func names(m map[string]fs.FileMode) []string {
	var out []string
	for n := range m {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// build makes packages of two versions of this tree, once for all tests.
func build(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hanok-packages")
	if err != nil {
		return "", err
	}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		cmd := exec.Command("scripts/packages.sh", v, dir)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("packages (`make build` first): %w\n%s", err, out)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := built(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// life installs, configures, upgrades, removes and installs anew.
func life(r *root, install func(version string), remove func()) {
	r.t.Helper()
	install("1.0.0")
	r.has(programs)
	r.has(state)
	r.has(links)
	r.lacks(wants + "hanok-server.service") // its options come first
	if out := r.sh("hanok --help && hanok-guard help"); !strings.Contains(out, "hanok-guard may-stop") {
		r.t.Errorf("the programs say %q", out)
	}
	for _, f := range []string{"/etc/hanok/host", "/etc/hanok/cluster.yaml", "/etc/hanok/pki/host.key", "/var/lib/hanok/events.jsonl", options} {
		r.write(f, "mine\n")
	}
	r.sh("systemctl disable -q hanok-agent")

	install("1.1.0")
	r.has(programs)
	kept := func() {
		r.t.Helper()
		for _, f := range []string{"/etc/hanok/host", "/etc/hanok/cluster.yaml", "/etc/hanok/pki/host.key", "/var/lib/hanok/events.jsonl"} {
			r.says(f, "mine\n")
		}
	}
	kept()
	r.says(options, "mine\n")
	r.lacks(wants + "hanok-agent.service") // what is disabled stays so
	r.has(map[string]fs.FileMode{wants + "hanok-guard.service": fs.ModeSymlink | 0o777})

	remove()
	r.lacks(names(programs)...)
	r.lacks(names(links)...)
	kept()

	install("1.1.0")
	r.has(programs)
	r.has(links)
	kept()
}

func TestDebianPackages(t *testing.T) {
	r := newRoot(t, build(t))
	life(r, func(v string) {
		t.Helper()
		r.sh(fmt.Sprintf("apt-get install -y --no-install-recommends /tmp/hanok_%[1]s_*.deb /tmp/hanok-server_%[1]s_*.deb", v))
	}, func() { t.Helper(); r.sh("apt-get remove -y hanok hanok-server") })
	r.says(options, "mine\n")
	if out := r.sh("dpkg --audit; dpkg --verify hanok hanok-server"); out != "??5?????? c "+options {
		t.Errorf("dpkg finds %q", out)
	}
	r.sh("apt-get purge -y hanok hanok-server && rm /tmp/*.deb /tmp/*.rpm")
	// Nothing is left, in whatever directory, but dpkg's and apt's logs.
	if out := r.sh("find / -xdev -iname '*hanok*'"); out != "" {
		t.Errorf("after a purge there is\n%s", out)
	}
}

// The server fits the programs of its own version alone.
func TestServerDependsOnItsVersion(t *testing.T) {
	r := newRoot(t, build(t))
	r.sh("dpkg -i /tmp/hanok_1.0.0_*.deb")
	if out, err := r.try("dpkg -i /tmp/hanok-server_1.1.0_*.deb"); err == nil || !strings.Contains(out, "depends on hanok (= 1.1.0)") {
		t.Errorf("a server of another version was installed: %v\n%s", err, out)
	}
}

func TestRPMs(t *testing.T) {
	dir := build(t)
	for _, p := range glob(t, filepath.Join(dir, "*.rpm")) {
		if out := run(t, "rpm", "--checksig", "--nosignature", p); !strings.Contains(out, "OK") {
			t.Errorf("%s", out)
		}
		scripts := run(t, "rpm", "-qp", "--scripts", p)
		for _, s := range []string{"postinstall scriptlet", "preuninstall scriptlet", "postuninstall scriptlet"} {
			if !strings.Contains(scripts, s) {
				t.Errorf("%s has no %s", filepath.Base(p), s)
			}
		}
	}
	if out := run(t, "rpm", "-qp", "--requires", glob(t, filepath.Join(dir, "hanok-server-1.1.0-*.rpm"))[0]); !strings.Contains(out, "hanok = 1.1.0") {
		t.Errorf("the server requires %q", out)
	}
	if out := run(t, "rpm", "-qp", "--configfiles", glob(t, filepath.Join(dir, "hanok-server-1.1.0-*.rpm"))[0]); out != options {
		t.Errorf("configuration of the server: %q", out)
	}
	// rpm runs on this machine and its scripts inside. The Debian root has no
	// rpm that provides what others require, so dependencies are not asked.
	r := newRoot(t, dir)
	rpm := func(args ...string) {
		t.Helper()
		run(t, append([]string{"rpm", "--root", r.dir, "--nodeps", "--force-debian"}, args...)...)
	}
	life(r, func(v string) {
		t.Helper()
		rpm("-U", glob(t, filepath.Join(dir, "hanok-"+v+"-*.rpm"))[0], glob(t, filepath.Join(dir, "hanok-server-"+v+"-*.rpm"))[0])
	}, func() { t.Helper(); rpm("-e", "hanok-server", "hanok") })
	rpm("-V", "hanok", "hanok-server")
}
