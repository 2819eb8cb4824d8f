package guest

import (
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// archive writes a cpio archive in the "newc" format, which the kernel unpacks
// as initramfs. Parents of a name are added by themselves. The first error
// sticks and is returned by close.
type archive struct {
	w    io.Writer
	err  error
	ino  int
	dirs map[string]bool
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

func (a *archive) dir(name string) {
	name = clean(name)
	if name == "" || a.dirs[name] {
		return
	}
	if p := path.Dir(name); p != "." {
		a.dir(p)
	}
	a.dirs[name] = true
	a.entry(name, unix.S_IFDIR|0o755, 0, 0, nil)
}

func (a *archive) file(name string, mode uint32, data []byte) {
	a.dir(path.Dir(clean(name)))
	a.entry(clean(name), unix.S_IFREG|mode, 0, 0, data)
}

func (a *archive) symlink(name, target string) {
	a.dir(path.Dir(clean(name)))
	a.entry(clean(name), unix.S_IFLNK|0o777, 0, 0, []byte(target))
}

func (a *archive) char(name string, major, minor uint32) {
	a.dir(path.Dir(clean(name)))
	a.entry(clean(name), unix.S_IFCHR|0o600, major, minor, nil)
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}

func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	return name
}

func (a *archive) entry(name string, mode, major, minor uint32, data []byte) {
	a.ino++
	const owner, links, time = 0, 1, 0
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, owner, owner, links, time, len(data), 0, 0, major, minor, len(name)+1, 0)
	a.padded([]byte(header + name + "\x00"))
	a.padded(data)
}

// padded writes data and zeros up to a multiple of four. Headers are 110 bytes
// long, and alignment counts from the start of the archive, which every entry
// keeps at a multiple of four.
func (a *archive) padded(data []byte) {
	if a.err != nil {
		return
	}
	if _, a.err = a.w.Write(data); a.err == nil {
		_, a.err = a.w.Write(make([]byte, (4-len(data)%4)%4))
	}
}
