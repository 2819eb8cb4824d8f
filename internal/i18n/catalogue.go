package i18n

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"sigs.k8s.io/yaml"
)

//go:embed ko/*.yaml
var files embed.FS

// separators stand between texts that were joined; the widest gap is tried first.
var separators = []string{"\n", "; ", ": "}

// telling is how many letters a pattern has at least that is tried before a text is
// taken for several joined ones: "X is Y" would swallow any of them. Less telling
// ones take names and known texts only as values.
const telling = 6

// deepest bounds sentences within sentences.
const deepest = 5

// catalogue knows one language.
type catalogue struct {
	exact    map[string]string
	patterns []*pattern // the most telling first
}

// pattern recognises texts made from one English format.
type pattern struct {
	known string // the translation, with verbs
	// open: the format continues or is continued by another text.
	openFront, openBack bool
	startsWithValue     bool
	longest             string // part that every such text has
	weight              int    // letters besides the values
	expr                string
	compile             func() *regexp.Regexp
}

// verb is a value's place in a format: %s, %[2]s, %.1f; %% is a percent sign.
var verb = regexp.MustCompile(`%(?:\[(\d+)\])?[-+# 0]*\d*(?:\.\d+)?([a-zA-Z%])`)

func mustLoad(l Language) *catalogue {
	c, err := load(files, string(l))
	if err != nil {
		panic(err) // the files are part of the program, and a test loads them
	}
	return c
}

func load(from fs.FS, dir string) (*catalogue, error) {
	names, err := fs.Glob(from, dir+"/*.yaml")
	if err != nil {
		return nil, err
	}
	c := &catalogue{exact: map[string]string{}}
	for _, name := range names {
		b, err := fs.ReadFile(from, name)
		if err != nil {
			return nil, err
		}
		var m map[string]string
		if err := yaml.UnmarshalStrict(b, &m); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for english, known := range m {
			if was, twice := c.exact[english]; twice && was != known {
				return nil, fmt.Errorf("%s: %q is translated twice, differently", name, english)
			}
			c.exact[english] = known
		}
	}
	for english, known := range c.exact {
		if p := newPattern(english, known); p != nil {
			c.patterns = append(c.patterns, p)
		}
	}
	sort.Slice(c.patterns, func(i, k int) bool {
		a, b := c.patterns[i], c.patterns[k]
		if a.weight != b.weight {
			return a.weight > b.weight
		}
		return a.expr < b.expr
	})
	return c, nil
}

// newPattern is nil for a text without values that stands alone: that is found
// exactly.
func newPattern(english, known string) *pattern {
	p := &pattern{known: known}
	first, last := []rune(english)[0], []rune(english)[len([]rune(english))-1]
	p.openFront = first == ' ' || first == ';' || first == ','
	p.openBack = last == ' '
	var expr strings.Builder
	expr.WriteString(`(?s)^`)
	if p.openFront {
		expr.WriteString(`(.+?)`)
	}
	p.startsWithValue = english[0] == '%'
	values, at := 0, 0
	literal := func(s string) {
		expr.WriteString(regexp.QuoteMeta(s))
		if len(s) > len(p.longest) {
			p.longest = s
		}
		for _, r := range s {
			if unicode.IsLetter(r) {
				p.weight++
			}
		}
	}
	for _, m := range verb.FindAllStringSubmatchIndex(english, -1) {
		literal(english[at:m[0]])
		at = m[1]
		switch english[m[4]:m[5]] {
		case "%":
			literal("%")
			continue
		case "d":
			expr.WriteString(`(-?\d+)`)
		default:
			expr.WriteString(`(.+?)`)
		}
		values++
	}
	literal(english[at:])
	if p.openBack {
		expr.WriteString(`(.+?)`)
	}
	expr.WriteString(`$`)
	if p.weight < 2 || (values == 0 && !p.openFront && !p.openBack) {
		return nil
	}
	p.expr = expr.String()
	p.compile = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(p.expr) })
	return p
}

// text translates a finished text.
func (c *catalogue) text(s string, depth int) string {
	if k, ok := c.exact[s]; ok {
		return k
	}
	if depth > deepest || !strings.ContainsRune(s, ' ') {
		return s
	}
	rest := c.patterns
	for ; len(rest) > 0 && rest[0].weight >= telling; rest = rest[1:] {
		if k, ok := c.match(rest[0], s, depth); ok {
			return k
		}
	}
	for _, sep := range separators {
		if a, b, ok := strings.Cut(s, sep); ok {
			if k := c.text(a, depth+1) + sep + c.text(b, depth+1); k != s {
				return k
			}
		}
	}
	for _, p := range rest {
		if k, ok := c.match(p, s, depth); ok {
			return k
		}
	}
	return s
}

// match translates s by one pattern.
func (c *catalogue) match(p *pattern, s string, depth int) (string, bool) {
	if !strings.Contains(s, p.longest) {
		return "", false
	}
	m := p.compile().FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	values := make([]string, 0, len(m))
	for i, v := range m[1:] {
		k := c.text(v, depth+1)
		if p.weight < telling && k == v && strings.ContainsRune(v, ' ') {
			return "", false // neither a name nor a text that is known
		}
		if k == v && i == 0 && p.startsWithValue && strings.Contains(v, ": ") {
			return "", false // a text of its own, which this one follows
		}
		values = append(values, k)
	}
	front, back := "", ""
	if p.openFront {
		front, values = values[0], values[1:]
	}
	if p.openBack {
		back, values = values[len(values)-1], values[:len(values)-1]
	}
	return front + fill(p.known, values) + back, true
}

// fill puts texts in the places of a format's verbs.
func fill(format string, values []string) string {
	next := 0
	return verb.ReplaceAllStringFunc(format, func(v string) string {
		m := verb.FindStringSubmatch(v)
		if m[2] == "%" {
			return "%"
		}
		i := next
		if m[1] != "" {
			n, _ := strconv.Atoi(m[1]) // digits, by the expression
			i = n - 1
		}
		next = i + 1
		if i < 0 || i >= len(values) {
			return v
		}
		return values[i]
	})
}
