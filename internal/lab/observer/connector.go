package observer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Of linux/connector.h and linux/cn_proc.h.
const (
	cnIdxProc      = 1
	cnValProc      = 1
	procListen     = 1
	procEventExec  = 0x00000002
	procEventExit  = 0x80000000
	nlHeader       = 16
	cnHeader       = 20
	eventHeader    = 16
	receiveBuffer  = 16 << 20
	receiveMessage = 8192
)

type processEvent struct {
	exit       bool // else exec
	thread     int
	process    int
	nanosecond uint64 // CLOCK_MONOTONIC
}

// openConnector subscribes to the kernel's process events. Only the initial
// namespaces get them.
func openConnector() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return -1, os.NewSyscallError("process connector (CONFIG_PROC_EVENTS)", err)
	}
	// A burst of forks must not overflow it; if it does, all is read afresh.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: cnIdxProc}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind process connector", err)
	}
	msg := make([]byte, nlHeader+cnHeader+4)
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], unix.NLMSG_DONE)
	binary.NativeEndian.PutUint32(msg[nlHeader:], cnIdxProc)
	binary.NativeEndian.PutUint32(msg[nlHeader+4:], cnValProc)
	binary.NativeEndian.PutUint16(msg[nlHeader+16:], 4)
	binary.NativeEndian.PutUint32(msg[nlHeader+cnHeader:], procListen)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("subscribe to process events", err)
	}
	return fd, nil
}

var errLost = errors.New("process events were lost")

// readConnector hands all waiting events to handle. It returns errLost if the
// kernel had to drop some.
func readConnector(fd int, handle func(processEvent)) error {
	buf := make([]byte, receiveMessage)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			return errLost
		case err != nil:
			return fmt.Errorf("process connector: %w", err)
		}
		for msg := buf[:n]; len(msg) >= nlHeader+cnHeader+eventHeader+8; {
			size := int(binary.NativeEndian.Uint32(msg))
			if size < nlHeader || size > len(msg) {
				break
			}
			if e, ok := decode(msg[nlHeader+cnHeader : size]); ok {
				handle(e)
			}
			msg = msg[min(len(msg), (size+3)&^3):]
		}
	}
}

func decode(b []byte) (processEvent, bool) {
	if len(b) < eventHeader+8 {
		return processEvent{}, false
	}
	what := binary.NativeEndian.Uint32(b)
	if what != procEventExec && what != procEventExit {
		return processEvent{}, false
	}
	return processEvent{
		exit:       what == procEventExit,
		nanosecond: binary.NativeEndian.Uint64(b[8:]),
		thread:     int(binary.NativeEndian.Uint32(b[eventHeader:])),
		process:    int(binary.NativeEndian.Uint32(b[eventHeader+4:])),
	}, true
}
