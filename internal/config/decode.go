package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v2"

	"hanok.dev/hanok/internal/model"
)

// MaxSize is the largest cluster file that is read: some 10,000 VMs.
const MaxSize = 4 << 20

// MaxDeployed is the largest cluster file, in bytes as Marshal writes it, that
// hosts run by: in base64 and with its envelope it fits into one message
// between agents (wire.MaxMessage, 1 MiB). Simulated clusters may have MaxSize.
const MaxDeployed = 760 << 10

// Parse reads a cluster file strictly: an unknown field, a wrong type, a
// duplicate, a dangling reference are errors, all reported together as
// [*Problems]. The result has its defaults filled in.
func Parse(data []byte) (*Cluster, error) {
	tree, err := parseTree(data)
	if err != nil {
		p := &Problems{}
		p.add("", "", "%v", err)
		return nil, p
	}
	return decode(tree)
}

// decode reads and checks a cluster as parseTree returns it.
func decode(tree any) (*Cluster, error) {
	p := &Problems{}
	c := defaultCluster()
	d := decoder{problems: p}
	d.value(tree, reflect.ValueOf(&c).Elem(), "", field{})
	c.fillDerived()
	// References to what was not understood would only be false alarms.
	c.validate(p, p.count() == 0)
	if err := p.err(); err != nil {
		return nil, err
	}
	return &c, nil
}

// parseTree turns YAML into maps, slices and scalars.
func parseTree(data []byte) (tree any, err error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("the file has %d bytes; at most %d are read", len(data), MaxSize)
	}
	defer func() {
		if r := recover(); r != nil { // the YAML package panics on some broken input
			tree, err = nil, fmt.Errorf("not readable as YAML: %v", r)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.SetStrict(true)
	if err := dec.Decode(&tree); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var second any
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file must hold one YAML document; remove what follows '---'")
	}
	if tree == nil {
		return nil, errors.New("the file is empty")
	}
	return tree, nil
}

// field is what the tags of a struct field say.
type field struct {
	name     string
	index    int
	required bool
	plain    bool
	words    []string
}

// knownFields remembers what fieldsOf found: reflect.Type to []field.
var knownFields sync.Map

// fieldsOf returns the fields of a struct that a file may have. The result is
// shared.
func fieldsOf(t reflect.Type) []field {
	if known, ok := knownFields.Load(t); ok {
		return known.([]field)
	}
	out := make([]field, 0, t.NumField())
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("yaml")
		if !ok {
			continue
		}
		parts := strings.Split(tag, ",")
		f := field{name: parts[0], index: i,
			required: slices.Contains(parts[1:], "required"), plain: slices.Contains(parts[1:], "plain")}
		if w, ok := t.Field(i).Tag.Lookup("words"); ok {
			f.words = strings.Split(w, "|")
		}
		out = append(out, f)
	}
	knownFields.Store(t, out)
	return out
}

var (
	typeDuration  = reflect.TypeFor[time.Duration]()
	typeMiB       = reflect.TypeFor[model.MiB]()
	typeMHz       = reflect.TypeFor[model.MHz]()
	typeAddr      = reflect.TypeFor[netip.Addr]()
	typeTiming    = reflect.TypeFor[Timing]()
	typeOptions   = reflect.TypeFor[Options]()
	typeVM        = reflect.TypeFor[VM]()
	typeDatastore = reflect.TypeFor[Datastore]()
)

// elementDefault is what an element of a list is before its fields are read.
func elementDefault(t reflect.Type) reflect.Value {
	switch t {
	case typeVM:
		return reflect.ValueOf(defaultVM())
	case typeDatastore:
		return reflect.ValueOf(defaultDatastore())
	}
	return reflect.Zero(t)
}

type decoder struct{ problems *Problems }

