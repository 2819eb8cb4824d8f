package cli_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hanok.dev/hanok/internal/cli"
	"hanok.dev/hanok/internal/i18n"
)

// Help is Korean under a Korean locale, all of it.
func TestHelpIsInTheCatalogue(t *testing.T) {
	t.Setenv("LC_ALL", "C")
	check := func(command, text string) {
		if prose(text) && i18n.Korean.Text(text) == text {
			t.Errorf("%s: no Korean for %q: add it to internal/i18n/ko/help.yaml", command, text)
		}
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		check(c.CommandPath(), c.Short)
		check(c.CommandPath(), c.Long)
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				check(c.CommandPath()+" --"+f.Name, f.Usage)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(cli.New())
}

// What the agents' core tells people is in the catalogue, and so is what the
// commands say about themselves.
func TestMessagesAreInTheCatalogue(t *testing.T) {
	for _, c := range []struct {
		dir  string
		file string
		said func(calls []string) bool
	}{
		{"../fdm", "events.yaml", func([]string) bool { return true }},
		{".", "commands.yaml", spoken},
		{"pkicmd", "commands.yaml", spoken},
		{"datastorecmd", "commands.yaml", spoken},
	} {
		for _, m := range messages(t, c.dir) {
			if c.said(m.calls) && i18n.Korean.Text(m.text) == m.text && !strings.HasPrefix(m.text, "--") {
				t.Errorf("%s: no Korean for %q: add it to internal/i18n/ko/%s", m.at, m.text, c.file)
			}
		}
	}
}

// speakers are the functions whose texts people read; the nearest call decides.
var speakers = map[string]bool{"Fprintf": true, "Fprintln": true, "Fail": true, "usage": true, "Errorf": true, "New": true, "tr": true, "say": true}

func spoken(calls []string) bool { return len(calls) > 0 && speakers[calls[0]] }

type message struct {
	at    string
	text  string
	calls []string // the calls that it is an argument of, the nearest first
}

// messages are the literals of a package that read like prose.
func messages(t *testing.T, dir string) []message {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources in %s: %v", dir, err)
	}
	var out []message
	set := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		var path []ast.Node
		ast.Inspect(f, func(n ast.Node) bool {
			if n == nil {
				path = path[:len(path)-1]
				return true
			}
			path = append(path, n)
			text, ok := format(n)
			if !ok {
				return true
			}
			if text = strings.Trim(text, "\n"); prose(text) {
				out = append(out, message{at: set.Position(n.Pos()).String(), text: text, calls: calls(path)})
			}
			path = path[:len(path)-1] // what is below is part of it
			return false
		})
	}
	return out
}

// format is the text of a literal, or of literals and values added up, with %s for
// each value.
func format(n ast.Node) (string, bool) {
	switch x := n.(type) {
	case *ast.BasicLit:
		if x.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(x.Value)
		return s, err == nil
	case *ast.BinaryExpr:
		if x.Op != token.ADD {
			return "", false
		}
		a, left := format(x.X)
		b, right := format(x.Y)
		if !left {
			a = "%s"
		}
		if !right {
			b = "%s"
		}
		return a + b, left || right
	}
	return "", false
}

// prose tells a text from a format, a layout of a time, a table or a command.
func prose(s string) bool {
	s = strings.TrimPrefix(s, "%s")
	words := 0
	for _, w := range strings.Fields(s) {
		letters := 0
		for _, r := range w {
			if unicode.IsLower(r) {
				letters++
			}
		}
		if letters > 1 && !strings.ContainsAny(w, "%\t") {
			words++
		}
	}
	return words > 1 && strings.Contains(s, " ") && !strings.HasPrefix(s, "hanok ") && !strings.HasPrefix(s, "systemctl ")
}

func calls(path []ast.Node) []string {
	var out []string
	for i := len(path) - 1; i >= 0; i-- {
		call, ok := path[i].(*ast.CallExpr)
		if !ok {
			continue
		}
		switch f := call.Fun.(type) {
		case *ast.Ident:
			out = append(out, f.Name)
		case *ast.SelectorExpr:
			out = append(out, f.Sel.Name)
		}
	}
	return out
}
