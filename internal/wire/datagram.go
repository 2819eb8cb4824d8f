package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

// A datagram: magic, format, key id, counter, then payload and tag sealed by
// AES-256-GCM. What precedes the payload and the network's name are
// authenticated too, so that it cannot be moved to another network.
const (
	datagramMagic  = 'H'
	datagramFormat = 1
	headerSize     = 2 + keyIDSize + 8
	tagSize        = 16
	largestPacket  = headerSize + MaxDatagram + tagSize
)

func putUint64(b []byte, v uint64) { binary.BigEndian.PutUint64(b, v) }

// socket is the UDP end on one network.
type socket struct {
	network string
	conn    *net.UDPConn
	raw     syscall.RawConn
}

var packets = sync.Pool{New: func() any { b := make([]byte, 0, largestPacket+64); return &b }}

// SendDatagram seals and sends one datagram of at most MaxDatagram bytes on a
// network. It never waits: a full socket buffer is an error. No error does not
// mean that it arrived.
func (n *Node) SendDatagram(network string, to model.HostID, payload []byte) error {
	if err := n.sendDatagram(network, to, payload); err != nil {
		n.stats.add(datagramSendErrors)
		return fmt.Errorf("datagram to %s on %s: %w", to, network, err)
	}
	n.stats.add(datagramsSent)
	return nil
}

func (n *Node) sendDatagram(network string, to model.HostID, payload []byte) error {
	p := n.peer(to)
	if p == nil {
		return ErrUnknownPeer
	}
	addr := p.address(network)
	s := n.sockets[network]
	switch {
	case s == nil || !addr.IsValid():
		return ErrNoAddress
	case len(payload) > MaxDatagram:
		return fmt.Errorf("%d bytes: %w, at most %d", len(payload), ErrTooLarge, MaxDatagram)
	}
	key := p.sendKey.Load()
	if key == nil {
		return ErrNoKey
	}
	buf := packets.Get().(*[]byte)
	defer packets.Put(buf)
	*buf = seal((*buf)[:0], key, network, payload)
	return s.send(*buf, netip.AddrPortFrom(addr, n.cfg.Port))
}

// seal appends the packet to dst.
func seal(dst []byte, key *sendKey, network string, payload []byte) []byte {
	counter := key.counter.Add(1)
	dst = append(dst, datagramMagic, datagramFormat)
	dst = append(dst, key.id[:]...)
	dst = binary.BigEndian.AppendUint64(dst, counter)
	var nonce [12]byte
	return key.aead.Seal(dst, key.nonce(&nonce, counter), payload, associated(dst[:headerSize], network))
}

// associated is what is authenticated besides the payload.
func associated(header []byte, network string) []byte {
	var buf [headerSize + 128]byte
	return append(append(buf[:0], header...), network...)
}

// send hands a packet to the kernel without waiting for room.
func (s *socket) send(packet []byte, to netip.AddrPort) error {
	var sa unix.Sockaddr
	if a := to.Addr(); a.Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()}
	}
	var err error
	if cerr := s.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), packet, unix.MSG_DONTWAIT, sa)
		return true
	}); cerr != nil {
		return cerr
	}
	return err
}

// receiveLoop reads one socket until the node is closed.
func (n *Node) receiveLoop(s *socket) {
	buf := make([]byte, 2048)
	for n.ctx.Err() == nil {
		size, _, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			n.pause(10 * time.Millisecond) // the interface may be down; do not spin
			continue
		}
		n.receive(s.network, buf[:size])
	}
}

// receive checks one packet, the cheap checks first: a stranger's costs a look
// into a table and no cryptography.
func (n *Node) receive(network string, packet []byte) {
	switch {
	case len(packet) < headerSize+tagSize:
		n.stats.add(refusedShort)
		return
	case len(packet) > largestPacket || packet[0] != datagramMagic || packet[1] != datagramFormat:
		n.stats.add(refusedFormat)
		return
	}
	key := n.keys.lookup(keyID(packet[2 : 2+keyIDSize]))
	if key == nil {
		n.stats.add(refusedUnknownKey)
		return
	}
	counter := binary.BigEndian.Uint64(packet[2+keyIDSize:])
	key.mu.Lock()
	fresh := key.win.fresh(counter)
	key.mu.Unlock()
	if !fresh {
		n.stats.add(refusedReplay)
		return
	}
	var nonce [12]byte
	payload, err := key.aead.Open(nil, key.nonce(&nonce, counter), packet[headerSize:], associated(packet[:headerSize], network))
	if err != nil {
		n.stats.add(refusedForged)
		return
	}
	key.mu.Lock()
	fresh = key.win.mark(counter) // two copies may have come on two networks
	key.mu.Unlock()
	if !fresh {
		n.stats.add(refusedReplay)
		return
	}
	n.keys.opened(key)
	n.stats.add(datagramsReceived)
	n.handler.Datagram(key.peer.id, network, payload)
}

// pause waits, or returns early when the node is closed.
func (n *Node) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-n.ctx.Done():
	}
}
