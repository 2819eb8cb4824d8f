package firewall

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// packet is the first one of a connection, from another host.
type packet struct {
	from  netip.Addr
	proto byte
	port  uint16
}

type outcome uint8

const (
	passed  outcome = iota // accepted, or the chain ended
	dropped                // for certain
	unsure                 // dropped unless a rule that is not understood admits it
)

// maxDepth bounds jumps between chains; the kernel permits 16.
const maxDepth = 16

// ruleset reads the rules of chains once.
type ruleset struct {
	rules    map[string][]*nftables.Rule
	load     func(*nftables.Chain) ([]*nftables.Rule, error)
	elements func(*nftables.Set) ([]nftables.SetElement, error)
}

func (w *ruleset) rulesOf(ch *nftables.Chain) ([]*nftables.Rule, bool) {
	name := chainName(ch)
	if _, ok := w.rules[name]; !ok {
		rules, err := w.load(ch)
		if err != nil {
			return nil, false
		}
		w.rules[name] = rules
	}
	return w.rules[name], true
}

// follow returns what becomes of the packet in a base chain.
func (w *ruleset) follow(ch *nftables.Chain, p packet) outcome {
	v, maybe, decided := w.walk(ch, p, 0)
	if !decided {
		v = passed
		if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			v = dropped
		}
	}
	if v == dropped && maybe {
		return unsure
	}
	return v
}

// walk returns the verdict of a chain's rules, whether a rule that is not
// understood may have accepted the packet before, and whether there was a
// verdict at all.
func (w *ruleset) walk(ch *nftables.Chain, p packet, depth int) (v outcome, maybe, decided bool) {
	rules, ok := w.rulesOf(ch)
	if !ok || depth > maxDepth {
		return passed, true, false
	}
	for _, r := range rules {
		match, verdict := w.eval(r, p)
		if match == never || verdict == nil {
			continue
		}
		switch verdict.Kind {
		case expr.VerdictAccept:
			if match == always {
				return passed, maybe, true
			}
			maybe = true
		case expr.VerdictDrop:
			if match == always {
				return dropped, maybe, true
			}
		case expr.VerdictReturn:
			if match == always {
				return passed, maybe, false
			}
		case expr.VerdictJump, expr.VerdictGoto:
			sub, subMaybe, subDecided := w.walk(&nftables.Chain{Table: ch.Table, Name: verdict.Chain}, p, depth+1)
			maybe = maybe || subMaybe
			switch {
			case match == always && subDecided:
				return sub, maybe, true
			case match == always && verdict.Kind == expr.VerdictGoto:
				return passed, maybe, false
			case subDecided && sub == passed:
				maybe = true
			}
		}
	}
	return passed, maybe, false
}

type match uint8

const (
	never match = iota
	perhaps
	always
)

// eval follows a rule's expressions with the registers that they fill; an
// unknown register is nil.
func (w *ruleset) eval(r *nftables.Rule, p packet) (match, *expr.Verdict) {
	m := always
	regs := map[uint32][]byte{}
	for _, e := range r.Exprs {
		var holds, known bool
		switch e := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Notrack:
			continue
		case *expr.Verdict:
			return m, e
		case *expr.Reject:
			return m, &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Meta:
			regs[e.Register] = p.meta(e.Key)
			continue
		case *expr.Ct:
			regs[e.Register] = nil
			if e.Key == expr.CtKeySTATE {
				regs[e.Register] = binary.NativeEndian.AppendUint32(nil, expr.CtStateBitNEW)
			}
			continue
		case *expr.Payload:
			regs[e.DestRegister] = p.payload(e)
			continue
		case *expr.Bitwise:
			regs[e.DestRegister] = bitwise(regs[e.SourceRegister], e)
			continue
		case *expr.Cmp:
			holds, known = compare(regs[e.Register], e)
		case *expr.Lookup:
			if e.IsDestRegSet { // a map of verdicts: one of them may accept
				return perhaps, &expr.Verdict{Kind: expr.VerdictAccept}
			}
			holds, known = w.lookup(regs[e.SourceRegister], e, r.Table)
		}
		switch {
		case !known:
			m = perhaps
		case !holds:
			return never, nil
		}
	}
	return m, nil
}

func (p packet) meta(k expr.MetaKey) []byte {
	switch k {
	case expr.MetaKeyL4PROTO:
		return []byte{p.proto}
	case expr.MetaKeyNFPROTO:
		if p.from.Is6() {
			return []byte{unix.NFPROTO_IPV6}
		}
		return []byte{unix.NFPROTO_IPV4}
	}
	return nil
}

func (p packet) payload(e *expr.Payload) []byte {
	switch {
	case e.Base == expr.PayloadBaseTransportHeader && e.Offset == 2 && e.Len == 2:
		return binary.BigEndian.AppendUint16(nil, p.port)
	case e.Base == expr.PayloadBaseNetworkHeader && p.from.Is4() && e.Offset == 12 && e.Len <= 4,
		e.Base == expr.PayloadBaseNetworkHeader && p.from.Is6() && e.Offset == 8 && e.Len <= 16:
		return p.from.AsSlice()[:e.Len]
	}
	return nil
}

func bitwise(b []byte, e *expr.Bitwise) []byte {
	if b == nil || len(e.Mask) != len(b) || len(e.Xor) != len(b) {
		return nil
	}
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i]&e.Mask[i] ^ e.Xor[i]
	}
	return out
}

func compare(b []byte, e *expr.Cmp) (holds, known bool) {
	if b == nil {
		// The packet comes from outside: its interface is not the loopback.
		lo := bytes.HasPrefix(e.Data, []byte("lo\x00")) && len(e.Data) == unix.IFNAMSIZ
		return e.Op == expr.CmpOpNeq, lo && (e.Op == expr.CmpOpEq || e.Op == expr.CmpOpNeq)
	}
	if len(b) != len(e.Data) {
		return false, false
	}
	c := bytes.Compare(b, e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return c == 0, true
	case expr.CmpOpNeq:
		return c != 0, true
	case expr.CmpOpLt:
		return c < 0, true
	case expr.CmpOpLte:
		return c <= 0, true
	case expr.CmpOpGt:
		return c > 0, true
	case expr.CmpOpGte:
		return c >= 0, true
	}
	return false, false
}

// lookup understands sets of single values; in one with intervals a value that
// is not listed itself is unknown.
func (w *ruleset) lookup(b []byte, e *expr.Lookup, t *nftables.Table) (holds, known bool) {
	if b == nil {
		return false, false
	}
	elements, err := w.elements(&nftables.Set{Table: t, Name: e.SetName, ID: e.SetID})
	if err != nil {
		return false, false
	}
	interval := false
	for _, el := range elements {
		interval = interval || el.IntervalEnd
		if !el.IntervalEnd && bytes.Equal(el.Key, b) {
			return !e.Invert, true
		}
	}
	return e.Invert, !interval
}
