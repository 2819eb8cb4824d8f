package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2"
)

// Setting is a field with its new value, as [Cluster.With] takes them.
type Setting struct {
	Path, Value string
}

// With returns a copy with one field changed and the version raised by one, as
// `hanok cluster apply` of an edited file would. The field is a path such as
// ha.isolationResponse, hosts[host1].maintenance or vms[web].restart.priority;
// the value is read as YAML, and a list may be written a,b and a map a:1,b:2. No
// value gives the field its default back. The result is checked as a whole.
func (c *Cluster) With(path, value string) (*Cluster, error) {
	return c.WithAll(Setting{path, value})
}

// WithAll is With for several fields at once: only what they come to together is
// checked.
func (c *Cluster) WithAll(sets ...Setting) (*Cluster, error) {
	out, what, err := c.changed(sets)
	if err == nil {
		if _, err = out.Marshal(); err != nil { // it may be too large to be handed on
			return nil, fmt.Errorf("%s: %w", what, err)
		}
	}
	return out, err
}

// Changed is With for a file that is not handed on: its size is not looked at,
// which takes longer than all the rest.
func (c *Cluster) Changed(path, value string) (*Cluster, error) {
	out, _, err := c.changed([]Setting{{path, value}})
	return out, err
}

// changed also says what was to be done, for errors.
func (c *Cluster) changed(sets []Setting) (*Cluster, string, error) {
	tree := c.tree()
	var all []string
	for _, s := range sets {
		var v any
		err := yaml.Unmarshal([]byte(s.Value), &v)
		if err != nil {
			err = fmt.Errorf("the value is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		} else {
			err = setPath(tree, s.Path, v)
		}
		what := fmt.Sprintf("set %s to %q", clip(s.Path), clip(s.Value))
		if err != nil {
			return nil, what, fmt.Errorf("%s: %w", what, err)
		}
		all = append(all, what)
	}
	what := strings.Join(all, ", ")
	tree["version"] = int(c.Version + 1)
	out, err := decode(tree)
	if err != nil {
		return nil, what, fmt.Errorf("%s: %w", what, err)
	}
	return out, what, nil
}

// shorthand reads a,b as a list and a:1,b:2 as a map, where a field is one.
func shorthand(v any, t reflect.Type) any {
	text, ok := v.(string)
	if !ok {
		return v
	}
	parts := strings.Split(text, ",")
	switch {
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String:
		list := make([]any, len(parts))
		for i, p := range parts {
			list[i] = strings.TrimSpace(p)
		}
		return list
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Int:
		m := map[any]any{}
		for _, p := range parts {
			name, value, _ := strings.Cut(p, ":")
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return v
			}
			m[strings.TrimSpace(name)] = n
		}
		return m
	}
	return v
}

// FieldInfo is a field that can be set, for people who complete it.
type FieldInfo struct {
	// Path inside its element, such as restart.priority.
	Path string
	// Words are the values that it takes; nil if they are too many.
	Words []string
}

// FieldsOf lists the fields of the elements of a list of the cluster file, such as
// vms or rules, without their names; nil for an unknown list.
func FieldsOf(list string) []FieldInfo {
	t := reflect.TypeFor[Cluster]()
	for _, f := range fieldsOf(t) {
		if e := t.Field(f.index).Type; f.name == list && e.Kind() == reflect.Slice {
			return fieldInfos(e.Elem(), "")
		}
	}
	return nil
}

func fieldInfos(t reflect.Type, path string) []FieldInfo {
	var out []FieldInfo
	for _, f := range fieldsOf(t) {
		ft, at := t.Field(f.index).Type, join(path, f.name)
		switch {
		case at == "name":
		case ft.Kind() == reflect.Struct && ft != typeAddr && ft != typeTiming:
			out = append(out, fieldInfos(ft, at)...)
		case ft.Kind() == reflect.Bool:
			out = append(out, FieldInfo{at, []string{"true", "false"}})
		default:
			out = append(out, FieldInfo{at, slices.DeleteFunc(slices.Clone(f.words), func(w string) bool { return w == "" })})
		}
	}
	return out
}

// setPath sets the field at path in a tree of maps and lists, making maps that
// are left out because everything in them is at its default.
func setPath(m map[any]any, path string, v any) error {
	t, ok := reflect.TypeFor[Cluster](), true
	// Names of options and of hosts in a rule may contain dots: what follows
	// such a map is one key.
	for ok {
		name, element, listed, rest, more := cutPath(path)
		i := slices.IndexFunc(fieldsOf(t), func(f field) bool { return f.name == name })
		if i < 0 {
			var known []string
			for _, f := range fieldsOf(t) {
				known = append(known, f.name)
			}
			return Problem{Field: clip(name), Text: "unknown field", Remedy: Suggest(name, known)}
		}
		ft := t.Field(fieldsOf(t)[i].index).Type
		if listed {
			next, err := findElement(m[name], name, element)
			if err != nil {
				return err
			}
			if !more {
				return fmt.Errorf("name a field of %s[%s]", name, element)
			}
			m, t, path = next, ft.Elem(), rest
			continue
		}
		if !more {
			m[name] = shorthand(v, ft)
			return nil
		}
		inner, isMap := m[name].(map[any]any)
		if m[name] == nil {
			inner, isMap = map[any]any{}, true
			m[name] = inner
		}
		switch {
		case !isMap:
			return fmt.Errorf("%s has no fields", name)
		case ft.Kind() == reflect.Map:
			if ft == typeOptions {
				if _, canonical, known := findOption(rest); known {
					rest = canonical
				}
			}
			inner[rest] = v
			return nil
		case ft.Kind() != reflect.Struct || ft == typeTiming:
			return fmt.Errorf("%s is set as a whole", name)
		}
		m, t, path = inner, ft, rest
	}
	return fmt.Errorf("no fields to set")
}

// cutPath takes the first part off a path: hosts[host1.example].cpu.mhz is
// hosts, element host1.example, and the rest.
func cutPath(path string) (name, element string, listed bool, rest string, more bool) {
	end := strings.IndexAny(path, ".[")
	if end >= 0 && path[end] == '[' {
		if inside, after, closed := strings.Cut(path[end+1:], "]"); closed && (after == "" || after[0] == '.') {
			return path[:end], inside, true, strings.TrimPrefix(after, "."), after != ""
		}
	}
	name, rest, more = strings.Cut(path, ".")
	return name, "", false, rest, more
}

func findElement(list any, name, element string) (map[any]any, error) {
	items, _ := list.([]any)
	var known []string
	for _, it := range items {
		m, ok := it.(map[any]any)
		if !ok {
			continue
		}
		if m["name"] == element {
			return m, nil
		}
		known = append(known, fmt.Sprint(m["name"]))
	}
	return nil, Problem{Field: name, Text: fmt.Sprintf("has no element named %q", clip(element)), Remedy: Suggest(element, known)}
}
