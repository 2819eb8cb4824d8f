package datastore

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// DirName is the directory on a datastore that holds one directory per
// cluster.
const DirName = ".hanok"

// Names below <path>/.hanok/<cluster-id>/.
const (
	nameHeader     = "header"
	nameHeartbeats = "heartbeats"
	nameSlots      = "slots"
	nameLocks      = "locks"
	nameProtected  = "protected"
	nameList       = "list"
	namePoweredOff = "poweredoff"
	nameBallast    = "ballast"
)

// Direct says how the heartbeats file is accessed.
type Direct int

// The ways to access the heartbeats file.
const (
	// DirectAuto uses O_DIRECT, and page cache with O_SYNC where the file
	// system refuses it.
	DirectAuto Direct = iota
	// DirectNever uses the page cache with O_SYNC.
	DirectNever
)

// Options configure Open. The zero value is usable.
type Options struct {
	// Expect is the datastore's UUID. When empty, the first one found is
	// accepted, and no other one after it for the life of the driver.
	Expect model.DatastoreID
	Direct Direct
	// AllowBuffered permits locks on a file system that refuses O_DIRECT. For
	// tests on one machine only: a page cache shows stale slots of other hosts.
	AllowBuffered bool
}

// Posix is the Driver for a file system that all hosts mount at one path. Its
// methods may be called concurrently, but at most one WriteSlot at a time.
type Posix struct {
	path    string
	cluster string
	opts    Options

	pinned   atomic.Pointer[model.DatastoreID] // the UUID that is accepted
	buffered atomic.Int32                      // 0 not known yet, 1 O_DIRECT, 2 page cache

	mu     sync.Mutex
	seen   map[model.LockID]model.Epoch // highest epochs seen
	claims claimCache

	lists listOrder
}

var _ Driver = (*Posix)(nil)

// Open returns a driver for the datastore mounted at path. It touches no
// storage: a hung mount cannot delay it. It fails only for values that could
// never work.
func Open(path, clusterID string, opts Options) (*Posix, error) {
	const op = "open datastore"
	if !filepath.IsAbs(path) {
		return nil, &Error{Op: op, Object: path, Kind: KindInvalid, Cause: "the path must be absolute"}
	}
	if err := model.ValidateName(clusterID); err != nil {
		return nil, &Error{Op: op, Object: path, Kind: KindInvalid, Cause: "cluster id", Err: err}
	}
	if opts.Expect != "" {
		if err := opts.Expect.Validate(); err != nil {
			return nil, &Error{Op: op, Object: path, Kind: KindInvalid, Err: err}
		}
	}
	p := &Posix{path: filepath.Clean(path), cluster: clusterID, opts: opts,
		seen: make(map[model.LockID]model.Epoch)}
	if opts.Expect != "" {
		p.pinned.Store(&opts.Expect)
	}
	if opts.Direct == DirectNever {
		p.buffered.Store(2)
	}
	return p, nil
}

// Path is where the datastore is mounted.
func (p *Posix) Path() string { return p.path }

// Buffered reports whether slots go through the page cache because the file
// system refuses O_DIRECT. It is false until the first access told.
func (p *Posix) Buffered() bool { return p.buffered.Load() == 2 }

// root is the cluster's directory, opened and verified for one operation.
type root struct {
	fd     int
	header Header
}

func (r *root) close() { _ = unix.Close(r.fd) }

