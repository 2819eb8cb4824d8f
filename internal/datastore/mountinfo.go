package datastore

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const maxMountinfo = 8 << 20

// locksAllowed refuses file systems on which a host could believe a stale
// listing or a stale slot.
func (p *Posix) locksAllowed(r *root) error {
	if p.buffered.Load() == 0 {
		hb, err := p.openHeartbeats(r, unix.O_RDONLY) // tells whether O_DIRECT works
		if err != nil {
			return err
		}
		hb.close()
	}
	if p.buffered.Load() == 2 && !p.opts.AllowBuffered {
		return faultf(KindUnsupported, "the file system refuses O_DIRECT, its slots may be stale").
			advise("use a file system with direct I/O for datastores")
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(r.fd, &fs) }); err != nil {
		return sysFault("statfs", err)
	}
	if int64(fs.Type) != unix.NFS_SUPER_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(r.fd, &st) }); err != nil {
		return sysFault("stat", err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || len(info) > maxMountinfo {
		return faultf(KindUnsupported, "cannot learn the NFS mount options of %s", p.path)
	}
	return checkNFSOptions(info, fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

// checkNFSOptions verifies, in the text of /proc/self/mountinfo, that the NFS
// mount with this device number caches neither names nor attributes.
func checkNFSOptions(mountinfo []byte, device string) error {
	const remedy = "mount it with lookupcache=none,actimeo=0"
	lines := bufio.NewScanner(bytes.NewReader(mountinfo))
	lines.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		sep := slices.Index(fields, "-")
		if len(fields) < 6 || fields[2] != device || sep < 0 || len(fields) < sep+4 {
			continue
		}
		options := strings.Split(fields[sep+3], ",")
		if !slices.Contains(options, "lookupcache=none") {
			return faultf(KindUnsupported, "the NFS mount caches names").advise(remedy)
		}
		if slices.Contains(options, "noac") || slices.Contains(options, "actimeo=0") {
			return nil
		}
		for _, need := range []string{"acregmin=0", "acregmax=0", "acdirmin=0", "acdirmax=0"} {
			if !slices.Contains(options, need) {
				return faultf(KindUnsupported, "the NFS mount caches attributes (no %s)", need).advise(remedy)
			}
		}
		return nil
	}
	return faultf(KindUnsupported, "the NFS mount %s is not in /proc/self/mountinfo", device).advise(remedy)
}
