// Package watchdog is a watchdog device as a file: a FUSE mount with one file
// that behaves like /dev/watchdog and calls back when it expires.
//
// Its server must live outside the host that it watches. Opening the file
// starts the timer, any write restarts it, WDIOC_SETTIMEOUT and GETTIMEOUT
// work, and a close stops it only if 'V' was the last thing written; a process
// that merely dies leaves it running. The KEEPALIVE ioctl is accepted where
// the kernel passes it on, but is not to be relied on: pet by writing.
package watchdog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// DefaultTimeout is the time-out until WDIOC_SETTIMEOUT is used, that of the
// kernel's own software watchdog.
const DefaultTimeout = 60 * time.Second

// Name is the file's name in the mounted directory.
const Name = "watchdog"

// The ioctls of linux/watchdog.h on x86 and ARM.
const (
	wdiocGetSupport    = 0x80285700
	wdiocGetStatus     = 0x80045701
	wdiocGetBootStatus = 0x80045702
	wdiocKeepalive     = 0x80045705
	wdiocSetTimeout    = 0xc0045706
	wdiocGetTimeout    = 0x80045707
	wdiocGetTimeLeft   = 0x8004570a

	flagSetTimeout    = 0x0080
	flagMagicClose    = 0x0100
	flagKeepalivePing = 0x8000
)

// Device is one host's watchdog.
type Device struct {
	dir    string
	server *fuse.Server
	expire func()

	mu      sync.Mutex
	timeout time.Duration
	timer   *time.Timer // nil while stopped
	round   uint64      // number of the running timer, so that a late one is told
	fed     time.Time
	open    bool
	magic   bool // the last byte written was 'V'
	dead    bool
}

// Mount presents a watchdog as dir/watchdog. expired is called once, in a
// goroutine of its own, when it runs out; after that the device stays silent.
func Mount(dir string, expired func()) (*Device, error) {
	d := &Device{dir: dir, expire: expired, timeout: DefaultTimeout}
	server, err := fs.Mount(dir, &root{device: d}, &fs.Options{MountOptions: fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, FsName: "hanok-lab-watchdog", Name: "hanok"}})
	if err != nil {
		return nil, fmt.Errorf("mount watchdog at %s: %w", dir, err)
	}
	d.server = server
	return d, nil
}

// Path is the file to present as /dev/watchdog.
func (d *Device) Path() string { return filepath.Join(d.dir, Name) }

// Running tells whether the timer runs, and its time-out.
func (d *Device) Running() (bool, time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.timer != nil, d.timeout
}

// Unmount stops the watchdog without expiring it.
func (d *Device) Unmount() error {
	d.mu.Lock()
	d.dead = true
	d.stopLocked()
	d.mu.Unlock()
	err := unix.Unmount(d.dir, unix.MNT_FORCE)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(d.dir, unix.MNT_DETACH)
	}
	if err != nil {
		return os.NewSyscallError("unmount "+d.dir, err)
	}
	d.server.Wait()
	return nil
}

func (d *Device) feedLocked() {
	if d.dead {
		return
	}
	d.stopLocked()
	d.round++
	round := d.round
	d.fed = time.Now()
	due := d.fed.Add(d.timeout)
	d.timer = time.AfterFunc(d.timeout, func() { d.ranOut(round, due) })
}

func (d *Device) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// A hardware watchdog counts on, and is fed, while this process stands still. When
// the timer is later than tooLate, a write may wait to be read: it gets a moment.
const (
	tooLate = 50 * time.Millisecond
	moment  = 250 * time.Millisecond
)

func (d *Device) ranOut(round uint64, due time.Time) {
	d.mu.Lock()
	over := !d.dead && round == d.round && d.timer != nil
	if over && time.Since(due) > tooLate {
		again := time.Now().Add(moment)
		d.timer = time.AfterFunc(moment, func() { d.ranOut(round, again) })
		over = false
	}
	if over {
		d.dead, d.timer = true, nil
	}
	d.mu.Unlock()
	if over {
		d.expire()
	}
}

type root struct {
	fs.Inode
	device *Device
}

// OnAdd adds the one file.
func (r *root) OnAdd(ctx context.Context) {
	r.AddChild(Name, r.NewPersistentInode(ctx, &file{device: r.device}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
}

// file is the device; each open gets a handle of its own.
type file struct {
	fs.Inode
	device *Device
}

// Getattr shows a file that only root may use.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	return 0
}

// Setattr accepts the truncation that some openers ask for.
func (f *file) Setattr(_ context.Context, _ fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o600
	return 0
}

// Open starts the timer; a second opener gets EBUSY.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	d := f.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open {
		return nil, 0, syscall.EBUSY
	}
	d.open, d.magic = true, false
	d.feedLocked()
	return &handle{device: d}, fuse.FOPEN_DIRECT_IO, 0
}

type handle struct{ device *Device }

// Write restarts the timer.
func (h *handle) Write(_ context.Context, data []byte, _ int64) (uint32, syscall.Errno) {
	d := h.device
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(data) > 0 {
		d.magic = data[len(data)-1] == 'V'
		d.feedLocked()
	}
	return uint32(len(data)), 0
}

// Release stops the timer only after a magic close.
func (h *handle) Release(context.Context) syscall.Errno {
	d := h.device
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = false
	if d.magic {
		d.stopLocked()
	}
	return 0
}

// Ioctl serves the part of the watchdog interface that a file can.
func (h *handle) Ioctl(_ context.Context, cmd uint32, _ uint64, input, output []byte) (int32, syscall.Errno) {
	d := h.device
	d.mu.Lock()
	defer d.mu.Unlock()
	put := func(v time.Duration) (int32, syscall.Errno) {
		if len(output) >= 4 {
			binary.NativeEndian.PutUint32(output, uint32(v/time.Second))
		}
		return 0, 0
	}
	switch cmd {
	case wdiocGetSupport:
		if len(output) < 40 {
			return 0, syscall.EINVAL
		}
		binary.NativeEndian.PutUint32(output, flagSetTimeout|flagMagicClose|flagKeepalivePing)
		copy(output[8:40], "hanok lab watchdog")
		return 0, 0
	case wdiocGetStatus, wdiocGetBootStatus:
		return put(0)
	case wdiocKeepalive:
		d.feedLocked()
		return 0, 0
	case wdiocSetTimeout:
		if len(input) < 4 {
			return 0, syscall.EINVAL
		}
		seconds := int32(binary.NativeEndian.Uint32(input))
		if seconds < 1 || seconds > 65535 {
			return 0, syscall.EINVAL
		}
		d.timeout = time.Duration(seconds) * time.Second
		d.feedLocked()
		return put(d.timeout)
	case wdiocGetTimeout:
		return put(d.timeout)
	case wdiocGetTimeLeft:
		return put(max(0, d.timeout-time.Since(d.fed)))
	}
	return 0, syscall.ENOTTY
}
