package domainxml

import (
	"fmt"
	"regexp"
	"strings"
)

// Difference is one place where two definitions differ.
type Difference struct {
	// Path names the element or attribute: "devices/disk[vda]/driver@cache".
	Path string
	// Stored and Current are the two values, Absent if there is none.
	// Passwords are not shown.
	Stored, Current string
}

// Absent stands for a value that is not there.
const Absent = "(none)"

// maxDifferences bounds Drift; who has more has another VM.
const maxDifferences = 200

// String says it for people.
func (d Difference) String() string {
	return fmt.Sprintf("%s: stored %s, libvirt has %s", d.Path, d.Stored, d.Current)
}

// Drift compares the definition stored on the datastore with libvirt's
// current one. It ignores what Normalise removes, the order of elements with
// different names, of attributes, of disks, interfaces and controllers, and
// device addresses that only one side names. Give it inactive definitions: in
// that of a running domain the CPU and some defaults are written out.
func Drift(stored, current []byte) ([]Difference, error) {
	s, err := normalTree(stored)
	if err != nil {
		return nil, fmt.Errorf("stored definition: %w", err)
	}
	c, err := normalTree(current)
	if err != nil {
		return nil, fmt.Errorf("current definition: %w", err)
	}
	var diff differences
	diff.elements("", s, c)
	return diff, nil
}

type differences []Difference

func (d *differences) add(path, stored, current string) {
	if len(*d) < maxDifferences {
		*d = append(*d, Difference{Path: path, Stored: stored, Current: current})
	}
}

func (d *differences) elements(path string, s, c *node) {
	d.attributes(path, s, c)
	if st, ct := s.value(), c.value(); st != ct {
		d.add(strings.TrimSuffix(path, "/"), show("", st), show("", ct))
	}
	ours, theirs := keyed(s), keyed(c)
	for _, k := range ours.order {
		if n, ok := theirs.byKey[k]; ok {
			d.elements(path+k+"/", ours.byKey[k], n)
		} else if n := ours.byKey[k]; n.name != "address" {
			d.add(path+k, summary(n), Absent)
		}
	}
	for _, k := range theirs.order {
		if n := theirs.byKey[k]; ours.byKey[k] == nil && n.name != "address" {
			d.add(path+k, Absent, summary(n))
		}
	}
}

func (d *differences) attributes(path string, s, c *node) {
	path = strings.TrimSuffix(path, "/")
	for _, a := range s.attrs {
		if i := indexAttr(c, a.name); i < 0 {
			d.add(path+"@"+a.name, show(a.name, a.value), Absent)
		} else if v := c.attrs[i].value; v != a.value {
			d.add(path+"@"+a.name, show(a.name, a.value), show(a.name, v))
		}
	}
	for _, a := range c.attrs {
		if indexAttr(s, a.name) < 0 {
			d.add(path+"@"+a.name, Absent, show(a.name, a.value))
		}
	}
}

// children by a name that tells which of two definitions' elements are the
// same thing.
type children struct {
	order []string
	byKey map[string]*node
}

func keyed(n *node) children {
	out := children{byKey: make(map[string]*node, len(n.children))}
	count := map[string]int{}
	for _, c := range n.children {
		key := c.name
		if id := identity(c); id != "" {
			key += "[" + id + "]"
		}
		count[key]++
		if n := count[key]; n > 1 {
			key += fmt.Sprintf("[%d]", n)
		}
		out.order = append(out.order, key)
		out.byKey[key] = c
	}
	return out
}

func identity(n *node) string {
	switch n.name {
	case "disk":
		return n.child("target").attr("dev")
	case "interface":
		return n.child("mac").attr("address")
	case "controller":
		return n.attr("type") + n.attr("index")
	case "channel":
		return n.child("target").attr("name")
	case "feature", "timer":
		return n.attr("name")
	}
	return ""
}

// maxShown bounds a value in a Difference, in bytes.
const maxShown = 160

func show(name, value string) string {
	if name == "passwd" {
		return "(hidden)"
	}
	if value == "" && name == "" {
		return Absent
	}
	return shorten(fmt.Sprintf("%q", value))
}

func summary(n *node) string {
	var b strings.Builder
	n.write(&b, -1)
	return shorten(password.ReplaceAllString(b.String(), "passwd='(hidden)'"))
}

var password = regexp.MustCompile(`passwd='[^']*'`)

func shorten(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
