package ipc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lease"
)

// noticeQueue bounds the notices that wait to be read.
const noticeQueue = 256

// dialPause is the pause between attempts while the server's backlog is full.
const dialPause = 10 * time.Millisecond

// Client is a connection to the guard. Its methods may be called concurrently.
// When the connection ends, all calls fail with ErrClosed and Notices is
// closed; dialling again is the caller's business.
type Client struct {
	file    *os.File
	writing chan struct{} // holds one token: the right to write
	notices chan lease.Notice
	done    chan struct{}

	mu     sync.Mutex
	nextID uint64
	calls  map[uint64]chan lease.Reply
	closed bool
}

// Dial connects to the guard's socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	addr, err := address(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to the guard: %w", err)
	}
	for {
		err = unix.Connect(fd, addr)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
		select {
		case <-ctx.Done():
			_ = unix.Close(fd)
			return nil, fmt.Errorf("connect to the guard at %s: %w", path, ctx.Err())
		case <-time.After(dialPause):
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to the guard at %s: %w (is hanok-guard running?)", path, err)
	}
	c := &Client{file: file(fd, path), writing: make(chan struct{}, 1), notices: make(chan lease.Notice, noticeQueue),
		done: make(chan struct{}), calls: map[uint64]chan lease.Reply{}}
	go c.read()
	return c, nil
}

func (c *Client) read() {
	defer close(c.done)
	defer close(c.notices)
	r := bufio.NewReaderSize(c.file, 4096)
	for {
		var a answer
		if decode(r, &a) != nil {
			break
		}
		if a.Reply != nil {
			c.mu.Lock()
			call := c.calls[a.Reply.ID]
			delete(c.calls, a.Reply.ID)
			c.mu.Unlock()
			if call != nil {
				call <- *a.Reply // has room for it
			}
		}
		if a.Notice != nil {
			select {
			case c.notices <- *a.Notice:
				continue
			default:
			}
			break // the caller does not read; a new connection starts with the whole status
		}
	}
	_ = c.file.Close()
	c.mu.Lock()
	c.closed = true
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, call := range calls {
		close(call)
	}
}

// Call sends a request, whose ID it chooses, and waits for the reply. When ctx
// ends first the outcome is not known: the guard undoes what it can only when
// the connection is closed.
func (c *Client) Call(ctx context.Context, r lease.Request) (lease.Reply, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return lease.Reply{}, ErrClosed
	}
	c.nextID++
	r.ID = c.nextID
	call := make(chan lease.Reply, 1)
	c.calls[r.ID] = call
	c.mu.Unlock()
	if err := c.write(ctx, &r); err != nil {
		c.forget(r.ID)
		return lease.Reply{}, err
	}
	select {
	case reply, ok := <-call:
		if !ok {
			return lease.Reply{}, ErrClosed
		}
		return reply, nil
	case <-ctx.Done():
		c.forget(r.ID)
		return lease.Reply{}, fmt.Errorf("guard did not answer: %w", ctx.Err())
	}
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.calls, id)
	c.mu.Unlock()
}

func (c *Client) write(ctx context.Context, r *lease.Request) error {
	frame, err := encode(r)
	if err != nil {
		return err
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return fmt.Errorf("guard does not read: %w", ctx.Err())
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(writeTimeout)
	}
	_ = c.file.SetWriteDeadline(deadline)
	if _, err := c.file.Write(frame); err != nil {
		_ = c.file.Close() // a frame cut short cannot be followed by another
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// Subscribe asks for notices; the first one carries the whole status.
func (c *Client) Subscribe(ctx context.Context) error {
	r, err := c.Call(ctx, lease.Request{Subscribe: &lease.SubscribeNotice{}})
	if err != nil {
		return err
	}
	if r.Code != lease.CodeOK {
		return fmt.Errorf("subscribe to the guard: %s", r.Text)
	}
	return nil
}

// Notices is closed when the connection ends. It must be read after Subscribe.
func (c *Client) Notices() <-chan lease.Notice { return c.notices }

// Close ends the connection and waits for its goroutine.
func (c *Client) Close() {
	_ = c.file.Close()
	<-c.done
}
