package datastore

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// DefaultSettle is how long Repair watches the datastore before it writes: the
// lease of profile steady with its drift, and a reserve. It is longer when a
// slot tells of a longer lease.
const DefaultSettle = 25 * time.Second

// RepairOptions say what Repair may do.
type RepairOptions struct {
	// ID is the datastore's UUID. It must be given when the header is gone and
	// must agree with the header otherwise.
	ID model.DatastoreID
	// Slots is the number of slots when the header is gone; DefaultSlots when 0.
	Slots int
	// Locks are locks that must exist afterwards, such as those of the VMs
	// whose configuration lies on the datastore.
	Locks []model.LockID
	// RolledBack permits to begin anew on a datastore whose header is intact:
	// what was rolled back looks healthy by itself.
	RolledBack bool
	// PlainDirectory permits to make the directory where nothing is mounted.
	PlainDirectory bool
	// By is the host on which the administrator repairs, for the records.
	By   model.HostID
	Boot model.BootID
	// Settle is how long no host may have written; DefaultSettle when 0. It
	// must not be below the lease of any host plus its drift.
	Settle time.Duration
	// Generation numbers the repair and must grow: the time in seconds when 0.
	Generation uint64
	// Progress, if not nil, is told what is being done.
	Progress func(text string)
}

// Repaired says what Repair did.
type Repaired struct {
	Header  Header   `json:"header"`
	Actions []string `json:"actions"`
}

// Repair puts a datastore right on which no host can work any more: its
// directory was deleted or damaged, or it was rolled back to an older copy.
// The VMs whose locks live there are frozen then, and stay frozen until it is
// done; each goes on where it is as soon as its host has won the lock anew.
//
// It waits until no host can have an unfrozen VM by a lease of this datastore
// (docs/protocol-datastore.md), then numbers all locks anew, released, above
// every number that was ever used, then lets the hosts write again. It refuses
// with KindBusy when a host writes, with KindForeign when this is another
// datastore, and with KindExists when nothing is wrong. Cut off at any point
// it can be run again.
func Repair(ctx context.Context, path, clusterID string, opts RepairOptions) (Repaired, error) {
	x := &repair{path: path, cluster: clusterID, opts: opts}
	err := x.run(ctx)
	return Repaired{Header: x.header, Actions: x.actions}, wrap("repair datastore", path, err)
}

type repair struct {
	path, cluster string
	opts          RepairOptions
	header        Header // as it will be
	actions       []string
}

func (x *repair) did(format string, args ...any) {
	x.actions = append(x.actions, fmt.Sprintf(format, args...))
}

func (x *repair) tell(format string, args ...any) {
	if x.opts.Progress != nil {
		x.opts.Progress(fmt.Sprintf(format, args...))
	}
}

func (x *repair) run(ctx context.Context) error {
	if err := x.validate(); err != nil {
		return err
	}
	if err := x.judge(); err != nil {
		return err
	}
	if err := x.settle(ctx); err != nil {
		return err
	}
	mount, err := openMount(x.path)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if err := mkdirAt(mount, DirName); err != nil && !errors.Is(err, unix.EEXIST) {
		return within("create "+DirName, err)
	}
	dir, err := openDir(mount, DirName)
	if err != nil {
		return within("open "+DirName, err)
	}
	defer unix.Close(dir)
	fd, err := openDir(dir, x.cluster)
	if kindOf(err) == KindMissing {
		x.did("made the directory again, as datastore %s", x.header.ID)
		return buildDirectory(dir, x.header, x.renumber)
	}
	if err != nil {
		return within("open the directory", err)
	}
	defer unix.Close(fd)
	// The heartbeats come last: with them the hosts go on.
	if err := x.renumber(fd); err != nil {
		return err
	}
	if err := fillDirectory(fd, x.header); err != nil {
		return err
	}
	x.did("reset all heartbeat slots: hosts may write again")
	return nil
}

func (x *repair) validate() error {
	if _, err := Open(x.path, x.cluster, Options{Expect: x.opts.ID}); err != nil {
		return err
	}
	if err := x.opts.By.Validate(); err != nil {
		return &fault{kind: KindInvalid, cause: "the repairing host", err: err}
	}
	if x.opts.Settle == 0 {
		x.opts.Settle = DefaultSettle
	}
	if x.opts.Generation == 0 {
		x.opts.Generation = uint64(time.Now().Unix())
	}
	for _, lock := range x.opts.Locks {
		if err := validateLock(lock); err != nil {
			return err
		}
	}
	return nil
}

