// Package resident keeps a program in memory, so that it goes on while the disk
// that it came from stands still.
package resident

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// madvPopulateRead is MADV_POPULATE_READ of Linux 5.14 and later.
const madvPopulateRead = 22

// Lock reads all of this program into memory and keeps it there, with what it
// allocates from now on: code that is needed for the first time in an emergency must
// not wait for a disk. A thread that waits for such a page holds up the garbage
// collector, and that all others. What could not be done is in the error; the rest
// is done.
func Lock() error {
	lock := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if lock != nil {
		lock = fmt.Errorf("lock memory: %w", lock)
	}
	load := loadProgram()
	if load != nil {
		load = fmt.Errorf("read the program: %w", load)
	}
	return errors.Join(lock, load)
}

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
