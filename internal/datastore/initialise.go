package datastore

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// Limits of a datastore.
const (
	DefaultSlots = 256
	MaxSlots     = 4096

	maxGeneration = 1 << 33
	// generationShift: the epochs of generation g > 1 begin above
	// g << generationShift. With the time of the repair in seconds as the
	// generation they stay exact in every JSON reader, and a lock would need a
	// million changes a second to reach the next repair's numbers.
	generationShift = 20
)

// FirstEpoch is the lowest epoch that a lock made in this generation of the
// datastore may begin with: higher than any number that was in use before a
// repair, so that numbers never restart.
func (h Header) FirstEpoch() model.Epoch {
	if h.Generation <= 1 {
		return 1
	}
	return model.Epoch(h.Generation<<generationShift) + 1
}

// InitOptions configure Initialise.
type InitOptions struct {
	// ID is the datastore's UUID; a random one when empty.
	ID model.DatastoreID
	// Slots is the number of hosts that can ever use it, 1 to MaxSlots;
	// DefaultSlots when 0.
	Slots int
	// MountPointOnly refuses a path where nothing is mounted.
	MountPointOnly bool
}

// Initialise makes the directory of a cluster on the file system at path. It
// fails with KindExists when there is one.
func Initialise(path, clusterID string, opts InitOptions) (Header, error) {
	if opts.ID == "" {
		opts.ID = newID()
	}
	if opts.Slots == 0 {
		opts.Slots = DefaultSlots
	}
	h := Header{ID: opts.ID, Cluster: clusterID, Format: formatVersion, Slots: opts.Slots, Generation: 1}
	return h, wrap("initialise datastore", path, initialise(path, h, opts.MountPointOnly))
}

func initialise(path string, h Header, mountPointOnly bool) error {
	if !filepath.IsAbs(path) {
		return faultf(KindInvalid, "the path must be absolute")
	}
	if err := h.validate(); err != nil {
		return &fault{kind: KindInvalid, err: err}
	}
	mount, err := openMount(path)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if mountPointOnly && !isMountPoint(mount) {
		return faultf(KindNotMounted, "nothing is mounted at %s", path).advise("mount the datastore first")
	}
	if err := mkdirAt(mount, DirName); err != nil && !errors.Is(err, unix.EEXIST) {
		return within("create "+DirName, err)
	}
	dir, err := openDir(mount, DirName)
	if err != nil {
		return within("open "+DirName, err)
	}
	defer unix.Close(dir)
	if err := checkOwner(dir); err != nil {
		return err
	}
	return buildDirectory(dir, h, func(int) error { return nil })
}

// buildDirectory makes everything under a temporary name, furnishes it, then
// renames, so that a datastore appears complete or not at all.
func buildDirectory(dir int, h Header, furnish func(fd int) error) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, h.Cluster, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return faultf(KindExists, "the cluster's directory is there already").
			advise("`hanok datastore show` tells what it is")
	}
	tmp := tempPrefix + h.Cluster + "." + randomHex(8)
	if err := mkdirAt(dir, tmp); err != nil {
		return within("create the directory", err)
	}
	fd, err := openDir(dir, tmp)
	if err != nil {
		return within("open the directory", err)
	}
	defer unix.Close(fd)
	if err := furnish(fd); err != nil {
		return err
	}
	if err := fillDirectory(fd, h); err != nil {
		return err
	}
	err = retry(func() error { return unix.Renameat(dir, tmp, dir, h.Cluster) })
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return faultf(KindExists, "somebody else made it just now")
	}
	if err != nil {
		return within("rename the directory", err)
	}
	return fsync(dir)
}

// fillDirectory makes what is missing in the cluster's directory: the header,
// then, last, the heartbeats file anew.
func fillDirectory(fd int, h Header) error {
	for _, name := range []string{nameSlots, nameLocks, nameProtected, namePoweredOff, nameBallast} {
		if err := mkdirAt(fd, name); err != nil && !errors.Is(err, unix.EEXIST) {
			return within("create "+name, err)
		}
	}
	ballast, err := openDir(fd, nameBallast)
	if err != nil {
		return within("open "+nameBallast, err)
	}
	defer unix.Close(ballast)
	if err := fillBallast(ballast); err != nil {
		return within("create "+nameBallast, err)
	}
	data, err := seal(whatHeader, h, maxRecord)
	if err != nil {
		return err
	}
	if err := replaceFile(fd, nameHeader, nameHeader, data); err != nil {
		return within("write "+nameHeader, err)
	}
	if err := makeHeartbeats(fd, h); err != nil {
		return within("create "+nameHeartbeats, err)
	}
	return nil
}

// makeHeartbeats makes the heartbeats file with every block written, so that
// heartbeats change data in place and no metadata. In a later generation the
// slots say that they were reset; in the first they are zero. A heartbeats
// file that is there is replaced.
func makeHeartbeats(fd int, h Header) error {
	tmp := tempPrefix + nameHeartbeats + "." + randomHex(8)
	f, err := openAt(fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	setNoCOW(f)
	size := int64(h.Slots+1) * SlotSize
	if err := retry(func() error { return unix.Fallocate(f, 0, 0, size) }); err != nil && kindOf(err) != KindUnsupported {
		return err
	}
	slot := zeroBlock
	if h.Generation > 1 {
		slot = encodeRepairBlock(h)
	}
	content := make([]byte, 0, size)
	content = append(content, encodeFileBlock(h)...)
	for range h.Slots {
		content = append(content, slot...)
	}
	err = writeFull(f, content)
	if err == nil {
		err = fsync(f)
	}
	if err == nil {
		err = retry(func() error { return unix.Renameat(fd, tmp, fd, nameHeartbeats) })
	}
	if err != nil {
		_ = unlinkAt(fd, tmp)
		return err
	}
	return fsync(fd)
}

// newID draws a random (version 4) UUID.
func newID() model.DatastoreID {
	x := []byte(randomHex(32))
	x[12] = '4'
	x[16] = "89ab"[x[16]&3]
	return model.DatastoreID(fmt.Sprintf("%s-%s-%s-%s-%s", x[:8], x[8:12], x[12:16], x[16:20], x[20:]))
}

// setNoCOW asks a copy-on-write file system (btrfs) to write in place; others
// refuse, which is as good.
func setNoCOW(fd int) {
	const fsNoCOW = 0x00800000 // FS_NOCOW_FL of linux/fs.h
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err == nil {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|fsNoCOW)
	}
}

// String names the datastore in one line for people.
func (h Header) String() string {
	return fmt.Sprintf("datastore %s of cluster %s (format %d, generation %d, %d slots)",
		h.ID, h.Cluster, h.Format, h.Generation, h.Slots)
}
