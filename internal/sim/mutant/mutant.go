// Package mutant is a table of deliberate bugs: one small change of the protocol's
// code each, that takes a rule of docs/protocol.md away. Random disasters must find
// every one (`make sim-mutants`, docs/mutants.md). Production code knows nothing of
// them: the simulator is compiled once through go build's overlay, with every bug in
// and none of them on; [Env] names the one that is.
package mutant

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hanok.dev/hanok/internal/sim/fuzz"
)

// Mutant is one bug.
type Mutant struct {
	Name string
	// Rule is what the bug takes away, for people.
	Rule string
	// File is the changed file, from the root of the repository.
	File string
	// Old is the text that New replaces; it must be there exactly once, inside a
	// function.
	Old, New string
	// Also are further changes, for a rule that is kept in several places.
	Also []Change
	// Disasters are the ones in which it is to be found, as `hanok sim fuzz
	// --disasters` names them; empty: all kinds.
	Disasters string
	// Seed is the first of these disasters, from 1 on, that found it when the table
	// was last measured.
	Seed uint64
	// Covered says of one that cannot be found which other rules prevent what it
	// would do; such a mutant is no proof of anything and is not counted.
	Covered string
}

// Change is a text of a file that another replaces.
type Change struct{ File, Old, New string }

// Seeds is in how many seeds, from 1 on, every mutant must be found.
const Seeds = 2000

// Clusters are the clusters in which mutants live, those of `hanok sim fuzz --hosts 3
// --vms 6 --duration 6m`, with the disasters of the mutant.
var Clusters = fuzz.Config{Hosts: 3, VMs: 6, Duration: 6 * time.Minute}

// Apply returns the changed files' contents, by their names from root, the
// repository's.
func (m Mutant) Apply(root string) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range append([]Change{{m.File, m.Old, m.New}}, m.Also...) {
		src, changed := out[c.File]
		if !changed {
			data, err := os.ReadFile(filepath.Join(root, c.File))
			if err != nil {
				return nil, err
			}
			src = string(data)
		}
		if n := strings.Count(src, c.Old); n != 1 || c.Old == c.New {
			return nil, fmt.Errorf("mutant %s: its text is %d times in %s, not once, or stays as it is; adapt it to the code", m.Name, n, c.File)
		}
		out[c.File] = strings.Replace(src, c.Old, c.New, 1)
	}
	return out, nil
}

// Overlay writes files with all mutants in them and an overlay for `go build
// -overlay` into dir, and returns the overlay's path. root is the repository's.
func Overlay(root, dir string, all []Mutant) (string, error) {
	files, err := switched(root, all)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, text := range files {
		changed := filepath.Join(dir, strings.ReplaceAll(name, "/", "-"))
		if err := os.WriteFile(changed, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, name)] = changed
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, overlay, 0o644)
}
