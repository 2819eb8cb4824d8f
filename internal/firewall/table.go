package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the table of family inet that belongs to Hanok alone.
const TableName = "hanok"

// priority is before the usual filters, so that they never see strangers.
const priority = -10

// Rules say who may reach the port.
type Rules struct {
	Port    uint16
	Members []netip.Addr
	// Closed: nobody may, no member either.
	Closed bool
	// Control, unless 0, is a TCP port that members need in either case. Hanok's
	// own table leaves it alone; other firewalls must let members through.
	Control uint16
}

// service is a port of one protocol.
type service struct {
	proto byte
	port  uint16
}

// word is the protocol as firewalls write it.
func (s service) word() string {
	if s.proto == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}

// services are what other firewalls have to let members through to.
func (r Rules) services() []service {
	var out []service
	if !r.Closed {
		out = append(out, service{unix.IPPROTO_TCP, r.Port}, service{unix.IPPROTO_UDP, r.Port})
	}
	if r.Control != 0 {
		out = append(out, service{unix.IPPROTO_TCP, r.Control})
	}
	return out
}

// admitted are the members that Hanok's own table lets through.
func (r Rules) admitted() []netip.Addr {
	if r.Closed {
		return nil
	}
	return r.Members
}

// Apply brings the rules into force in this process's network namespace, in one
// transaction: there is no moment without them. It is idempotent.
func Apply(r Rules) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	accept := nftables.ChainPolicyAccept
	in := c.AddChain(&nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRef(priority), Policy: &accept})
	rule := func(exprs ...expr.Any) { c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: exprs}) }
	verdict := func(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }
	// What is not for the port passes.
	rule(meta(expr.MetaKeyL4PROTO), notEqual(unix.IPPROTO_TCP), notEqual(unix.IPPROTO_UDP), verdict(expr.VerdictAccept))
	rule(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		notEqual(binaryutil.BigEndian.PutUint16(r.Port)...), verdict(expr.VerdictAccept))
	rule(meta(expr.MetaKeyIIFNAME), equal(ifname("lo")...), verdict(expr.VerdictAccept))
	for _, a := range r.admitted() {
		family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
		if a = a.Unmap(); a.Is6() {
			family, offset = unix.NFPROTO_IPV6, 8
		}
		rule(meta(expr.MetaKeyNFPROTO), equal(family),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
			equal(a.AsSlice()...), verdict(expr.VerdictAccept))
	}
	rule(&expr.Counter{}, verdict(expr.VerdictDrop))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", TableName, err)
	}
	return nil
}

// Remove deletes the table; one that does not exist is no error.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: TableName})
	if err := c.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the nftables table %s: %w", TableName, err)
	}
	return nil
}

func meta(k expr.MetaKey) expr.Any { return &expr.Meta{Key: k, Register: 1} }

func equal(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func notEqual(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

// ifname is an interface's name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
