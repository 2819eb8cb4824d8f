package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseCmdline(t *testing.T) {
	for _, c := range []struct{ args, vm, name string }{
		{"qemu-system-x86_64 -name guest=web,debug-threads=on -S -uuid 6B1F1D3A-0f0a-4c58-9a4e-2b9f0c7d1e55", "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", "web"},
		{"kvm -name web -uuid 6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", "web"},
		{"kvm -uuid ../../etc", "", ""},
		{"kvm -uuid", "", ""},
		{"kvm -drive file=x,uuid=1", "", ""},
	} {
		vm, name := parseCmdline(strings.Fields(c.args))
		if string(vm) != c.vm || name != c.name {
			t.Errorf("%s: %q %q", c.args, vm, name)
		}
	}
}

func TestIsQEMU(t *testing.T) {
	for arg, want := range map[string]bool{"/usr/bin/qemu-system-x86_64": true, "qemu-kvm": true, "/usr/libexec/qemu-kvm": true,
		"kvm": true, "qemu-img": false, "/usr/sbin/libvirtd": false, "": false} {
		if isQEMU(arg) != want {
			t.Errorf("%q: %v", arg, !want)
		}
	}
}

func TestScopeOf(t *testing.T) {
	for cgroup, want := range map[string]string{
		`/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator`: `/machine.slice/machine-qemu\x2d1\x2dweb.scope`,
		`/machine.slice/machine-qemu\x2d1\x2dweb.scope`:                  `/machine.slice/machine-qemu\x2d1\x2dweb.scope`,
		"/system.slice/libvirtd.service":                                 "",
		"/":                                                              "",
	} {
		if got := scopeOf(cgroup); got != want {
			t.Errorf("%s: %q", cgroup, got)
		}
	}
}

func TestUnitHolds(t *testing.T) {
	u := &unit{dir: "/sys/fs/cgroup/hanok/abc"}
	for cgroup, want := range map[string]bool{"/hanok/abc": true, "/hanok/abc/emulator": true, "/hanok/abcd": false, "/": false} {
		if u.holds(cgroup, "/sys/fs/cgroup") != want {
			t.Errorf("%s: %v", cgroup, !want)
		}
	}
}

// TestHelpers: libvirt cuts the name in its pid files short, and names may
// begin alike.
func TestHelpers(t *testing.T) {
	run := t.TempDir()
	for file, pid := range map[string]int{"7-production-database-fs0-fs.pid": 70, "8-production-database-fs0-fs.pid": 80,
		"3-web-2-fs0-fs.pid": 30, "4-web-fs0-fs.pid": 40, "production-database-01.pid": 7, "web.pid": 4} {
		if err := os.WriteFile(filepath.Join(run, file), []byte(fmt.Sprintln(pid)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFinder(t.TempDir())
	for _, c := range []struct {
		args string
		want []int
	}{
		{`kvm -name guest=production-database-01 -object {"file":"/var/lib/libvirt/qemu/domain-7-production-database/master-key.aes"}`, []int{70}},
		{`kvm -name guest=production-database-02 -object secret,file=/var/lib/libvirt/qemu/domain-8-production-database/master-key.aes`, []int{80}},
		{`kvm -name guest=web -object secret,file=/var/lib/libvirt/qemu/domain-4-web/master-key.aes`, []int{40}},
		{`kvm -name guest=other`, nil},
	} {
		args := strings.Fields(c.args)
		q := &qemu{pid: 1, short: shortName(args)}
		_, q.name = parseCmdline(args)
		if got := f.helpers(q, run); !slices.Equal(got, c.want) {
			t.Errorf("%s: helpers %v, want %v", c.args, got, c.want)
		}
	}
}

// TestLateQEMU: what libvirt forked long ago may become QEMU at any moment; it
// is looked at in every list.
func TestLateQEMU(t *testing.T) {
	dir := t.TempDir()
	for pid, cmdline := range map[string]string{"10": "/usr/sbin/libvirtd\x00--listen\x00", "11": "sleep\x001000\x00"} {
		if err := os.Mkdir(filepath.Join(dir, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		write := func(file, text string) {
			if err := os.WriteFile(filepath.Join(dir, pid, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("cmdline", cmdline)
		write("stat", pid+" (x) S 1"+strings.Repeat(" 0", 30))
	}
	f := newFinder(dir)
	for _, at := range []time.Duration{time.Second, time.Minute, time.Minute + 10*time.Second} {
		if found, err := f.find(at); err != nil || len(found) != 0 {
			t.Fatal(found, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "10", "cmdline"), []byte("/usr/bin/kvm\x00-uuid\x006b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := f.find(time.Minute + 11*time.Second); err != nil || len(found) != 1 {
		t.Errorf("found %d: %v", len(found), err)
	}
}
