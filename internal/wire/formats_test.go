package wire

import (
	"bufio"
	"bytes"
	"testing"

	"hanok.dev/hanok/internal/formats"
)

// The frames of version 1, and what it understands of ours: the versions that
// both speak.
func TestFormats(t *testing.T) {
	h := hello{1, 1, [16]byte{1, 2, 3}, 7}
	old := formats.Bytes(t, "1/hello.bin", h.frame())
	got, err := readHello(bufio.NewReader(bytes.NewReader(old)))
	if err != nil || got != h || !got.common() {
		t.Errorf("the hello of version 1: %+v, %v", got, err)
	}
	old = formats.Bytes(t, "1/frame.bin", appendFrame(nil, frameHello, []byte("content")))
	if kind, body, err := readFrame(bufio.NewReader(bytes.NewReader(old))); err != nil || kind != frameHello || string(body) != "content" {
		t.Errorf("a frame of version 1: %d %q, %v", kind, body, err)
	}
}
