package agent

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// echoEvery is the pause between echoes to one address.
const echoEvery = 200 * time.Millisecond

// Ping sends ICMP echoes to all addresses until one of them answers or ctx
// ends, which must have a deadline, and returns the first that did. It needs a
// raw socket, so root.
func Ping(ctx context.Context, addrs []netip.Addr) (netip.Addr, bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan netip.Addr, len(addrs))
	for _, a := range addrs {
		go func() {
			if !pingOne(ctx, a) {
				a = netip.Addr{}
			}
			answers <- a
		}()
	}
	var answered netip.Addr
	for range addrs {
		if a := <-answers; a.IsValid() && !answered.IsValid() {
			answered = a
			cancel()
		}
	}
	return answered, answered.IsValid()
}

func pingOne(ctx context.Context, addr netip.Addr) bool {
	network, local := "ip4:icmp", "0.0.0.0"
	var ask, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	proto := 1 // ICMP
	if addr.Is6() && !addr.Is4In6() {
		network, local = "ip6:ipv6-icmp", "::"
		ask, reply, proto = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	conn, err := icmp.ListenPacket(network, local)
	if err != nil {
		return false
	}
	defer conn.Close()
	id := rand.IntN(1 << 16)
	to := &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	buf := make([]byte, 512)
	for seq := 1; ctx.Err() == nil; seq++ {
		msg := icmp.Message{Type: ask, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff, Data: []byte("hanok")}}
		b, err := msg.Marshal(nil)
		if err != nil {
			return false
		}
		_, _ = conn.WriteTo(b, to) // no route now may be a route in a moment
		until := time.Now().Add(echoEvery)
		if d, ok := ctx.Deadline(); ok && d.Before(until) {
			until = d
		}
		if err := conn.SetReadDeadline(until); err != nil {
			return false
		}
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				break
			}
			if ip, ok := from.(*net.IPAddr); !ok || !ip.IP.Equal(to.IP) {
				continue
			}
			m, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil || m.Type != reply {
				continue
			}
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id {
				return true
			}
		}
	}
	return false
}
