package lab

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/guest"
	"hanok.dev/hanok/internal/lab/layout"
	"hanok.dev/hanok/internal/model"
)

// diskSize of a guest holds the records of seven hours.
const diskSize = 64 << 20

const kernelArgs = "console=ttyS0 quiet nokaslr mitigations=off cryptomgr.notests panic=1"

// createVM makes a VM's directories, disks and domain XML on its datastores,
// from behind: no host's path is involved. Existing disks are kept.
func createVM(l layout.Lab, c *config.Cluster, v *config.VM) error {
	disks := []disk{{datastore: string(v.Datastore), file: "disk0.raw"}}
	for i, ds := range v.DisksOn {
		disks = append(disks, disk{datastore: string(ds), file: fmt.Sprintf("disk%d.raw", i+1)})
	}
	for i, d := range disks {
		dir := filepath.Join(l.Backing(d.datastore), v.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := preallocate(filepath.Join(dir, d.file)); err != nil {
			return err
		}
		disks[i].path = filepath.Join(c.DatastoreByName(model.DatastoreName(d.datastore)).Path, v.Name, d.file)
	}
	text := domainXML(v, disks)
	return os.WriteFile(filepath.Join(l.Backing(string(v.Datastore)), v.Name, v.Name+".xml"), text, 0o600)
}

type disk struct{ datastore, file, path string }

// preallocate makes a disk without holes: a datastore that fills up must not
// stop running guests.
func preallocate(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, diskSize); err != nil {
		return fmt.Errorf("allocate %s: %w", path, err)
	}
	return nil
}

// domainXML describes a guest of the lab for libvirt: small, emulated, with
// the cache mode and the error policy that protection asks for.
func domainXML(v *config.VM, disks []disk) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
  <memory unit='MiB'>%d</memory>
  <vcpu>%d</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>%s</kernel>
    <initrd>%s</initrd>
    <cmdline>%s</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
`, escape(v.Name), v.ID, min(v.Memory, 1024), max(1, min(v.CPUs, 2)),
		filepath.Join(layout.HostGuest, guest.KernelFile), filepath.Join(layout.HostGuest, guest.InitrdFile), escape(kernelArgs))
	for i, d := range disks {
		fmt.Fprintf(&b, `    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='threads' error_policy='stop' rerror_policy='stop'/>
      <source file='%s'/>
      <target dev='vd%c' bus='virtio'/>
    </disk>
`, escape(d.path), 'a'+rune(i))
	}
	fmt.Fprintf(&b, `    <controller type='usb' model='none'/>
    <serial type='file'><source path='%s' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
</domain>
`, escape(consoleFile(v.Name)))
	return []byte(b.String())
}

// consoleFile is where, inside a host, a guest's console goes.
func consoleFile(vm string) string { return "/var/log/libvirt/qemu/" + vm + "-console.log" }

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
