package guard

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// madvPopulateRead is MADV_POPULATE_READ of Linux 5.14 and later.
const madvPopulateRead = 22

// loadProgram reads all of this program into memory, where MCL_ONFAULT keeps it:
// code that is needed for the first time when a lease ends must not wait for the
// disk that it came from, which may be behind the same path. A thread that waits for
// such a page holds up the garbage collector, and that all others.
func loadProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	ranges, err := mapped(f, exe)
	if err != nil {
		return err
	}
	if len(ranges) == 0 {
		return fmt.Errorf("no mapping of %s is known", exe)
	}
	for _, r := range ranges {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.from, r.to-r.from, madvPopulateRead); errno != 0 {
			return errno
		}
	}
	return nil
}

// span is a range of addresses.
type span struct{ from, to uintptr }

// mapped reads from a process's maps where a file is mapped.
func mapped(maps io.Reader, file string) ([]span, error) {
	var out []span
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		// from-to rwxp offset device inode path
		f := strings.Fields(lines.Text())
		if len(f) < 6 || strings.Join(f[5:], " ") != file || f[1][0] != 'r' {
			continue
		}
		a, b, _ := strings.Cut(f[0], "-")
		from, err1 := strconv.ParseUint(a, 16, 64)
		to, err2 := strconv.ParseUint(b, 16, 64)
		if err1 != nil || err2 != nil || to < from {
			return nil, fmt.Errorf("mapping %q is not understood", f[0])
		}
		out = append(out, span{uintptr(from), uintptr(to)})
	}
	return out, lines.Err()
}

// notInMemory says why what is written in dir may wait for a disk, or "".
func notInMemory(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Sprintf("it is not known whether %s is in memory: %v", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return fmt.Sprintf("%s is on a disk, and the guard waits for it before each heartbeat: make it a tmpfs", dir)
	}
	return ""
}