// judge decides whether there is something to repair here, and as what.
func (x *repair) judge() error {
	p, err := Open(x.path, x.cluster, Options{Expect: x.opts.ID, AllowBuffered: true})
	if err != nil {
		return err
	}
	report := p.Inspect()
	x.header = report.Header
	if x.header.ID == "" {
		x.header = Header{ID: x.opts.ID, Cluster: x.cluster, Format: formatVersion, Slots: x.opts.Slots, Generation: 1}
		if x.header.Slots == 0 {
			x.header.Slots = DefaultSlots
		}
	}
	x.header.Generation = max(x.header.Generation+1, x.opts.Generation)
	for _, f := range report.Faults {
		if f.Kind == KindNotMounted && x.opts.PlainDirectory {
			continue
		}
		switch f.Kind {
		case KindNotInitialised, KindCorrupt, KindTorn, KindShort, KindMissing:
		case KindForeign:
			if report.Header.ID == "" { // not a part of it: the whole
				return faultf(f.Kind, "%s", f.Text)
			}
		default: // nothing that writing could put right
			return faultf(f.Kind, "%s", f.Text)
		}
		x.tell("found: %s", f.Text)
	}
	if x.header.ID == "" {
		return faultf(KindInvalid, "the header is gone, and with it the datastore's UUID").
			advise("give the UUID that the hosts know it by (`hanok status`, the cluster file) with --uuid")
	}
	if len(report.Faults) == 0 && !x.opts.RolledBack {
		return faultf(KindExists, "nothing is wrong with it").
			advise("if the hosts say that it changed under them, it was rolled back: --rolled-back")
	}
	if x.header.Generation > maxGeneration {
		return faultf(KindInvalid, "generation %d is out of range", x.header.Generation).advise("set this host's clock")
	}
	return x.header.validate()
}

// settle waits until every host has frozen what depends on the datastore, and
// makes sure that none writes.
func (x *repair) settle(ctx context.Context) error {
	first, lease := x.snapshot()
	// The lease by the slowest and the fastest clock, and a second.
	wait := max(x.opts.Settle, lease+lease/50+time.Second)
	x.tell("watching for %v that no host writes", wait)
	deadline := BootTime() + wait
	for {
		left := deadline - BootTime()
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(min(left, time.Second))
		select {
		case <-ctx.Done():
			timer.Stop()
			return &fault{kind: KindOther, cause: "given up while watching, nothing was changed", err: ctx.Err()}
		case <-timer.C:
		}
		now, _ := x.snapshot()
		for i, digest := range now {
			if before, there := first[i]; !there || before != digest {
				return faultf(KindBusy, "slot %d is being written: a host works on this datastore", i).
					advise("stop hanok-guard on all hosts first, or leave it: what one host cannot use may be that host's mount")
			}
		}
	}
}

// snapshot returns the digest of every slot that can be read, and the longest
// lease that one of them tells of.
func (x *repair) snapshot() (map[int]string, time.Duration) {
	out := make(map[int]string)
	fd, err := enterDir(x.path, x.cluster)
	if err != nil {
		return out, 0
	}
	defer unix.Close(fd)
	hb, err := openHeartbeatsRaw(fd)
	if err != nil {
		return out, 0
	}
	defer hb.close()
	var lease time.Duration
	for i := range x.header.Slots {
		b, err := hb.read(i+1, 1)
		if err != nil {
			break // the file is short
		}
		r := decodeSlot("", b)
		out[i] = r.Identity.Digest
		lease = max(lease, r.Slot.Lease)
	}
	return out, lease
}

