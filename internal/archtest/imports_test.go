package archtest

import (
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "hanok.dev/hanok/"

// root is the module's directory.
func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal("go list -m:", err)
	}
	return strings.TrimSpace(string(out))
}

// deps are all packages that end up in a program.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", pkg)
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v", pkg, err)
	}
	return strings.Fields(string(out))
}

// inGuard reports why a package may not be part of hanok-guard, or "".
func inGuard(pkg string) string {
	switch {
	case pkg == "net/netip":
		return "" // values only: the addresses of the cluster file
	case pkg == "net" || strings.HasPrefix(pkg, "net/"):
		return "the guard has no network"
	case pkg == "crypto/tls" || pkg == "crypto/x509":
		return "the guard has no network"
	case strings.HasPrefix(pkg, "go.etcd.io/"):
		return "the guard does not need the server's store"
	case strings.Contains(pkg, "libvirt"):
		return "the guard never goes through libvirt"
	case pkg == "os/exec":
		return "the guard starts no programs"
	}
	return ""
}

func TestGuardStaysSmall(t *testing.T) {
	all := deps(t, "./cmd/hanok-guard")
	if len(all) < 20 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	for _, pkg := range all {
		if why := inGuard(pkg); why != "" {
			t.Errorf("hanok-guard contains %s: %s", pkg, why)
		}
	}
}

// cores decide, or are the words for it, and do nothing else. Packages below
// them are not cores.
var cores = []string{"model", "lease", "fdm", "placement", "rules", "admission", "bitset", "event"}

// forbidden in a core: all that does I/O, reads a clock or starts goroutines.
var forbidden = map[string]bool{
	"os": true, "net": true, "io/fs": true, "syscall": true, "log": true, "log/slog": true, "context": true, "sync": true,
	"sync/atomic": true, "math/rand": true, "math/rand/v2": true, "crypto/rand": true, "os/exec": true, "os/signal": true,
	"path/filepath": true, "runtime": true, "unsafe": true,
}

// forbiddenCalls are functions of permitted packages that a core may not use.
var forbiddenCalls = []string{"time.Now(", "time.Sleep(", "time.After(", "time.AfterFunc(", "time.NewTimer(", "time.NewTicker(", "time.Tick(",
	"time.Since(", "time.Until(", "fmt.Print(", "fmt.Printf(", "fmt.Println(", "\tgo func", "\tselect {"}

func TestCoresArePure(t *testing.T) {
	dir := root(t)
	for _, core := range cores {
		paths, err := filepath.Glob(filepath.Join(dir, "internal", core, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		files := 0
		for _, path := range paths {
			if !strings.HasSuffix(path, "_test.go") {
				files++
				checkPure(t, path)
			}
		}
		if files == 0 {
			t.Errorf("internal/%s has no files: remove it from the list", core)
		}
	}
}

func checkPure(t *testing.T, path string) {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range f.Imports {
		pkg, _ := strconv.Unquote(imp.Path.Value)
		rest, own := strings.CutPrefix(pkg, module+"internal/")
		switch {
		case forbidden[pkg] || strings.HasPrefix(pkg, "net/") && pkg != "net/netip":
			t.Errorf("%s imports %s: a core does no I/O", path, pkg)
		case own && !slices.Contains(cores, rest):
			t.Errorf("%s imports %s: a core imports only cores", path, pkg)
		case !own && strings.Contains(pkg, "."):
			t.Errorf("%s imports %s: a core imports the standard library and cores only", path, pkg)
		}
	}
	for _, call := range forbiddenCalls {
		if strings.Contains(string(src), call) {
			t.Errorf("%s has %q: time and work come in from outside", path, strings.TrimSpace(call))
		}
	}
}
