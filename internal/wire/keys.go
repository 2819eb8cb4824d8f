package wire

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keyLabel  = "EXPORTER-hanok-datagram-1"
	keySize   = 32
	saltSize  = 4
	keyIDSize = 8
	// setsPerPeer bounds the key sets kept for one peer, besides those of
	// handshakes under way, which the rounds of connecting and the gate bound.
	// Two are needed while keys change; the others are handshakes that never
	// ended well, or any while no datagram tells what the peer uses.
	setsPerPeer = 8
)

type keyID [keyIDSize]byte

// halfKey is the key of one direction of one session.
type halfKey struct {
	id   keyID
	aead cipher.AEAD
	salt [saltSize]byte
}

// nonce is unique per key: the sender never repeats a counter.
func (h *halfKey) nonce(dst *[12]byte, counter uint64) []byte {
	copy(dst[:], h.salt[:])
	putUint64(dst[saltSize:], counter)
	return dst[:]
}

type sendKey struct {
	halfKey
	counter atomic.Uint64
}

type recvKey struct {
	halfKey
	peer *peer
	set  *keySet
	mu   sync.Mutex
	win  window
	// used: the peer sent with it and lower sets were forgotten.
	used atomic.Bool
}

// keySet holds the keys of one TLS session. Fields below are the keyring's.
type keySet struct {
	send *sendKey
	recv *recvKey
	made time.Time

	// gen orders the sets of two hosts; both know the same number. 0: the peer
	// has not told yet.
	gen uint64
	// settled: the handshake has ended, well or not.
	settled bool
}

// above orders sets the same way on both hosts, also with equal numbers from
// two sessions made at the same time. The ids differ in which is "send", so
// the smaller of the two is compared.
func (s *keySet) above(o *keySet) bool {
	if s.gen != o.gen {
		return s.gen > o.gen
	}
	a, b := s.lowID(), o.lowID()
	return bytes.Compare(a[:], b[:]) > 0
}

func (s *keySet) lowID() keyID {
	if bytes.Compare(s.send.id[:], s.recv.id[:]) < 0 {
		return s.send.id
	}
	return s.recv.id
}

// deriveKeys makes the keys of a session; both ends get the same two.
func deriveKeys(cs tls.ConnectionState, p *peer, dialed bool) (*keySet, error) {
	const half = keySize + saltSize + keyIDSize
	raw, err := cs.ExportKeyingMaterial(keyLabel, nil, 2*half)
	if err != nil {
		return nil, fmt.Errorf("derive datagram keys: %w", err)
	}
	fromDialer, err := newHalf(raw[:half])
	if err != nil {
		return nil, err
	}
	fromListener, err := newHalf(raw[half:])
	if err != nil {
		return nil, err
	}
	out, in := fromListener, fromDialer
	if dialed {
		out, in = fromDialer, fromListener
	}
	s := &keySet{send: &sendKey{halfKey: out}, recv: &recvKey{halfKey: in, peer: p}, made: time.Now()}
	s.recv.set = s
	return s, nil
}

func newHalf(raw []byte) (halfKey, error) {
	block, err := aes.NewCipher(raw[:keySize])
	if err != nil {
		return halfKey{}, fmt.Errorf("derive datagram keys: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return halfKey{}, fmt.Errorf("derive datagram keys: %w", err)
	}
	h := halfKey{aead: aead}
	copy(h.salt[:], raw[keySize:])
	copy(h.id[:], raw[keySize+saltSize:])
	return h, nil
}

// keyring holds all keys. Lookups of received ids take no lock.
type keyring struct {
	mu   sync.Mutex
	byID atomic.Pointer[map[keyID]*recvKey]
	sets map[*peer][]*keySet // in the order of arrival
	// highest number agreed with a peer, kept when sets are forgotten.
	maxGen map[*peer]uint64
}

func (k *keyring) init() {
	k.byID.Store(&map[keyID]*recvKey{})
	k.sets, k.maxGen = map[*peer][]*keySet{}, map[*peer]uint64{}
}

func (k *keyring) lookup(id keyID) *recvKey { return (*k.byID.Load())[id] }

// change replaces the table of ids; k.mu is held.
func (k *keyring) change(f func(m map[keyID]*recvKey)) {
	m := maps.Clone(*k.byID.Load())
	f(m)
	k.byID.Store(&m)
}

// accept lets a session's keys open datagrams. The dialling side calls it
// before it says hello, so that the peer may use the keys at once. settle must
// follow.
func (k *keyring) accept(p *peer, s *keySet) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p.ctx.Err() != nil {
		return // removed meanwhile
	}
	k.sets[p] = append(k.sets[p], s)
	k.change(func(m map[keyID]*recvKey) { m[s.recv.id] = s.recv })
}

