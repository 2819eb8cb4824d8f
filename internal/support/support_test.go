package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/pki"
)

// key is a private key as Hanok writes it.
func key(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := pki.Init(dir, "seoul", pki.Options{}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, pki.CAKey))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSecretsAreTakenOut(t *testing.T) {
	pem := key(t)
	lines := strings.Split(strings.TrimSpace(pem), "\n")
	for name, tt := range map[string]struct{ text, secret string }{
		"a key":              {"x\n" + pem + "y\n", lines[1]},
		"a key, cut off":     {"x\n" + strings.Join(lines[:2], "\n"), lines[1]},
		"a key in JSON":      {`{"key":"` + strings.ReplaceAll(pem, "\n", `\n`) + `"}`, lines[1]},
		"an API token":       {"hanok_01a2b3c4_05d6e7f8_5ec2e7aa", "5ec2e7aa"},
		"an enrolment token": {"hanok host enrol hanok-host:seoul-1:host1:0123456789abcdef", "0123456789abcdef"},
		"a set-up link":      {"https://10.0.0.1:8443/setup#setup=s3cr3t-x&fingerprint=sha256:00", "s3cr3t-x"},
		"a hash":             {`"hash":"$argon2id$v=19$m=32768,t=3,p=1$c2FsdA$aGFzaA"`, "aGFzaA"},
		"a shadow entry":     {"root:$6$salt$hashhash:19000", "hashhash"},
		"a bearer":           {"Authorization: Bearer abc.def-ghi", "abc.def"},
		"basic":              {"sent Basic dXNlcjpwYXNz to", "dXNlcjpwYXNz"},
		"a cookie":           {"Set-Cookie: __Host-hanok=abcdef; Secure", "abcdef"},
		"in an address":      {"https://user:hunter2@proxy:3128/", "hunter2"},
		"an option":          {"//nas/share /srv/ds1 cifs user=x,password=hunter2,vers=3", "hunter2"},
		"a field":            {`{"bmcPassword": "hunter\"2", "a":1}`, "hunter"},
		"YAML":               {"  client_secret: hunter2\n", "hunter2"},
		"a variable":         {"HANOK_TOKEN=hunter2", "hunter2"},
		"Ceph":               {"name=hanok,secret=AQBhunter2==,x", "AQBhunter2"},
	} {
		got := string(Redact([]byte(tt.text)))
		if strings.Contains(got, tt.secret) || !strings.Contains(got, redacted) {
			t.Errorf("%s: %s", name, got)
		}
	}
	// What helps stays.
	for _, s := range []string{`{"state":"connected","term":7,"epoch":12}`, "sha256:0123456789abcdef", "a token is void", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
		"hanok_server_requests_total{method=\"hanok.v1.AuthService/CreateToken\",outcome=\"ok\"} 1", "hanok_agent_ready 1"} {
		if got := string(Redact([]byte(s))); s != got {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// open reads a bundle back.
func open(t *testing.T, b []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(c)
	}
}

func TestBundle(t *testing.T) {
	text := func(s string) func(context.Context, io.Writer) error {
		return func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	long := func(_ context.Context, w io.Writer) error {
		for i := range 1 << 19 {
			if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
				return err
			}
		}
		return nil
	}
	var b bytes.Buffer
	var seen []string
	entries, err := Make(t.Context(), &b, "d", []Part{
		{Name: "a", Write: text("password=hunter2\n")},
		{Name: "broken", Write: func(_ context.Context, w io.Writer) error {
			_, _ = io.WriteString(w, "half\n")
			return errors.New("refused: token=hunter2")
		}},
		{Name: "first", Write: long},
		{Name: "last", Newest: true, Write: long},
		{Name: "binary", Write: text("a\x00b")},
	}, time.Unix(0, 0), func(_, of int, name string) { seen = append(seen, fmt.Sprint(name, of)) })
	if err != nil {
		t.Fatal(err)
	}
	got := open(t, b.Bytes())
	if got["d/a"] != "password="+redacted+"\n" || got["d/broken"] != "half\n" || strings.Contains(fmt.Sprint(entries), "hunter2") {
		t.Errorf("%q, %q, %v", got["d/a"], got["d/broken"], entries)
	}
	if f := got["d/first"]; len(f) > MaxPart || !strings.HasPrefix(f, "line 0\n") || !strings.HasSuffix(f, "\n") {
		t.Errorf("first has %d bytes", len(f))
	}
	if l := got["d/last"]; len(l) > MaxPart || !strings.HasPrefix(l, "line ") || !strings.HasSuffix(l, fmt.Sprintf("line %d\n", 1<<19-1)) {
		t.Errorf("last has %d bytes, %.20q", len(l), l)
	}
	if _, ok := got["d/binary"]; ok || !entries[2].Cut || !entries[3].Cut || entries[0].Cut || entries[1].Error == "" || len(seen) != 5 || seen[0] != "a5" {
		t.Errorf("%v, %v", entries, seen)
	}
	var manifest []Entry
	if err := json.Unmarshal([]byte(got["d/manifest.json"]), &manifest); err != nil || len(manifest) != 5 {
		t.Errorf("%v: %s", err, got["d/manifest.json"])
	}
}

// A log that is cut in the middle of a key does not show the rest of it.
func TestAKeyAtTheCut(t *testing.T) {
	pem := key(t)
	lines := strings.Split(strings.TrimSpace(pem), "\n")
	b := &bounded{limit: len(pem) - len(lines[0])/2 + 100, newest: true}
	_, _ = io.WriteString(b, strings.Repeat("x", 4000)+"\n"+pem+strings.Repeat("y", 99)+"\n")
	if c := Redact(b.content()); bytes.Contains(c, []byte(lines[1])) {
		t.Errorf("%s", c)
	}
}

func TestAFullBundle(t *testing.T) {
	var parts []Part
	for i := range MaxBundle/MaxPart + 2 {
		parts = append(parts, Part{Name: fmt.Sprint(i), Write: func(_ context.Context, w io.Writer) error {
			_, err := w.Write(bytes.Repeat([]byte("0123456\n"), MaxPart/8))
			return err
		}})
	}
	entries, err := Make(t.Context(), io.Discard, "d", parts, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, e := range entries {
		sum += e.Bytes
	}
	if last := entries[len(entries)-1]; sum > MaxBundle || last.Bytes != 0 || last.Error == "" {
		t.Errorf("%d bytes, the last: %+v", sum, last)
	}
}
