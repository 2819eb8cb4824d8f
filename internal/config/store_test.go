package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func version(t *testing.T, n uint64, change string) *Cluster {
	t.Helper()
	c := mustParse(t, full).Clone()
	c.Version = n
	c.Name, c.ID = "seoul-1"+change, "seoul-1"
	return c
}

func TestStoreKeepsTheHighest(t *testing.T) {
	s := Store{Path: filepath.Join(t.TempDir(), "etc", "cluster.yaml")}
	if _, err := s.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("empty store: %v", err)
	}
	for _, v := range []uint64{3, 7, 7} {
		if err := s.Save(version(t, v, "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Save(version(t, 6, "")); !errors.Is(err, ErrOlder) {
		t.Errorf("older: %v", err)
	}
	if err := s.Save(version(t, 7, "x")); !errors.Is(err, ErrConflict) {
		t.Errorf("same version, other content: %v", err)
	}
	l, err := s.Load()
	if err != nil || l.Cluster.Version != 7 || len(l.Notices) != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	entries, err := os.ReadDir(filepath.Dir(s.Path))
	if err != nil || len(entries) != 2 {
		t.Errorf("want the file and its copy, have %v, %v", entries, err)
	}
	for _, e := range entries {
		if i, err := e.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), i.Mode())
		}
	}
}

func TestStoreReplacesTheSameVersion(t *testing.T) {
	s := Store{Path: filepath.Join(t.TempDir(), "cluster.yaml")}
	if err := s.Save(version(t, 7, "")); err != nil {
		t.Fatal(err)
	}
	other := version(t, 7, "x")
	if err := s.Replace(other); err != nil {
		t.Fatal(err)
	}
	l, err := s.Load()
	if err != nil || l.Cluster.Digest() != other.Digest() || len(l.Notices) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := s.Replace(version(t, 6, "")); !errors.Is(err, ErrOlder) {
		t.Errorf("older: %v", err)
	}
}

func TestStoreSurvivesDamage(t *testing.T) {
	older, _ := version(t, 5, "").Marshal()
	edited, _ := version(t, 7, "x").Marshal()
	newer, _ := version(t, 8, "").Marshal()
	good, _ := version(t, 7, "").Marshal()
	for _, tt := range []struct {
		name, file string
		content    []byte // nil: removed
		want       uint64
		notice     string
	}{
		{"truncated", "", good[:len(good)/2], 7, "started from the copy"},
		{"empty", "", []byte{}, 7, "the file is empty; started from the copy"},
		{"garbage", "", []byte("\x00\xff\x00"), 7, "started from the copy"},
		{"removed", "", nil, 7, "no such file"},
		{"older", "", older, 7, "has version 5, but this host has seen version 7"},
		{"edited", "", edited, 7, "without raising its version"},
		{"newer", "", newer, 8, ""},
		{"copy damaged", backupSuffix, []byte("x"), 7, "the copy"},
		{"copy removed", backupSuffix, nil, 7, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Store{Path: filepath.Join(t.TempDir(), "cluster.yaml")}
			if err := s.Save(version(t, 7, "")); err != nil {
				t.Fatal(err)
			}
			damage(t, s.Path+tt.file, tt.content)
			l, err := s.Load()
			if err != nil {
				t.Fatal(err)
			}
			if l.Cluster.Version != tt.want || l.Cluster.Name != "seoul-1" {
				t.Errorf("loaded version %d of %s, want %d", l.Cluster.Version, l.Cluster.Name, tt.want)
			}
			if all := strings.Join(l.Notices, "\n"); (tt.notice == "") != (all == "") || !strings.Contains(all, tt.notice) {
				t.Errorf("notices %q, want %q", all, tt.notice)
			}
			// Saving what was loaded repairs both files.
			if err := s.Save(l.Cluster); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{s.Path, s.Path + backupSuffix} {
				if c, err := ReadFile(p); err != nil || c.Version != tt.want || c.Name != "seoul-1" {
					t.Errorf("%s after repair: %v", p, err)
				}
			}
		})
	}
	t.Run("both", func(t *testing.T) {
		s := Store{Path: filepath.Join(t.TempDir(), "cluster.yaml")}
		damage(t, s.Path, []byte("a: ["))
		damage(t, s.Path+backupSuffix, []byte{})
		if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), s.Path) {
			t.Errorf("got %v", err)
		}
		// A good version may replace files that nobody can read.
		if err := s.Save(version(t, 2, "")); err != nil {
			t.Error(err)
		}
	})
	t.Run("invalid cluster is not saved", func(t *testing.T) {
		s := Store{Path: filepath.Join(t.TempDir(), "cluster.yaml")}
		c := version(t, 1, "")
		c.VMs[0].Datastore = "nowhere"
		if err := s.Save(c); AsProblems(err) == nil {
			t.Errorf("got %v", err)
		}
	})
}

func damage(t *testing.T, path string, content []byte) {
	t.Helper()
	var err error
	if content == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, content, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is read either fails, or survives being written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("version: 1\nname: c\n"))
	f.Add([]byte("version: 1\nname: c\nhosts: [{name: a, cpu: {cores: 1}}]\nvms: [&a {name: v, datastore: d}, *a]"))
	f.Add([]byte("version: 1\nname: c\nha: {timing: {interval: 1s, lease: 9s, margin: 2s, watchdog: 3s}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			if AsProblems(err) == nil || len(AsProblems(err).List) == 0 {
				t.Fatalf("error without problems: %v", err)
			}
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("written file is refused: %v\n%s", err, out)
		}
		if again.Digest() != c.Digest() || len(Diff(c, again)) != 0 {
			t.Fatalf("changed by writing:\n%s", out)
		}
	})
}
