package sim

import (
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/scenario"
)

// TestFound plays what random disasters found, shortened: each broke an
// invariant, or left VMs down, before the code was mended. The file `seed` names
// the seed by which the moments meet; 1 without it.
func TestFound(t *testing.T) {
	list, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(list) == 0 {
		t.Fatalf("nothing was found: %v", err)
	}
	for _, file := range list {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			sc, err := scenario.Load(file)
			if err != nil {
				t.Fatal(err)
			}
			seed := uint64(1)
			if text, ok := sc.Files["seed"]; ok {
				if seed, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
					t.Fatal(err)
				}
			}
			r, err := Play(sc, Options{Seed: seed})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range r.Expectations {
				if !e.OK {
					t.Errorf("line %d: %s", e.Line, e.Detail)
				}
			}
			for _, v := range r.Violations {
				t.Errorf("at %.1fs: %s: %s", v.At, v.Invariant, v.Detail)
			}
		})
	}
}
