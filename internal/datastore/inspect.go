package datastore

import (
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// Report is all that can be learnt of a datastore from one host. It is for
// people: nothing decides on it.
type Report struct {
	Path   string       `json:"path"`
	Header Header       `json:"header"`
	Slots  []SlotInfo   `json:"slots"`
	Locks  []LockInfo   `json:"locks"`
	List   *ListInfo    `json:"list,omitempty"`
	Faults []FoundFault `json:"faults"`
	Notes  []string     `json:"notes,omitempty"`
	Free   model.MiB    `json:"freeMiB"`
	Direct bool         `json:"directIO"`
	// PoweredOff are the VMs with a power-off note, Terms the kept terms of
	// the protected list.
	PoweredOff []model.VMID `json:"poweredOff,omitempty"`
	Terms      []model.Term `json:"terms,omitempty"`
}

// SlotInfo is one claimed slot.
type SlotInfo struct {
	Index    int              `json:"index"`
	Host     model.HostID     `json:"host"`
	Machine  string           `json:"machine"`
	Boot     model.BootID     `json:"boot,omitempty"`
	Sequence uint64           `json:"sequence,omitempty"`
	Armed    bool             `json:"armed"`
	Damage   model.SlotDamage `json:"damage,omitempty"`
}

// LockInfo is one lock with its highest record.
type LockInfo struct {
	Lock    model.LockID      `json:"lock"`
	Record  *model.LockRecord `json:"record,omitempty"`
	Problem string            `json:"problem,omitempty"`
}

// ListInfo is the protected list in short.
type ListInfo struct {
	Term    model.Term `json:"term"`
	Version uint64     `json:"version"`
	VMs     int        `json:"vms"`
}

// FoundFault is one thing that is wrong.
type FoundFault struct {
	Object string `json:"object"`
	Kind   Kind   `json:"kind"`
	Text   string `json:"text"`
}

func (r *Report) add(object string, err error) {
	if err = wrap("check", object, err); err != nil {
		r.Faults = append(r.Faults, FoundFault{Object: object, Kind: KindOf(err), Text: err.Error()})
	}
}

// Inspect reads everything on the datastore and reports what it finds, faults
// included. It writes nothing.
func (p *Posix) Inspect() Report {
	report := Report{Path: p.path, Slots: []SlotInfo{}, Locks: []LockInfo{}, Faults: []FoundFault{}}
	header, err := p.Check()
	report.Header = header
	report.add(p.path, err)
	r, err := p.enter()
	if err != nil {
		return report // Check has said why
	}
	defer r.close()
	report.Direct = !p.Buffered()
	p.inspectSlots(r, &report)
	p.inspectLocks(r, &report)
	p.inspectLists(r, &report)
	inspectRoom(r, &report)
	return report
}

func (p *Posix) inspectSlots(r *root, report *Report) {
	dir, err := r.subdir(nameSlots)
	if err != nil {
		report.add(nameSlots, err)
		return
	}
	defer unix.Close(dir)
	claims, err := listClaims(dir, r.header.Slots)
	report.add(nameSlots, err)
	hb, err := p.openHeartbeats(r, unix.O_RDONLY)
	if err != nil {
		return // Check has said why
	}
	defer hb.close()
	for _, c := range claims {
		info := SlotInfo{Index: c.index, Host: c.Host, Machine: c.Machine}
		report.add(filepath.Join(nameSlots, claimName(c.index)), c.damage)
		block, err := hb.read(c.index+1, 1)
		if err != nil {
			report.add(fmt.Sprintf("slot %d", c.index), err)
			continue
		}
		s := decodeSlot(c.Host, block)
		info.Boot, info.Sequence, info.Damage = s.Slot.Boot, s.Slot.Sequence, s.Damage
		info.Armed = s.Slot.Flags.Has(model.SlotArmed)
		switch s.Damage {
		case "", model.SlotEmpty, model.SlotRepaired:
		default:
			report.add(fmt.Sprintf("slot %d of %s", c.index, c.Host), faultf(KindCorrupt, "its content is %s", s.Damage))
		}
		report.Slots = append(report.Slots, info)
	}
}

func (p *Posix) inspectLocks(r *root, report *Report) {
	ids, err := r.lockIDs()
	report.add(nameLocks, err)
	for _, id := range ids {
		info := LockInfo{Lock: id}
		dir, err := r.openLock(id)
		if err == nil {
			var rec model.LockRecord
			if rec, err = highestIn(dir, id); err == nil {
				info.Record = &rec
			}
			_ = unix.Close(dir)
		}
		if err != nil {
			report.add("lock "+string(id), err)
			info.Problem = report.Faults[len(report.Faults)-1].Text
		}
		report.Locks = append(report.Locks, info)
	}
}

func (p *Posix) inspectLists(r *root, report *Report) {
	list, err := p.readList()
	report.add(nameProtected, err)
	if err == nil && list.Term > 0 {
		report.List = &ListInfo{Term: list.Term, Version: list.Version, VMs: len(list.VMs)}
	}
	dir, err := r.subdir(nameProtected)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	terms, err := termsIn(dir)
	report.add(nameProtected, err)
	for _, t := range terms {
		report.Terms = append(report.Terms, model.Term(t))
	}
	notes, err := openDir(r.fd, namePoweredOff)
	if err != nil {
		return
	}
	defer unix.Close(notes)
	names, err := listNames(notes, false)
	report.add(namePoweredOff, err)
	for _, name := range names {
		if vm := model.VMID(name); vm.Validate() == nil {
			report.PoweredOff = append(report.PoweredOff, vm)
		}
	}
	slices.Sort(report.PoweredOff)
}

// inspectRoom reports free space and what is left of the ballast.
func inspectRoom(r *root, report *Report) {
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(r.fd, &fs) }); err == nil {
		report.Free = model.MiB(fs.Bavail * uint64(fs.Bsize) >> 20)
	}
	dir, err := openDir(r.fd, nameBallast)
	if err != nil {
		report.add(nameBallast, sysFault("", err))
		return
	}
	defer unix.Close(dir)
	names, err := listNames(dir, false)
	report.add(nameBallast, err)
	if err == nil && len(names) < ballastFiles {
		report.Notes = append(report.Notes, fmt.Sprintf("the datastore was full: %d of %d files of the ballast are left", len(names), ballastFiles))
	}
	for _, sub := range []string{nameSlots, nameLocks, nameProtected, namePoweredOff} {
		fd, err := openDir(r.fd, sub)
		if err != nil {
			continue
		}
		if temps, err := listNames(fd, true); err == nil && len(temps) > 0 {
			report.Notes = append(report.Notes, fmt.Sprintf("%d temporary files in %s (harmless)", len(temps), sub))
		}
		_ = unix.Close(fd)
	}
}
