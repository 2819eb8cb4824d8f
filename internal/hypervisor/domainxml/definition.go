package domainxml

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// Definition is what Hanok knows of a VM by its domain XML.
type Definition struct {
	VM   model.VMID
	Name string
	// Type is the virtualisation: "kvm", "qemu".
	Type string
	// Memory is the most that the guest may have, rounded up.
	Memory model.MiB
	// VCPUs is how many processors it starts with.
	VCPUs int
	Disks []Disk
	// NVRAM is the file of the firmware's variables, empty if none is named;
	// UEFI says that the firmware has variables, named or not.
	NVRAM string
	UEFI  bool
	// TPM says that there is a trusted platform module.
	TPM bool
	// Passthrough names devices of the host that the VM uses.
	Passthrough []string
	// Shares are directories of the host that the guest mounts.
	Shares []string
	// Boot files on the host: kernel, initial RAM disk, device tree.
	BootFiles []string
	// HiddenDisks are QEMU arguments that add disks behind libvirt's back.
	HiddenDisks []string
}

// Disk is a disk or drive of a VM.
type Disk struct {
	// Target is its name in the domain ("vda").
	Target string
	// Type is libvirt's type of source: file, block, network, volume, …
	Type string
	// Device is disk, cdrom, floppy or lun.
	Device string
	// Source is the file or device, or for other types a description. Empty
	// for a drive without medium.
	Source string
	// Backing are the sources that the definition names below Source. An
	// image may name more in itself.
	Backing             []string
	Cache               string
	Shareable, ReadOnly bool
}

// Parse reads domain XML, of a live or a shut-off domain. Name and UUID must
// be there; all else may be missing.
func Parse(text []byte) (*Definition, error) {
	root, err := parseTree(text)
	if err != nil {
		return nil, err
	}
	d := &Definition{
		VM:   model.VMID(strings.ToLower(root.child("uuid").value())),
		Name: root.child("name").value(),
		Type: root.attr("type"),
	}
	if err := d.VM.Validate(); err != nil {
		return nil, fmt.Errorf("domain XML: uuid: %w", err)
	}
	if d.Name == "" {
		return nil, fmt.Errorf("domain XML: name is missing")
	}
	if n := root.child("memory"); n != nil {
		size, err := amount(n)
		if err != nil {
			return nil, fmt.Errorf("domain XML: memory: %w", err)
		}
		d.Memory = model.MiB(size>>20 + min(1, size&(1<<20-1)))
	}
	if d.VCPUs, err = vcpus(root.child("vcpu")); err != nil {
		return nil, fmt.Errorf("domain XML: vcpu: %w", err)
	}
	d.readOS(root.child("os"))
	d.readDevices(root.child("devices"))
	for _, arg := range root.child("qemu:commandline").all("qemu:arg") {
		if diskArguments[strings.TrimLeft(arg.attr("value"), "-")] {
			d.HiddenDisks = append(d.HiddenDisks, arg.attr("value"))
		}
	}
	return d, nil
}

// diskArguments are the arguments with which QEMU opens images.
var diskArguments = map[string]bool{"drive": true, "blockdev": true, "hda": true, "hdb": true, "hdc": true,
	"hdd": true, "cdrom": true, "fda": true, "fdb": true, "pflash": true, "mtdblock": true, "sd": true}

// maxVCPUs is more than any machine of QEMU has.
const maxVCPUs = 1 << 16

