package config

import (
	"fmt"
	"slices"
	"strings"
)

// maxProblems bounds how many problems of one file are kept.
const maxProblems = 100

// Problem is one thing wrong with a cluster file.
type Problem struct {
	// Field is the path of the field, such as hosts[1].memory; empty when the
	// file as a whole is meant.
	Field string `json:"field"`
	// Text says what is wrong.
	Text string `json:"text"`
	// Remedy says what to write instead; it may be empty.
	Remedy string `json:"remedy,omitempty"`
}

func (p Problem) Error() string {
	s := p.Text
	if p.Field != "" {
		s = p.Field + ": " + s
	}
	if p.Remedy != "" {
		s += "; " + p.Remedy
	}
	return s
}

// Problems is the error of a cluster file: everything that is wrong with it,
// in the order of the file.
type Problems struct {
	List []Problem
	// More counts the problems beyond those listed.
	More int
}

func (p *Problems) Error() string {
	if len(p.List) == 1 && p.More == 0 {
		return p.List[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(p.List)+p.More)
	for _, x := range p.List {
		b.WriteString("\n  " + x.Error())
	}
	if p.More > 0 {
		fmt.Fprintf(&b, "\n  and %d more", p.More)
	}
	return b.String()
}

func (p *Problems) add(field, remedy, format string, args ...any) {
	if p.full() {
		p.More++
		return
	}
	p.List = append(p.List, Problem{Field: field, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// full reports whether further problems are only counted.
func (p *Problems) full() bool { return len(p.List) >= maxProblems }

func (p *Problems) count() int { return len(p.List) + p.More }

func (p *Problems) err() error {
	if len(p.List) == 0 {
		return nil
	}
	return p
}

// Nearest returns the candidates that look most like word, best first, at most
// three; none when nothing is near. Case does not count.
func Nearest(word string, candidates []string) []string {
	type scored struct {
		s string
		d int
	}
	if len(word) > 64 { // no name of ours is that long; keep the cost bounded
		return nil
	}
	lower := strings.ToLower(word)
	var near []scored
	for _, c := range candidates {
		lc := strings.ToLower(c)
		d := distance(lower, lc)
		limit := 1 + len(lc)/4
		if len(lower) >= 3 && (strings.Contains(lc, lower) || strings.Contains(lower, lc) && len(lc) >= 3) {
			d = min(d, limit)
		}
		if d <= limit {
			near = append(near, scored{c, d})
		}
	}
	slices.SortStableFunc(near, func(a, b scored) int { return a.d - b.d })
	var out []string
	for _, n := range near {
		if len(out) == 3 {
			break
		}
		out = append(out, n.s)
	}
	return out
}

// Suggest makes the remedy for an unknown word: the near candidates, or all of
// them when none is near and they are few.
func Suggest(word string, candidates []string) string {
	if near := Nearest(word, candidates); len(near) > 0 {
		return "did you mean " + orList(near) + "?"
	}
	if len(candidates) > 0 && len(candidates) <= 16 {
		return "known here: " + strings.Join(candidates, ", ")
	}
	return ""
}

func orList(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	if len(quoted) == 1 {
		return quoted[0]
	}
	return strings.Join(quoted[:len(quoted)-1], ", ") + " or " + quoted[len(quoted)-1]
}

// distance is the number of single-character edits, swaps of neighbours
// included, between a and b.
func distance(a, b string) int {
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
