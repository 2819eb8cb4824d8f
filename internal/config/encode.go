package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"reflect"
	"sort"
	"strings"
	"time"

	"go.yaml.in/yaml/v2"

	"hanok.dev/hanok/internal/model"
)

// Marshal writes the cluster as canonical YAML: fields in the order of the
// schema, fields at their default left out, so that equal clusters give equal
// bytes and an older reader is not shown fields nobody set.
func (c *Cluster) Marshal() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	if err := enc.Encode(c.ordered()); err != nil {
		return nil, fmt.Errorf("write cluster %q as YAML: %w", c.Name, err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("write cluster %q as YAML: %w", c.Name, err)
	}
	if b.Len() > MaxSize {
		return nil, fmt.Errorf("cluster %q takes %d bytes as YAML; at most %d are read", c.Name, b.Len(), MaxSize)
	}
	return b.Bytes(), nil
}

// ordered is the cluster as Marshal writes it.
func (c *Cluster) ordered() yaml.MapSlice {
	plain := c.withoutDerived()
	return encodeStruct(reflect.ValueOf(&plain).Elem(), reflect.ValueOf(defaultCluster()))
}

// tree is the cluster as parseTree returns it from what Marshal writes.
func (c *Cluster) tree() map[any]any { return parsed(c.ordered()).(map[any]any) }

// parsed gives an encoded value the types that a YAML reader gives it.
func parsed(in any) any {
	switch x := in.(type) {
	case yaml.MapSlice:
		out := make(map[any]any, len(x))
		for _, it := range x {
			out[it.Key] = parsed(it.Value)
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i := range x {
			out[i] = parsed(x[i])
		}
		return out
	}
	switch v := reflect.ValueOf(in); {
	case v.Kind() == reflect.String:
		return v.String()
	case v.CanInt():
		return int(v.Int())
	case v.CanUint():
		return int(v.Uint())
	}
	return in
}

// Digest identifies the content: the SHA-256 of the canonical YAML, in hex.
// Empty when the cluster cannot be written at all.
func (c *Cluster) Digest() string {
	b, err := c.Marshal()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Clone returns a deep copy.
func (c *Cluster) Clone() *Cluster {
	out := deepCopy(reflect.ValueOf(*c)).Interface().(Cluster)
	return &out
}

func deepCopy(v reflect.Value) reflect.Value {
	switch {
	case v.Type() == typeAddr:
		return v
	case v.Kind() == reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		for i := range v.NumField() {
			out.Field(i).Set(deepCopy(v.Field(i)))
		}
		return out
	case v.Kind() == reflect.Slice && !v.IsNil():
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(deepCopy(v.Index(i)))
		}
		return out
	case v.Kind() == reflect.Map && !v.IsNil():
		out := reflect.MakeMapWithSize(v.Type(), v.Len())
		for _, k := range v.MapKeys() {
			out.SetMapIndex(k, deepCopy(v.MapIndex(k)))
		}
		return out
	}
	return v
}

func encodeStruct(v, def reflect.Value) yaml.MapSlice {
	out := yaml.MapSlice{}
	for _, f := range fieldsOf(v.Type()) {
		fv, fd := v.Field(f.index), def.Field(f.index)
		if !f.required && sameValue(fv, fd) {
			continue
		}
		out = append(out, yaml.MapItem{Key: f.name, Value: encodeValue(fv, fd, f)})
	}
	return out
}

// sameValue compares two values; an empty list equals a missing one.
func sameValue(a, b reflect.Value) bool {
	if k := a.Kind(); k == reflect.Slice || k == reflect.Map {
		if a.Len() == 0 && b.Len() == 0 {
			return true
		}
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

func encodeValue(v, def reflect.Value, f field) any {
	switch x := v.Interface().(type) {
	case time.Duration:
		return FormatDuration(x)
	case model.MiB:
		return FormatMemory(x)
	case model.MHz:
		if f.plain {
			return int64(x)
		}
		return FormatClock(x)
	case netip.Addr:
		return x.String()
	case Timing:
		if x.Profile != "" {
			return x.Profile
		}
		t := timingFields(x.Values)
		return encodeStruct(reflect.ValueOf(t), reflect.ValueOf(timingFields{}))
	}
	switch v.Kind() {
	case reflect.Struct:
		return encodeStruct(v, def)
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = encodeValue(v.Index(i), elementDefault(v.Type().Elem()), field{})
		}
		return out
	case reflect.Map:
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		out := make(yaml.MapSlice, 0, len(keys))
		for _, k := range keys {
			e := v.MapIndex(k)
			out = append(out, yaml.MapItem{Key: k.String(), Value: encodeValue(e, reflect.Zero(e.Type()), field{})})
		}
		return out
	}
	return v.Interface()
}

// display is a value as a person reads it in a difference, on one line.
func display(v reflect.Value, f field) string {
	e := encodeValue(v, reflect.Zero(v.Type()), f)
	switch x := e.(type) {
	case yaml.MapSlice:
		parts := make([]string, len(x))
		for i, it := range x {
			parts[i] = fmt.Sprintf("%v: %v", it.Key, it.Value)
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case []any:
		parts := make([]string, len(x))
		for i, it := range x {
			parts[i] = fmt.Sprint(it)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	if s := fmt.Sprint(e); s != "" {
		return s
	}
	return `""`
}
