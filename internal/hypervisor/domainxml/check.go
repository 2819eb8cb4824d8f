package domainxml

import (
	"fmt"
	"path"
	"strings"

	"hanok.dev/hanok/internal/model"
)

// Code names a reason why a VM cannot be protected.
type Code string

// The reasons.
const (
	ProblemName         Code = "nameUnusable"
	ProblemTransient    Code = "transient"
	ProblemNoDisk       Code = "noDisk"
	ProblemNotManaged   Code = "diskNotOnDatastore"
	ProblemNetworkDisk  Code = "networkDisk"
	ProblemCache        Code = "cacheMode"
	ProblemShared       Code = "shareableDisk"
	ProblemLocalMedia   Code = "localMedia"
	ProblemNVRAM        Code = "localNVRAM"
	ProblemTPM          Code = "tpm"
	ProblemPassthrough  Code = "passthrough"
	ProblemShare        Code = "localShare"
	ProblemHiddenDisk   Code = "hiddenDisk"
	ProblemLocalBoot    Code = "localBootFile"
	ProblemProtocolArea Code = "insideProtocolDirectory"
)

// Problem is a reason why a VM cannot be protected.
type Problem struct {
	Code Code
	// What is wrong with what, and Remedy what to do; a sentence each.
	What, Remedy string
	// Advice marks what does not prevent protection, but may prevent a start
	// on another host.
	Advice bool
}

// Place is where a definition is checked.
type Place struct {
	// Datastores are the mounted datastores, by absolute path.
	Datastores map[string]model.DatastoreName
	// Resolve follows symbolic links; a path that it cannot resolve it
	// returns as it is. Nil takes paths as they are written.
	Resolve func(path string) string
	// Transient says that libvirt has no lasting definition of the domain.
	Transient bool
}

// protocolDir is the directory on a datastore that belongs to Hanok.
const protocolDir = ".hanok"

// datastore returns the datastore that a file is on; inside is the file's
// path there.
func (p Place) datastore(file string) (name model.DatastoreName, inside string, ok bool) {
	if !path.IsAbs(file) {
		return "", "", false
	}
	if p.Resolve != nil {
		file = p.Resolve(file)
	}
	file = path.Clean(file)
	longest := -1
	for mount, ds := range p.Datastores {
		prefix := strings.TrimSuffix(path.Clean(mount), "/") + "/"
		if strings.HasPrefix(file, prefix) && len(prefix) > longest {
			longest, name, inside = len(prefix), ds, file[len(prefix):]
		}
	}
	return name, inside, longest >= 0
}

// Home returns the VM's home datastore: that of its first disk.
func (p Place) Home(d *Definition) (model.DatastoreName, bool) {
	for _, disk := range d.Disks {
		if disk.holdsData() {
			name, _, ok := p.datastore(disk.Source)
			return name, ok
		}
	}
	return "", false
}

