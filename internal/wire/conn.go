package wire

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one established connection with a peer: hello was said both ways.
type conn struct {
	n        *Node
	p        *peer
	raw      *timedConn
	tls      *tls.Conn
	r        *bufio.Reader
	dialed   bool
	network  string
	instance [16]byte
	born     time.Time

	wake       chan struct{}
	done       chan struct{} // closed by fail
	registered chan struct{}
	once       sync.Once
	why        Reason
	used       atomic.Int64 // last message in either direction, since n.start

	// Guarded by p.mu:
	retired bool   // no messages are sent here any more
	control []byte // frame types to send
}

// timedConn gives every read and write on the socket a deadline of its own, so
// that progress counts, not the length of a frame.
type timedConn struct {
	net.Conn
	silence atomic.Int64 // 0: the deadline that is set stays
}

func (t *timedConn) Read(b []byte) (int, error) {
	if d := t.silence.Load(); d > 0 {
		if err := t.Conn.SetReadDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return t.Conn.Read(b)
}

func (t *timedConn) Write(b []byte) (int, error) {
	if d := t.silence.Load(); d > 0 {
		if err := t.Conn.SetWriteDeadline(time.Now().Add(time.Duration(d))); err != nil {
			return 0, err
		}
	}
	return t.Conn.Write(b)
}

func newConn(n *Node, p *peer, raw *timedConn, t *tls.Conn, r *bufio.Reader, h hello, dialed bool, network string) *conn {
	c := &conn{n: n, p: p, raw: raw, tls: t, r: r, dialed: dialed, network: network, instance: h.instance, born: time.Now(),
		wake: make(chan struct{}, 1), done: make(chan struct{}), registered: make(chan struct{})}
	c.touch()
	return c
}

func (c *conn) touch() { c.used.Store(int64(time.Since(c.n.start))) }

// lastUsed is when the last message went either way, or the connection was
// made.
func (c *conn) lastUsed() time.Time { return c.n.start.Add(time.Duration(c.used.Load())) }

func (c *conn) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// fail ends the connection; the first reason counts.
func (c *conn) fail(why Reason) {
	c.once.Do(func() {
		c.why = why
		if why == ReasonSilent {
			c.n.stats.add(connectionsSilent)
		}
		close(c.done)
		c.raw.Close()
	})
}

// silence is how long nothing may come before the connection is given up:
// three missed signs of life, and half an interval of patience.
func (n *Node) silence() time.Duration { return n.cfg.Interval*3 + n.cfg.Interval/2 }

// run serves the connection until it ends.
func (c *conn) run() {
	if !c.p.register(c) {
		c.fail(ReasonRemoved)
		close(c.registered)
		return
	}
	close(c.registered)
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		c.fail(ReasonClosed)
	}
	c.raw.silence.Store(int64(c.n.silence()))
	var writer sync.WaitGroup
	writer.Go(c.writeLoop)
	c.fail(c.readLoop())
	writer.Wait()
	c.p.unregister(c, c.why)
}

func (c *conn) readLoop() Reason {
	for {
		kind, body, err := readFrame(c.r)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ReasonSilent
		case errors.Is(err, errFrameTooLarge):
			c.n.stats.add(framesTooLarge)
			c.n.log.note(framesTooLarge, string(c.p.id), err)
			return ReasonBadFrame
		case errors.Is(err, io.EOF) && c.isRetired():
			return ReasonIdle // closed in good order: the dialler has had everything
		case err != nil:
			return ReasonClosed
		}
		switch kind {
		case framePing:
		case frameMessage:
			if len(body) < 8 {
				c.n.stats.add(framesBad)
				return ReasonBadFrame
			}
			c.touch()
			c.p.deliver(c, binary.BigEndian.Uint64(body), body[8:])
		case frameBye:
			c.goodbye(frameByeAck)
		case frameByeAck:
			// The listener says nothing after this, so that nothing unread
			// turns the good-bye into a reset.
			if err := c.tls.CloseWrite(); err != nil {
				return ReasonClosed
			}
			return ReasonIdle
		case frameHello:
			c.n.stats.add(framesBad)
			return ReasonBadFrame
		default:
			c.n.stats.add(framesUnknown)
		}
	}
}

func (c *conn) isRetired() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.retired
}

// goodbye stops messages on this side and says so with a frame.
func (c *conn) goodbye(kind byte) {
	c.p.mu.Lock()
	c.p.retire(c)
	c.control = append(c.control, kind)
	c.p.mu.Unlock()
	c.poke()
}

func (c *conn) writeLoop() {
	w := bufio.NewWriterSize(c.tls, 16<<10)
	tick := time.NewTicker(c.n.cfg.Interval)
	defer tick.Stop()
	for {
		// Once at the start too: messages may have waited for the connection.
		ticked := false
		c.p.mu.Lock()
		batch := c.p.take(c)
		control := c.control
		c.control = nil
		c.p.mu.Unlock()
		if err := c.write(w, batch, control); err != nil {
			c.writeFailed(err)
			return
		}
		if bytes.IndexByte(control, frameByeAck) >= 0 {
			return // the dialler closes; if it does not, silence ends it
		}
		select {
		case <-c.wake:
		case <-tick.C:
			ticked = true
		case <-c.done:
			return
		}
		if !ticked {
			continue
		}
		if err := c.write(w, nil, []byte{framePing}); err != nil {
			c.writeFailed(err)
			return
		}
		if c.idle() {
			c.goodbye(frameBye)
		}
	}
}

// idle reports whether the dialler should end the connection: nobody uses it
// and the keys of datagrams are made.
func (c *conn) idle() bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	waiting := c.p.active == c && len(c.p.queue) > 0
	return c.dialed && !c.retired && !waiting && time.Since(c.lastUsed()) > c.n.cfg.Idle
}

func (c *conn) write(w *bufio.Writer, batch [][]byte, control []byte) error {
	for _, f := range batch {
		if _, err := w.Write(f); err != nil {
			return err
		}
	}
	for _, kind := range control {
		if _, err := w.Write(appendFrame(nil, kind)); err != nil {
			return err
		}
	}
	if w.Buffered() == 0 && len(batch) == 0 {
		return nil
	}
	if len(batch) > 0 {
		c.touch()
		c.n.stats[messagesSent].Add(uint64(len(batch)))
	}
	return w.Flush()
}

func (c *conn) writeFailed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail(ReasonSilent)
		return
	}
	if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) {
		c.fail(ReasonClosed)
		return
	}
	// The reader may hold what the peer said before it closed; let it finish.
	select {
	case <-c.done:
	case <-time.After(c.n.cfg.Interval):
		c.fail(ReasonClosed)
	}
}
