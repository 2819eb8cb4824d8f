package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// optionPrefix starts the canonical names; users may leave it out.
const optionPrefix = "das."

// Options are the advanced options that were set, canonical name to canonical
// text. The nil map is usable: everything at its default.
type Options map[string]string

// OptionKind is the type of an advanced option's value.
type OptionKind string

// The kinds of advanced options.
const (
	OptionBool    OptionKind = "bool"    // true or false
	OptionInt     OptionKind = "int"     // a whole number
	OptionSeconds OptionKind = "seconds" // a duration; a plain number counts seconds
	OptionAddress OptionKind = "address" // an IP address or a host name
	OptionNetwork OptionKind = "network" // the name of one of the cluster's networks
)

// OptionSpec is one row of the table of advanced options.
type OptionSpec struct {
	// Name is the canonical name. With Numbered, a digit 0 to 9 follows it.
	Name     string     `json:"name"`
	Numbered bool       `json:"numbered,omitempty"`
	Kind     OptionKind `json:"type"`
	// Default is the value when unset; empty when nothing is set by default or
	// when Meaning says where it comes from.
	Default string `json:"default"`
	// Min and Max bound numbers and seconds.
	Min     int    `json:"min"`
	Max     int    `json:"max"`
	Meaning string `json:"meaning"`
	// Later names the feature that will act on it, if this version has it not:
	// then the option is accepted, checked and kept, so that a file can be carried
	// over, but changes nothing.
	Later string `json:"later,omitempty"`
}

// Effective tells whether this version of Hanok acts on the option.
func (s OptionSpec) Effective() bool { return s.Later == "" }

const (
	yes = true
	no  = false

	acts      = ""
	withVMs   = "VM monitoring"
	withFault = "fault tolerance"
)

// optionTable lists the names that administrators know; defaults are those of
// the behaviour they describe.
var optionTable = []OptionSpec{
	{"das.isolationaddress", yes, OptionAddress, "", 0, 0, "address that proves a host is not isolated when it answers a ping", acts},
	{"das.usedefaultisolationaddress", no, OptionBool, "true", 0, 0, "use the default gateway as an isolation address", acts},
	{"das.isolationShutdownTimeout", no, OptionSeconds, "300", 0, 86400, "how long a guest may take to shut down on isolation before it is powered off", acts},
	{"das.config.fdm.isolationPolicyDelaySec", no, OptionSeconds, "", 0, 3600, "delay of the isolation response; overrides ha.isolationDelay", acts},
	{"das.heartbeatDsPerHost", no, OptionInt, "2", 2, 5, "heartbeat datastores per host", acts},
	{"das.ignoreInsufficientHbDatastore", no, OptionBool, "false", 0, 0, "no warning when a host has too few heartbeat datastores", acts},
	{"das.ignoreRedundantNetWarning", no, OptionBool, "false", 0, 0, "no warning when hosts share a single heartbeat network", acts},
	{"das.allowNetwork", yes, OptionNetwork, "", 0, 0, "network that agents may use; when any is set, no other is used", acts},
	{"das.vmCpuMinMHz", no, OptionInt, "32", 0, 1000000, "least processor capacity, in MHz, that a VM counts for in admission", acts},
	{"das.vmMemoryMinMB", no, OptionInt, "0", 0, 100000000, "least memory, in MB and before overhead, that a VM counts for in admission", acts},
	{"das.slotCpuInMHz", no, OptionInt, "", 1, 1000000, "upper bound of a slot's processor capacity, in MHz", acts},
	{"das.slotMemInMB", no, OptionInt, "", 1, 100000000, "upper bound of a slot's memory, in MB", acts},
	{"das.perHostConcurrentFailoversLimit", no, OptionInt, "32", 1, 1024, "VMs that may be starting on one host at a time during failover", acts},
	{"das.maxvmrestartcount", no, OptionInt, "5", 1, 100, "attempts to restart a VM before it waits for a change", acts},
	{"das.iostatsInterval", no, OptionSeconds, "120", 0, 86400, "a VM without guest heartbeat but with I/O within this time is not reset; 0 turns the check off", withVMs},
	{"das.maskCleanShutdownEnabled", no, OptionBool, "true", 0, 0, "restart a VM whose guest shut down while its host had lost storage of it; what its user powers off stays down", acts},
	{"das.respectVmVmAntiAffinityRules", no, OptionBool, "true", 0, 0, "keep VMs apart in a failover too", acts},
	{"das.respectVmHostSoftAffinityRules", no, OptionBool, "true", 0, 0, "prefer should-rules between VMs and hosts in a failover too", acts},
	{"das.maxFtVmsPerHost", no, OptionInt, "4", 0, 1024, "fault-tolerant VMs per host; 0 is no limit", withFault},
	{"das.maxFtVCpusPerHost", no, OptionInt, "8", 0, 4096, "virtual processors of fault-tolerant VMs per host; 0 is no limit", withFault},
	{"das.config.fdm.hostTimeout", no, OptionSeconds, "", 1, 600, "network silence before a host is looked into; at least, and by default, 3.25 intervals", acts},
	{"das.config.fdm.icmpPingTimeout", no, OptionSeconds, "", 1, 60, "wait for the answer to a ping; by default two intervals", acts},
	{"das.config.fdm.deadIcmpPingInterval", no, OptionSeconds, "10", 1, 600, "pause between pings of a host that has failed", acts},
	{"das.config.fdm.stateLogInterval", no, OptionSeconds, "600", 0, 86400, "pause between summaries of the cluster's state in the log of the primary; 0 is never", acts},
	{"das.config.log.maxFileNum", no, OptionInt, "2", 2, 100, "files of the event log kept on each host; the journal has its own limits", acts},
	{"das.config.log.maxFileSize", no, OptionInt, "8388608", 1 << 17, 1 << 30, "size of a file of the event log in bytes", acts},
}