// openHeartbeatsRaw opens the file whatever its first block says.
func openHeartbeatsRaw(dir int) (*heartbeats, error) {
	fd, err := openAt(dir, nameHeartbeats, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err == nil {
		hb := &heartbeats{fd: fd}
		if _, err = hb.read(0, 1); !errors.Is(err, unix.EINVAL) {
			return hb, nil
		}
		hb.close()
	}
	fd, err = openAt(dir, nameHeartbeats, unix.O_RDONLY, 0)
	return &heartbeats{fd: fd, buffered: true}, err
}

// renumber makes the directories, removes what cannot be read, and gives every
// lock a released record of the new generation.
func (x *repair) renumber(fd int) error {
	r := &root{fd: fd, header: x.header}
	for _, name := range []string{nameSlots, nameLocks, nameProtected} {
		if err := mkdirAt(fd, name); err == nil {
			x.did("made the directory %s", name)
		} else if !errors.Is(err, unix.EEXIST) {
			return within("create "+name, err)
		}
	}
	if err := x.dropDamagedClaims(r); err != nil {
		return err
	}
	if err := x.setAsideDamagedLists(r); err != nil {
		return err
	}
	locks, err := r.lockIDs()
	if err != nil {
		return err
	}
	there := make(map[model.LockID]bool)
	for _, lock := range locks {
		there[lock] = true
		if err := x.renumberLock(r, lock); err != nil {
			return within("lock "+string(lock), err)
		}
	}
	for _, lock := range append([]model.LockID{model.ListLock}, x.opts.Locks...) {
		if there[lock] {
			continue
		}
		there[lock] = true
		first := x.record(lock, x.header.FirstEpoch())
		if err := createLockIn(r, lock, first, func(op func() error) error { return op() }); err != nil {
			return within("lock "+string(lock), err)
		}
		x.did("made lock %s again, free, from epoch %d", lock, first.Epoch)
	}
	return nil
}

func (x *repair) record(lock model.LockID, epoch model.Epoch) model.LockRecord {
	return model.LockRecord{Lock: lock, Epoch: epoch, Owner: x.opts.By, Boot: x.opts.Boot, Nonce: randomHex(32),
		State: model.LockReleased, Reason: model.ReasonRepaired}
}

// renumberLock links a released record above every number in use, readable or
// not.
func (x *repair) renumberLock(r *root, lock model.LockID) error {
	dir, err := r.openLock(lock)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	epochs, err := epochsIn(dir)
	if err != nil {
		return err
	}
	epoch := x.header.FirstEpoch()
	if n := len(epochs); n > 0 {
		epoch = max(epoch, model.Epoch(epochs[n-1])+1)
	}
	data, err := seal(whatLock, x.record(lock, epoch), maxRecord)
	if err != nil {
		return err
	}
	if err := linkNew(dir, epochName(uint64(epoch)), string(x.opts.By), data); err != nil {
		return within("link", err)
	}
	x.did("lock %s is free, from epoch %d", lock, epoch)
	return nil
}

// dropDamagedClaims removes slot claims that cannot be read; their hosts claim
// again.
func (x *repair) dropDamagedClaims(r *root) error {
	dir, err := r.subdir(nameSlots)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	claims, err := listClaims(dir, r.header.Slots)
	if err != nil {
		return err
	}
	for _, c := range claims {
		if c.damage == nil {
			continue
		}
		if err := unlinkAt(dir, claimName(c.index)); err != nil {
			return within("remove slot claim", err)
		}
		x.did("removed the damaged claim of slot %d", c.index)
	}
	return fsync(dir)
}

// setAsideDamagedLists renames lists that cannot be read, so that the newest
// readable one counts.
func (x *repair) setAsideDamagedLists(r *root) error {
	protected, err := r.subdir(nameProtected)
	if err != nil {
		return err
	}
	defer unix.Close(protected)
	terms, err := termsIn(protected)
	if err != nil {
		return err
	}
	for _, term := range terms {
		_, err := readTerm(protected, term)
		if err == nil || !kindIn(err, KindCorrupt, KindTorn, KindShort, KindForeign) {
			continue
		}
		name := filepath.Join(epochName(term), nameList)
		if err := retry(func() error { return unix.Renameat(protected, name, protected, name+".damaged") }); err != nil {
			return within("set the list of term "+epochName(term)+" aside", err)
		}
		x.did("set the damaged list of term %d aside", term)
	}
	return fsync(protected)
}

// ForgetHost frees the slot of a host that left the cluster or was installed
// anew. It refuses with KindBusy while the host writes (watched for settle,
// DefaultSettle when 0) or holds a lock, and with KindMissing when it has none.
func ForgetHost(ctx context.Context, path, clusterID string, id model.DatastoreID, host model.HostID, settle time.Duration) error {
	return wrap("forget host", fmt.Sprintf("%s on %s", host, path), forgetHost(ctx, path, clusterID, id, host, settle))
}

func forgetHost(ctx context.Context, path, clusterID string, id model.DatastoreID, host model.HostID, settle time.Duration) error {
	p, err := Open(path, clusterID, Options{Expect: id, AllowBuffered: true})
	if err != nil {
		return err
	}
	before, err := p.ReadSlot(host)
	if err != nil {
		return err
	}
	report := p.Inspect()
	for _, l := range report.Locks {
		if l.Record == nil {
			return faultf(KindCorrupt, "who holds lock %s cannot be told", l.Lock).advise(repairRemedy)
		}
		if l.Record.Holder() == host {
			return faultf(KindBusy, "it holds lock %s (%s)", l.Lock, l.Record).
				advise("see `hanok lock show` and `hanok lock release --force`")
		}
	}
	if settle == 0 {
		settle = DefaultSettle
	}
	timer := time.NewTimer(max(settle, before.Slot.Lease+before.Slot.Lease/50+time.Second))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return &fault{kind: KindOther, cause: "given up while watching, nothing was changed", err: ctx.Err()}
	case <-timer.C:
	}
	after, err := p.ReadSlot(host)
	if err != nil {
		return err
	}
	if after.Identity != before.Identity {
		return faultf(KindBusy, "the host writes its slot: it is alive").advise("stop hanok-guard there first")
	}
	return p.dropSlot(host)
}

// dropSlot removes the claim and resets the slot for its next owner.
func (p *Posix) dropSlot(host model.HostID) error {
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	dir, err := r.subdir(nameSlots)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	claims, err := listClaims(dir, r.header.Slots)
	if err != nil {
		return err
	}
	hb, err := p.openHeartbeats(r, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer hb.close()
	for _, c := range claims {
		if c.Host != host || c.damage != nil {
			continue
		}
		if err := unlinkAt(dir, claimName(c.index)); err != nil {
			return within("remove slot claim", err)
		}
		if err := hb.write(c.index+1, zeroBlock); err != nil {
			return within("reset the slot", err)
		}
	}
	return fsync(dir)
}
