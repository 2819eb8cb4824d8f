package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// systemdBinary is the machine's systemd.
const systemdBinary = "/usr/lib/systemd/systemd"

// masked are units that set up the kernel and devices, which are the machine's.
var masked = []string{"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-sysctl.service", "systemd-modules-load.service",
	"systemd-random-seed.service", "kmod-static-nodes.service", "systemd-tmpfiles-setup-dev.service", "systemd-firstboot.service",
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount",
	"sys-kernel-tracing.mount", "getty.target", "console-getty.service", "systemd-logind.service"}

// libvirtdUnit is what the package libvirt-daemon-system would bring, which the
// lab does not need otherwise.
const libvirtdUnit = `[Unit]
Description=libvirtd of the lab
After=local-fs.target remote-fs.target network.target
ConditionPathExists=!/etc/hanok/lab-hold

[Service]
Type=notify
ExecStart=/usr/sbin/libvirtd
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
Delegate=yes
TasksMax=32768

[Install]
WantedBy=multi-user.target
`

// holdDropIn keeps the units of the packages from starting on a lab that is not
// ready.
const holdDropIn = "[Unit]\nConditionPathExists=!/etc/hanok/lab-hold\n"

// ProvisionSystemd makes the /etc of a host one whose PID 1 is systemd: without
// the services that the machine has enabled, with one for libvirtd.
func ProvisionSystemd(etc string) error {
	units := filepath.Join(etc, "systemd/system")
	if err := os.RemoveAll(units); err != nil {
		return err
	}
	links, err := filepath.Glob(filepath.Join(etc, "rc*.d")) // scripts of sysvinit, of which systemd makes units
	if err != nil {
		return err
	}
	for _, dir := range append(links, filepath.Join(etc, "fstab")) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	files := map[string]string{"libvirtd.service": libvirtdUnit}
	for _, u := range []string{"hanok-guard", "hanok-agent", "hanok-host-shutdown"} {
		files[u+".service.d/lab.conf"] = holdDropIn
	}
	for name, content := range files {
		path := filepath.Join(units, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	symlinks := map[string]string{"default.target": "/usr/lib/systemd/system/multi-user.target",
		"multi-user.target.wants/libvirtd.service": "/etc/systemd/system/libvirtd.service"}
	for _, name := range masked {
		symlinks[name] = "/dev/null"
	}
	for name, to := range symlinks {
		path := filepath.Join(units, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}

// becomeSystemd executes the machine's systemd in place of this process, after
// ready. It returns only an error.
func becomeSystemd(ready func() error) error {
	if _, err := os.Stat(systemdBinary); err != nil {
		return errors.New("systemd is not installed on this machine: run scripts/install-deps.sh systemd")
	}
	if err := ready(); err != nil {
		return err
	}
	env := []string{"container=hanok-lab"}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "LANG=") {
			env = append(env, v)
		}
	}
	err := unix.Exec(systemdBinary, []string{systemdBinary, "--log-target=console", "--show-status=0"}, env)
	return fmt.Errorf("execute %s: %w", systemdBinary, err)
}