// enter opens the cluster's directory afresh by path and verifies whose it is.
func (p *Posix) enter() (*root, error) {
	fd, err := enterDir(p.path, p.cluster)
	if err != nil {
		return nil, err
	}
	h, err := readHeader(fd, p.cluster)
	if err == nil {
		err = p.accept(h)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &root{fd: fd, header: h}, nil
}

// accept pins the first UUID found and refuses any other.
func (p *Posix) accept(h Header) error {
	if p.pinned.Load() == nil {
		p.pinned.CompareAndSwap(nil, &h.ID)
	}
	if want := *p.pinned.Load(); want != h.ID {
		return faultf(KindForeign, "this is datastore %s, expected %s", h.ID, want).
			advise("mount the right file system here, or correct the datastore's uuid in the cluster file")
	}
	return nil
}

// enterDir opens <path>/.hanok/<cluster>.
func enterDir(path, cluster string) (int, error) {
	mount, err := openMount(path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	fd, err := openDir(mount, DirName)
	if err == nil {
		defer unix.Close(fd)
		fd, err = openDir(fd, cluster)
	}
	switch kind := kindOf(err); {
	case err == nil:
	case kind == KindMissing && !isMountPoint(mount):
		return -1, faultf(KindNotMounted, "nothing is mounted at %s, and there is no %s", path, filepath.Join(DirName, cluster)).
			advise("mount the datastore")
	case kind == KindMissing:
		return -1, faultf(KindNotInitialised, "the file system has no directory %s", filepath.Join(DirName, cluster)).
			advise("if it was deleted or rolled back, `hanok datastore repair`; if it is new, `hanok datastore init`")
	default:
		return -1, sysFault("open "+filepath.Join(DirName, cluster), err)
	}
	if err := checkOwner(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openMount opens the datastore's path itself.
func openMount(path string) (int, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if kindOf(err) == KindMissing {
		return -1, faultf(KindNotMounted, "%s does not exist", path).advise("create it and mount the datastore there")
	}
	if err != nil {
		return -1, sysFault("open "+path, err)
	}
	return fd, nil
}

// isMountPoint tells whether fd is the root of a mount.
func isMountPoint(fd int) bool {
	var st unix.Statx_t
	err := retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st) })
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	var self, parent unix.Stat_t
	if unix.Fstat(fd, &self) != nil || unix.Fstatat(fd, "..", &parent, 0) != nil {
		return false
	}
	return self.Dev != parent.Dev || self.Ino == parent.Ino
}

// checkOwner demands a directory that only root can look into.
func checkOwner(fd int) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return sysFault("stat the directory", err)
	}
	if st.Uid != 0 || st.Mode&0o077 != 0 {
		return faultf(KindPermission, "the directory has owner %d and mode %04o", st.Uid, st.Mode&0o7777).
			advise("others may have changed it: check, then chown root and chmod 0700")
	}
	return nil
}

func readHeader(fd int, cluster string) (Header, error) {
	data, err := readAt(fd, nameHeader, maxRecord)
	if kindOf(err) == KindMissing {
		return Header{}, faultf(KindNotInitialised, "the directory has no header").advise(repairRemedy)
	}
	if err != nil {
		return Header{}, within("header", err)
	}
	h, err := decodeHeader(data)
	if err != nil {
		return Header{}, within("header", err)
	}
	if h.Cluster != cluster {
		return Header{}, faultf(KindForeign, "the header names cluster %q, expected %q", h.Cluster, cluster).
			advise("mount the right file system here, or correct the cluster's id")
	}
	return h, nil
}

func decodeHeader(data []byte) (Header, error) {
	var h Header
	if err := unseal(whatHeader, data, &h); err != nil {
		return Header{}, err
	}
	if h.Format > formatVersion {
		return Header{}, faultf(KindFuture, "datastore format %d, this program knows up to %d", h.Format, formatVersion).
			advise("upgrade hanok on this host")
	}
	if err := h.validate(); err != nil {
		return Header{}, &fault{kind: KindCorrupt, cause: "impossible value", err: err}
	}
	return h, nil
}

func (h Header) validate() error {
	if err := h.ID.Validate(); err != nil {
		return err
	}
	if err := model.ValidateName(h.Cluster); err != nil {
		return err
	}
	switch {
	case h.Format != formatVersion:
		return fmt.Errorf("format %d", h.Format)
	case h.Slots < 1 || h.Slots > MaxSlots:
		return fmt.Errorf("slots %d: must be 1 to %d", h.Slots, MaxSlots)
	case h.Generation < 1 || h.Generation > maxGeneration:
		return fmt.Errorf("generation %d: must be 1 to %d", h.Generation, uint64(maxGeneration))
	}
	return nil
}

// within names the file that a fault was found in.
func within(name string, err error) error {
	if f, ok := err.(*fault); ok {
		g := *f
		g.cause = name + ": " + f.cause
		return &g
	}
	return sysFault(name, err)
}

// Check implements Driver.
func (p *Posix) Check() (Header, error) {
	r, err := p.enter()
	if err != nil {
		return Header{}, wrap("check datastore", p.path, err)
	}
	defer r.close()
	hb, err := p.openHeartbeats(r, unix.O_RDWR)
	if err != nil {
		return r.header, wrap("check datastore", p.path, err)
	}
	hb.close()
	for _, name := range []string{nameSlots, nameLocks, nameProtected, namePoweredOff} {
		d, err := openDir(r.fd, name)
		if kindOf(err) == KindMissing {
			err = faultf(KindCorrupt, "the directory %s was removed", name).advise(repairRemedy)
		}
		if err != nil {
			return r.header, wrap("check datastore", p.path, within(name, err))
		}
		_ = unix.Close(d)
	}
	return r.header, wrap("check datastore", p.path, p.locksAllowed(r))
}

// subdir opens one of the directories below the cluster's.
func (r *root) subdir(name string) (int, error) {
	fd, err := openDir(r.fd, name)
	if kindOf(err) == KindMissing {
		return -1, faultf(KindCorrupt, "the directory %s was removed", name).advise(repairRemedy)
	}
	if err != nil {
		return -1, sysFault("open "+name, err)
	}
	return fd, nil
}
