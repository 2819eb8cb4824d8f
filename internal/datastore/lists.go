package datastore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// KeepTerms is how many of the newest terms of the protected list are kept.
const KeepTerms = 4

// WriteList implements Driver.
func (p *Posix) WriteList(list model.ProtectedList) error {
	return wrap("write protected list", fmt.Sprintf("of term %d on %s", list.Term, p.path), p.writeList(list))
}

func sealList(list model.ProtectedList) ([]byte, error) {
	if list.Term == 0 {
		return nil, faultf(KindInvalid, "term 0: terms count from 1")
	}
	for i, vm := range list.VMs {
		if err := vm.ID.Validate(); err != nil {
			return nil, &fault{kind: KindInvalid, cause: fmt.Sprintf("vms[%d]", i), err: err}
		}
	}
	return seal(whatList, list, maxList)
}

// listOrder keeps writes of the list in the order in which they were asked for:
// one that hung, and that its caller gave up, must not replace a newer one of
// the same term when its path heals.
type listOrder struct {
	mu      sync.Mutex // held while a list gets its name
	asked   atomic.Uint64
	term    model.Term // the highest term published by this driver,
	written uint64     // and the number of its newest write
}

// publish runs rename unless a newer list of the term was published before.
func (o *listOrder) publish(term model.Term, number uint64, rename func() error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term == o.term && number < o.written {
		return faultf(KindBusy, "a newer list of the term was written while this write hung")
	}
	if term >= o.term {
		o.term, o.written = term, number // whatever rename answers, it may have happened
	}
	return rename()
}

func (p *Posix) writeList(list model.ProtectedList) error {
	number := p.lists.asked.Add(1)
	data, err := sealList(list)
	if err != nil {
		return err
	}
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	protected, err := r.subdir(nameProtected)
	if err != nil {
		return err
	}
	defer unix.Close(protected)
	name := epochName(uint64(list.Term))
	err = p.withRoom(r, func() { pruneTerms(protected) }, func() error {
		if err := mkdirAt(protected, name); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		dir, err := openDir(protected, name)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		tmp := tempPrefix + nameList + "." + randomHex(8)
		if err := writeTemp(dir, tmp, data); err != nil {
			return err
		}
		err = p.lists.publish(list.Term, number, func() error {
			return retry(func() error { return unix.Renameat(dir, tmp, dir, nameList) })
		})
		if err != nil {
			_ = unlinkAt(dir, tmp)
			return err
		}
		if err := fsync(dir); err != nil {
			return err
		}
		return fsync(protected)
	})
	if err != nil {
		return within("write", err)
	}
	_ = pruneTerms(protected) // the list is written; the next write prunes again
	return nil
}

// pruneTerms removes all but the newest terms.
func pruneTerms(protected int) error {
	terms, err := termsIn(protected)
	if err != nil {
		return err
	}
	if len(terms) <= KeepTerms {
		return nil
	}
	for _, n := range terms[:len(terms)-KeepTerms] {
		if err := removeTerm(protected, epochName(n)); err != nil {
			return err
		}
	}
	return nil
}

func removeTerm(protected int, name string) error {
	dir, err := openDir(protected, name)
	if kindOf(err) == KindMissing {
		return nil
	}
	if err != nil {
		return within("old term "+name, err)
	}
	defer unix.Close(dir)
	for _, temps := range []bool{false, true} {
		files, err := listNames(dir, temps)
		if err != nil {
			return within("old term "+name, err)
		}
		for _, f := range files {
			if err := unlinkAt(dir, f); err != nil {
				return within("old term "+name, err)
			}
		}
	}
	err = retry(func() error { return unix.Unlinkat(protected, name, unix.AT_REMOVEDIR) })
	// A stalled predecessor may write into its old term just now.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return within("old term "+name, err)
	}
	return nil
}

// termsIn lists the terms, ascending.
func termsIn(protected int) ([]uint64, error) {
	names, err := listNames(protected, false)
	if err != nil {
		return nil, within("list terms", err)
	}
	var terms []uint64
	for _, name := range names {
		if n, ok := parseEpochName(name); ok {
			terms = append(terms, n)
		}
	}
	slices.Sort(terms)
	return terms, nil
}

// ReadList implements Driver. A term whose list was not written yet is passed
// over; a damaged list is an error, for an older one may restart what its user
// has powered off since.
func (p *Posix) ReadList() (model.ProtectedList, error) {
	list, err := p.readList()
	return list, wrap("read protected list", "on "+p.path, err)
}

