package datastore_test

import (
	"os"
	"path/filepath"
	"testing"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/datastore/datastoretest"
	"hanok.dev/hanok/internal/lab/fusefs"
)

const cluster = "c1"

func TestMain(m *testing.M) {
	if os.Getenv(racerEnv) != "" {
		raceMain()
		return
	}
	os.Exit(m.Run())
}

func initialise(t testing.TB, dir string) datastore.Header {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("datastores belong to root: run the tests of internal/datastore as root")
	}
	h, err := datastore.Initialise(dir, cluster, datastore.InitOptions{Slots: datastoretest.Slots})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t testing.TB, dir string, opts datastore.Options) *datastore.Posix {
	t.Helper()
	p, err := datastore.Open(dir, cluster, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mount returns a path to backing through FUSE.
func mount(t testing.TB, backing string) (string, *fusefs.FS) {
	t.Helper()
	dir := t.TempDir()
	m, err := fusefs.Mount(backing, dir, fusefs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir, m
}

func TestPosixOnPlainDirectory(t *testing.T) {
	datastoretest.Run(t, func(t *testing.T) *datastoretest.World {
		dir := t.TempDir()
		initialise(t, dir)
		return &datastoretest.World{
			Open: func() datastore.Driver { return open(t, dir, datastore.Options{}) },
			Dir:  filepath.Join(dir, datastore.DirName, cluster),
		}
	})
}

func TestPosixThroughPageCache(t *testing.T) {
	datastoretest.Run(t, func(t *testing.T) *datastoretest.World {
		dir := t.TempDir()
		initialise(t, dir)
		return &datastoretest.World{
			Open: func() datastore.Driver {
				return open(t, dir, datastore.Options{Direct: datastore.DirectNever, AllowBuffered: true})
			},
			Dir: filepath.Join(dir, datastore.DirName, cluster),
		}
	})
}

func TestPosixThroughFUSE(t *testing.T) {
	datastoretest.Run(t, func(t *testing.T) *datastoretest.World {
		backing := t.TempDir()
		initialise(t, backing)
		dirs := make([]string, 3)
		mounts := make([]*fusefs.FS, len(dirs))
		for i := range dirs {
			dirs[i], mounts[i] = mount(t, backing)
		}
		next := make(chan int, 1)
		next <- 0
		return &datastoretest.World{
			// Hosts take the mounts in turn.
			Open: func() datastore.Driver {
				n := <-next
				next <- n + 1
				return open(t, dirs[n%len(dirs)], datastore.Options{})
			},
			Dir: filepath.Join(backing, datastore.DirName, cluster),
			Fault: func(f datastoretest.Fault) {
				fault, err := fusefs.ParseFault(string(f))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range mounts {
					m.SetFault(fault)
				}
			},
		}
	})
}
