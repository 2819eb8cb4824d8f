package fusefs

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// effect is what an operation does, as far as faults care.
type effect uint8

const (
	looks   effect = iota // asks for names, attributes, locks
	moves                 // moves data or lists a directory
	changes               // changes data, names or attributes
)

const killPoll = 20 * time.Millisecond

// pass waits and decides whether an operation may be done. It returns OK, or
// the status to answer with.
func (f *FS) pass(cancel <-chan struct{}, pid uint32, op string, e effect) fuse.Status {
	if d := f.delay.Load(); d != nil {
		if wait := (*d)(op); wait > 0 {
			time.Sleep(wait)
		}
	}
	slowed := false
	for {
		f.mu.Lock()
		fault, gone, changed := f.fault, f.gone, f.changed
		f.mu.Unlock()
		if gone {
			return fuse.EIO
		}
		switch fault {
		case Lost:
			return fuse.EIO
		case Readonly:
			if e == changes {
				return fuse.EROFS
			}
			return fuse.OK
		case Slow:
			if slowed || e == looks {
				return fuse.OK
			}
			slowed = true
			timer := time.NewTimer(f.slow)
			select {
			case <-timer.C:
			case <-changed:
				timer.Stop()
			}
		case Hang, HangHard:
			if !f.block(cancel, changed, pid, fault == HangHard) {
				return fuse.EINTR
			}
		default:
			return fuse.OK
		}
	}
}

// block waits until changed is closed. It returns false if the caller of the
// operation is being killed meanwhile and may go.
func (f *FS) block(cancel, changed <-chan struct{}, pid uint32, hard bool) bool {
	f.count(1)
	defer f.count(-1)
	if hard {
		<-changed
		return true
	}
	select {
	case <-changed:
		return true
	case <-cancel:
	}
	poll := time.NewTicker(killPoll)
	defer poll.Stop()
	for !killed(pid) {
		select {
		case <-changed:
			return true
		case <-poll.C:
		}
	}
	return false
}

func (f *FS) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocked += n
	close(f.counted)
	f.counted = make(chan struct{})
}

// killed tells whether SIGKILL is pending for the thread tid or its process.
// The kernel reports an interrupt for the first signal of any kind only, so a
// hang has to look for the deadly one itself.
func killed(tid uint32) bool {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return true
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && set&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
