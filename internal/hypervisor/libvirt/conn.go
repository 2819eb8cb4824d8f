package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	lv "github.com/digitalocean/go-libvirt"
)

// The sizes of a packet of libvirt's RPC protocol, length word included
// (libvirt src/rpc/virnetprotocol.x: header, VIR_NET_MESSAGE_MAX). The RPC
// library trusts the length word, and panics if it is too small.
const (
	minPacket = 28
	maxPacket = 32 << 20
)

// conn is one connection to libvirtd.
type conn struct {
	rpc *lv.Libvirt
	raw *watchedConn
}

// open connects to libvirtd's socket and opens uri there, by ctx's deadline.
func open(ctx context.Context, socket, uri string) (*conn, error) {
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to libvirtd: %w", err)
	}
	raw := &watchedConn{Conn: nc, dead: make(chan struct{})}
	c := &conn{rpc: lv.NewWithDialer(raw), raw: raw}
	err = c.do(ctx, func(l *lv.Libvirt) error { return l.ConnectToURI(lv.ConnectURI(uri)) })
	if err != nil {
		c.close()
		return nil, fmt.Errorf("open %s at libvirtd: %w", uri, err)
	}
	return c, nil
}

// do runs one call. If ctx ends first the connection is closed, which ends
// the call on this side; libvirtd may still carry it out.
func (c *conn) do(ctx context.Context, call func(*lv.Libvirt) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- call(c.rpc) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		c.close()
		if err := <-done; err == nil {
			return nil
		}
		return ctx.Err()
	}
}

// close may be called more than once. The library's own farewell call is
// left out, as it hangs with the daemon.
func (c *conn) close() { c.raw.fail(net.ErrClosed) }

// dead is closed when the connection has ended.
func (c *conn) dead() <-chan struct{} { return c.raw.dead }

func (c *conn) isDead() bool {
	select {
	case <-c.dead():
		return true
	default:
		return false
	}
}

// cause says why the connection is dead.
func (c *conn) cause() error {
	c.raw.mu.Lock()
	defer c.raw.mu.Unlock()
	return c.raw.err
}

// watchedConn notices when its connection ends and refuses packets whose
// length cannot be.
type watchedConn struct {
	net.Conn
	dead chan struct{}

	mu  sync.Mutex
	err error

	// The frames as seen by Read, which only the library's reader calls.
	head  [4]byte
	nhead int
	body  uint32
}

// Dial gives the connection, which exists already, to the RPC library.
func (w *watchedConn) Dial() (net.Conn, error) { return w, nil }

func (w *watchedConn) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.err = err
	close(w.dead)
	_ = w.Conn.Close() // nothing is left to be flushed or to be told
}

// Close is what the RPC library calls.
func (w *watchedConn) Close() error {
	w.fail(net.ErrClosed)
	return nil
}

func (w *watchedConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == nil {
		err = w.frames(p[:n])
	}
	if err != nil {
		w.fail(err)
	}
	return n, err
}

var errFrame = errors.New("libvirtd sent a packet of impossible length")

// frames follows the packets in the stream.
func (w *watchedConn) frames(p []byte) error {
	for len(p) > 0 {
		if w.body > 0 {
			n := min(int(w.body), len(p))
			w.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(w.head[w.nhead:], p)
		w.nhead += n
		p = p[n:]
		if w.nhead < len(w.head) {
			return nil
		}
		w.nhead = 0
		length := binary.BigEndian.Uint32(w.head[:])
		if length < minPacket || length > maxPacket {
			return fmt.Errorf("%w: %d bytes", errFrame, length)
		}
		w.body = length - uint32(len(w.head))
	}
	return nil
}