// findOption returns the row of a name, with or without prefix and in any case,
// and its canonical name.
func findOption(name string) (OptionSpec, string, bool) {
	lower := strings.ToLower(name)
	if !strings.HasPrefix(lower, optionPrefix) {
		lower = optionPrefix + lower
	}
	for _, s := range optionTable {
		base := strings.ToLower(s.Name)
		if !s.Numbered && lower == base {
			return s, s.Name, true
		}
		if rest, ok := strings.CutPrefix(lower, base); s.Numbered && ok && len(rest) == 1 && rest[0] >= '0' && rest[0] <= '9' {
			return s, s.Name + rest, true
		}
	}
	return OptionSpec{}, "", false
}

func optionNames() []string {
	out := make([]string, len(optionTable))
	for i, s := range optionTable {
		out[i] = s.Name
		if s.Numbered {
			out[i] += "0"
		}
	}
	return out
}

var hostNamePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,62})(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,62}))*$`)

// canonical checks a value and returns its canonical text.
func (s OptionSpec) canonical(value string) (string, error) {
	switch s.Kind {
	case OptionBool:
		b, err := strconv.ParseBool(value)
		if err != nil {
			return "", fmt.Errorf("%q is neither true nor false", clip(value))
		}
		return strconv.FormatBool(b), nil
	case OptionInt, OptionSeconds:
		n, err := strconv.Atoi(value)
		if err != nil && s.Kind == OptionSeconds {
			d, derr := ParseDuration(clip(value))
			if derr != nil {
				return "", fmt.Errorf("%w; a plain number counts seconds", derr)
			}
			if d%time.Second != 0 {
				return "", fmt.Errorf("%q is no whole number of seconds", value)
			}
			n, err = int(d/time.Second), nil
		}
		if err != nil || n < s.Min || n > s.Max {
			return "", fmt.Errorf("%q is no whole number from %d to %d", clip(value), s.Min, s.Max)
		}
		return strconv.Itoa(n), nil
	case OptionAddress:
		if a, err := netip.ParseAddr(value); err == nil {
			return a.String(), nil
		}
		if len(value) > 253 || !hostNamePattern.MatchString(value) {
			return "", fmt.Errorf("%q is neither an IP address nor a host name", clip(value))
		}
		return value, nil
	}
	return value, nil // a network: checked against the cluster's networks
}

func (d *decoder) options(in any, out reflect.Value, path string) {
	m, ok := in.(map[any]any)
	if !ok {
		d.problems.add(path, "write {name: value}", "%s where a map is expected", show(in))
		return
	}
	res := make(Options, len(m))
	for _, k := range sortedKeys(m) {
		at := join(path, clip(fmt.Sprint(k)))
		switch m[k].(type) {
		case map[any]any, []any, nil:
			d.problems.add(at, "write a number, a word, true or false", "%s is no value of an option", show(m[k]))
			continue
		}
		if err := res.Set(fmt.Sprint(k), fmt.Sprint(m[k])); err != nil {
			d.problems.add(at, "", "%v", err)
		}
	}
	if len(res) > 0 {
		out.Set(reflect.ValueOf(res))
	}
}

// Set checks and stores one option. It refuses an unknown name, listing near
// ones, a bad value, and a name that is set already.
func (o Options) Set(name, value string) error {
	s, canonical, ok := findOption(name)
	if !ok {
		short := strings.TrimPrefix(strings.ToLower(clip(name)), optionPrefix)
		names := optionNames()
		bare := make([]string, len(names))
		for i, n := range names {
			bare[i] = strings.TrimPrefix(n, optionPrefix)
		}
		if near := Nearest(short, bare); len(near) > 0 {
			for i := range near {
				near[i] = optionPrefix + near[i]
			}
			return fmt.Errorf("unknown option %q; did you mean %s?", clip(name), orList(near))
		}
		return fmt.Errorf("unknown option %q; `hanok cluster options` lists them", clip(name))
	}
	if _, dup := o[canonical]; dup {
		return fmt.Errorf("option %s is set twice; keep one", canonical)
	}
	v, err := s.canonical(value)
	if err != nil {
		return fmt.Errorf("option %s: %w", canonical, err)
	}
	o[canonical] = v
	return nil
}

// Text returns the option's value or its default; the name must be one of the
// table, otherwise it panics, because that is a programming error.
func (o Options) Text(name string) string {
	s, canonical, ok := findOption(name)
	if !ok {
		panic("config: no option named " + name)
	}
	if v, ok := o[canonical]; ok {
		return v
	}
	return s.Default
}

// IsSet reports whether the option was given a value.
func (o Options) IsSet(name string) bool {
	_, canonical, _ := findOption(name)
	_, ok := o[canonical]
	return ok
}

// Bool returns a bool option's value or default.
func (o Options) Bool(name string) bool { return o.Text(name) == "true" }

// Int returns a number's value or default; 0 when neither exists.
func (o Options) Int(name string) int {
	n, err := strconv.Atoi(o.Text(name))
	if err != nil {
		return 0 // only an empty default: Set let nothing else in
	}
	return n
}

// Duration returns the value or default of an option in seconds; 0 when
// neither exists.
func (o Options) Duration(name string) time.Duration {
	return time.Duration(o.Int(name)) * time.Second
}

// List returns the values of a numbered option, das.isolationaddress for
// example, in the order of their digits.
func (o Options) List(name string) []string {
	var keys []string
	for k := range o {
		if rest, ok := strings.CutPrefix(k, name); ok && len(rest) == 1 {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = o[k]
	}
	return out
}

// OptionInfo is one row of `hanok cluster options`.
type OptionInfo struct {
	OptionSpec
	// Set holds what the cluster file sets, name to value; empty for defaults.
	Set map[string]string `json:"set,omitempty"`
	// Value is what is in force: what is set, the default, or what other settings
	// make of it; empty for none.
	Value string `json:"value,omitempty"`
}

// Describe lists every advanced option with what this cluster sets, in the
// order of the table.
func (o Options) Describe() []OptionInfo {
	out := make([]OptionInfo, len(optionTable))
	for i, s := range optionTable {
		out[i].OptionSpec, out[i].Value = s, s.Default
		for k, v := range o {
			if spec, _, ok := findOption(k); ok && spec.Name == s.Name {
				if out[i].Set == nil {
					out[i].Set = map[string]string{}
				}
				out[i].Set[k] = v
			}
		}
		if v := o.List(s.Name); s.Numbered {
			out[i].Value = strings.Join(v, " ")
		} else if v, ok := o[s.Name]; ok {
			out[i].Value = v
		}
	}
	return out
}

// DescribeOptions is Describe with the defaults that other settings of the
// cluster make.
func (c *Cluster) DescribeOptions() []OptionInfo {
	out := c.HA.Options.Describe()
	computed := map[string]time.Duration{
		optIsolationDelay: c.IsolationDelay(), optHostTimeout: c.HostTimeout(), optPingTimeout: c.PingTimeout(),
	}
	for i := range out {
		if d, ok := computed[out[i].Name]; ok {
			out[i].Value = strconv.FormatFloat(d.Seconds(), 'g', -1, 64)
		}
	}
	return out
}

// Ineffective names the options that are set but that this version does not
// act on, sorted.
func (o Options) Ineffective() []string {
	var out []string
	for k := range o {
		if s, _, ok := findOption(k); ok && !s.Effective() {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
