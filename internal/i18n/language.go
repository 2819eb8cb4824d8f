package i18n

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// Language is one that people can read Hanok in.
type Language string

// The languages.
const (
	English Language = "en"
	Korean  Language = "ko"
)

// FromEnvironment is the language of the process's locale: by the first of
// LC_ALL, LC_MESSAGES and LANG that is set; English if none names another
// language that Hanok knows.
func FromEnvironment() Language {
	for _, v := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if s := os.Getenv(v); s != "" {
			if s == "ko" || strings.HasPrefix(s, "ko_") || strings.HasPrefix(s, "ko.") {
				return Korean
			}
			return English
		}
	}
	return English
}

// Text is a finished English text in this language, or as it is where the
// catalogue does not know it. It may be called from several goroutines.
func (l Language) Text(s string) string {
	if l != Korean || s == "" {
		return s
	}
	c := korean()
	if k, ok := c.exact[s]; ok {
		return k
	}
	text := strings.Trim(s, " \n")
	at := strings.Index(s, text)
	return s[:at] + c.text(text, 0) + s[at+len(text):]
}

// Sprintf formats like fmt.Sprintf, in this language. Texts among args are
// translated, too.
func (l Language) Sprintf(format string, args ...any) string {
	if l != Korean {
		return fmt.Sprintf(format, args...)
	}
	c := korean()
	// line breaks and indents around a text are not part of it
	text := strings.Trim(format, "\n")
	known, ok := c.exact[text]
	if !ok {
		text = strings.Trim(format, " \n")
		known, ok = c.exact[text]
	}
	if !ok {
		return l.Text(fmt.Sprintf(format, args...))
	}
	at := strings.Index(format, text)
	out := make([]any, len(args))
	for i, a := range args {
		out[i] = l.value(a)
	}
	return fmt.Sprintf(format[:at]+known+format[at+len(text):], out...)
}

// value translates what is a text among values.
func (l Language) value(a any) any {
	switch v := a.(type) {
	case string:
		return l.Text(v)
	case error:
		return l.Text(v.Error())
	}
	return a
}

var korean = sync.OnceValue(func() *catalogue { return mustLoad(Korean) })
