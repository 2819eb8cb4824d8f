package lab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/paths"
)

// clusterFile is the cluster file that the primary keeps.
func (c *cluster) clusterFile() *config.Cluster {
	c.t.Helper()
	out := c.mustExec(c.primary(), "hanok", "cluster", "show")
	f, err := config.Parse([]byte(out))
	c.must(err)
	return f
}

func (c *cluster) clusterID() string { return c.clusterFile().ID }

// directory is the cluster's directory on a datastore, behind all faults.
func (c *cluster) directory(ds string) string {
	return filepath.Join(c.d.Layout().Backing(ds), ".hanok")
}

func (c *cluster) aside(ds, name string) string {
	return filepath.Join(c.t.TempDir(), ds+"-"+name)
}

func (c *cluster) moveDirectoryAside(ds string) string {
	c.t.Helper()
	to := filepath.Join(c.d.Layout().DataDir(), ds+"-aside")
	c.must(os.Rename(c.directory(ds), to))
	c.t.Cleanup(func() { // if the test failed in between
		if _, err := os.Stat(to); err == nil {
			_ = os.RemoveAll(c.directory(ds))
			_ = os.Rename(to, c.directory(ds))
		}
	})
	return to
}

func (c *cluster) moveDirectoryBack(ds, aside string) {
	c.t.Helper()
	c.must(os.Rename(aside, c.directory(ds)))
}

func (c *cluster) directoryExists(ds string) bool {
	_, err := os.Stat(c.directory(ds))
	return err == nil
}

func (c *cluster) removeDirectory(ds string) {
	c.t.Helper()
	c.must(os.RemoveAll(c.directory(ds)))
}

// copyDirectory keeps a copy, as a snapshot of the storage would.
func (c *cluster) copyDirectory(ds string) string {
	c.t.Helper()
	to := c.aside(ds, "old")
	out, err := exec.Command("cp", "-a", c.directory(ds), to).CombinedOutput()
	if err != nil {
		c.t.Fatalf("copy %s: %v: %s", ds, err, out)
	}
	return to
}

// replaceDirectory puts an older copy in the place of the present directory.
func (c *cluster) replaceDirectory(ds, old string) {
	c.t.Helper()
	fresh := filepath.Join(c.d.Layout().Backing(ds), ".hanok-old")
	if out, err := exec.Command("cp", "-a", old, fresh).CombinedOutput(); err != nil {
		c.t.Fatalf("copy %s: %v: %s", ds, err, out)
	}
	gone := filepath.Join(c.d.Layout().DataDir(), ds+"-gone")
	c.must(os.Rename(c.directory(ds), gone))
	c.must(os.Rename(fresh, c.directory(ds)))
	c.must(os.RemoveAll(gone))
}

// churn makes a lock on ds move on, so that an older copy differs in more than
// its heartbeats.
func (c *cluster) churn(ds string) {
	c.t.Helper()
	vm := c.vmsWithHome(ds)[0]
	before := c.instance(vm)
	c.killProcess(vm)
	c.eventually(20*time.Second, vm+" was restarted", func() error { return c.restarted(vm, before) })
	c.settle()
}

// repair runs the documented command.
func (c *cluster) repair(ds string, more ...string) {
	c.t.Helper()
	out := c.mustExec(c.primary(), append([]string{"hanok", "datastore", "repair", ds, "--yes"}, more...)...)
	c.t.Log(out)
}

// hideDisk takes a VM's disk away, on the datastore itself.
func (c *cluster) hideDisk(vm string) (putBack func()) {
	c.t.Helper()
	disk := filepath.Join(c.d.Layout().Backing(c.datastoreOf(vm)), vm, "disk0.raw")
	c.must(os.Rename(disk, disk+".hidden"))
	c.t.Cleanup(func() { _ = os.Rename(disk+".hidden", disk) }) // if the test failed in between
	return func() { c.t.Helper(); c.must(os.Rename(disk+".hidden", disk)) }
}

// apply brings a changed cluster file into force.
func (c *cluster) apply(host string, f *config.Cluster) (string, error) {
	c.t.Helper()
	data, err := f.Marshal()
	c.must(err)
	path := filepath.Join(c.d.Layout().HostEtc(host), "hanok", "apply-test.yaml")
	c.must(os.WriteFile(path, data, 0o600))
	defer os.Remove(path)
	return c.exec(host, "hanok", "cluster", "apply", "-f", "/etc/hanok/apply-test.yaml", "--yes")
}

// shrinkMemory leaves a host no room for more VMs.
func (c *cluster) shrinkMemory(host string) (restore func()) {
	c.t.Helper()
	seen := c.status()
	st := seen.HostByName(model.HostID(host))
	if st == nil {
		c.t.Fatalf("the cluster does not know %s", host)
	}
	set := func(m model.MiB) model.MiB {
		f := c.clusterFile()
		h := f.HostByName(model.HostID(host))
		old := h.Memory
		h.Memory = m
		if out, err := c.apply(c.primary(), f); err != nil {
			c.t.Fatalf("apply: %v: %s", err, out)
		}
		return old
	}
	old := set(st.MemoryUsed + 1)
	return func() { set(old) }
}

func (c *cluster) hostFile(host, path string) string {
	return filepath.Join(c.d.Layout().HostEtc(host), strings.TrimPrefix(path, "/etc/"))
}

func (c *cluster) corruptClusterFile(host string) {
	c.t.Helper()
	c.must(os.WriteFile(c.hostFile(host, paths.ClusterFile), []byte("version: [\x00 broken"), 0o600))
}

func (c *cluster) clusterFileIsWhole(host string) error {
	_, err := config.ReadFile(c.hostFile(host, paths.ClusterFile))
	return err
}

// replaceCertificate gives a host a certificate of another CA for the same
// name.
func (c *cluster) replaceCertificate(host string) (restore func()) {
	c.t.Helper()
	dir := c.hostFile(host, paths.PKIDir)
	c.must(os.Rename(dir, dir+".own"))
	ca := filepath.Join(c.hostFile(host, "/etc/hanok"), "foreign-ca")
	c.mustExec(host, "hanok", "pki", "init", c.clusterID(), "--dir", "/etc/hanok/foreign-ca")
	addresses := c.clusterFile().HostByName(model.HostID(host)).Address
	args := []string{"hanok", "pki", "issue", host, "--dir", "/etc/hanok/foreign-ca", "--out", paths.PKIDir}
	for _, a := range addresses {
		args = append(args, "--address", a.String())
	}
	c.mustExec(host, args...)
	return func() {
		c.t.Helper()
		c.must(os.RemoveAll(dir))
		c.must(os.Rename(dir+".own", dir))
		c.must(os.RemoveAll(ca))
	}
}

func (c *cluster) libvirtAnswers(host string) error {
	_, err := c.exec(host, "virsh", "-q", "list")
	return err
}

// flood sends random datagrams from one host to another's port 8182, from the
// host's own address, and returns how many left.
func (c *cluster) flood(from, to string, d time.Duration, perSecond int) int {
	c.t.Helper()
	address := c.clusterFile().HostByName(model.HostID(to)).Address["mgmt"]
	out := c.insideTest(from, floodFlag, address.String(), strconv.Itoa(perSecond), d.String())
	n, err := strconv.Atoi(out)
	if err != nil {
		c.t.Fatal(fmt.Errorf("flood printed %q: %w", out, err))
	}
	return n
}
