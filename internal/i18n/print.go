package i18n

import (
	"fmt"
	"io"
)

// Text is a finished English text in the language of the locale.
func Text(s string) string { return FromEnvironment().Text(s) }

// Fprintf writes like fmt.Fprintf, in the language of the locale. It is for
// texts that people read, never for what programs read.
func Fprintf(w io.Writer, format string, args ...any) (int, error) {
	return io.WriteString(w, FromEnvironment().Sprintf(format, args...))
}

// Fprintln writes like fmt.Fprintln, in the language of the locale.
func Fprintln(w io.Writer, args ...any) (int, error) {
	l := FromEnvironment()
	out := make([]any, len(args))
	for i, a := range args {
		out[i] = l.value(a)
	}
	return fmt.Fprintln(w, out...)
}
