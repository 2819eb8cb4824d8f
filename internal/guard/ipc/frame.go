package ipc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lease"
)

// MaxFrame bounds a message: the managed VMs of a whole cluster fit.
const MaxFrame = 4 << 20

// ErrClosed is returned by calls on a connection that has ended.
var ErrClosed = errors.New("guard connection closed")

// answer is what the guard sends: exactly one of the two.
type answer struct {
	Reply  *lease.Reply  `json:"reply,omitempty"`
	Notice *lease.Notice `json:"notice,omitempty"`
}

// encode makes a frame.
func encode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxFrame {
		return nil, fmt.Errorf("message of %d bytes: at most %d can be sent", len(body), MaxFrame)
	}
	frame := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	copy(frame[4:], body)
	return frame, nil
}

// decode reads one frame into v.
func decode(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return fmt.Errorf("message of %d bytes announced: at most %d are accepted", n, MaxFrame)
	}
	// Grown as it arrives: a peer cannot make us reserve what it never sends.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(body, v)
}

// address checks that a path fits into a socket address.
func address(path string) (*unix.SockaddrUnix, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("socket %s: the path is longer than 107 bytes", path)
	}
	return &unix.SockaddrUnix{Name: path}, nil
}

// file wraps a non-blocking socket so that the runtime polls it: blocked calls
// hold no thread, and deadlines and Close work.
func file(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }
