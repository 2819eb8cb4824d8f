package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo replies to everything, except to what it is told to keep.
type echo struct {
	mu     sync.Mutex
	server *Server
	keep   bool
	conns  []uint64
	lost   chan uint64
}

func (e *echo) Request(conn uint64, r *lease.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns = append(e.conns, conn)
	if !e.keep {
		e.server.Reply(conn, &lease.Reply{ID: r.ID, Code: lease.CodeOK, Text: string(rune('0' + len(e.conns)%10))})
	}
}

func (e *echo) Lost(conn uint64) { e.lost <- conn }

func serve(t *testing.T, keep bool) (*echo, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	e := &echo{keep: keep, lost: make(chan uint64, 100)}
	e.mu.Lock()
	defer e.mu.Unlock()
	s, err := Listen(path, uint32(os.Getuid()), e)
	if err != nil {
		t.Fatal(err)
	}
	e.server = s
	t.Cleanup(s.Close)
	return e, path
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(within(t, 5*time.Second), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestCallsOfManyAtOnce(t *testing.T) {
	_, path := serve(t, false)
	c := dial(t, path)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			r, err := c.Call(within(t, 5*time.Second), lease.Request{Status: &lease.StatusRequest{}})
			if err != nil || r.Code != lease.CodeOK {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	wg.Wait()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", st.Mode(), err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	e, path := serve(t, true)
	c := dial(t, path)
	_, err := c.Call(within(t, 50*time.Millisecond), lease.Request{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	c.Close()
	if id := <-e.lost; id == 0 {
		t.Error("no connection was lost")
	}
	if _, err := c.Call(within(t, time.Second), lease.Request{}); !errors.Is(err, ErrClosed) {
		t.Errorf("call on a closed connection: %v", err)
	}
}

func TestServerGoesAway(t *testing.T) {
	e, path := serve(t, true)
	c := dial(t, path)
	done := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), lease.Request{})
		done <- err
	}()
	for {
		e.mu.Lock()
		n := len(e.conns)
		e.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	e.server.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, ok := <-c.Notices(); ok {
		t.Error("notices are still open")
	}
	if _, err := Dial(within(t, time.Second), path); err == nil || !strings.Contains(err.Error(), "hanok-guard") {
		t.Errorf("dial without a server: %v", err)
	}
}

// TestReaderThatSleeps: a subscriber that does not read is disconnected and
// holds up nobody.
func TestReaderThatSleeps(t *testing.T) {
	e, path := serve(t, true)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	big := &lease.Notice{Text: strings.Repeat("x", 64<<10)}
	for len(e.lost) == 0 {
		e.server.Notify([]uint64{1}, big)
	}
}

// TestHostileFrames: lengths and contents that are wrong end the connection.
func TestHostileFrames(t *testing.T) {
	for name, frame := range map[string][]byte{
		"too long": binary.BigEndian.AppendUint32(nil, MaxFrame+1),
		"no JSON":  append(binary.BigEndian.AppendUint32(nil, 3), "abc"...),
		"cut":      append(binary.BigEndian.AppendUint32(nil, 30), "{}"...),
	} {
		t.Run(name, func(t *testing.T) {
			e, path := serve(t, false)
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, frame); err != nil {
				t.Fatal(err)
			}
			if name == "cut" {
				if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
			}
			<-e.lost
			if len(e.conns) != 0 {
				t.Error("it was taken for a request")
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	ok, _ := encode(lease.Request{ID: 7, Beat: &lease.BeatRequest{Contact: true}})
	f.Add(ok)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r lease.Request
		_ = decode(strings.NewReader(string(b)), &r)
	})
}
