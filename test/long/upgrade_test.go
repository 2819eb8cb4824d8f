package long_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp/cmpopts"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/lab"
	"hanok.dev/hanok/internal/lab/drill"
)

// previousVariable names a directory with the packages of the version before,
// as they were published. Without it they are built from the newest tag, or
// where there is none from the commit that recorded the formats one version back.
const previousVariable = "HANOK_PREVIOUS_PACKAGES"

// recorded is a file that came with the first record of the formats.
const recorded = "internal/fdm/testdata/formats/1/message.json"

// run runs a command of this machine and returns its output.
func run(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// deb is the only package of this name in a directory.
func deb(t *testing.T, dir, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d packages %s in %s, want one: %v", len(found), name, dir, err)
	}
	return found[0]
}

// previous is the directory of the packages of the version before.
func previous(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(previousVariable); dir != "" {
		return dir
	}
	ref := ""
	if out, err := exec.Command("git", "-C", "../..", "describe", "--tags", "--abbrev=0", "HEAD^").Output(); err == nil {
		ref = strings.TrimSpace(string(out))
	} else {
		commits := strings.Fields(run(t, "../..", "git", "log", "--diff-filter=A", "--format=%H", "--", recorded))
		if len(commits) == 0 {
			t.Fatalf("this clone has neither a tag nor the history of %s; %s=DIRECTORY names packages of the version before", recorded, previousVariable)
		}
		ref = commits[len(commits)-1]
	}
	t.Logf("the version before is %s", ref)
	dir := t.TempDir()
	run(t, "../..", "sh", "-c", "git archive "+ref+" | tar -x -C "+dir)
	run(t, dir, "make", "packages", "VERSION=0.0.1")
	return filepath.Join(dir, "dist")
}

// current makes the packages of this tree.
func current(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "../..", "scripts/packages.sh", "99.0.0", dir)
	return dir
}

// program unpacks hanok from a package.
func program(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, ".", "dpkg-deb", "-x", file, dir)
	return filepath.Join(dir, "usr/bin/hanok")
}

// life says of each VM which process it is and how often its guest has booted:
// both stay the same as long as nobody touches it.
func (u *upgrade) life() map[string]string {
	u.t.Helper()
	st, err := u.d.Client.Status(u.ctx, true)
	if err != nil {
		u.t.Fatal(err)
	}
	out := map[string]string{}
	for _, v := range st.VMs {
		if len(v.Instances) != 1 || v.Disk == nil {
			u.t.Fatalf("%s has %d instances, disk %q", v.Name, len(v.Instances), v.DiskError)
		}
		i := v.Instances[0]
		out[v.Name] = fmt.Sprintf("process %d on %s, boot %d of its guest", i.Pid, i.Host, v.Disk.Epoch)
	}
	return out
}

// upgrade is a cluster of hosts that are installed from packages.
type upgrade struct {
	t   *testing.T
	ctx context.Context
	d   drill.Drill
	old map[string]bool // hosts of the version before
}

func (u *upgrade) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgrade) settle() {
	u.t.Helper()
	u.must(u.d.Settle(u.ctx, settleLimit))
}

// failovers counts the failovers that any host tells of.
func (u *upgrade) failovers() string {
	u.t.Helper()
	on, err := u.d.Primary(u.ctx)
	u.must(err)
	out, err := u.d.Exec(u.ctx, on, "hanok", "events", "--failover", "list")
	u.must(err)
	return strings.TrimSpace(string(out))
}

// upgradeHost installs the new package on a host while its VMs run.
func (u *upgrade) upgradeHost(host, file string) {
	u.t.Helper()
	before, told := u.life(), u.failovers()
	began := time.Now()
	u.must(u.d.Install(u.ctx, host, file))
	took := time.Since(began)
	u.settle()
	if after := u.life(); !maps.Equal(before, after) {
		u.t.Errorf("the upgrade of %s touched VMs: before\n%v\nafter\n%v", host, before, after)
	}
	if now := u.failovers(); now != told {
		u.t.Errorf("the upgrade of %s looked like a failure: before\n%s\nafter\n%s", host, told, now)
	}
	for _, daemon := range []string{"guard", "agent"} {
		if exe := u.executable(host, daemon); strings.HasSuffix(exe, "(deleted)") {
			u.t.Errorf("the %s of %s still runs the program of the version before: %s", daemon, host, exe)
		}
	}
	delete(u.old, host)
	u.t.Logf("%s upgraded: dpkg took %.1f s, the cluster was settled after %.1f s", host, took.Seconds(), time.Since(began).Seconds())
}

func (u *upgrade) executable(host, daemon string) string {
	u.t.Helper()
	out, err := u.d.Exec(u.ctx, host, "sh", "-c", "readlink /proc/$(pgrep -o -f '"+drill.Daemons[daemon]+"')/exe")
	u.must(err)
	return strings.TrimSpace(string(out))
}

