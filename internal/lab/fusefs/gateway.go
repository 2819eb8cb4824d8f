package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// gateway puts the fault before every operation of a loopback file system.
// Forget, Release, ReleaseDir and Flush pass, so that files are always closed.
type gateway struct {
	fuse.RawFileSystem
	fs *FS
}

func (g *gateway) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "lookup", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Lookup(cancel, in, name, out)
}

func (g *gateway) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "getattr", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.GetAttr(cancel, in, out)
}

// Statx is not forwarded: the kernel then asks GetAttr, which knows all that a
// loopback does.
func (g *gateway) Statx(<-chan struct{}, *fuse.StatxIn, *fuse.StatxOut) fuse.Status {
	return fuse.ENOSYS
}

func (g *gateway) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "setattr", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.SetAttr(cancel, in, out)
}

func (g *gateway) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.creates(cancel, &in.InHeader, "mknod"); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Mknod(cancel, in, name, out)
}

func (g *gateway) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.creates(cancel, &in.InHeader, "mkdir"); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (g *gateway) Symlink(cancel <-chan struct{}, in *fuse.InHeader, pointedTo, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.creates(cancel, in, "symlink"); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Symlink(cancel, in, pointedTo, name, out)
}

func (g *gateway) creates(cancel <-chan struct{}, in *fuse.InHeader, op string) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, op, changes); s != fuse.OK {
		return s
	}
	if !g.fs.take(block) {
		return fuse.Status(unix.ENOSPC)
	}
	return fuse.OK
}

func (g *gateway) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "unlink", changes); s != fuse.OK {
		return s
	}
	var freed int64
	if g.fs.Fault() == Full {
		var entry fuse.EntryOut
		if g.RawFileSystem.Lookup(cancel, in, name, &entry) == fuse.OK {
			if entry.Nlink == 1 {
				freed = int64(entry.Blocks * sector)
			}
			g.RawFileSystem.Forget(entry.NodeId, 1)
		}
	}
	s := g.RawFileSystem.Unlink(cancel, in, name)
	if s == fuse.OK {
		g.fs.give(freed)
	}
	return s
}

func (g *gateway) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "rmdir", changes); s != fuse.OK {
		return s
	}
	s := g.RawFileSystem.Rmdir(cancel, in, name)
	if s == fuse.OK {
		g.fs.give(block)
	}
	return s
}

func (g *gateway) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "rename", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Rename(cancel, in, oldName, newName)
}

// Link passes under Full: a directory with a free entry needs no block.
func (g *gateway) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "link", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Link(cancel, in, name, out)
}

func (g *gateway) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	if s := g.fs.pass(cancel, in.Pid, "readlink", looks); s != fuse.OK {
		return nil, s
	}
	return g.RawFileSystem.Readlink(cancel, in)
}

func (g *gateway) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "access", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Access(cancel, in)
}

func (g *gateway) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if s := g.fs.pass(cancel, in.Pid, "getxattr", looks); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.GetXAttr(cancel, in, attr, dest)
}

func (g *gateway) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if s := g.fs.pass(cancel, in.Pid, "listxattr", looks); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.ListXAttr(cancel, in, dest)
}

func (g *gateway) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "setxattr", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.SetXAttr(cancel, in, attr, data)
}

func (g *gateway) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "removexattr", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.RemoveXAttr(cancel, in, attr)
}

func (g *gateway) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := g.creates(cancel, &in.InHeader, "create"); s != fuse.OK {
		return s
	}
	in.Flags = g.fs.flags(in.Flags)
	s := g.RawFileSystem.Create(cancel, in, name, out)
	out.OpenFlags |= uncached
	return s
}

// Tmpfile is refused: a loopback has no path to link such a file from.
func (g *gateway) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.Status(unix.EOPNOTSUPP)
}

// uncached makes the kernel send every read and write here; without parallel
// writes one hung write would hold the file's lock against all others.
const uncached = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// flags are what a file is opened with on the backing file system. The buffers
// here are not aligned for O_DIRECT, and the page cache is what mounts share.
func (f *FS) flags(asked uint32) uint32 {
	asked &^= unix.O_DIRECT
	if f.cache {
		asked &^= unix.O_SYNC | unix.O_DSYNC
	}
	return asked
}

func (g *gateway) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	e := moves
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY || in.Flags&unix.O_TRUNC != 0 {
		e = changes
	}
	if s := g.fs.pass(cancel, in.Pid, "open", e); s != fuse.OK {
		return s
	}
	in.Flags = g.fs.flags(in.Flags)
	s := g.RawFileSystem.Open(cancel, in, out)
	out.OpenFlags |= uncached
	return s
}

func (g *gateway) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if s := g.fs.pass(cancel, in.Pid, "read", moves); s != fuse.OK {
		return nil, s
	}
	return g.RawFileSystem.Read(cancel, in, buf)
}

func (g *gateway) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "lseek", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Lseek(cancel, in, out)
}

func (g *gateway) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "getlk", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.GetLk(cancel, in, out)
}

func (g *gateway) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "setlk", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.SetLk(cancel, in)
}

func (g *gateway) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "setlk", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.SetLkw(cancel, in)
}

func (g *gateway) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s := g.writes(cancel, in); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.Write(cancel, in, data)
}

// Writev is not forwarded: go-fuse then calls Write.
func (g *gateway) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (g *gateway) writes(cancel <-chan struct{}, in *fuse.WriteIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "write", changes); s != fuse.OK {
		return s
	}
	if !g.fits(cancel, &in.InHeader, in.Fh, in.Offset, uint64(in.Size)) {
		return fuse.Status(unix.ENOSPC)
	}
	return fuse.OK
}

// CopyFileRange is not forwarded: the kernel then reads and writes.
func (g *gateway) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (g *gateway) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "ioctl", changes); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Ioctl(cancel, in, inbuf, out, outbuf)
}

func (g *gateway) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "fsync", moves); s != fuse.OK {
		return s
	}
	if g.fs.cache {
		return fuse.OK
	}
	return g.RawFileSystem.Fsync(cancel, in)
}

func (g *gateway) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "fallocate", changes); s != fuse.OK {
		return s
	}
	if !g.fits(cancel, &in.InHeader, in.Fh, in.Offset, in.Length) {
		return fuse.Status(unix.ENOSPC)
	}
	return g.RawFileSystem.Fallocate(cancel, in)
}

func (g *gateway) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "opendir", looks); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.OpenDir(cancel, in, out)
}

func (g *gateway) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "readdir", moves); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.ReadDir(cancel, in, out)
}

func (g *gateway) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "readdir", moves); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.ReadDirPlus(cancel, in, out)
}

func (g *gateway) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "fsyncdir", moves); s != fuse.OK {
		return s
	}
	if g.fs.cache {
		return fuse.OK
	}
	return g.RawFileSystem.FsyncDir(cancel, in)
}

func (g *gateway) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if s := g.fs.pass(cancel, in.Pid, "statfs", looks); s != fuse.OK {
		return s
	}
	s := g.RawFileSystem.StatFs(cancel, in, out)
	if g.fs.Fault() == Full && out.Bsize > 0 {
		g.fs.mu.Lock()
		out.Bfree = uint64(g.fs.room) / uint64(out.Bsize)
		g.fs.mu.Unlock()
		out.Bavail = out.Bfree
	}
	return s
}
