// Package mutant is a table of deliberate bugs: one small change of the protocol's
// code each, that takes a rule of docs/protocol.md away. Random disasters must find
// every one (`make sim-mutants`, docs/mutants.md). Production code knows nothing of
// them: a mutant is compiled through go build's overlay, from a changed copy of one
// file.
package mutant

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Mutant is one bug.
type Mutant struct {
	Name string
	// Rule is what the bug takes away, for people.
	Rule string
	// File is the changed file, from the root of the repository.
	File string
	// Old is the text that New replaces; it must be there exactly once.
	Old, New string
}

// Apply returns the file's content with the bug in it.
func (m Mutant) Apply(src string) (string, error) {
	if n := strings.Count(src, m.Old); n != 1 {
		return "", fmt.Errorf("mutant %s: its text is %d times in %s, not once; adapt it to the code", m.Name, n, m.File)
	}
	return strings.Replace(src, m.Old, m.New, 1), nil
}

// Overlay writes the changed file and an overlay for `go build -overlay` into
// dir, and returns the overlay's path. root is the repository's.
func (m Mutant) Overlay(root, dir string) (string, error) {
	src, err := os.ReadFile(filepath.Join(root, m.File))
	if err != nil {
		return "", err
	}
	text, err := m.Apply(string(src))
	if err != nil {
		return "", err
	}
	changed := filepath.Join(dir, "mutant.go")
	if err := os.WriteFile(changed, []byte(text), 0o644); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.File): changed}})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, overlay, 0o644)
}
