package datastoretest

import (
	"fmt"
	"slices"
	"sync"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// Memory is a datastore in memory, shared by the drivers that Open returns.
// It never fails by itself: simulators and tests wrap its drivers.
type Memory struct {
	header datastore.Header

	mu    sync.Mutex
	slots []memorySlot // in the order of their claims
	locks map[model.LockID]map[model.Epoch]model.LockRecord
	lists map[model.Term]model.ProtectedList
	notes map[model.VMID]model.PoweredOffNote
}

type memorySlot struct {
	host    model.HostID
	machine string
	block   []byte
}

// NewMemory makes an initialised datastore with a fixed UUID.
func NewMemory(cluster string, slots int) *Memory {
	return &Memory{
		header: datastore.Header{ID: "00000000-0000-4000-8000-0000000000d5", Cluster: cluster, Format: 1, Slots: slots, Generation: 1},
		locks:  make(map[model.LockID]map[model.Epoch]model.LockRecord),
		lists:  make(map[model.Term]model.ProtectedList),
		notes:  make(map[model.VMID]model.PoweredOffNote),
	}
}

// Open returns a driver of one more host.
func (m *Memory) Open() datastore.Driver { return &memoryDriver{m} }

type memoryDriver struct{ m *Memory }

func memoryError(op string, kind datastore.Kind, format string, args ...any) error {
	return &datastore.Error{Op: op, Object: "in memory", Kind: kind, Cause: fmt.Sprintf(format, args...)}
}

func (d *memoryDriver) Check() (datastore.Header, error) { return d.m.header, nil }

func (d *memoryDriver) ClaimSlot(host model.HostID, machine string) (int, error) {
	if err := datastore.CheckClaimer(host, machine); err != nil {
		return -1, err
	}
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, s := range m.slots {
		if s.host == host && s.machine != machine {
			return -1, memoryError("claim slot", datastore.KindConflict, "%s was claimed by machine %s", host, s.machine)
		}
		if s.host == host {
			return i, nil
		}
	}
	if len(m.slots) >= m.header.Slots {
		return -1, memoryError("claim slot", datastore.KindFull, "all %d slots are claimed", m.header.Slots)
	}
	m.slots = append(m.slots, memorySlot{host, machine, make([]byte, datastore.SlotSize)})
	return len(m.slots) - 1, nil
}

func (d *memoryDriver) WriteSlot(index int, known []string, next model.Slot) (model.SlotIdentity, error) {
	block, err := datastore.EncodeSlot(next)
	if err != nil {
		return model.SlotIdentity{}, err
	}
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if index < 0 || index >= m.header.Slots {
		return model.SlotIdentity{}, memoryError("write heartbeat", datastore.KindInvalid, "no slot %d", index)
	}
	if index >= len(m.slots) || m.slots[index].host != next.Host {
		return model.SlotIdentity{}, memoryError("write heartbeat", datastore.KindMissing, "%s has not claimed slot %d", next.Host, index)
	}
	found := datastore.DecodeSlot(next.Host, m.slots[index].block)
	if len(known) > 0 && !slices.Contains(known, found.Identity.Digest) {
		return model.SlotIdentity{}, memoryError("write heartbeat", datastore.KindChanged, "slot %d holds something else", index)
	}
	m.slots[index].block = block
	return d.SlotIdentityOf(next), nil
}

func (d *memoryDriver) SlotIdentityOf(next model.Slot) model.SlotIdentity {
	block, err := datastore.EncodeSlot(next)
	if err != nil {
		return model.SlotIdentity{}
	}
	return datastore.DecodeSlot("", block).Identity
}

func (d *memoryDriver) ReadSlots() ([]model.SlotReading, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	var out []model.SlotReading
	for _, s := range d.m.slots {
		out = append(out, datastore.DecodeSlot(s.host, s.block))
	}
	return out, nil
}

func (d *memoryDriver) ReadSlot(host model.HostID) (model.SlotReading, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	for _, s := range d.m.slots {
		if s.host == host {
			return datastore.DecodeSlot(host, s.block), nil
		}
	}
	return model.SlotReading{}, memoryError("read heartbeat", datastore.KindMissing, "%s has claimed no slot", host)
}

func (d *memoryDriver) CreateLock(lock model.LockID, by model.LockRecord) error {
	first := datastore.FirstRecord(d.m.header, lock, by)
	if err := datastore.CheckRecord(first); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.locks[lock] == nil {
		d.m.locks[lock] = map[model.Epoch]model.LockRecord{first.Epoch: first}
	}
	return nil
}

func (d *memoryDriver) Highest(lock model.LockID) (model.LockRecord, error) {
	if err := datastore.CheckLock(lock); err != nil {
		return model.LockRecord{}, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	var highest model.LockRecord
	for epoch, rec := range d.m.locks[lock] {
		if epoch > highest.Epoch {
			highest = rec
		}
	}
	if highest.Epoch == 0 {
		return model.LockRecord{}, memoryError("read lock", datastore.KindMissing, "there is no lock %s", lock)
	}
	return highest, nil
}

func (d *memoryDriver) Link(rec model.LockRecord) error {
	if err := datastore.CheckRecord(rec); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	records := d.m.locks[rec.Lock]
	if records == nil {
		return memoryError("link lock record", datastore.KindMissing, "there is no lock %s", rec.Lock)
	}
	if _, taken := records[rec.Epoch]; taken {
		return memoryError("link lock record", datastore.KindExists, "epoch %d is taken", rec.Epoch)
	}
	records[rec.Epoch] = rec
	return nil
}

func (d *memoryDriver) Prune(lock model.LockID) error {
	if err := datastore.CheckLock(lock); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	records := d.m.locks[lock]
	if records == nil {
		return memoryError("prune lock", datastore.KindMissing, "there is no lock %s", lock)
	}
	removeOldest(records, datastore.KeepRecords)
	return nil
}

// removeOldest leaves the n highest keys.
func removeOldest[K model.Epoch | model.Term, V any](m map[K]V, n int) {
	var keys []K
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys[:max(len(keys)-n, 0)] {
		delete(m, k)
	}
}

func (d *memoryDriver) WriteList(list model.ProtectedList) error {
	if err := datastore.CheckList(list); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.lists[list.Term] = cloneList(list)
	removeOldest(d.m.lists, datastore.KeepTerms)
	return nil
}

func (d *memoryDriver) ReadList() (model.ProtectedList, error) {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	var highest model.Term
	for term := range d.m.lists {
		highest = max(highest, term)
	}
	return cloneList(d.m.lists[highest]), nil
}

// cloneList makes a copy that shares nothing that callers change.
func cloneList(list model.ProtectedList) model.ProtectedList {
	list.VMs = slices.Clone(list.VMs)
	for i := range list.VMs {
		vm := &list.VMs[i]
		vm.Datastores, vm.Disks, vm.DependsOn = slices.Clone(vm.Datastores), slices.Clone(vm.Disks), slices.Clone(vm.DependsOn)
		if vm.Down != nil {
			down := *vm.Down
			down.Hosts = slices.Clone(down.Hosts)
			vm.Down = &down
		}
	}
	return list
}

func (d *memoryDriver) WritePoweredOff(note model.PoweredOffNote) error {
	if err := datastore.CheckNote(note); err != nil {
		return err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.notes[note.VM] = note
	return nil
}

func (d *memoryDriver) ReadPoweredOff(vm model.VMID) (model.PoweredOffNote, error) {
	if err := datastore.CheckLock(model.VMLock(vm)); err != nil {
		return model.PoweredOffNote{}, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	note, there := d.m.notes[vm]
	if !there {
		return model.PoweredOffNote{}, memoryError("read power-off note", datastore.KindMissing, "VM %s has none", vm)
	}
	return note, nil
}
