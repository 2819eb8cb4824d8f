package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame: length of the body (4 bytes, big endian), type (1), body.
const (
	frameHello   = 1 // magic, versions, instance, key number; the first of each side
	framePing    = 2 // empty: a sign of life
	frameMessage = 3 // sequence number (8), payload
	frameBye     = 4 // empty: the sender will send no more messages here
	frameByeAck  = 5 // empty: nor will this side; the dialler closes

	frameHeader = 5
	maxControl  = 4096
	maxBody     = 8 + MaxMessage
)

// The range of wire versions that this program speaks. Two agents use the
// highest that both know; a frame type unknown in it is skipped.
const (
	versionMin = 1
	versionMax = 1
)

var (
	errFrameTooLarge = errors.New("frame too large")
	errBadFrame      = errors.New("bad frame")
)

// appendFrame appends a frame whose body is given in parts.
func appendFrame(dst []byte, kind byte, body ...[]byte) []byte {
	size := 0
	for _, b := range body {
		size += len(b)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(size))
	dst = append(dst, kind)
	for _, b := range body {
		dst = append(dst, b...)
	}
	return dst
}

// readFrame reads one frame. The body grows as bytes come in: a length alone
// costs no memory.
func readFrame(r *bufio.Reader) (kind byte, body []byte, err error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size, kind := int(binary.BigEndian.Uint32(head[:4])), head[4]
	limit := maxControl
	if kind == frameMessage {
		limit = maxBody
	}
	if size > limit {
		return kind, nil, fmt.Errorf("%w: %d bytes of type %d, at most %d", errFrameTooLarge, size, kind, limit)
	}
	const step = 64 << 10
	body = make([]byte, 0, min(size, step))
	for len(body) < size {
		part := min(size-len(body), step)
		body = append(body, make([]byte, part)...)
		if _, err := io.ReadFull(r, body[len(body)-part:]); err != nil {
			return kind, nil, err
		}
	}
	return kind, body, nil
}

// hello opens a connection in both directions.
type hello struct {
	min, max uint16
	// instance tells one run of an agent from the next.
	instance [16]byte
	// gen is the number for the session's keys: the dialler's proposal, the
	// listener's decision.
	gen uint64
}

const helloMagic = "HNK1"
const helloSize = len(helloMagic) + 2 + 2 + 16 + 8

func (h hello) frame() []byte {
	b := append([]byte(nil), helloMagic...)
	b = binary.BigEndian.AppendUint16(b, h.min)
	b = binary.BigEndian.AppendUint16(b, h.max)
	b = append(b, h.instance[:]...)
	b = binary.BigEndian.AppendUint64(b, h.gen)
	return appendFrame(nil, frameHello, b)
}

// readHello reads the peer's hello; later versions may append to it.
func readHello(r *bufio.Reader) (hello, error) {
	kind, b, err := readFrame(r)
	if err != nil {
		return hello{}, err
	}
	if kind != frameHello || len(b) < helloSize || string(b[:4]) != helloMagic {
		return hello{}, fmt.Errorf("%w: no hello", errBadFrame)
	}
	h := hello{min: binary.BigEndian.Uint16(b[4:]), max: binary.BigEndian.Uint16(b[6:])}
	copy(h.instance[:], b[8:])
	h.gen = binary.BigEndian.Uint64(b[24:])
	return h, nil
}

// common reports whether there is a version that both sides speak.
func (h hello) common() bool { return h.min <= versionMax && h.max >= versionMin && h.min <= h.max }
