package datastore

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// Limits of locks and records.
const (
	// KeepRecords is how many of the newest records of a lock Prune keeps.
	KeepRecords = 16
	// maxNonce bounds the free texts of a record, in bytes.
	maxNonce = 128
	maxTexts = 256
	// epochDigits makes text order the order of numbers.
	epochDigits = 20
)

func epochName(n uint64) string { return fmt.Sprintf("%0*d", epochDigits, n) }

// parseEpochName returns false for names that are no numbers of this format.
func parseEpochName(name string) (uint64, bool) {
	if len(name) != epochDigits {
		return 0, false
	}
	for _, c := range []byte(name) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(name, 10, 64)
	return n, err == nil && n > 0
}

func validateLock(lock model.LockID) error {
	if lock == model.ListLock {
		return nil
	}
	if err := model.VMID(lock).Validate(); err != nil {
		return &fault{kind: KindInvalid, cause: fmt.Sprintf("lock %q is neither a VM's nor the list's", lock)}
	}
	return nil
}

func validateRecord(rec model.LockRecord) error {
	if err := validateLock(rec.Lock); err != nil {
		return err
	}
	if err := rec.Owner.Validate(); err != nil {
		return &fault{kind: KindInvalid, cause: "owner", err: err}
	}
	switch {
	case rec.Epoch == 0:
		return faultf(KindInvalid, "epoch 0: records count from 1")
	case rec.Nonce == "" || len(rec.Nonce) > maxNonce:
		return faultf(KindInvalid, "nonce of %d bytes, must be 1 to %d", len(rec.Nonce), maxNonce)
	case len(rec.Boot) > maxText || len(rec.Reason) > maxTexts || len(rec.MoveID) > maxTexts || len(rec.Target) > maxTexts:
		return faultf(KindInvalid, "a text of the record is too long")
	case rec.State != model.LockReleased && rec.Reason != "":
		return faultf(KindInvalid, "a %s record has no reason", rec.State)
	}
	switch rec.State {
	case model.LockHeld, model.LockReleased, model.LockMoving, model.LockHanded, model.LockMovedTo:
		return nil
	default:
		return faultf(KindInvalid, "state %q is unknown", rec.State)
	}
}

func decodeRecord(lock model.LockID, epoch uint64, data []byte) (model.LockRecord, error) {
	var rec model.LockRecord
	if err := unseal(whatLock, data, &rec); err != nil {
		return model.LockRecord{}, err
	}
	if err := validateRecord(rec); err != nil {
		return model.LockRecord{}, &fault{kind: KindCorrupt, cause: "impossible content", err: err}
	}
	if rec.Lock != lock {
		return model.LockRecord{}, faultf(KindForeign, "it belongs to lock %s", rec.Lock)
	}
	if rec.Epoch != model.Epoch(epoch) {
		return model.LockRecord{}, faultf(KindCorrupt, "it is record %d under the name of %d", rec.Epoch, epoch)
	}
	return rec, nil
}

// openLock opens the directory of a lock.
func (r *root) openLock(lock model.LockID) (int, error) {
	locks, err := r.subdir(nameLocks)
	if err != nil {
		return -1, err
	}
	defer unix.Close(locks)
	fd, err := openDir(locks, string(lock))
	if kindOf(err) == KindMissing {
		return -1, faultf(KindMissing, "there is no such lock: unknown, not free").
			advise("if it existed, " + repairRemedy)
	}
	if err != nil {
		return -1, sysFault("open the lock's directory", err)
	}
	return fd, nil
}

// epochsIn lists the epochs in a lock's directory, ascending.
func epochsIn(dir int) ([]uint64, error) {
	names, err := listNames(dir, false)
	if err != nil {
		return nil, within("list records", err)
	}
	var epochs []uint64
	for _, name := range names {
		if n, ok := parseEpochName(name); ok {
			epochs = append(epochs, n)
		}
	}
	slices.Sort(epochs)
	return epochs, nil
}

func (p *Posix) lockObject(lock model.LockID) string {
	return fmt.Sprintf("%s on %s", lock, p.path)
}

// CreateLock implements Driver.
func (p *Posix) CreateLock(lock model.LockID, by model.LockRecord) error {
	return wrap("create lock", p.lockObject(lock), p.createLock(lock, by))
}

func (p *Posix) createLock(lock model.LockID, by model.LockRecord) error {
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	if err := p.locksAllowed(r); err != nil {
		return err
	}
	return createLockIn(r, lock, FirstRecord(r.header, lock, by), func(op func() error) error {
		return p.withRoom(r, nil, op)
	})
}

