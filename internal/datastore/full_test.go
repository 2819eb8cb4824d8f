package datastore_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// tmpfs mounts a small file system and returns its path.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounts need root: run the tests of internal/datastore as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("hanok-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A file system that is really full, of blocks or of inodes: release and claim
// still succeed, and so does what a guard needs to go on.
func TestFullFileSystem(t *testing.T) {
	for name, fill := range map[string]func(t *testing.T, dir string){
		"no blocks left": func(t *testing.T, dir string) {
			f, err := os.Create(filepath.Join(dir, "disk0.raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
		},
		"no inodes left": func(t *testing.T, dir string) {
			for i := 0; ; i++ {
				f, err := os.Create(filepath.Join(dir, "file"+string(rune('a'+i))))
				if err != nil {
					return
				}
				f.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t, "size=6m,nr_inodes=48")
			initialise(t, dir)
			d := open(t, dir, datastore.Options{AllowBuffered: true})
			index, err := d.ClaimSlot("host1", "m1")
			if err != nil {
				t.Fatal(err)
			}
			if err := d.CreateLock(raceLock, lockRecord(0, "host1", model.LockHeld)); err != nil {
				t.Fatal(err)
			}
			fill(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "one-more"), []byte("x"), 0o600); err == nil {
				t.Fatal("the file system is not full")
			}
			var known []string
			for epoch := model.Epoch(2); epoch < 8; epoch++ {
				state := []model.LockState{model.LockHeld, model.LockReleased}[epoch%2]
				won, highest, err := datastore.Claim(d, lockRecord(epoch, "host1", state))
				if !won {
					t.Fatalf("%s at epoch %d: highest %v, %v", state, epoch, highest, err)
				}
				id, err := d.WriteSlot(index, known, slot("host1", uint64(epoch)))
				if err != nil {
					t.Fatal(err)
				}
				known = []string{id.Digest}
			}
			if err := d.WritePoweredOff(model.PoweredOffNote{VM: model.VMID(raceLock), LockEpoch: 6, Host: "host1"}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A mount point whose file system is not mounted is not taken for a datastore,
// and is told apart from one without Hanok's directory.
func TestUnmountedAndUninitialised(t *testing.T) {
	dir := tmpfs(t, "size=6m")
	d := open(t, dir, datastore.Options{})
	if _, err := d.Check(); datastore.KindOf(err) != datastore.KindNotInitialised {
		t.Errorf("an empty file system: %v", err)
	}
	d = open(t, t.TempDir(), datastore.Options{})
	if _, err := d.Check(); datastore.KindOf(err) != datastore.KindNotMounted {
		t.Errorf("an empty directory: %v", err)
	}
	d = open(t, filepath.Join(t.TempDir(), "nowhere"), datastore.Options{})
	if _, err := d.Check(); datastore.KindOf(err) != datastore.KindNotMounted {
		t.Errorf("no directory: %v", err)
	}
	if _, err := datastore.Initialise(t.TempDir(), cluster, datastore.InitOptions{MountPointOnly: true}); datastore.KindOf(err) != datastore.KindNotMounted {
		t.Errorf("initialise where nothing is mounted: %v", err)
	}
	if _, err := datastore.Initialise(dir, cluster, datastore.InitOptions{MountPointOnly: true}); err != nil {
		t.Errorf("initialise a mounted file system: %v", err)
	}
	if _, err := datastore.Initialise(dir, cluster, datastore.InitOptions{}); datastore.KindOf(err) != datastore.KindExists {
		t.Errorf("initialise it again: %v", err)
	}
	// Another datastore than the one expected, and than the one seen first.
	other := open(t, dir, datastore.Options{Expect: "11111111-2222-4333-8444-555555555555"})
	if _, err := other.Check(); datastore.KindOf(err) != datastore.KindForeign {
		t.Errorf("another UUID: %v", err)
	}
}

// A file system that refuses O_DIRECT is used for slots, but not for locks.
func TestLocksNeedDirectIO(t *testing.T) {
	dir := t.TempDir()
	initialise(t, dir)
	d := open(t, dir, datastore.Options{Direct: datastore.DirectNever})
	index, err := d.ClaimSlot("host1", "m1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteSlot(index, nil, slot("host1", 1)); err != nil || !d.Buffered() {
		t.Errorf("buffered %v, %v", d.Buffered(), err)
	}
	for name, err := range map[string]error{
		"create": d.CreateLock(raceLock, lockRecord(0, "host1", model.LockHeld)),
		"link":   d.Link(lockRecord(2, "host1", model.LockHeld)),
		"read":   func() error { _, err := d.Highest(raceLock); return err }(),
		"check":  func() error { _, err := d.Check(); return err }(),
	} {
		if datastore.KindOf(err) != datastore.KindUnsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenTouchesNoStorageAndRefusesNonsense(t *testing.T) {
	open(t, "/nonexistent/at/all", datastore.Options{})
	for name, try := range map[string]func() error{
		"relative path": func() error { _, err := datastore.Open("srv/ds1", cluster, datastore.Options{}); return err },
		"cluster id":    func() error { _, err := datastore.Open("/srv/ds1", "../x", datastore.Options{}); return err },
		"uuid": func() error {
			_, err := datastore.Open("/srv/ds1", cluster, datastore.Options{Expect: "x"})
			return err
		},
	} {
		if err := try(); datastore.KindOf(err) != datastore.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