// value decodes in, found at path, into out.
func (d *decoder) value(in any, out reflect.Value, path string, f field) {
	switch out.Type() {
	case typeDuration:
		decodeUnit(d, in, out, path, ParseDuration)
		return
	case typeMiB:
		decodeUnit(d, in, out, path, ParseMemory)
		return
	case typeMHz:
		if !f.plain {
			decodeUnit(d, in, out, path, ParseClock)
			return
		}
	case typeAddr:
		d.addr(in, out, path)
		return
	case typeTiming:
		d.timing(in, out, path)
		return
	case typeOptions:
		d.options(in, out, path)
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		d.structure(in, out, path)
	case reflect.Slice:
		d.slice(in, out, path)
	case reflect.Map:
		d.mapping(in, out, path)
	case reflect.String:
		d.text(in, out, path, f)
	case reflect.Bool:
		b, ok := in.(bool)
		if !ok {
			d.problems.add(path, "write true or false", "%s is neither true nor false", show(in))
			return
		}
		out.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, ok := in.(int)
		if !ok || n < 0 || n > 1<<30 {
			d.problems.add(path, "", "%s is no whole number from 0 to %d", show(in), 1<<30)
			return
		}
		out.SetInt(int64(n))
	case reflect.Uint64:
		n, ok := in.(int)
		if !ok || n < 1 {
			d.problems.add(path, "", "%s is no whole number from 1", show(in))
			return
		}
		out.SetUint(uint64(n))
	}
}

func (d *decoder) structure(in any, out reflect.Value, path string) {
	m, ok := in.(map[any]any)
	if !ok {
		d.problems.add(path, "write its fields as name: value", "%s where fields are expected", show(in))
		return
	}
	fields := fieldsOf(out.Type())
	for _, k := range sortedKeys(m) {
		name, isText := k.(string)
		i := slices.IndexFunc(fields, func(f field) bool { return isText && f.name == name })
		if i < 0 {
			d.unknown(k, fields, path)
			continue
		}
		if m[k] == nil {
			continue // "field:" without a value says nothing
		}
		d.value(m[k], out.Field(fields[i].index), join(path, name), fields[i])
	}
	for _, f := range fields {
		if f.required && m[f.name] == nil {
			d.problems.add(join(path, f.name), "", "is required")
		}
	}
}

func (d *decoder) unknown(key any, fields []field, path string) {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	word := fmt.Sprint(key)
	remedy := ""
	if !d.problems.full() {
		remedy = Suggest(word, names)
	}
	d.problems.add(join(path, clip(word)), remedy, "unknown field")
}

func (d *decoder) slice(in any, out reflect.Value, path string) {
	list, ok := in.([]any)
	if !ok {
		d.problems.add(path, "write a list such as [a, b]", "%s where a list is expected", show(in))
		return
	}
	res := reflect.MakeSlice(out.Type(), len(list), len(list))
	for i, x := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		e := res.Index(i)
		e.Set(elementDefault(e.Type()))
		if x == nil {
			d.problems.add(at, "remove it or fill it in", "is empty")
			continue
		}
		d.value(x, e, at, field{})
	}
	if len(list) > 0 {
		out.Set(res)
	}
}

func (d *decoder) mapping(in any, out reflect.Value, path string) {
	m, ok := in.(map[any]any)
	if !ok {
		d.problems.add(path, "write {name: value}", "%s where a map is expected", show(in))
		return
	}
	res := reflect.MakeMapWithSize(out.Type(), len(m))
	for _, k := range sortedKeys(m) {
		name, ok := k.(string)
		at := join(path, clip(fmt.Sprint(k)))
		if !ok {
			d.problems.add(at, "put the name in quotes", "%s is no text", show(k))
			continue
		}
		v := reflect.New(out.Type().Elem()).Elem()
		d.value(m[k], v, at, field{})
		res.SetMapIndex(reflect.ValueOf(name).Convert(out.Type().Key()), v)
	}
	if len(m) > 0 {
		out.Set(res)
	}
}

