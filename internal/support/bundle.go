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
	"path"
	"time"
)

// Bounds of a bundle.
const (
	// MaxPart bounds one part, and MaxBundle all of them, before compression.
	MaxPart   = 4 << 20
	MaxBundle = 32 << 20
	// PartLimit is how long one part may take.
	PartLimit = 15 * time.Second
)

// Part is one file of a bundle.
type Part struct {
	// Name is its path in the bundle.
	Name string
	// Newest keeps the end of a part that is too large, for logs; otherwise its
	// beginning stays.
	Newest bool
	// Write collects it. What it wrote before it failed is kept.
	Write func(ctx context.Context, w io.Writer) error
}

// Entry says how a part went; all of them are manifest.json.
type Entry struct {
	Name string `json:"name"`
	// Bytes is its size in the bundle; Cut says that there was more.
	Bytes int  `json:"bytes"`
	Cut   bool `json:"cut,omitempty"`
	// Error is why it is missing or incomplete.
	Error string `json:"error,omitempty"`
}

// Make writes a bundle, a tar archive with gzip, whose files lie in dir. Parts
// that fail are noted, not fatal. told, which may be nil, is called before each
// part.
func Make(ctx context.Context, out io.Writer, dir string, parts []Part, now time.Time, told func(part, of int, name string)) ([]Entry, error) {
	z := gzip.NewWriter(out)
	t := tar.NewWriter(z)
	put := func(name string, content []byte) error {
		err := t.WriteHeader(&tar.Header{Name: path.Join(dir, name), Mode: 0o600, Size: int64(len(content)), ModTime: now, Format: tar.FormatPAX})
		if err == nil {
			_, err = t.Write(content)
		}
		return err
	}
	var entries []Entry
	left := MaxBundle
	for i, p := range parts {
		if told != nil {
			told(i+1, len(parts), p.Name)
		}
		content, e := collect(ctx, p, min(left, MaxPart))
		if err := ctx.Err(); err != nil {
			return entries, err
		}
		left -= len(content)
		entries = append(entries, e)
		if len(content) == 0 {
			continue
		}
		if err := put(p.Name, content); err != nil {
			return entries, fmt.Errorf("write %s: %w", p.Name, err)
		}
	}
	manifest, err := json.MarshalIndent(entries, "", "  ")
	if err != nil {
		return entries, err
	}
	if err := put("manifest.json", manifest); err != nil {
		return entries, err
	}
	return entries, errors.Join(t.Close(), z.Close())
}

// collect makes one part of at most limit bytes.
func collect(ctx context.Context, p Part, limit int) ([]byte, Entry) {
	e := Entry{Name: p.Name}
	if limit <= 0 {
		e.Error, e.Cut = "the bundle is full", true
		return nil, e
	}
	ctx, cancel := context.WithTimeout(ctx, PartLimit)
	defer cancel()
	b := &bounded{limit: limit, newest: p.Newest}
	done := make(chan error, 1)
	go func() { done <- p.Write(ctx, b) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		// A part that does not listen goes on without us; what it wrote is not
		// read any more.
		e.Error = fmt.Sprintf("it took longer than %v", PartLimit)
		return nil, e
	}
	if err != nil && !errors.Is(err, errEnough) {
		e.Error = string(Redact([]byte(err.Error())))
	}
	content := b.content()
	if binary(content) {
		e.Error = "it is no text"
		return nil, e
	}
	content = Redact(content)
	if len(content) > limit { // what was put in place of secrets is longer
		content = content[:limit]
	}
	e.Bytes, e.Cut = len(content), b.cut
	return content, e
}

var errEnough = errors.New("the part is full")

// bounded keeps the beginning or the end of what is written.
type bounded struct {
	limit  int
	newest bool
	cut    bool
	buf    bytes.Buffer
}

// Write implements io.Writer. Of a beginning it ends the writer's work.
func (b *bounded) Write(p []byte) (int, error) {
	if !b.newest {
		if room := b.limit - b.buf.Len(); len(p) > room {
			b.cut = true
			b.buf.Write(p[:room])
			return room, errEnough
		}
		return b.buf.Write(p)
	}
	b.buf.Write(p)
	if b.buf.Len() > 2*b.limit {
		b.cut = true
		b.buf.Next(b.buf.Len() - b.limit)
	}
	return len(p), nil
}

// content is what was kept, in whole lines at the end that was cut. A secret
// whose beginning is cut off would not be known as one.
func (b *bounded) content() []byte {
	c := b.buf.Bytes()
	if b.newest && len(c) > b.limit {
		b.cut, c = true, c[len(c)-b.limit:]
	}
	if !b.cut {
		return c
	}
	if b.newest {
		_, c, _ = bytes.Cut(c, []byte("\n"))
		return withoutHead(c)
	}
	return c[:bytes.LastIndexByte(c, '\n')+1]
}

// withoutHead drops the rest of a private key whose first line was cut off.
func withoutHead(c []byte) []byte {
	end := bytes.Index(c, []byte("PRIVATE KEY-----"))
	if end >= 0 && bytes.HasSuffix(c[:end], []byte("-----END ")) || end >= 0 && bytes.Contains(lastLine(c[:end]), []byte("-----END ")) {
		return c[end+len("PRIVATE KEY-----"):]
	}
	return c
}

func lastLine(c []byte) []byte { return c[bytes.LastIndexByte(c, '\n')+1:] }
