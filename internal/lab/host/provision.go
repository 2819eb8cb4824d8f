package host

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Identity is what distinguishes an installed host from others.
type Identity struct {
	Name string
	// UUID is the host's hardware identity, which libvirt shows, with dashes.
	UUID string
	// MachineID is the content of /etc/machine-id, 32 hexadecimal digits.
	MachineID string
	// Neighbours are the names of /etc/hosts.
	Neighbours map[string]netip.Addr
}

// Provision installs a host: fills its /etc from the machine's and makes its
// /var. It is done once, before the first boot.
func Provision(etc, variable string, id Identity) error {
	if err := os.MkdirAll(filepath.Dir(etc), 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
		return fmt.Errorf("copy /etc for host %s: %w: %s", id.Name, err, strings.TrimSpace(string(out)))
	}
	for _, dir := range []string{"libvirt", "hanok"} { // the machine's own configuration is not the host's
		if err := os.RemoveAll(filepath.Join(etc, dir)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"libvirt/hooks/qemu.d", "libvirt/qemu", "hanok/pki"} {
		if err := os.MkdirAll(filepath.Join(etc, dir), 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{"lib/libvirt", "lib/hanok", "log/libvirt/qemu", "log/hanok", "cache/libvirt", "tmp"} {
		if err := os.MkdirAll(filepath.Join(variable, dir), 0o755); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"run": "/run", "lock": "/run/lock"} {
		if err := os.Symlink(to, filepath.Join(variable, name)); err != nil {
			return err
		}
	}
	files := map[string]string{
		"hostname":              id.Name + "\n",
		"machine-id":            id.MachineID + "\n",
		"hosts":                 hostsFile(id),
		"hanok/host":            id.Name + "\n",
		"libvirt/libvirtd.conf": fmt.Sprintf(libvirtdConf, id.UUID),
		"libvirt/qemu.conf":     qemuConf,
		"libvirt/libvirt.conf":  "",
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(etc, name), content, 0o600); err != nil {
			return err
		}
	}
	for _, name := range []string{"hostname", "machine-id", "hosts"} {
		if err := os.Chmod(filepath.Join(etc, name), 0o644); err != nil {
			return err
		}
	}
	return addLibvirtUser(etc)
}

// writeFile replaces a file; it never follows the link that it may be.
func writeFile(path, content string, mode os.FileMode) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), mode)
}

func hostsFile(id Identity) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for name, a := range id.Neighbours {
		fmt.Fprintf(&b, "%s %s\n", a, name)
	}
	return b.String()
}

// addLibvirtUser adds the users without which libvirtd does not start; the
// package that would make them is not needed otherwise.
func addLibvirtUser(etc string) error {
	for file, lines := range map[string][]string{
		"passwd": {"libvirt-qemu:x:64055:64055:Libvirt Qemu:/var/lib/libvirt:/usr/sbin/nologin"},
		"group":  {"kvm:x:64056:", "libvirt-qemu:x:64055:", "libvirt:x:64057:"},
	} {
		path := filepath.Join(etc, file)
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := string(data)
		for _, line := range lines {
			name, _, _ := strings.Cut(line, ":")
			if !strings.HasPrefix(text, name+":") && !strings.Contains(text, "\n"+name+":") {
				text += line + "\n"
			}
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const libvirtdConf = `host_uuid = "%s"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "2:stderr"
`

// In qemu.conf, dynamic ownership and remembering owners would write extended
// attributes to the shared datastore.
const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
keepalive_interval = 1
keepalive_count = 3
`
