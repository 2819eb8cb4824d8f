package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// systemDirs are the parts of the machine's root file system that every host
// shares, read-only.
var systemDirs = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// buildRoot assembles the host's root at spec.NewRoot and pivots into it. Only
// what is bound here is visible to the host: no mount of other hosts is.
func buildRoot(spec Spec) error {
	root := spec.NewRoot
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range systemDirs {
		if err := shareSystemDir(root, dir); err != nil {
			return err
		}
	}
	if spec.Usr != "" {
		if err := ownUsr(spec.Usr, filepath.Join(root, "usr")); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "root", "home", "mnt", "media", "srv", "opt", "old"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o1777); err != nil {
		return err
	}
	binds := append([]Bind{{Source: spec.Etc, Target: "/etc"}, {Source: spec.Var, Target: "/var"}}, spec.Binds...)
	for _, b := range binds {
		if err := bind(b.Source, filepath.Join(root, b.Target), b.ReadOnly); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", filepath.Join(root, "run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "run/lock"), 0o1777); err != nil {
		return err
	}
	if err := mountKernel(root, spec); err != nil {
		return err
	}
	if err := makeDevices(root, spec.Watchdog); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, filepath.Join(root, "old")); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	return os.Remove("/old")
}

func shareSystemDir(root, dir string) error {
	source, target := "/"+dir, filepath.Join(root, dir)
	info, err := os.Lstat(source)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSymlink != 0:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	}
	return bind(source, target, true)
}

// ownUsr lays the host's own changes over the machine's /usr.
func ownUsr(dir, target string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	first := !exists(upper)
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("overlay", target, "overlay", 0, "lowerdir=/usr,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	if first { // this machine's own installation is not the host's
		for _, name := range []string{"hanok", "hanok-guard"} {
			if err := os.RemoveAll(filepath.Join(target, "bin", name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountKernel mounts proc with the host's own boot id, sysfs and cgroup v2.
func mountKernel(root string, spec Spec) error {
	if err := mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if spec.packaged() { // it leaves alone what it finds read-only, and the kernel is the machine's
		if err := bind(filepath.Join(root, "proc/sys"), filepath.Join(root, "proc/sys"), true); err != nil {
			return err
		}
	}
	id := filepath.Join(root, "run/boot-id")
	if err := os.WriteFile(id, []byte(spec.BootID+"\n"), 0o444); err != nil {
		return err
	}
	if err := unix.Mount(id, filepath.Join(root, "proc/sys/kernel/random/boot_id"), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("present the boot id: %w", err)
	}
	if err := mount("sysfs", filepath.Join(root, "sys"), "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// All cgroup v1 controllers or none: with half of them libvirt cannot start
	// a domain. QEMU needs none.
	if spec.CgroupMount != "/sys/fs/cgroup" {
		if err := mount("tmpfs", filepath.Join(root, "sys/fs/cgroup"), "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	if err := mount("cgroup2", filepath.Join(root, spec.CgroupMount), "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if !spec.packaged() {
		return nil
	}
	// The devices are the machine's, too.
	if err := unix.Mount("", filepath.Join(root, "sys"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make /sys read-only: %w", err)
	}
	return nil
}

// makeDevices makes a /dev with what libvirt and QEMU use under software
// emulation, so that the host's watchdog is not the machine's.
func makeDevices(root, watchdog string) error {
	dev := filepath.Join(root, "dev")
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for name, id := range map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
		"net/tun": {10, 200},
	} {
		path := filepath.Join(dev, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(id[0], id[1]))); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	if err := mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return err
	}
	if err := mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	for name, to := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	if watchdog == "" {
		return nil
	}
	target := filepath.Join(dev, "watchdog")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(watchdog, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("present the watchdog: %w", err)
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", kind, target, err)
	}
	return nil
}

func bind(source, target string, readOnly bool) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	if readOnly {
		if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", target, err)
		}
	}
	return nil
}