func (p *Posix) readList() (model.ProtectedList, error) {
	r, err := p.enter()
	if err != nil {
		return model.ProtectedList{}, err
	}
	defer r.close()
	protected, err := r.subdir(nameProtected)
	if err != nil {
		return model.ProtectedList{}, err
	}
	defer unix.Close(protected)
	terms, err := termsIn(protected)
	if err != nil {
		return model.ProtectedList{}, err
	}
	for _, term := range slices.Backward(terms) {
		list, err := readTerm(protected, term)
		if kindIn(err, KindMissing) {
			continue
		}
		return list, err
	}
	return model.ProtectedList{}, nil
}

func readTerm(protected int, term uint64) (model.ProtectedList, error) {
	name := epochName(term)
	dir, err := openDir(protected, name)
	if err != nil {
		return model.ProtectedList{}, within("term "+name, err)
	}
	defer unix.Close(dir)
	data, err := readAt(dir, nameList, maxList)
	if err != nil {
		return model.ProtectedList{}, within("list of term "+name, err)
	}
	list, err := decodeList(term, data)
	if err != nil {
		f := *err.(*fault)
		f.cause = fmt.Sprintf("list of term %d: %s", term, f.cause)
		if f.remedy == "" {
			f.remedy = repairRemedy
		}
		return model.ProtectedList{}, &f
	}
	return list, nil
}

func decodeList(term uint64, data []byte) (model.ProtectedList, error) {
	var list model.ProtectedList
	if err := unseal(whatList, data, &list); err != nil {
		return model.ProtectedList{}, err
	}
	if list.Term != model.Term(term) {
		return model.ProtectedList{}, faultf(KindForeign, "it says term %d", list.Term)
	}
	for i, vm := range list.VMs {
		if err := vm.ID.Validate(); err != nil {
			return model.ProtectedList{}, &fault{kind: KindCorrupt, cause: fmt.Sprintf("vms[%d]", i), err: err}
		}
	}
	return list, nil
}

// WritePoweredOff implements Driver.
func (p *Posix) WritePoweredOff(note model.PoweredOffNote) error {
	return wrap("write power-off note", p.lockObject(model.VMLock(note.VM)), p.writePoweredOff(note))
}

func validateNote(note model.PoweredOffNote) error {
	if err := note.VM.Validate(); err != nil {
		return &fault{kind: KindInvalid, err: err}
	}
	if err := note.Host.Validate(); err != nil {
		return &fault{kind: KindInvalid, err: err}
	}
	if note.LockEpoch == 0 {
		return faultf(KindInvalid, "lock epoch 0: records count from 1")
	}
	return nil
}

func (p *Posix) writePoweredOff(note model.PoweredOffNote) error {
	if err := validateNote(note); err != nil {
		return err
	}
	data, err := seal(whatNote, note, maxRecord)
	if err != nil {
		return err
	}
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	dir, err := r.subdir(namePoweredOff)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = p.withRoom(r, nil, func() error { return replaceFile(dir, string(note.VM), string(note.Host), data) })
	if err != nil {
		return within("write", err)
	}
	return nil
}

// ReadPoweredOff implements Driver.
func (p *Posix) ReadPoweredOff(vm model.VMID) (model.PoweredOffNote, error) {
	note, err := p.readPoweredOff(vm)
	return note, wrap("read power-off note", p.lockObject(model.VMLock(vm)), err)
}

func (p *Posix) readPoweredOff(vm model.VMID) (model.PoweredOffNote, error) {
	if err := vm.Validate(); err != nil {
		return model.PoweredOffNote{}, &fault{kind: KindInvalid, err: err}
	}
	r, err := p.enter()
	if err != nil {
		return model.PoweredOffNote{}, err
	}
	defer r.close()
	dir, err := r.subdir(namePoweredOff)
	if err != nil {
		return model.PoweredOffNote{}, err
	}
	defer unix.Close(dir)
	data, err := readAt(dir, string(vm), maxRecord)
	if err != nil {
		return model.PoweredOffNote{}, within("note", err)
	}
	note, err := decodeNote(vm, data)
	if err != nil {
		return model.PoweredOffNote{}, within("note", err)
	}
	return note, nil
}

func decodeNote(vm model.VMID, data []byte) (model.PoweredOffNote, error) {
	var note model.PoweredOffNote
	if err := unseal(whatNote, data, &note); err != nil {
		return model.PoweredOffNote{}, err
	}
	if err := validateNote(note); err != nil {
		return model.PoweredOffNote{}, &fault{kind: KindCorrupt, cause: "impossible content", err: err}
	}
	if note.VM != vm {
		return model.PoweredOffNote{}, faultf(KindForeign, "it is about VM %s", note.VM)
	}
	return note, nil
}
