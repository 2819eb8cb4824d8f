package guest

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
)

//go:embed init.sh
var initScript []byte

//go:embed shutdown.sh
var shutdownScript []byte

// Command is the file name of the program that guests run.
const Command = "hanok-lab-guest"

const commandPackage = "hanok.dev/hanok/cmd/" + Command

// modules are loaded in this order; the guests' hardware needs no others.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_blk", "failover", "net_failover", "virtio_net", "virtio_console", "virtio_balloon"}

// applets of busybox that the scripts use.
var applets = []string{"sh", "mount", "insmod", "ln", "cat", "sleep", "sync", "poweroff", "reboot", "kill", "ls", "dmesg", "ps"}

// Names of the files of an image.
const (
	KernelFile = "vmlinuz"
	InitrdFile = "initrd.img"
)

// Build returns the directory, below cache, of the image made of what is
// installed now; it builds the image if there is none. beside is the directory
// of the running binary, where Command is looked for.
func Build(cache, beside string) (string, error) {
	kernel, version, err := newestKernel()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	program, err := command(cache, beside)
	if err != nil {
		return "", err
	}
	initrd, err := initramfs(version, program)
	if err != nil {
		return "", fmt.Errorf("build the guest image: %w", err)
	}
	vmlinuz, err := os.ReadFile(kernel)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	sum.Write(initrd)
	sum.Write(vmlinuz)
	dir := filepath.Join(cache, "guest-"+hex.EncodeToString(sum.Sum(nil))[:16])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	return dir, store(dir, vmlinuz, initrd)
}

// store writes an image so that it is there whole or not at all.
func store(dir string, vmlinuz, initrd []byte) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".guest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, KernelFile), vmlinuz, 0o644); err != nil {
		return err
	}
	// Not compressed: software emulation unpacks more slowly than it reads.
	if err := os.WriteFile(filepath.Join(tmp, InitrdFile), initrd, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		if _, statErr := os.Stat(dir); statErr != nil { // another lab may have been faster
			return err
		}
	}
	return nil
}

func newestKernel() (path, version string, err error) {
	all, err := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if err != nil || len(all) == 0 {
		return "", "", errors.New("no /boot/vmlinuz-*-cloud-amd64: run scripts/install-deps.sh (package linux-image-cloud-amd64)")
	}
	sort.Slice(all, func(i, j int) bool { return modified(all[i]) < modified(all[j]) })
	path = all[len(all)-1]
	return path, filepath.Base(path)[len("vmlinuz-"):], nil
}

func modified(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}

// command returns the guests' program: beside the running binary, or else
// built with the Go tool chain when the lab runs from its source tree.
func command(cache, beside string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(beside, Command))
	if err == nil {
		return data, nil
	}
	out, err := os.CreateTemp(cache, ".command-")
	if err != nil {
		return nil, err
	}
	out.Close()
	defer os.Remove(out.Name())
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out.Name(), commandPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Dir = sourceDir(beside)
	if msg, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("no %s beside this binary in %s, and building it failed: %w: %s; run `go build -o %s ./cmd/%s` with CGO_ENABLED=0",
			Command, beside, err, bytes.TrimSpace(msg), beside, Command)
	}
	return os.ReadFile(out.Name())
}

// sourceDir finds the source tree: around the binary, or around the working
// directory as for a test.
func sourceDir(beside string) string {
	wd, _ := os.Getwd()
	for _, start := range []string{beside, wd} {
		for dir := start; dir != "/" && dir != ""; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "cmd", Command)); err == nil {
				return dir
			}
		}
	}
	return beside
}

func initramfs(version string, program []byte) ([]byte, error) {
	var out bytes.Buffer
	a := newArchive(&out)
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "var/run", "etc"} {
		a.dir(dir)
	}
	a.char("dev/console", 5, 1)
	a.char("dev/null", 1, 3)
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: run scripts/install-deps.sh (package busybox-static)", err)
	}
	a.file("bin/busybox", 0o755, busybox)
	for _, name := range applets {
		a.symlink("bin/"+name, "busybox")
	}
	for i, name := range modules {
		data, err := module(version, name)
		if err != nil {
			return nil, err
		}
		a.file(fmt.Sprintf("modules/%02d-%s.ko", i, name), 0o644, data)
	}
	if err := addProgram(a, "/usr/sbin/qemu-ga"); err != nil {
		return nil, fmt.Errorf("%w: run scripts/install-deps.sh (package qemu-guest-agent)", err)
	}
	a.file("bin/"+Command, 0o755, program)
	a.file("init", 0o755, initScript)
	a.file("sbin/shutdown", 0o755, shutdownScript)
	if err := a.close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func addProgram(a *archive, program string) error {
	libs, err := libraries(program)
	if err != nil {
		return err
	}
	for _, p := range append([]string{program}, libs...) {
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		a.file(p, 0o755, data)
	}
	return nil
}

func module(version, name string) ([]byte, error) {
	var found string
	root := filepath.Join("/lib/modules", version, "kernel")
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err == nil && filepath.Base(path) == name+".ko" {
			found = path
			return io.EOF
		}
		return err
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if found == "" {
		return nil, fmt.Errorf("no module %s.ko below %s", name, root)
	}
	return os.ReadFile(found)
}
