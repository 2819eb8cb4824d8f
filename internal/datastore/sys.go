package datastore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls relative to a directory descriptor. All retry EINTR: a FUSE
// file system passes the runtime's own signals on to its callers. A retried
// link, mkdir or rename may therefore fail because it had succeeded; callers
// read again after every failure, as the protocol demands anyway.

const maxNames = 1 << 17 // entries read from one directory at most

// tempPrefix begins the names of files that are being written. Readers ignore
// them.
const tempPrefix = ".tmp."

func retry(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NOCTTY, mode)
		return err
	})
	return fd, err
}

func openDir(dir int, name string) (int, error) {
	return openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

func fsync(fd int) error {
	return retry(func() error { return unix.Fsync(fd) })
}

func unlinkAt(dir int, name string) error {
	err := retry(func() error { return unix.Unlinkat(dir, name, 0) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func mkdirAt(dir int, name string) error {
	return retry(func() error { return unix.Mkdirat(dir, name, 0o700) })
}

// readAt reads a regular file of at most max bytes.
func readAt(dir int, name string, max int) ([]byte, error) {
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, faultf(KindCorrupt, "%s is not a regular file", name)
	}
	if st.Size > int64(max) {
		return nil, faultf(KindCorrupt, "%s has %d bytes, at most %d are allowed", name, st.Size, max)
	}
	buf := make([]byte, st.Size)
	n, err := preadFull(fd, buf, 0)
	return buf[:n], err
}

// preadFull reads until buf is full or the file ends.
func preadFull(fd int, buf []byte, off int64) (int, error) {
	done := 0
	for done < len(buf) {
		var n int
		err := retry(func() (err error) { n, err = unix.Pread(fd, buf[done:], off+int64(done)); return err })
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

func writeFull(fd int, data []byte) error {
	for len(data) > 0 {
		var n int
		if err := retry(func() (err error) { n, err = unix.Write(fd, data); return err }); err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		data = data[n:]
	}
	return nil
}

// writeTemp writes and syncs a new file that nobody else has; it leaves none
// behind when it fails.
func writeTemp(dir int, name string, data []byte) error {
	fd, err := openAt(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = writeFull(fd, data)
	if err == nil {
		err = fsync(fd)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		_ = unlinkAt(dir, name)
	}
	return err
}

// replaceFile writes name atomically and durably.
func replaceFile(dir int, name, tag string, data []byte) error {
	tmp := tempPrefix + tag + "." + randomHex(8)
	if err := writeTemp(dir, tmp, data); err != nil {
		return err
	}
	if err := retry(func() error { return unix.Renameat(dir, tmp, dir, name) }); err != nil {
		_ = unlinkAt(dir, tmp)
		return err
	}
	return fsync(dir)
}

// listNames returns the names in a directory, temporary files left out unless
// temps is set.
func listNames(dir int, temps bool) ([]string, error) {
	// A fresh descriptor: the position of a shared one belongs to nobody.
	fd, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	var out []string
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if strings.HasPrefix(n, tempPrefix) == temps {
				out = append(out, n)
			}
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(out) > maxNames {
			return nil, faultf(KindCorrupt, "a directory has more than %d entries", maxNames)
		}
	}
}

// alignedBuffer returns n bytes at an address that O_DIRECT accepts.
func alignedBuffer(n int) []byte {
	raw := make([]byte, n+SlotSize)
	shift := SlotSize - int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))%SlotSize)
	return raw[shift : shift+n : shift+n]
}

func randomHex(digits int) string {
	b := make([]byte, digits/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
