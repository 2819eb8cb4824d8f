package domainxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// MaxSize is the largest definition that is read, in bytes. Real ones have
// some 10 KiB; libvirt itself takes 4 MiB at most over its protocol.
const MaxSize = 1 << 20

// maxDepth bounds the nesting; libvirt's schema needs about twelve levels
// beside metadata and backing chains.
const maxDepth = 64

// node is an element. Names keep their prefix as written ("qemu:arg").
// Comments are dropped. Text of an element that also has children is trimmed
// and comes first; nothing in libvirt's schema mixes the two.
type node struct {
	name     string
	attrs    []attr
	text     string
	children []*node
	reading  []byte // text so far, while it is parsed
}

type attr struct{ name, value string }

// parseTree reads one document.
func parseTree(text []byte) (*node, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("domain XML has %d bytes; at most %d are read", len(text), MaxSize)
	}
	dec := xml.NewDecoder(bytes.NewReader(text))
	var open []*node
	var root *node
	for {
		token, err := dec.RawToken() // Token would replace prefixes
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("domain XML: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			n, err := newNode(t)
			switch {
			case err != nil:
				return nil, fmt.Errorf("domain XML, line %d: %w", line(dec), err)
			case len(open) >= maxDepth:
				return nil, fmt.Errorf("domain XML, line %d: nested deeper than %d", line(dec), maxDepth)
			case len(open) > 0:
				parent := open[len(open)-1]
				parent.children = append(parent.children, n)
			case root != nil:
				return nil, fmt.Errorf("domain XML, line %d: a second root element <%s>", line(dec), n.name)
			default:
				root = n
			}
			open = append(open, n)
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1].name != fullName(t.Name) {
				return nil, fmt.Errorf("domain XML, line %d: unexpected </%s>", line(dec), fullName(t.Name))
			}
			open[len(open)-1].finish()
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].read(t)
			} else if len(bytes.TrimSpace(t)) > 0 {
				return nil, fmt.Errorf("domain XML, line %d: text outside of the root element", line(dec))
			}
		case xml.Directive:
			return nil, fmt.Errorf("domain XML, line %d: document types and entities are not accepted", line(dec))
		}
	}
	switch {
	case len(open) > 0:
		return nil, fmt.Errorf("domain XML: <%s> is not closed", open[len(open)-1].name)
	case root == nil:
		return nil, errors.New("domain XML: no root element")
	case root.name != "domain":
		return nil, fmt.Errorf("domain XML: root element is <%s>, not <domain>", root.name)
	}
	return root, nil
}

func line(dec *xml.Decoder) int {
	n, _ := dec.InputPos()
	return n
}

func fullName(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// maxAttrs bounds the attributes of one element; libvirt has at most twenty.
const maxAttrs = 64

func newNode(t xml.StartElement) (*node, error) {
	n := &node{name: fullName(t.Name)}
	if len(t.Attr) > maxAttrs {
		return nil, fmt.Errorf("<%s> has more than %d attributes", n.name, maxAttrs)
	}
	for _, a := range t.Attr {
		name := fullName(a.Name)
		if indexAttr(n, name) >= 0 {
			return nil, fmt.Errorf("<%s> has two attributes %s", n.name, name)
		}
		n.attrs = append(n.attrs, attr{name, a.Value})
	}
	return n, nil
}

func indexAttr(n *node, name string) int {
	return slices.IndexFunc(n.attrs, func(a attr) bool { return a.name == name })
}

func (n *node) read(text []byte) { n.reading = append(n.reading, text...) }

func (n *node) finish() {
	n.text, n.reading = string(n.reading), nil
	if len(n.children) > 0 || strings.TrimSpace(n.text) == "" {
		n.text = strings.TrimSpace(n.text)
	}
}

// The accessors below accept a nil node, which has nothing.

// attr returns an attribute's value, empty if there is none.
func (n *node) attr(name string) string {
	if n != nil {
		if i := indexAttr(n, name); i >= 0 {
			return n.attrs[i].value
		}
	}
	return ""
}

// child returns the first descendant along path, nil if there is none.
func (n *node) child(path ...string) *node {
	for _, name := range path {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.children, func(c *node) bool { return c.name == name })
		if i < 0 {
			return nil
		}
		n = n.children[i]
	}
	return n
}

// all returns the children of that name.
func (n *node) all(name string) []*node {
	var out []*node
	if n != nil {
		for _, c := range n.children {
			if c.name == name {
				out = append(out, c)
			}
		}
	}
	return out
}

// value returns the element's text without surrounding space.
func (n *node) value() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.text)
}

// dropAttrs removes attributes by name.
func (n *node) dropAttrs(names ...string) {
	n.attrs = slices.DeleteFunc(n.attrs, func(a attr) bool { return slices.Contains(names, a.name) })
}

// drop removes the children for which gone says so.
func (n *node) drop(gone func(*node) bool) {
	if n != nil {
		n.children = slices.DeleteFunc(n.children, gone)
	}
}

// dropNamed removes the children of these names.
func (n *node) dropNamed(names ...string) {
	n.drop(func(c *node) bool { return slices.Contains(names, c.name) })
}

// write prints the element, indented unless indent is negative.
func (n *node) write(b *strings.Builder, indent int) {
	pad, end := "", ""
	if indent >= 0 {
		pad, end = strings.Repeat("  ", indent), "\n"
	}
	b.WriteString(pad + "<" + n.name)
	for _, a := range n.attrs {
		b.WriteString(" " + a.name + "='" + escape(a.value) + "'")
	}
	switch {
	case len(n.children) > 0:
		b.WriteString(">" + escape(n.text) + end)
		next := indent
		if indent >= 0 {
			next++
		}
		for _, c := range n.children {
			c.write(b, next)
		}
		b.WriteString(pad + "</" + n.name + ">" + end)
	case n.text != "":
		b.WriteString(">" + escape(n.text) + "</" + n.name + ">" + end)
	default:
		b.WriteString("/>" + end)
	}
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
