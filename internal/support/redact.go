package support

import (
	"bytes"
	"regexp"
	"slices"
)

// redacted stands where a secret was.
const redacted = "[REDACTED]"

// privateKey is one in PEM, whole or cut off; in JSON it is in one line.
var privateKey = regexp.MustCompile(`(?s)(-----BEGIN )[A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)

// form is a form that secrets have within a line. Only lines with one of its
// words, in small letters, are looked at; the first group stays.
type form struct {
	words []string
	match *regexp.Regexp
}

var forms = []form{
	// API tokens, enrolment tokens of hosts, set-up links.
	{[]string{"hanok_"}, regexp.MustCompile(`(\bhanok_)[0-9a-f]{4,}_[0-9a-f]{4,}_[0-9A-Za-z\-]{4,}`)},
	{[]string{"hanok-host:"}, regexp.MustCompile(`(\bhanok-host:[^:\s"']{1,128}:[^:\s"']{1,128}:)[A-Za-z0-9_\-+/=]+`)},
	{[]string{"setup="}, regexp.MustCompile(`(?i)(\bsetup=)[^&\s"']+`)},
	// Hashes of passwords.
	{[]string{"$argon2", "$2", "$1$", "$5$", "$6$", "$y$"}, regexp.MustCompile(`()\$(?:argon2(?:id?|d)|2[aby]|[156y])\$[^\s"']+`)},
	// What HTTP carries, and users with passwords in addresses.
	{[]string{"authorization"}, regexp.MustCompile(`(?i)(\b(?:proxy-)?authorization["']?\s*[:=]\s*["']?)[^\r\n"']+`)},
	{[]string{"bearer ", "basic "}, regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=\-]{6,}`)},
	{[]string{"cookie"}, regexp.MustCompile(`(?i)(\b(?:set-)?cookie["']?\s*[:=]\s*["']?)[^\r\n"']+`)},
	{[]string{"://"}, regexp.MustCompile(`(?i)(\b[a-z][a-z0-9+.\-]*://)[^/\s"'@]*:[^/\s"'@]*@`)},
	// Fields and options by their names: password=x, "secret": "x", token: x.
	{[]string{"passw", "passphrase", "secret", "token", "key", "credential"},
		regexp.MustCompile(`(?i)(["']?\b[a-z0-9_.\-]*(?:password|passwd|passphrase|secret|token|api[_\-]?key|private[_\-]?key|credentials?)["']?\s*[:=]\s*)(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}\]"']+)`)},
}

// Redact takes secrets out of a text. It may take out more than it must.
func Redact(text []byte) []byte {
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		text = privateKey.ReplaceAll(text, []byte("${1}"+redacted))
	}
	low := lower(text)
	var hits []form
	for _, f := range forms {
		if f.in(low) {
			hits = append(hits, f)
		}
	}
	if len(hits) == 0 {
		return text
	}
	out := make([]byte, 0, len(text))
	for at := 0; at < len(text); {
		end := len(text)
		if n := bytes.IndexByte(text[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		line := text[at:end]
		for _, f := range hits {
			if f.in(low[at:end]) {
				line = f.match.ReplaceAll(line, []byte("${1}"+redacted))
			}
		}
		out = append(out, line...)
		at = end
	}
	return out
}

// in reports whether a text in small letters has one of the form's words.
func (f form) in(low []byte) bool {
	return slices.ContainsFunc(f.words, func(w string) bool { return bytes.Contains(low, []byte(w)) })
}

// lower is a text with small letters, each at its place.
func lower(text []byte) []byte {
	out := bytes.Clone(text)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return out
}

// binary reports whether a content is no text: such is left out, because nobody
// can tell what it holds.
func binary(text []byte) bool { return bytes.IndexByte(text, 0) >= 0 }
