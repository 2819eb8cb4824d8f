package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	block  = 4096
	sector = 512 // unit of st_blocks
)

// take reserves n bytes under the Full fault; without it there is room.
func (f *FS) take(n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != Full {
		return true
	}
	n = (n + block - 1) / block * block
	if f.room < n {
		return false
	}
	f.room -= n
	return true
}

// give returns what a removed file occupied.
func (f *FS) give(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room += n
}

// fits tells whether a write may be done under the Full fault: into blocks
// that the file has already, or into room that a removal has made.
func (g *gateway) fits(cancel <-chan struct{}, in *fuse.InHeader, fh uint64, off, size uint64) bool {
	if g.fs.Fault() != Full {
		return true
	}
	var attr fuse.AttrOut
	get := fuse.GetAttrIn{InHeader: *in, Flags_: fuse.FUSE_GETATTR_FH, Fh_: fh}
	if g.RawFileSystem.GetAttr(cancel, &get, &attr) == fuse.OK && off+size <= attr.Size {
		if attr.Blocks*sector >= attr.Size {
			return true // preallocated
		}
		seek := fuse.LseekIn{InHeader: *in, Fh: fh, Offset: off, Whence: unix.SEEK_HOLE}
		var hole fuse.LseekOut
		if g.RawFileSystem.Lseek(cancel, &seek, &hole) == fuse.OK && hole.Offset >= off+size {
			return true
		}
	}
	return g.fs.take(int64(size))
}
