package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// backupSuffix names the copy of the newest version that was accepted. It holds
// the same version as the file itself after every Save, so that a file that was
// damaged, cut short or set back to an older version is noticed and replaced.
const backupSuffix = ".previous"

// ErrOlder is returned for a cluster whose version is lower than one that this
// host has seen.
var ErrOlder = errors.New("version is older than the one this host has")

// ErrConflict is returned for a cluster that has the version but not the
// content of the one that this host has.
var ErrConflict = errors.New("same version, other content")

// Store keeps the highest version of the cluster file on disk. Its methods may
// be called by several processes: files are replaced whole, by rename. Two
// concurrent Saves in different processes are not ordered against each other;
// only the agent saves.
type Store struct {
	// Path is the cluster file, paths.ClusterFile on a real host.
	Path string
}

// Loaded is what Store.Load found.
type Loaded struct {
	// Cluster is the highest valid version on disk.
	Cluster *Cluster
	// Notices are sentences for the administrator about what is wrong with the
	// files; empty when all is well.
	Notices []string
	// complete: the file and its copy are both valid and equal.
	complete bool
}

// Load returns the highest valid version on disk. When the cluster file is
// damaged, missing or older than a version that was accepted before, the copy
// of that version is used and a notice says so. The error wraps
// [fs.ErrNotExist] when there is neither.
func (s Store) Load() (Loaded, error) {
	main, mainErr := ReadFile(s.Path)
	backup, backupErr := ReadFile(s.Path + backupSuffix)
	var out Loaded
	note := func(format string, args ...any) { out.Notices = append(out.Notices, fmt.Sprintf(format, args...)) }
	if backupErr != nil && !errors.Is(backupErr, fs.ErrNotExist) && mainErr == nil {
		note("the copy %s is unusable: %v; it is written again with the next change", s.Path+backupSuffix, backupErr)
	}
	switch {
	case mainErr != nil && backupErr != nil:
		if errors.Is(mainErr, fs.ErrNotExist) && !errors.Is(backupErr, fs.ErrNotExist) {
			mainErr = backupErr
		}
		return Loaded{}, mainErr
	case mainErr != nil:
		out.Cluster = backup
		note("%v; started from the copy %s, version %d", mainErr, s.Path+backupSuffix, backup.Version)
	case backupErr != nil || main.Version > backup.Version:
		out.Cluster = main
	case main.Version < backup.Version:
		out.Cluster = backup
		note("%s has version %d, but this host has seen version %d; started from the copy %s (to go back, apply the old content under a higher version)",
			s.Path, main.Version, backup.Version, s.Path+backupSuffix)
	case main.Digest() != backup.Digest():
		out.Cluster = backup
		note("%s was changed without raising its version %d; started from the copy %s (use `hanok cluster apply`)",
			s.Path, main.Version, s.Path+backupSuffix)
	default:
		out.Cluster, out.complete = main, true
	}
	return out, nil
}

// Save keeps c if it is newer than what is on disk, and repairs damaged files
// if it equals it. It refuses with ErrOlder or ErrConflict otherwise. After a
// nil error the cluster survives a power failure.
func (s Store) Save(c *Cluster) error { return s.keep(c, false) }

// Replace is Save, but also replaces another cluster of the same version.
func (s Store) Replace(c *Cluster) error { return s.keep(c, true) }

func (s Store) keep(c *Cluster, over bool) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("save %s: %w", s.Path, err)
	}
	have, err := s.Load()
	if err == nil {
		switch {
		case c.Version < have.Cluster.Version:
			return fmt.Errorf("save version %d to %s: %w, %d; raise version above it", c.Version, s.Path, ErrOlder, have.Cluster.Version)
		case c.Version == have.Cluster.Version && c.Digest() != have.Cluster.Digest() && !over:
			return fmt.Errorf("save version %d to %s: %w; raise version to %d", c.Version, s.Path, ErrConflict, c.Version+1)
		case c.Version == have.Cluster.Version && have.complete && s.private() && c.Digest() == have.Cluster.Digest():
			return nil
		}
	}
	data, err := c.Marshal()
	if err != nil {
		return err
	}
	// The file first: a crash in between leaves the newer version there, which
	// Load prefers to an older copy.
	if err := writeFile(s.Path, data); err != nil {
		return err
	}
	return writeFile(s.Path+backupSuffix, data)
}

// private reports whether both files exist with mode 0600.
func (s Store) private() bool {
	for _, p := range []string{s.Path, s.Path + backupSuffix} {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm() != 0o600 {
			return false
		}
	}
	return true
}

// ReadFile reads and checks one cluster file, without looking at any copy.
func ReadFile(path string) (*Cluster, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cluster file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("cluster file: %w", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("cluster file %s: %w", path, err)
	}
	return c, nil
}

// writeFile replaces path so that after a crash it holds the old or the new
// content, never less. Mode 0600, its directory is created with 0755.
func writeFile(path string, data []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// What a crash left behind. Removing the file of a concurrent writer makes
	// that one fail, with nothing damaged.
	if old, err := filepath.Glob(path + ".tmp*"); err == nil {
		for _, o := range old {
			os.Remove(o)
		}
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
