package domainxml

import "strings"

// good is a definition as libvirt 9 prints it for a shut-off VM.
const good = `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>6B1F1D3A-0f0a-4c58-9a4e-2b9f0c7d1e55</uuid>
  <metadata><app:note xmlns:app="http://app.example/1">keep &amp; return</app:note></metadata>
  <memory unit='KiB'>4194305</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
    <boot dev='network'/>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='threads'/>
      <source file='/ds/one/web/disk0.raw'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='directsync'/>
      <source file='/ds/two/web/disk1.qcow2'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:11:22:33'/>
      <source network='vm'/>
      <model type='virtio'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='-1' autoport='yes' passwd='secret'/>
  </devices>
  <qemu:commandline><qemu:arg value='-name'/></qemu:commandline>
</domain>
`

// live is the same domain while it runs.
var live = strings.NewReplacer(
	"<domain type='kvm'", "<domain type='kvm' id='7'",
	"<source file='/ds/one/web/disk0.raw'/>", "<source file='/ds/one/web/disk0.raw' index='2'/><backingStore/><mirror type='file' job='copy'><source file='/ds/two/copy.raw'/></mirror><alias name='virtio-disk0'/>",
	"<source network='vm'/>", "<source network='vm' portid='5' bridge='virbr0'/><target dev='vnet3'/><alias name='net0'/>",
	"<serial type='pty'>", "<serial type='pty'><source path='/dev/pts/4'/><alias name='serial0'/>",
	"<target type='virtio' name='org.qemu.guest_agent.0'/>", "<source mode='bind' path='/run/libvirt/qemu/channel/7-web/org.qemu.guest_agent.0'/>"+
		"<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>",
	"port='-1'", "port='5901'",
	"</vcpu>", "</vcpu><resource><partition>/machine</partition></resource>",
	"</domain>", "<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-6b1f</label></seclabel></domain>",
).Replace(good)

// with returns good with one replacement, which must apply.
func with(old, new string) string {
	if !strings.Contains(good, old) {
		panic("not in the definition: " + old)
	}
	return strings.Replace(good, old, new, 1)
}
