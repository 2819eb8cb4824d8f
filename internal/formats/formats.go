// Package formats checks that what earlier versions wrote is still read, and that
// they can read what is written now.
//
// Neighbouring versions work beside each other while a cluster is upgraded: they
// exchange messages and read each other's files. What a version writes is
// recorded below testdata/formats/VERSION of each package, and never recorded
// again: a test that fails here has found a change that breaks an upgrade. A new
// field may be added, if it means nothing to a version that does not know it; for
// what must change otherwise both forms are read for one version, and the new one
// is recorded beside the old. HANOK_RECORD=1 records what has no record yet.
package formats

import (
	"bytes"
	"encoding"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// depth bounds types that contain themselves.
const depth = 8

// JSON checks the record of type T: every field that was written is still read
// and written under its name, with its value.
func JSON[T any](t *testing.T, file string) {
	t.Helper()
	Text(t, file, func(v *T) ([]byte, error) { return json.MarshalIndent(v, "", " ") }, func(b []byte, v *T) error {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		return d.Decode(v)
	}, func(b []byte) []byte { return b })
}

// Text checks a record of T in another form, of which body is the JSON.
func Text[T any](t *testing.T, file string, write func(*T) ([]byte, error), read func([]byte, *T) error, body func([]byte) []byte) {
	t.Helper()
	want := Recorded(t, file, func() ([]byte, error) {
		var v T
		fill(reflect.ValueOf(&v).Elem(), "x", 0)
		return write(&v)
	})
	var v T
	if err := read(want, &v); err != nil {
		t.Fatalf("%s, which an earlier version wrote, is not read any more: %v", file, err)
	}
	now, err := write(&v)
	if err != nil {
		t.Fatal(err)
	}
	var before, after any
	for b, to := range map[*any][]byte{&before: body(want), &after: body(now)} {
		if err := json.Unmarshal(to, b); err != nil {
			t.Fatal(err)
		}
	}
	if path, ok := lost(before, after, ""); ok {
		t.Errorf("%s: an earlier version does not find %s in what is written now", file, path)
	}
}

// Bytes checks a record of a binary form: the same is written as then.
func Bytes(t *testing.T, file string, now []byte) []byte {
	t.Helper()
	want := Recorded(t, file, func() ([]byte, error) { return now, nil })
	if !bytes.Equal(want, now) {
		at := 0
		for at < min(len(want), len(now)) && want[at] == now[at] {
			at++
		}
		t.Errorf("%s: %d bytes were written and are %d now; from byte %d on %.40x became %.40x", file, len(want), len(now), at, want[at:], now[at:])
	}
	return want
}

// Recorded reads a record, or makes it when there is none and HANOK_RECORD is set.
func Recorded(t *testing.T, file string, make func() ([]byte, error)) []byte {
	t.Helper()
	path := filepath.Join("testdata", "formats", file)
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) && os.Getenv("HANOK_RECORD") != "" {
		if b, err = make(); err == nil {
			if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
				err = os.WriteFile(path, b, 0o644)
			}
		}
	}
	if err != nil {
		t.Fatalf("the record of a format: %v", err)
	}
	return b
}

// lost finds a field or value of before that after lacks.
func lost(before, after any, path string) (string, bool) {
	switch b := before.(type) {
	case map[string]any:
		a, ok := after.(map[string]any)
		if !ok {
			return path, true
		}
		for k, v := range b {
			x, ok := a[k]
			if !ok {
				return path + "." + k, true
			}
			if p, l := lost(v, x, path+"."+k); l {
				return p, true
			}
		}
	case []any:
		a, ok := after.([]any)
		if !ok || len(a) != len(b) {
			return path, true
		}
		for i := range b {
			if p, l := lost(b[i], a[i], path+"[]"); l {
				return p, true
			}
		}
	default:
		return path, !reflect.DeepEqual(before, after)
	}
	return "", false
}

var (
	asText = reflect.TypeFor[encoding.TextUnmarshaler]()
	asJSON = reflect.TypeFor[json.Unmarshaler]()
)

// fill gives every field a value other than zero, as far as one can know which
// are right.
func fill(v reflect.Value, text string, deep int) {
	if deep > depth || !v.CanSet() {
		return
	}
	p := v.Addr().Type()
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 0).UTC()))
		return
	case p.Implements(asText) || p.Implements(asJSON):
		return // it takes only its own words
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(7.5)
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text, deep+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text, deep+1)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), text, deep+1)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text, deep+1)
		fill(value, text, deep+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fill(v.Field(i), f.Name, deep+1)
			}
		}
	}
}
