package datastore

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A record whose temporary file was pruned, because its epoch was taken, has
// lost like any other.
func TestPrunedTemporaryFileMeansTaken(t *testing.T) {
	dir := t.TempDir()
	put := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(epochName(4))
	put(epochName(5))
	lost, waiting := tempPrefix+epochName(5)+".host1.00", tempPrefix+epochName(6)+".host1.00"
	put(lost)
	put(waiting)
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := pruneRecords(fd); err != nil {
		t.Fatal(err)
	}
	temps, err := listNames(fd, true)
	if err != nil || len(temps) != 1 || temps[0] != waiting {
		t.Errorf("temporary files left: %q, %v", temps, err)
	}
	if err := linkTemp(fd, lost, epochName(5)); err != unix.EEXIST {
		t.Errorf("link of the pruned file: %v", err)
	}
	if err := linkTemp(fd, waiting, epochName(6)); err != nil {
		t.Errorf("link of the file that was left: %v", err)
	}
}
