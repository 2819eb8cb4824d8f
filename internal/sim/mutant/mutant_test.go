package mutant

import (
	"bytes"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/sim/fuzz"
)

const root = "../../.."

// TestApply: every mutant still fits the code, changes it, compiles, and is
// documented.
func TestApply(t *testing.T) {
	docs, err := os.ReadFile(filepath.Join(root, "docs/mutants.md"))
	if err != nil {
		t.Fatal(err)
	}
	check := newChecker(t)
	seen, found := map[string]bool{}, 0
	for _, m := range All {
		got, err := m.Apply(root)
		disasters := m.Disasters
		if disasters == "" {
			disasters = "all"
		}
		seed := ""
		if m.Covered == "" {
			seed = strconv.FormatUint(m.Seed, 10) + " |"
			found++
		}
		switch {
		case err != nil:
			t.Error(err)
			continue
		case seen[m.Name]:
			t.Errorf("mutant %s is there twice", m.Name)
		case m.Disasters != "" && !slices.Contains(fuzz.Themes(), m.Disasters):
			t.Errorf("mutant %s: there are no disasters %q", m.Name, m.Disasters)
		case !bytes.Contains(docs, []byte("| "+m.Name+" | "+m.Rule+" | "+disasters+" | "+seed)):
			t.Errorf("docs/mutants.md does not list mutant %s with its rule, its disasters (%s) and its seed (%s)", m.Name, disasters, seed)
		case m.Covered == "" && (m.Seed == 0 || m.Seed > Seeds) || m.Covered != "" && m.Seed != 0:
			t.Errorf("mutant %s: seed %d must be 1 to %d, or it is covered and has none", m.Name, m.Seed, Seeds)
		}
		seen[m.Name] = true
		if err := check.compiles(got); err != nil {
			t.Errorf("mutant %s does not compile: %v", m.Name, err)
		}
	}
	if found < 20 {
		t.Errorf("%d mutants that are found are fewer than 20", found)
	}
	if err := check.compiles(map[string]string{All[0].File: "package lease\nvar x int = \"text\"\n"}); err == nil {
		t.Error("what does not compile passes")
	}
}

// checker type-checks packages with some of their files replaced, against what the go
// command has compiled of its imports.
type checker struct {
	set      *token.FileSet
	importer types.Importer
}

func newChecker(t *testing.T) *checker {
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", "./internal/lease", "./internal/fdm", "./internal/model")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	files := map[string]string{}
	for _, line := range strings.Split(string(out), "\n") {
		if path, file, ok := strings.Cut(line, " "); ok {
			files[path] = file
		}
	}
	set := token.NewFileSet()
	return &checker{set, importer.ForCompiler(set, "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) })}
}

// compiles checks each package of the changed files by itself.
func (c *checker) compiles(changed map[string]string) error {
	dirs := map[string]bool{}
	for name := range changed {
		dirs[filepath.Dir(name)] = true
	}
	for dir := range dirs {
		if err := c.pack(dir, changed); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) pack(dir string, changed map[string]string) error {
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		return err
	}
	var files []*ast.File
	for _, n := range names {
		var src any
		if strings.HasSuffix(n, "_test.go") {
			continue
		}
		if text, ok := changed[filepath.Join(dir, filepath.Base(n))]; ok {
			src = text
		}
		f, err := parser.ParseFile(c.set, n, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	_, err = (&types.Config{Importer: c.importer}).Check("hanok.dev/hanok/"+dir, c.set, files, nil)
	return err
}