// lose cuts the power of a host while versions are mixed, and gives it back.
func (u *upgrade) lose(host string) {
	u.t.Helper()
	u.must(u.d.EnsureVMs(u.ctx, host, 2))
	st, err := u.d.State(u.ctx)
	u.must(err)
	lost, before := drill.On(st, host), u.life()
	began := time.Now()
	u.must(u.d.PowerOff(u.ctx, host))
	u.must(drill.Until(u.ctx, time.Minute, "the VMs of "+host+" run elsewhere", func() error {
		st, err := u.d.State(u.ctx)
		if err != nil {
			return err
		}
		for _, vm := range lost {
			if err := drill.Once(st, vm); err != nil {
				return err
			}
		}
		return nil
	}))
	u.t.Logf("%s (upgraded: %v) lost power; its %d VMs ran elsewhere after %.1f s; still old: %v",
		host, !u.old[host], len(lost), time.Since(began).Seconds(), slices.Sorted(maps.Keys(u.old)))
	u.must(u.d.PowerOn(u.ctx, host, false))
	u.settle()
	for vm, was := range u.life() {
		if !slices.Contains(lost, vm) && was != before[vm] {
			u.t.Errorf("%s was not on %s and was touched: %s became %s", vm, host, before[vm], was)
		}
	}
}

// remove takes the package from a host whose VMs run on.
func (u *upgrade) remove(host string) {
	u.t.Helper()
	before := u.life()
	st, err := u.d.State(u.ctx)
	u.must(err)
	if len(drill.On(st, host)) == 0 {
		u.t.Fatalf("%s runs no VM: nothing would be shown", host)
	}
	_, err = u.d.Exec(u.ctx, host, "dpkg", "--remove", "hanok")
	u.must(err)
	_, err = u.d.Exec(u.ctx, host, "sh", "-ec", `
		if pgrep -x 'hanok|hanok-guard'; then exit 1; fi
		[ ! -e /etc/libvirt/hooks/qemu.d/50-hanok ]
		[ ! -e /usr/bin/hanok ] && [ ! -e /usr/bin/hanok-guard ]
		[ -e /etc/hanok/cluster.yaml ] && [ -e /etc/hanok/pki/host.key ]`)
	u.must(err)
	_, err = u.d.Exec(u.ctx, host, "dpkg", "--purge", "hanok")
	u.must(err)
	_, err = u.d.Exec(u.ctx, host, "sh", "-ec", "[ ! -e /etc/hanok ] && [ ! -e /var/lib/hanok ]")
	u.must(err)
	// For longer than a lease, the watchdog's time and a verdict together.
	err = drill.Until(u.ctx, 20*time.Second, "nothing happens", func() error {
		if after := u.life(); !maps.Equal(before, after) {
			u.t.Fatalf("the removal on %s touched VMs: before\n%v\nafter\n%v", host, before, after)
		}
		return errors.New("so it is")
	})
	if err == nil {
		u.t.Fatal("unreachable")
	}
	if st, err = u.d.State(u.ctx); err != nil {
		u.t.Fatal(err)
	}
	for _, h := range st.Hosts {
		if h.Name == host && (h.Power != "on" || h.Resets != 0 || h.Watchdog != "idle") {
			u.t.Errorf("%s after the removal: power %s, %d resets, watchdog %s", host, h.Power, h.Resets, h.Watchdog)
		}
	}
}

// A cluster of the version before is upgraded host by host, the server first,
// while its VMs run. Both versions work together for a while, failovers
// included. At last the package is removed from a host, and its VMs run on.
// Hosts have systemd as PID 1, and dpkg installs.
func TestUpgradeFromThePreviousPackage(t *testing.T) {
	before, after := previous(t), current(t)
	u := &upgrade{t: t, old: map[string]bool{}}
	u.ctx, u.d = upWith(t, lab.Options{Packages: []string{deb(t, before, "hanok")}})
	st, err := u.d.State(u.ctx)
	u.must(err)
	for _, h := range st.Hosts {
		u.old[h.Name] = true
	}
	anyOrder := cmpopts.SortSlices(func(a, b local.VM) bool { return a.Name < b.Name }) // the version before has none
	agrees := func() {
		t.Helper()
		u.must(drill.Until(u.ctx, 30*time.Second, "the server says what the hosts say", func() error { return u.d.ServerAgrees(u.ctx, anyOrder) }))
	}

	u.d.UseServer(program(t, deb(t, before, "hanok")))
	u.must(u.d.StartServer(u.ctx))
	primary, err := u.d.Primary(u.ctx)
	u.must(err)
	u.must(u.d.AdoptHosts(u.ctx, primary))
	agrees()
	u.must(u.d.StopServer(u.ctx))
	u.d.UseServer(program(t, deb(t, after, "hanok")))
	u.must(u.d.StartServer(u.ctx))
	agrees()

	file := deb(t, after, "hanok")
	first, err := u.d.BusiestSecondary(u.ctx)
	u.must(err)
	u.upgradeHost(first, file)
	agrees()
	if primary, err = u.d.Primary(u.ctx); err != nil {
		t.Fatal(err)
	}
	u.lose(primary) // the primary of the version before, or by then the new one
	for _, host := range slices.Sorted(maps.Keys(u.old))[:1] {
		u.upgradeHost(host, file)
	}
	for host := range maps.Clone(u.old) {
		u.lose(host)
		u.upgradeHost(host, file)
	}
	agrees()
	v, err := u.d.Violations(u.ctx)
	if err != nil || len(v) > 0 {
		t.Fatalf("violations %v, %v", v, err)
	}
	busiest, err := u.d.BusiestSecondary(u.ctx)
	u.must(err)
	u.remove(busiest)
}
