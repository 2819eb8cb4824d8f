package mutant

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
)

// Env is the environment variable that names the mutant which is on in a program
// that was compiled with [Overlay]; without it none is.
const Env = "HANOK_MUTANT"

// switchFile is added to each package that mutants change.
const switchFile = `package %s

import "os"

var mutantOn = os.Getenv(%q)
`

// switched returns the contents of all files that mutants change, and a new one for
// each package. Each function that a mutant changes is there twice: as it is, and
// changed under another name, which it calls instead while the mutant is on.
func switched(root string, all []Mutant) (map[string]string, error) {
	calls := map[string]map[string]string{} // file, function: what is inserted at its beginning
	copies := map[string]string{}           // file: what is added at its end
	origs := map[string]*source{}
	out := map[string]string{}
	for _, m := range all {
		files, err := m.Apply(root)
		if err != nil {
			return nil, err
		}
		for name, text := range files {
			if origs[name] == nil {
				if origs[name], err = parse(filepath.Join(root, name), nil); err != nil {
					return nil, err
				}
				calls[name] = map[string]string{}
			}
			changed, err := parse(name, text)
			if err != nil {
				return nil, fmt.Errorf("mutant %s: %w", m.Name, err)
			}
			n := 0
			for key, f := range changed.funcs {
				if o := origs[name].funcs[key]; o != nil && origs[name].of(o) == changed.of(f) {
					continue
				}
				call, err := switchTo(f, m.Name)
				if err != nil {
					return nil, fmt.Errorf("mutant %s: %s: %w", m.Name, key, err)
				}
				at := changed.set.Position(f.Name.End()).Offset - changed.set.Position(f.Type.Pos()).Offset
				body := changed.of(f)
				copies[name] += "\n" + body[:at] + suffix(m.Name) + body[at:] + "\n"
				calls[name][key] += call
				n++
			}
			if n == 0 {
				return nil, fmt.Errorf("mutant %s: it changes no function of %s", m.Name, name)
			}
		}
	}
	for name, o := range origs {
		out[name] = o.insert(calls[name]) + copies[name]
		out[filepath.Join(filepath.Dir(name), "mutant_on.go")] = fmt.Sprintf(switchFile, o.file.Name.Name, Env)
	}
	return out, nil
}

func suffix(name string) string { return "_" + strings.ReplaceAll(name, "-", "_") }

// switchTo is the statement that calls the changed copy of a function.
func switchTo(f *ast.FuncDecl, mutant string) (string, error) {
	call := f.Name.Name + suffix(mutant) + "("
	if f.Recv != nil {
		if len(f.Recv.List[0].Names) == 0 {
			return "", fmt.Errorf("its receiver has no name")
		}
		call = f.Recv.List[0].Names[0].Name + "." + call
	}
	var args []string
	for _, p := range f.Type.Params.List {
		dots := ""
		if _, ok := p.Type.(*ast.Ellipsis); ok {
			dots = "..."
		}
		for _, n := range p.Names {
			args = append(args, n.Name+dots)
		}
		if len(p.Names) == 0 || p.Names[0].Name == "_" {
			return "", fmt.Errorf("a parameter has no name")
		}
	}
	call += strings.Join(args, ", ") + ")"
	if f.Type.Results == nil {
		return fmt.Sprintf(" if mutantOn == %q { %s; return };", mutant, call), nil
	}
	return fmt.Sprintf(" if mutantOn == %q { return %s };", mutant, call), nil
}

// source is a parsed file.
type source struct {
	set   *token.FileSet
	text  string
	file  *ast.File
	funcs map[string]*ast.FuncDecl // by receiver and name
}

// parse reads a file, or takes text as its contents.
func parse(name string, text any) (*source, error) {
	s := &source{set: token.NewFileSet(), funcs: map[string]*ast.FuncDecl{}}
	if text == nil {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		text = string(data)
	}
	s.text = text.(string)
	var err error
	if s.file, err = parser.ParseFile(s.set, name, s.text, parser.SkipObjectResolution); err != nil {
		return nil, err
	}
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			key := f.Name.Name
			if f.Recv != nil {
				key = s.between(f.Recv.Pos(), f.Recv.End()) + " " + key
			}
			s.funcs[key] = f
		}
	}
	return s, nil
}

func (s *source) between(from, to token.Pos) string {
	return s.text[s.set.Position(from).Offset:s.set.Position(to).Offset]
}

// of is a function's text, without its comment.
func (s *source) of(f *ast.FuncDecl) string { return s.between(f.Type.Pos(), f.End()) }

// insert puts statements at the beginning of functions.
func (s *source) insert(calls map[string]string) string {
	var b strings.Builder
	last := 0
	for _, d := range s.file.Decls {
		for key, f := range s.funcs {
			if f == d && calls[key] != "" {
				at := s.set.Position(f.Body.Lbrace).Offset + 1
				b.WriteString(s.text[last:at] + calls[key])
				last = at
			}
		}
	}
	return b.String() + s.text[last:]
}
