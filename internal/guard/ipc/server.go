package ipc

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lease"
)

// Bounds of a server. A host has one agent, now and then a hook or two, and a
// person.
const (
	maxClients   = 64
	queueLength  = 256
	writeTimeout = 5 * time.Second
)

// Handler takes what clients ask and when they go. The methods are called from
// many goroutines, never for one connection after its Lost.
type Handler interface {
	Request(conn uint64, r *lease.Request)
	Lost(conn uint64)
}

// Server serves the guard's socket.
type Server struct {
	path    string
	uid     uint32
	handler Handler
	listen  *os.File

	mu      sync.Mutex
	clients map[uint64]*client
	lastID  uint64
	closed  bool
	wg      sync.WaitGroup
}

type client struct {
	id    uint64
	file  *os.File
	queue chan []byte
	done  chan struct{} // closed when the reader has ended
}

// Listen makes the socket at path, mode 0600, replacing what a dead
// predecessor left there, and serves processes of user uid until Close. The
// caller makes sure that there is only one server for the path.
func Listen(path string, uid uint32, h Handler) (*Server, error) {
	addr, err := address(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	fail := func(what string, err error) (*Server, error) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail("replace socket", err)
	}
	if err := unix.Fchmod(fd, 0o600); err != nil { // becomes the socket file's mode
		return fail("protect socket", err)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return fail("bind socket", err)
	}
	if err := unix.Listen(fd, maxClients); err != nil {
		return fail("listen on", err)
	}
	s := &Server{path: path, uid: uid, handler: h, listen: file(fd, path), clients: map[uint64]*client{}}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

func (s *Server) accept() {
	defer s.wg.Done()
	raw, err := s.listen.SyscallConn()
	if err != nil {
		return
	}
	for {
		fd, acceptErr := -1, error(nil)
		err := raw.Read(func(l uintptr) bool {
			fd, _, acceptErr = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(acceptErr, unix.EAGAIN) && !errors.Is(acceptErr, unix.EINTR) && !errors.Is(acceptErr, unix.ECONNABORTED)
		})
		switch {
		case err != nil:
			return // closed
		case acceptErr != nil:
			// Out of descriptors or memory: whoever waits has a deadline.
			time.Sleep(100 * time.Millisecond)
		default:
			s.admit(fd)
		}
	}
}

func (s *Server) admit(fd int) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != s.uid && cred.Uid != 0 {
		_ = unix.Close(fd)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.clients) >= maxClients {
		_ = unix.Close(fd)
		return
	}
	s.lastID++
	c := &client{id: s.lastID, file: file(fd, s.path), queue: make(chan []byte, queueLength), done: make(chan struct{})}
	s.clients[c.id] = c
	s.wg.Add(2)
	go s.read(c)
	go s.write(c)
}

func (s *Server) read(c *client) {
	defer s.wg.Done()
	r := bufio.NewReaderSize(c.file, 4096)
	for {
		var req lease.Request
		if decode(r, &req) != nil {
			break
		}
		s.handler.Request(c.id, &req)
	}
	s.mu.Lock()
	delete(s.clients, c.id)
	s.mu.Unlock()
	close(c.done)
	s.handler.Lost(c.id)
}

func (s *Server) write(c *client) {
	defer s.wg.Done()
	defer c.file.Close()
	for {
		select {
		case frame := <-c.queue:
			_ = c.file.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := c.file.Write(frame); err != nil {
				return
			}
		case <-c.done:
			return
		}
	}
}

// Reply sends a reply; it never blocks. A client that has gone, or does not
// read, misses it.
func (s *Server) Reply(conn uint64, r *lease.Reply) { s.send(conn, answer{Reply: r}) }

// Notify sends a notice to the given connections; it never blocks.
func (s *Server) Notify(conns []uint64, n *lease.Notice) {
	for _, c := range conns {
		s.send(c, answer{Notice: n})
	}
}

func (s *Server) send(conn uint64, a answer) {
	s.mu.Lock()
	c := s.clients[conn]
	s.mu.Unlock()
	if c == nil {
		return
	}
	frame, err := encode(a)
	if err != nil {
		_ = c.file.Close() // the client must not wait for what cannot come
		return
	}
	select {
	case c.queue <- frame:
	default:
		_ = c.file.Close() // it does not read
	}
}

// Close ends all connections and waits for their goroutines. The socket file
// stays, for a successor to replace.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	_ = s.listen.Close()
	for _, c := range s.clients {
		_ = c.file.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
