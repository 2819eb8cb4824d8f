package config

import (
	"fmt"
	"reflect"
	"slices"
)

// Change is one difference between two versions of a cluster file.
type Change struct {
	// Field is the path; elements of lists with names are shown by name, as in
	// vms[web].memory.
	Field string `json:"field"`
	// Old and New are the values as text; empty for an element that was added
	// or removed.
	Old string `json:"old,omitempty"`
	New string `json:"new,omitempty"`
	// Op is added, removed or changed.
	Op string `json:"op"`
}

// The operations of a Change.
const (
	OpAdded   = "added"
	OpRemoved = "removed"
	OpChanged = "changed"
)

func (c Change) String() string {
	switch c.Op {
	case OpAdded:
		return "+ " + c.Field
	case OpRemoved:
		return "- " + c.Field
	default:
		return fmt.Sprintf("~ %s: %s → %s", c.Field, c.Old, c.New)
	}
}

// Diff lists what changes from one cluster to another, the version left out, in
// the order of the schema. The order of named elements does not count, except
// that of networks, which is the order in which they are tried, and that of rules,
// which is their age.
func Diff(before, after *Cluster) []Change {
	var out []Change
	a, b := before.withoutDerived(), after.withoutDerived()
	a.Version, b.Version = 0, 0
	diffStruct(reflect.ValueOf(a), reflect.ValueOf(b), "", &out)
	order := func(field string, x, y []string) {
		if !slices.Equal(x, y) && sameSet(x, y) {
			out = append(out, Change{Field: field, Old: fmt.Sprint(x), New: fmt.Sprint(y), Op: OpChanged})
		}
	}
	order("networks", before.networkNames(), after.networkNames())
	order("rules", before.ruleNames(), after.ruleNames())
	return out
}

func sameSet(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	seen := map[string]bool{}
	for _, s := range a {
		seen[s] = true
	}
	for _, s := range b {
		if !seen[s] {
			return false
		}
	}
	return true
}

func diffStruct(a, b reflect.Value, path string, out *[]Change) {
	for _, f := range fieldsOf(a.Type()) {
		fa, fb, at := a.Field(f.index), b.Field(f.index), join(path, f.name)
		switch {
		case sameValue(fa, fb):
		case fa.Type() == typeAddr || fa.Type() == typeTiming:
			*out = append(*out, Change{at, display(fa, f), display(fb, f), OpChanged})
		case fa.Kind() == reflect.Struct:
			diffStruct(fa, fb, at, out)
		case fa.Kind() == reflect.Slice && fa.Type().Elem().Kind() == reflect.Struct:
			diffNamed(fa, fb, at, out)
		default:
			*out = append(*out, Change{at, display(fa, f), display(fb, f), OpChanged})
		}
	}
}

// diffNamed compares two lists of structs that begin with a Name.
func diffNamed(a, b reflect.Value, path string, out *[]Change) {
	nameOf := func(v reflect.Value) string { return v.FieldByName("Name").String() }
	olds := map[string]reflect.Value{}
	for i := range a.Len() {
		olds[nameOf(a.Index(i))] = a.Index(i)
	}
	kept := map[string]bool{}
	for i := range b.Len() {
		v := b.Index(i)
		at := fmt.Sprintf("%s[%s]", path, nameOf(v))
		kept[nameOf(v)] = true
		if old, ok := olds[nameOf(v)]; ok {
			diffStruct(old, v, at, out)
		} else {
			*out = append(*out, Change{Field: at, Op: OpAdded})
		}
	}
	for i := range a.Len() {
		if n := nameOf(a.Index(i)); !kept[n] {
			*out = append(*out, Change{Field: fmt.Sprintf("%s[%s]", path, n), Op: OpRemoved})
		}
	}
}
