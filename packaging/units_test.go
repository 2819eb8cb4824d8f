// Package packaging_test checks the units of the packages.
package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unit reads a unit's settings, each name with all its words.
func unit(t *testing.T, name string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, line := range strings.Split(string(b), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			out[k] = append(out[k], strings.Fields(v)...)
		}
	}
	return out
}

// At the shutdown of a host systemd stops units in the reverse of the order in
// which they start: VMs first, while everything that this takes is there.
func TestVMsStopBeforeWhatTheyNeed(t *testing.T) {
	u := unit(t, "hanok-host-shutdown.service")
	for _, other := range []string{"hanok-guard.service", "hanok-agent.service", "libvirtd.service", "virtqemud.service",
		"libvirt-guests.service", "virt-guest-shutdown.target", "network-online.target", "remote-fs.target"} {
		if !slices.Contains(u["After"], other) {
			t.Errorf("it does not stop before %s", other)
		}
	}
	if got := strings.Join(u["ExecStop"], " "); !strings.HasPrefix(got, "-/usr/bin/hanok host stop-vms") || len(u["RefuseManualStop"]) == 0 {
		t.Errorf("ExecStop=%s, RefuseManualStop=%v", got, u["RefuseManualStop"])
	}
	if a := unit(t, "hanok-agent.service"); !slices.Contains(a["After"], "hanok-guard.service") || !slices.Contains(a["After"], "libvirtd.service") {
		t.Error("the agent does not stop before the guard and libvirt")
	} else if !slices.Contains(a["Wants"], "hanok-host-shutdown.service") {
		t.Error("a host enrolled after its boot shuts down without stopping its VMs")
	}
	if g := unit(t, "hanok-guard.service"); !slices.Contains(g["Before"], "libvirtd.service") || !slices.Contains(g["After"], "remote-fs.target") {
		t.Error("the guard does not start before libvirt and stop before remote file systems")
	}
}

// Every unit is in a package, and systemd understands it where it is there.
func TestUnitsArePackaged(t *testing.T) {
	var specs string
	for _, f := range []string{"nfpm.yaml", "nfpm-server.yaml"} {
		spec, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		specs += string(spec)
	}
	units, err := filepath.Glob("systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatal(units, err)
	}
	for _, u := range units {
		if !strings.Contains(specs, "src: packaging/"+u+"\n") {
			t.Errorf("%s is in no package", u)
		}
		analyze, err := exec.LookPath("systemd-analyze")
		if err != nil {
			continue
		}
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		// The programs need not be installed here.
		text := strings.NewReplacer("/usr/bin/hanok-guard", "/bin/true", "/usr/bin/hanok", "/bin/true").Replace(string(b))
		file := filepath.Join(t.TempDir(), filepath.Base(u))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(u)+":") {
			t.Errorf("systemd-analyze verify %s: %v\n%s", u, err, out)
		}
	}
}