// DatastoresOf returns the datastores that the VM's files are on, home first,
// each once. A host must have them all to run the VM.
func (p Place) DatastoresOf(d *Definition) []model.DatastoreName {
	var out []model.DatastoreName
	seen := map[model.DatastoreName]bool{}
	add := func(file string) {
		if name, _, ok := p.datastore(file); ok && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	for _, data := range []bool{true, false} {
		for _, disk := range d.Disks {
			if disk.holdsData() == data {
				add(disk.Source)
				for _, file := range disk.Backing {
					add(file)
				}
			}
		}
	}
	for _, file := range append(append([]string{d.NVRAM}, d.Shares...), d.BootFiles...) {
		add(file)
	}
	return out
}

// holdsData tells disks from drives with media and from empty ones.
func (d Disk) holdsData() bool { return d.Device == "disk" || d.Device == "lun" }

// Check returns all reasons why the VM cannot be protected, and advice.
// Backing files that only the images name are not seen here.
func (p Place) Check(d *Definition) []Problem {
	var out []Problem
	add := func(code Code, remedy, format string, args ...any) {
		out = append(out, Problem{Code: code, What: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if err := model.ValidateName(d.Name); err != nil {
		add(ProblemName, "Rename the VM with virsh domrename; its name is the name of its directory on the datastore.", "%v.", err)
	}
	if p.Transient {
		add(ProblemTransient, "Define it with virsh define, so that libvirt keeps it when it stops.", "The domain is transient.")
	}
	data := false
	for _, disk := range d.Disks {
		data = data || disk.holdsData()
		out = append(out, p.checkDisk(disk)...)
	}
	if !data {
		add(ProblemNoDisk, "Give it a disk on a datastore: its lock lives with its first disk.", "The VM has no disk.")
	}
	for _, arg := range d.HiddenDisks {
		add(ProblemHiddenDisk, "Replace it by a <disk> element.", "The QEMU argument %q opens an image that libvirt and Hanok do not see.", arg)
	}
	if d.UEFI {
		out = append(out, p.checkNVRAM(d.NVRAM)...)
	}
	if d.TPM {
		add(ProblemTPM, "Remove the <tpm> element.", "The state of the VM's TPM is kept on this host only.")
	}
	for _, device := range d.Passthrough {
		add(ProblemPassthrough, "Replace it by an emulated or virtio device.", "The VM uses a %s, which other hosts do not have.", device)
	}
	for _, dir := range d.Shares {
		if _, _, ok := p.datastore(dir); !ok {
			add(ProblemShare, "Put the directory on a datastore or remove the <filesystem> element.", "The guest mounts %s of this host.", dir)
		}
	}
	for _, file := range d.BootFiles {
		if _, _, ok := p.datastore(file); !ok {
			add(ProblemLocalBoot, "See that every host has it, or put it on a datastore.", "The VM boots from %s, which is not on a datastore.", file)
			out[len(out)-1].Advice = true
		}
	}
	return out
}

func (p Place) checkDisk(d Disk) []Problem {
	var out []Problem
	add := func(code Code, remedy, format string, args ...any) {
		out = append(out, Problem{Code: code, What: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	name := fmt.Sprintf("%s %s", d.Device, d.Target)
	for _, file := range append([]string{d.Source}, d.Backing...) {
		_, inside, managed := p.datastore(file)
		switch {
		case file == "" && !d.holdsData():
			// an empty drive
		case d.Type == "network":
			add(ProblemNetworkDisk, "Move it to a file on a datastore: locks protect only those.", "The %s is on the network: %s.", name, file)
		case !managed && !d.holdsData():
			add(ProblemLocalMedia, "Eject it, or put the file on a datastore.", "The %s holds %s, which other hosts do not have.", name, file)
		case !managed:
			add(ProblemNotManaged, "Move it to a file below the path of a datastore of the cluster.", "The %s, %s, is not on a datastore.", name, orNothing(file))
		case inside == protocolDir || strings.HasPrefix(inside, protocolDir+"/"):
			add(ProblemProtocolArea, "Move it to the VM's own directory.", "The %s, %s, is inside Hanok's own directory.", name, file)
		}
	}
	if !d.holdsData() || d.ReadOnly {
		return out
	}
	if d.Cache != "none" && d.Cache != "directsync" {
		add(ProblemCache, "Set cache='none' or 'directsync' in the disk's <driver>, and restart the VM.",
			"The %s has cache mode %s: another host would not see what is in this host's cache.", name, orDefault(d.Cache))
	}
	if d.Shareable {
		add(ProblemShared, "Remove <shareable/>, or give each VM a disk of its own.", "The %s may be used by other VMs at the same time.", name)
	}
	return out
}

func (p Place) checkNVRAM(file string) []Problem {
	if _, _, ok := p.datastore(file); ok {
		return nil
	}
	return []Problem{{Code: ProblemNVRAM,
		What:   fmt.Sprintf("The firmware's variables, %s, are kept on this host only.", orNothing(file)),
		Remedy: "Put the file beside the VM's disks and name it in <nvram>."}}
}

func orNothing(file string) string {
	if file == "" {
		return "(no file named)"
	}
	return file
}

func orDefault(cache string) string {
	if cache == "" || cache == "default" {
		return "(default, which is writeback)"
	}
	return cache
}

// Protectable reports whether problems has nothing but advice.
func Protectable(problems []Problem) bool {
	for _, p := range problems {
		if !p.Advice {
			return false
		}
	}
	return true
}
