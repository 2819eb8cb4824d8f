package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// The committed files are what the API's definition makes.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	root, out := filepath.Join("..", ".."), t.TempDir()
	if err := run(root, out); err != nil {
		t.Fatal(err)
	}
	want, got := read(t, out), read(t, filepath.Join(root, "api", "gen"))
	for name, content := range want {
		if got[name] != content {
			t.Errorf("api/gen/%s is not current: make generate", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("api/gen/%s is not generated any more: make generate", name)
		}
	}
	if len(want) < 8 {
		t.Errorf("only %d files were generated", len(want))
	}
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "testdata" {
			return fs.SkipDir // recorded formats, which another test holds the code against
		}
		if err != nil || d.IsDir() || filepath.Dir(path) == dir { // doc files beside are hand-made
			return err
		}
		b, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
