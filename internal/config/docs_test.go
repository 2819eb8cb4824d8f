package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// docs/configuration.md must name every field and every option.
func TestDocumentationIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	for _, s := range optionTable {
		name := s.Name
		if s.Numbered {
			name += "0…9"
		}
		if !strings.Contains(doc, "| `"+name+"` | "+string(s.Kind)) {
			t.Errorf("option %s is missing, or its type is another", name)
			continue
		}
		_, row, _ := strings.Cut(doc, "| `"+name+"` |")
		row, _, _ = strings.Cut(row, "\n")
		acts := "| yes |"
		if !s.Effective() {
			acts = "| with " + s.Later + " |"
		}
		if !strings.HasSuffix(row, acts) || !strings.Contains(row, "| "+s.Default+" | "+s.Meaning+" |") {
			t.Errorf("option %s: the row says%s", name, row)
		}
	}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for _, f := range fieldsOf(typ) {
			ft := typ.Field(f.index).Type
			if ft.Kind() == reflect.Slice {
				ft = ft.Elem()
			}
			if ft.Kind() == reflect.Struct && ft != typeTiming && ft != typeAddr {
				walk(ft)
				continue
			}
			word := regexp.MustCompile("[`.]" + f.name + "`")
			if !word.MatchString(doc) {
				t.Errorf("field %s of %s is missing", f.name, typ.Name())
			}
		}
	}
	walk(reflect.TypeFor[Cluster]())
}