func vcpus(n *node) (int, error) {
	text := n.attr("current")
	if text == "" {
		text = n.value()
	}
	if text == "" {
		return 1, nil
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 1 || count > maxVCPUs {
		return 0, fmt.Errorf("%q is not between 1 and %d", text, maxVCPUs)
	}
	return count, nil
}

// units of libvirt's sizes (virScaleInteger): a letter or a binary name for
// powers of 1024, KB, MB, … for powers of 1000.
var units = func() map[string]uint64 {
	m := map[string]uint64{"": 1 << 10, "b": 1, "byte": 1, "bytes": 1}
	binary, decimal := uint64(1), uint64(1)
	for _, letter := range "kmgtpe" {
		binary, decimal = binary<<10, decimal*1000
		m[string(letter)], m[string(letter)+"ib"], m[string(letter)+"b"] = binary, binary, decimal
	}
	return m
}()

// amount reads a size with its unit, in bytes. KiB is the default.
func amount(n *node) (uint64, error) {
	count, err := strconv.ParseUint(n.value(), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", n.value())
	}
	unit, ok := units[strings.ToLower(n.attr("unit"))]
	if !ok {
		return 0, fmt.Errorf("unknown unit %q; use KiB, MiB or GiB", n.attr("unit"))
	}
	high, size := bits.Mul64(count, unit)
	if high != 0 || size > math.MaxInt64 {
		return 0, fmt.Errorf("%s %s is too much", n.value(), n.attr("unit"))
	}
	return size, nil
}

func (d *Definition) readOS(os *node) {
	loader, nvram := os.child("loader"), os.child("nvram")
	d.NVRAM = nvram.value()
	if source := nvram.child("source"); source != nil {
		d.NVRAM = sourceOf(nvram.attr("type"), source)
	}
	stateless := loader.attr("stateless") == "yes"
	d.UEFI = !stateless && (nvram != nil || os.attr("firmware") == "efi" || loader.attr("type") == "pflash")
	for _, name := range []string{"kernel", "initrd", "dtb"} {
		if file := os.child(name).value(); file != "" {
			d.BootFiles = append(d.BootFiles, file)
		}
	}
}

func (d *Definition) readDevices(devices *node) {
	if devices == nil {
		return
	}
	for _, n := range devices.children {
		switch n.name {
		case "disk":
			d.Disks = append(d.Disks, readDisk(n))
		case "tpm":
			d.TPM = true
		case "hostdev":
			d.Passthrough = append(d.Passthrough, strings.TrimSpace("host device "+n.attr("type")))
		case "interface":
			if t := n.attr("type"); t == "hostdev" || t == "vdpa" {
				d.Passthrough = append(d.Passthrough, "network interface "+n.child("mac").attr("address")+" of type "+t)
			}
		case "input":
			if t := n.attr("type"); t == "passthrough" || t == "evdev" {
				d.Passthrough = append(d.Passthrough, "input device "+sourceOf("", n.child("source")))
			}
		case "smartcard":
			if n.attr("mode") != "passthrough" { // which is a character device, as of SPICE
				d.Passthrough = append(d.Passthrough, "smart card of the host")
			}
		case "filesystem":
			d.Shares = append(d.Shares, sourceOf("", n.child("source")))
		case "memory":
			if m := n.attr("model"); m == "nvdimm" || m == "virtio-pmem" {
				d.Disks = append(d.Disks, Disk{Target: m, Type: "file", Device: "disk",
					Source: n.child("source", "path").value(), Cache: "mapped"})
			}
		}
	}
}

func readDisk(n *node) Disk {
	d := Disk{
		Target: n.child("target").attr("dev"), Type: n.attr("type"), Device: n.attr("device"),
		Cache:     n.child("driver").attr("cache"),
		Shareable: n.child("shareable") != nil, ReadOnly: n.child("readonly") != nil,
	}
	if d.Type == "" {
		d.Type = "file"
	}
	if d.Device == "" {
		d.Device = "disk"
	}
	d.Source = sourceOf(d.Type, n.child("source"))
	for below := n.child("backingStore"); below != nil; below = below.child("backingStore") {
		if source := sourceOf(below.attr("type"), below.child("source")); source != "" {
			d.Backing = append(d.Backing, source)
		}
	}
	return d
}

// sourceOf returns the path of a <source>, or a description of what is none.
func sourceOf(kind string, n *node) string {
	switch {
	case n == nil:
		return ""
	case kind == "network":
		return n.attr("protocol") + ":" + n.attr("name")
	case kind == "volume":
		return "volume " + n.attr("volume") + " of pool " + n.attr("pool")
	}
	for _, name := range []string{"file", "dev", "dir", "path", "socket"} {
		if v := n.attr(name); v != "" {
			return v
		}
	}
	if len(n.attrs) > 0 && kind != "" && kind != "file" {
		return kind + " source"
	}
	return ""
}