// settle says that a session's handshake has ended, after agree if it ended
// well. Only now may the set push out another or be pushed out itself: while
// the handshake is under way the peer may have chosen it already.
func (k *keyring) settle(p *peer, s *keySet) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.settled = true
	settled := 0
	for _, x := range k.sets[p] {
		if x.settled {
			settled++
		}
	}
	if settled <= setsPerPeer {
		return
	}
	if v := k.victim(p, s); v != nil {
		k.change(func(m map[keyID]*recvKey) { k.drop(m, p, v) })
	}
}

// victim is the set that the peer is least likely to send with: the oldest,
// but not the one just made, nor the one that it sent with last, nor the
// highest agreed, which it uses unless it knows a higher.
func (k *keyring) victim(p *peer, just *keySet) *keySet {
	heard := p.heardSet.Load()
	for _, s := range k.sets[p] {
		if s.settled && s != just && s != heard && s != p.sendSet {
			return s
		}
	}
	return nil
}

func (k *keyring) drop(m map[keyID]*recvKey, p *peer, s *keySet) {
	delete(m, s.recv.id)
	k.sets[p] = slices.DeleteFunc(k.sets[p], func(x *keySet) bool { return x == s })
}

// nextGen is the number that this host proposes for a new session.
func (k *keyring) nextGen(p *peer) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(k.maxGen[p]+1, k.maxGen[p]) // no overflow to 0, whatever a peer proposes
}

// agree records a session's number: the peer has the keys, so this host sends
// with them unless it has higher ones.
func (k *keyring) agree(p *peer, s *keySet, gen uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s.gen = gen
	if p.ctx.Err() != nil {
		return
	}
	if gen > k.maxGen[p] {
		k.maxGen[p] = gen
	}
	if !slices.Contains(k.sets[p], s) {
		return
	}
	if cur := p.sendSet; cur == nil || s.above(cur) {
		p.sendSet = s
		p.sendKey.Store(s.send)
	}
}

// opened takes note that the peer sent with a key.
func (k *keyring) opened(r *recvKey) {
	if r.peer.heardSet.Load() != r.set {
		r.peer.heardSet.Store(r.set)
	}
	if !r.used.Load() {
		k.noteUsed(r)
	}
}

// noteUsed forgets the sets below one that the peer has used: the peer's choice
// only goes up.
func (k *keyring) noteUsed(r *recvKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.set.gen == 0 {
		return // known in a moment; the next datagram comes here again
	}
	r.used.Store(true)
	k.change(func(m map[keyID]*recvKey) {
		for _, s := range slices.Clone(k.sets[r.peer]) {
			if s != r.set && s.gen != 0 && r.set.above(s) {
				k.drop(m, r.peer, s)
			}
		}
	})
}

// forget drops everything about a peer that is no member any more.
func (k *keyring) forget(p *peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.change(func(m map[keyID]*recvKey) {
		for _, s := range k.sets[p] {
			delete(m, s.recv.id)
		}
	})
	delete(k.sets, p)
	delete(k.maxGen, p)
	p.sendSet = nil
	p.sendKey.Store(nil)
}

// age returns how old the keys in use with a peer are; false without any.
func (k *keyring) age(p *peer, now time.Time) (time.Duration, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p.sendSet == nil {
		return 0, false
	}
	return now.Sub(p.sendSet.made), true
}

// windowWords sizes the replay window: 2048 bits, of which one word is spare,
// so that a datagram may come 1984 later than its successors.
const (
	windowWords = 32
	windowBits  = windowWords * 64
	windowSize  = windowBits - 64
)

// window remembers which counters were seen (RFC 6479).
type window struct {
	top  uint64
	bits [windowWords]uint64
}

// fresh reports whether the counter was not seen and is not too old.
func (w *window) fresh(n uint64) bool {
	if n == 0 || n+windowSize <= w.top || n > 1<<62 {
		return false
	}
	return n > w.top || w.bits[n/64%windowWords]&(1<<(n%64)) == 0
}

// mark records a counter; it reports false when that was not fresh.
func (w *window) mark(n uint64) bool {
	if !w.fresh(n) {
		return false
	}
	if n > w.top {
		for i, steps := w.top/64+1, min(n/64-w.top/64, windowWords); steps > 0; i, steps = i+1, steps-1 {
			w.bits[i%windowWords] = 0
		}
		w.top = n
	}
	w.bits[n/64%windowWords] |= 1 << (n % 64)
	return true
}
