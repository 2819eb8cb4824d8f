package guest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestArchiveIsReadByCpio(t *testing.T) {
	var out bytes.Buffer
	a := newArchive(&out)
	a.file("/init", 0o755, []byte("#!/bin/sh\n"))
	a.file("a/b/c", 0o644, []byte("abc"))
	a.symlink("a/link", "b/c")
	a.dir("a/b")
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-idm", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(out.Bytes())
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, msg)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a/link")); err != nil || string(got) != "abc" {
		t.Errorf("a/link: %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "init")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("init: %v, %v", info, err)
	}
	if n := bytes.Count(out.Bytes(), []byte("a/b\x00")); n != 1 {
		t.Errorf("directory a/b is in the archive %d times", n)
	}
}

func TestBuildIsNamedByContentAndKept(t *testing.T) {
	cache := t.TempDir()
	beside := t.TempDir()
	program := filepath.Join(beside, Command)
	build := func(content string) string {
		t.Helper()
		if err := os.WriteFile(program, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := Build(cache, beside)
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first, again, other := build("one"), build("one"), build("two")
	if first != again || first == other {
		t.Errorf("images %s, %s, %s: want the same, then another", first, again, other)
	}
	for _, name := range []string{KernelFile, InitrdFile} {
		if _, err := os.Stat(filepath.Join(first, name)); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(cache, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %s %v", strings.Join(left, " "), err)
	}
}
