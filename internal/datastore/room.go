package datastore

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The ballast is space that claims and releases may use on a full file system:
// small files, removed one at a time, so that a growing disk image cannot take
// all of it at once. They free inodes as well as blocks.
const (
	ballastFiles = 16
	ballastSize  = 256 << 10
	// refillFree is the free space, in bytes, from which the ballast is made
	// again: far more than the ballast, or making and removing would alternate.
	refillFree = 64 << 20
)

func ballastName(i int) string { return fmt.Sprintf("%02d", i) }

// withRoom runs op; when it finds the file system full it makes room, by
// prune (may be nil) and then by the ballast, and runs op again. op must leave
// nothing behind when it fails.
func (p *Posix) withRoom(r *root, prune func(), op func() error) error {
	err := op()
	if kindOf(err) != KindFull {
		return err
	}
	if prune != nil {
		prune()
		if err = op(); kindOf(err) != KindFull {
			return err
		}
	}
	for range ballastFiles {
		dropped, derr := dropBallast(r)
		if derr != nil || !dropped {
			return err
		}
		if err = op(); kindOf(err) != KindFull {
			return err
		}
	}
	return err
}

// dropBallast removes one file of the ballast.
func dropBallast(r *root) (bool, error) {
	dir, err := openDir(r.fd, nameBallast)
	if err != nil {
		return false, err
	}
	defer unix.Close(dir)
	for i := range ballastFiles {
		err := retry(func() error { return unix.Unlinkat(dir, ballastName(i), 0) })
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, err
		}
		return true, fsync(dir)
	}
	return false, nil
}

// refillBallast makes missing files of the ballast again when there is plenty
// of room. A full file system is no error.
func refillBallast(r *root) error {
	dir, err := openDir(r.fd, nameBallast)
	if kindOf(err) == KindMissing {
		return faultf(KindCorrupt, "the directory %s was removed", nameBallast).advise(repairRemedy)
	}
	if err != nil {
		return sysFault("open "+nameBallast, err)
	}
	defer unix.Close(dir)
	names, err := listNames(dir, false)
	if err != nil {
		return within("list "+nameBallast, err)
	}
	if len(names) >= ballastFiles {
		return nil
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(dir, &fs) }); err != nil {
		return sysFault("statfs", err)
	}
	if fs.Bavail*uint64(fs.Bsize) < refillFree {
		return nil
	}
	if err := fillBallast(dir); err != nil && kindOf(err) != KindFull {
		return within(nameBallast, err)
	}
	return nil
}

// fillBallast makes the files that are missing. Their blocks are allocated;
// their content does not matter.
func fillBallast(dir int) error {
	for i := range ballastFiles {
		fd, err := openAt(dir, ballastName(i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return err
		}
		err = allocate(fd, ballastSize)
		_ = unix.Close(fd)
		if err != nil {
			_ = unlinkAt(dir, ballastName(i))
			return err
		}
	}
	return fsync(dir)
}

// allocate reserves blocks, by writing zeros where the file system cannot
// reserve.
func allocate(fd int, size int64) error {
	err := retry(func() error { return unix.Fallocate(fd, 0, 0, size) })
	if kindOf(err) == KindUnsupported {
		err = writeFull(fd, make([]byte, size))
	}
	return err
}