// FirstRecord is the record that CreateLock writes: released (created), with
// the epoch of by if that is higher than the first of this generation.
func FirstRecord(h Header, lock model.LockID, by model.LockRecord) model.LockRecord {
	first := by
	first.Lock, first.State, first.Reason = lock, model.LockReleased, model.ReasonCreated
	first.MoveID, first.Target = "", ""
	first.Epoch = max(by.Epoch, h.FirstEpoch())
	return first
}

// createLockIn makes the lock's directory with its first record in it, so that
// the lock appears complete or not at all. A directory that exists is left
// alone.
func createLockIn(r *root, lock model.LockID, first model.LockRecord, withRoom func(func() error) error) error {
	if err := validateRecord(first); err != nil {
		return err
	}
	data, err := seal(whatLock, first, maxRecord)
	if err != nil {
		return err
	}
	locks, err := r.subdir(nameLocks)
	if err != nil {
		return err
	}
	defer unix.Close(locks)
	var st unix.Stat_t
	err = retry(func() error { return unix.Fstatat(locks, string(lock), &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return sysFault("look up the lock", err)
	}
	return withRoom(func() error {
		tmp := tempPrefix + string(lock) + "." + string(first.Owner) + "." + randomHex(8)
		record := epochName(uint64(first.Epoch))
		err := makeFilledDir(locks, tmp, record, data)
		if err == nil {
			// Renaming onto a lock that appeared meanwhile fails: it is not empty.
			err = retry(func() error { return unix.Renameat(locks, tmp, locks, string(lock)) })
		}
		if err != nil {
			removeFilledDir(locks, tmp, record)
			if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
				return nil
			}
			return within("create the lock's directory", err)
		}
		return fsync(locks)
	})
}

func makeFilledDir(parent int, dir, file string, data []byte) error {
	if err := mkdirAt(parent, dir); err != nil {
		return err
	}
	fd, err := openDir(parent, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := writeTemp(fd, file, data); err != nil {
		return err
	}
	return fsync(fd)
}

func removeFilledDir(parent int, dir, file string) {
	if fd, err := openDir(parent, dir); err == nil {
		_ = unlinkAt(fd, file)
		_ = unix.Close(fd)
	}
	_ = retry(func() error { return unix.Unlinkat(parent, dir, unix.AT_REMOVEDIR) })
}

// Highest implements Driver.
func (p *Posix) Highest(lock model.LockID) (model.LockRecord, error) {
	rec, err := p.highest(lock)
	return rec, wrap("read lock", p.lockObject(lock), err)
}

func (p *Posix) highest(lock model.LockID) (model.LockRecord, error) {
	if err := validateLock(lock); err != nil {
		return model.LockRecord{}, err
	}
	r, err := p.enter()
	if err != nil {
		return model.LockRecord{}, err
	}
	defer r.close()
	if err := p.locksAllowed(r); err != nil {
		return model.LockRecord{}, err
	}
	dir, err := r.openLock(lock)
	if err != nil {
		return model.LockRecord{}, err
	}
	defer unix.Close(dir)
	before := p.seenEpoch(lock) // before listing: another goroutine may see a newer one meanwhile
	rec, err := highestIn(dir, lock)
	if err != nil {
		return model.LockRecord{}, err
	}
	if rec.Epoch < before {
		return rec, faultf(KindChanged, "the highest record is %d, but it was %d before: the datastore went back in time", rec.Epoch, before).
			advise(repairRemedy)
	}
	p.sawEpoch(lock, rec.Epoch)
	return rec, nil
}

func (p *Posix) seenEpoch(lock model.LockID) model.Epoch {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[lock]
}

func (p *Posix) sawEpoch(lock model.LockID, epoch model.Epoch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[lock] = max(p.seen[lock], epoch)
}

// highestIn reads the record with the highest epoch of a fresh listing.
func highestIn(dir int, lock model.LockID) (model.LockRecord, error) {
	// The highest record can vanish between listing and reading only if 16
	// newer ones appeared.
	for range 8 {
		epochs, err := epochsIn(dir)
		if err != nil {
			return model.LockRecord{}, err
		}
		if len(epochs) == 0 {
			return model.LockRecord{}, faultf(KindCorrupt, "the lock has no record left: unknown, not free").advise(repairRemedy)
		}
		rec, err := readRecord(dir, lock, epochs[len(epochs)-1])
		if kindIn(err, KindMissing) {
			continue
		}
		return rec, err
	}
	return model.LockRecord{}, faultf(KindOther, "records vanish faster than they can be read")
}

func readRecord(dir int, lock model.LockID, epoch uint64) (model.LockRecord, error) {
	name := epochName(epoch)
	data, err := readAt(dir, name, maxRecord)
	if err != nil {
		return model.LockRecord{}, within("record "+name, err)
	}
	rec, err := decodeRecord(lock, epoch, data)
	if err != nil {
		f := *err.(*fault)
		f.cause = fmt.Sprintf("record %d: %s", epoch, f.cause)
		if f.remedy == "" {
			f.remedy = repairRemedy
		}
		return model.LockRecord{}, &f
	}
	return rec, nil
}

// Link implements Driver.
func (p *Posix) Link(rec model.LockRecord) error {
	return wrap("link lock record", fmt.Sprintf("%d of %s", rec.Epoch, p.lockObject(rec.Lock)), p.link(rec))
}

func (p *Posix) link(rec model.LockRecord) error {
	if err := validateRecord(rec); err != nil {
		return err
	}
	data, err := seal(whatLock, rec, maxRecord)
	if err != nil {
		return err
	}
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	if err := p.locksAllowed(r); err != nil {
		return err
	}
	dir, err := r.openLock(rec.Lock)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := epochName(uint64(rec.Epoch))
	err = p.withRoom(r, func() { pruneRecords(dir) }, func() error {
		return linkNew(dir, name, string(rec.Owner), data)
	})
	if errors.Is(err, unix.EEXIST) {
		return faultf(KindExists, "the epoch is taken")
	}
	if err != nil {
		return within("link", err)
	}
	return nil
}

// Prune implements Driver.
func (p *Posix) Prune(lock model.LockID) error {
	return wrap("prune lock", p.lockObject(lock), p.prune(lock))
}

func (p *Posix) prune(lock model.LockID) error {
	if err := validateLock(lock); err != nil {
		return err
	}
	r, err := p.enter()
	if err != nil {
		return err
	}
	defer r.close()
	dir, err := r.openLock(lock)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := pruneRecords(dir); err != nil {
		return err
	}
	return refillBallast(r)
}

// pruneRecords removes all but the newest records, and temporary files that
// can no longer win because their epoch is taken. Whoever still holds one of
// those finds out by listing.
func pruneRecords(dir int) error {
	epochs, err := epochsIn(dir)
	if err != nil {
		return err
	}
	if len(epochs) > KeepRecords {
		for _, n := range epochs[:len(epochs)-KeepRecords] {
			if err := unlinkAt(dir, epochName(n)); err != nil {
				return within("remove record", err)
			}
		}
	}
	if len(epochs) == 0 {
		return nil
	}
	highest := epochs[len(epochs)-1]
	temps, err := listNames(dir, true)
	if err != nil {
		return within("list temporary files", err)
	}
	for _, name := range temps {
		epoch, _, _ := strings.Cut(strings.TrimPrefix(name, tempPrefix), ".")
		if n, ok := parseEpochName(epoch); ok && n <= highest {
			if err := unlinkAt(dir, name); err != nil {
				return within("remove temporary file", err)
			}
		}
	}
	return nil
}

// Locks lists the locks that exist, in text order. For tools.
func (p *Posix) Locks() ([]model.LockID, error) {
	r, err := p.enter()
	if err != nil {
		return nil, wrap("list locks", p.path, err)
	}
	defer r.close()
	locks, err := r.lockIDs()
	return locks, wrap("list locks", p.path, err)
}

func (r *root) lockIDs() ([]model.LockID, error) {
	dir, err := r.subdir(nameLocks)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	names, err := listNames(dir, false)
	if err != nil {
		return nil, within("list "+nameLocks, err)
	}
	var out []model.LockID
	for _, name := range names {
		if validateLock(model.LockID(name)) == nil {
			out = append(out, model.LockID(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

// History returns the records of a lock that are kept and readable, oldest
// first, with the first error met on the others. For tools.
func (p *Posix) History(lock model.LockID) ([]model.LockRecord, error) {
	out, err := p.history(lock)
	return out, wrap("read lock", p.lockObject(lock), err)
}

func (p *Posix) history(lock model.LockID) ([]model.LockRecord, error) {
	if err := validateLock(lock); err != nil {
		return nil, err
	}
	r, err := p.enter()
	if err != nil {
		return nil, err
	}
	defer r.close()
	dir, err := r.openLock(lock)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	epochs, err := epochsIn(dir)
	if err != nil {
		return nil, err
	}
	var out []model.LockRecord
	var first error
	for _, n := range epochs {
		rec, err := readRecord(dir, lock, n)
		switch {
		case err == nil:
			out = append(out, rec)
		case first == nil && !kindIn(err, KindMissing):
			first = err
		}
	}
	return out, first
}