func (d *decoder) text(in any, out reflect.Value, path string, f field) {
	s, ok := in.(string)
	if b, isBool := in.(bool); isBool && !b && slices.Contains(f.words, "off") {
		s, ok = "off", true // YAML reads a bare off as false
	}
	if !ok {
		d.problems.add(path, "put it in quotes if it is meant as text", "%s is no text", show(in))
		return
	}
	if f.words != nil && !slices.Contains(f.words, s) {
		words := slices.DeleteFunc(slices.Clone(f.words), func(w string) bool { return w == "" })
		d.problems.add(path, "use one of "+strings.Join(words, ", "), "unknown value %q", clip(s))
		return
	}
	out.SetString(s)
}

func decodeUnit[T ~int64](d *decoder, in any, out reflect.Value, path string, parse func(string) (T, error)) {
	s, ok := in.(string)
	if n, isInt := in.(int); isInt {
		s, ok = fmt.Sprint(n), true
	}
	if !ok {
		d.problems.add(path, "write a number with its unit", "%s is no amount", show(in))
		return
	}
	v, err := parse(clip(s))
	if err != nil {
		d.problems.add(path, "", "%v", err)
		return
	}
	out.SetInt(int64(v))
}

func (d *decoder) addr(in any, out reflect.Value, path string) {
	s, ok := in.(string)
	a, err := netip.ParseAddr(s)
	if !ok || err != nil {
		d.problems.add(path, "write an IPv4 or IPv6 address; names are not looked up", "%s is no address", show(in))
		return
	}
	out.Set(reflect.ValueOf(a.Unmap()))
}

// timingFields is the object form of ha.timing.
type timingFields struct {
	Interval    time.Duration `yaml:"interval,required"`
	Lease       time.Duration `yaml:"lease,required"`
	Margin      time.Duration `yaml:"margin,required"`
	Watchdog    time.Duration `yaml:"watchdog,required"`
	WatchdogMax time.Duration `yaml:"watchdogMax"`
}

// watchdogSpread is what watchdogMax exceeds watchdog by when it is not given:
// the allowance of both profiles for granularity and reset latency.
const watchdogSpread = time.Second

func (d *decoder) timing(in any, out reflect.Value, path string) {
	t := Timing{}
	switch v := in.(type) {
	case string:
		switch v {
		case "fast":
			t = Timing{Profile: v, Values: model.TimingFast}
		case "steady":
			t = Timing{Profile: v, Values: model.TimingSteady}
		default:
			d.problems.add(path, "use fast, steady or {interval, lease, margin, watchdog}", "unknown profile %q", clip(v))
			return
		}
	case map[any]any:
		before := d.problems.count()
		var f timingFields
		d.structure(v, reflect.ValueOf(&f).Elem(), path)
		if d.problems.count() != before {
			return
		}
		if f.WatchdogMax == 0 {
			f.WatchdogMax = f.Watchdog + watchdogSpread
		}
		t.Values = model.Timing(f)
		if err := t.Values.Validate(); err != nil {
			d.problems.add(path, "or use the profile fast or steady", "%v", err)
			return
		}
	default:
		d.problems.add(path, "use fast, steady or {interval, lease, margin, watchdog}", "%s is no timing", show(in))
		return
	}
	out.Set(reflect.ValueOf(t))
}

// sortedKeys orders the keys of a map so that problems come in a fixed order.
func sortedKeys(m map[any]any) []any {
	keys := make([]any, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return fmt.Sprint(keys[i]) < fmt.Sprint(keys[j]) })
	return keys
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// show describes a value in an error, bounded in length.
func show(in any) string {
	switch v := in.(type) {
	case map[any]any:
		return "a map"
	case []any:
		return "a list"
	case string:
		return fmt.Sprintf("%q", clip(v))
	case nil:
		return "nothing"
	default:
		return clip(fmt.Sprint(v))
	}
}

// clip shortens text from the file for use in a message.
func clip(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}
