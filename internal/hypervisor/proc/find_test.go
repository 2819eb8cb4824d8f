package proc

import (
	"strings"
	"testing"
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
