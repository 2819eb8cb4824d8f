package screen

import (
	"os"
	"unicode"

	"golang.org/x/term"
	"golang.org/x/text/width"
)

// IsTerminal reports whether a reader or writer is a terminal.
func IsTerminal(x any) bool {
	f, ok := x.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Columns is how many columns a text takes: two for each wide character, such as
// Hangul, none for a mark on the one before.
func Columns(s string) int {
	n := 0
	for _, r := range s {
		switch k := width.LookupRune(r).Kind(); {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case k == width.EastAsianWide, k == width.EastAsianFullwidth:
			n += 2
		default:
			n++
		}
	}
	return n
}

// YesNo is the word for a truth.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
