package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// DefaultSlowDelay is the delay of the Slow fault: longer than a heartbeat
// interval of the fast profile, shorter than its lease.
const DefaultSlowDelay = 700 * time.Millisecond

// Options configure a mount. The zero value is usable.
type Options struct {
	// SlowDelay is the delay per operation under the Slow fault.
	// Zero means DefaultSlowDelay.
	SlowDelay time.Duration
	// BatteryCache acknowledges fsync and O_DSYNC from the machine's memory, as
	// a disk array with a battery-backed cache does. All mounts see every write
	// at once all the same; only a crash of the whole machine would lose some.
	BatteryCache bool
	// Name is shown as the mount's source in /proc/mounts. Empty means
	// "hanok-lab".
	Name string
}

// FS is one mount. Its methods may be called from several goroutines.
type FS struct {
	mountpoint string
	slow       time.Duration
	cache      bool
	server     *fuse.Server
	delay      atomic.Pointer[func(op string) time.Duration]

	mu      sync.Mutex
	fault   Fault
	gone    bool          // unmounted: every operation fails, nothing takes effect
	room    int64         // bytes left under Full
	blocked int           // operations waiting in a hang
	changed chan struct{} // closed and replaced when fault or gone changes
	counted chan struct{} // closed and replaced when blocked changes
}

// Mount presents the directory backing at mountpoint, which must exist. The
// calling process serves the mount until Unmount; it must not itself use files
// below mountpoint while it forks, and should use backing instead. It needs
// CAP_SYS_ADMIN.
func Mount(backing, mountpoint string, opts Options) (*FS, error) {
	backing, err := filepath.Abs(backing)
	if err != nil {
		return nil, fmt.Errorf("mount datastore: %w", err)
	}
	root, err := fs.NewLoopbackRoot(backing)
	if err != nil {
		return nil, fmt.Errorf("mount datastore: backing directory %s: %w", backing, err)
	}
	if opts.SlowDelay == 0 {
		opts.SlowDelay = DefaultSlowDelay
	}
	if opts.Name == "" {
		opts.Name = "hanok-lab"
	}
	f := &FS{mountpoint: mountpoint, slow: opts.SlowDelay, cache: opts.BatteryCache, fault: None,
		changed: make(chan struct{}), counted: make(chan struct{})}
	never := time.Duration(0)
	o := &fs.Options{
		EntryTimeout: &never, AttrTimeout: &never, NegativeTimeout: &never,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther: true, EnableLocks: true, DirectMountStrict: true,
			FsName: opts.Name, Name: "hanok",
			// Asynchronous direct I/O counts as background: with go-fuse's 12 a
			// few hung writes of one guest would block every other request.
			MaxBackground: 512, CongestionThreshold: 512,
			// Passed-through files would bypass the faults.
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
			ExtraCapabilities:    fuse.CAP_DIRECT_IO_ALLOW_MMAP,
			DisableSplice:        true,
		},
	}
	f.server, err = fuse.NewServer(&gateway{RawFileSystem: fs.NewNodeFS(root, o), fs: f}, mountpoint, &o.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("mount datastore %s at %s: %w", backing, mountpoint, err)
	}
	go f.server.Serve()
	if err := f.server.WaitMount(); err != nil {
		_ = unix.Unmount(mountpoint, unix.MNT_FORCE|unix.MNT_DETACH)
		return nil, fmt.Errorf("mount datastore %s at %s: %w", backing, mountpoint, err)
	}
	return f, nil
}

// SetFault switches the fault at once. Operations blocked in a hang go on, or
// fail, as the new fault says.
func (f *FS) SetFault(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.room = fault, 0
	f.notifyLocked()
}

// Fault returns the fault that is set.
func (f *FS) Fault() Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault
}

// SetDelay installs a function that is asked before each operation how long it
// must wait; nil removes it. It is called concurrently. The names of the
// operations are: lookup getattr setattr mknod mkdir unlink rmdir rename link
// symlink readlink access getxattr listxattr setxattr removexattr create open
// read lseek getlk setlk write copyrange ioctl fsync fallocate opendir readdir
// fsyncdir statfs.
func (f *FS) SetDelay(delay func(op string) time.Duration) {
	if delay == nil {
		f.delay.Store(nil)
		return
	}
	f.delay.Store(&delay)
}

// WaitBlocked returns when at least n operations are blocked in a hang, or
// with the context's error.
func (f *FS) WaitBlocked(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		blocked, counted := f.blocked, f.counted
		f.mu.Unlock()
		if blocked >= n {
			return nil
		}
		select {
		case <-counted:
		case <-ctx.Done():
			return fmt.Errorf("%d operations blocked at %s, waiting for %d: %w", blocked, f.mountpoint, n, ctx.Err())
		}
	}
}

// Abort makes the path dead for good, as a host's path is when the host loses
// power: blocked operations fail without effect, and so do all later ones.
// Processes blocked on the mount can die. Unmount must still be called.
func (f *FS) Abort() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	f.notifyLocked()
}

// Unmount aborts the mount, detaches it and waits until it is no longer
// served. Other mount namespaces that hold the mount find it dead.
func (f *FS) Unmount() error {
	f.Abort()
	// MNT_FORCE ends the connection for all mount namespaces that hold it.
	err := unix.Unmount(f.mountpoint, unix.MNT_FORCE)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(f.mountpoint, unix.MNT_DETACH)
	}
	if err != nil {
		return os.NewSyscallError("unmount "+f.mountpoint, err)
	}
	f.server.Wait()
	return nil
}

func (f *FS) notifyLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}
