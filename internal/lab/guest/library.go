package guest

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"sort"
)

var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// libraries returns the loader and all shared libraries that a program needs,
// as absolute paths, sorted.
func libraries(program string) ([]string, error) {
	found := map[string]bool{}
	if err := addLibraries(program, found); err != nil {
		return nil, err
	}
	var out []string
	for p := range found {
		out = append(out, p)
	}
	sort.Strings(out)
	return out, nil
}

func addLibraries(object string, found map[string]bool) error {
	f, err := elf.Open(object)
	if err != nil {
		return fmt.Errorf("read %s: %w", object, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			data := make([]byte, p.Filesz)
			if _, err := p.ReadAt(data, 0); err != nil {
				return fmt.Errorf("loader of %s: %w", object, err)
			}
			found[string(data[:len(data)-1])] = true
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", object, err)
	}
	for _, name := range needed {
		path, err := findLibrary(name)
		if err != nil {
			return fmt.Errorf("%s: %w", object, err)
		}
		if !found[path] {
			found[path] = true
			if err := addLibraries(path, found); err != nil {
				return err
			}
		}
	}
	return nil
}

func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s is not installed", name)
}
