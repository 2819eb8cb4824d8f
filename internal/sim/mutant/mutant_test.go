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
	"strings"
	"testing"
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
	seen := map[string]bool{}
	for _, m := range All {
		src, err := os.ReadFile(filepath.Join(root, m.File))
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Apply(string(src))
		switch {
		case err != nil:
			t.Error(err)
			continue
		case got == string(src):
			t.Errorf("mutant %s changes nothing", m.Name)
		case seen[m.Name]:
			t.Errorf("mutant %s is there twice", m.Name)
		case !bytes.Contains(docs, []byte("| "+m.Name+" |")):
			t.Errorf("docs/mutants.md does not list mutant %s", m.Name)
		}
		seen[m.Name] = true
		if err := check.compiles(m, got); err != nil {
			t.Errorf("mutant %s does not compile: %v", m.Name, err)
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d mutants are fewer than 20", len(seen))
	}
	if err := check.compiles(All[0], "package lease\nvar x int = \"text\"\n"); err == nil {
		t.Error("what does not compile passes")
	}
}

// checker type-checks a package with one file replaced, against what the go
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

func (c *checker) compiles(m Mutant, text string) error {
	dir := filepath.Dir(m.File)
	names, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		return err
	}
	var files []*ast.File
	for _, n := range names {
		var src any
		switch {
		case strings.HasSuffix(n, "_test.go"):
			continue
		case filepath.Base(n) == filepath.Base(m.File):
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
