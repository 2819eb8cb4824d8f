package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
)

// With returns a copy with one field changed and the version raised by one, as
// `hanok cluster apply` of an edited file would. The field is a path such as
// ha.isolationResponse, hosts[host1].maintenance or vms[web].restart.priority;
// the value is read as YAML. The result is checked as a whole.
func (c *Cluster) With(path, value string) (*Cluster, error) {
	fail := func(err error) (*Cluster, error) {
		return nil, fmt.Errorf("set %s to %q: %w", clip(path), clip(value), err)
	}
	tree := c.tree()
	var v any
	if err := yaml.Unmarshal([]byte(value), &v); err != nil {
		return fail(fmt.Errorf("the value is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: ")))
	}
	if err := setPath(tree, path, v); err != nil {
		return fail(err)
	}
	tree["version"] = int(c.Version + 1)
	out, err := decode(tree)
	if err != nil {
		return fail(err)
	}
	if _, err := out.Marshal(); err != nil { // too large to be handed on
		return fail(err)
	}
	return out, nil
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
			m[name] = v
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
