package account

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// limit is how failures of one kind slow the next attempts down: after Free of
// them the pause begins with Pause and doubles up to Most.
type limit struct {
	free        int
	pause, most time.Duration
}

// The limits. The one of a user is weak on purpose: whoever fails from many
// addresses in somebody's name costs that user seconds, not the account.
var (
	perPair    = limit{5, time.Second, 15 * time.Minute}
	perAddress = limit{20, time.Second, 5 * time.Minute}
	perUser    = limit{30, time.Second, 8 * time.Second}
)

const (
	// forget is how long after the last failure it is forgotten.
	forget = 30 * time.Minute
	// knownFor is how long an address from which a user logged in stays
	// exempt from what others do in their name or beside them.
	knownFor = 30 * 24 * time.Hour
	// maxEntries bounds each of the four tables (about 200 bytes an entry).
	maxEntries = 10000
)

// Throttle slows guesses of passwords down. It counts per user and address, per
// address, and per user; who logged in from an address before is slowed down
// there only by their own failures. The zero value is ready.
type Throttle struct {
	mu                  sync.Mutex
	pairs, addrs, users table
	known               table
}

type pair struct {
	user string
	addr netip.Prefix
}

// network is what counts as one address: an IPv6 host has a whole /64.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // of an invalid address the invalid prefix: one place
	return p
}

// Begin asks for an attempt. It counts as failed until Succeeded says
// otherwise, so that many at once gain nothing. Above 0: refused, and how long
// to wait.
func (t *Throttle) Begin(user string, from netip.Addr, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := pair{user, network(from)}
	counters := []struct {
		e *entry
		l limit
	}{{t.pairs.get(p, now, forget), perPair}}
	if k := t.known.peek(p); k == nil || now.Sub(k.last) > knownFor {
		counters = append(counters, struct {
			e *entry
			l limit
		}{t.addrs.get(p.addr, now, forget), perAddress}, struct {
			e *entry
			l limit
		}{t.users.get(p.user, now, forget), perUser})
	}
	var wait time.Duration
	for _, c := range counters {
		wait = max(wait, c.e.until.Sub(now))
	}
	if wait > 0 {
		return wait
	}
	for _, c := range counters {
		c.e.fail(c.l, now)
	}
	return 0
}

// Succeeded takes the attempt's count back, and remembers that this user logs
// in from there.
func (t *Throttle) Succeeded(user string, from netip.Addr, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := pair{user, network(from)}
	t.pairs.drop(p)
	for _, e := range []*entry{t.addrs.peek(p.addr), t.users.peek(p.user)} {
		if e != nil {
			e.failures, e.until = max(0, e.failures-1), now
		}
	}
	t.known.get(p, now, knownFor).last = now
}

// Forget ends the pauses of a user, at all addresses; those of addresses stay.
func (t *Throttle) Forget(user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users.drop(user)
	for key := range t.pairs.at {
		if p, ok := key.(pair); ok && p.user == user {
			t.pairs.drop(key)
		}
	}
}

type entry struct {
	key      any
	failures int
	last     time.Time
	until    time.Time
}

func (e *entry) fail(l limit, now time.Time) {
	e.failures++
	e.last = now
	if over := e.failures - l.free; over > 0 {
		pause := l.most
		if over < 20 {
			pause = min(l.most, l.pause<<(over-1))
		}
		e.until = now.Add(pause)
	}
}

// table holds the entries used last.
type table struct {
	at    map[any]*list.Element
	order list.List // *entry, the one used last first
}

func (t *table) peek(key any) *entry {
	if el := t.at[key]; el != nil {
		return el.Value.(*entry)
	}
	return nil
}

// get is the entry of a key, a new one if the old one's time is over.
func (t *table) get(key any, now time.Time, keep time.Duration) *entry {
	if t.at == nil {
		t.at = map[any]*list.Element{}
	}
	if el := t.at[key]; el != nil {
		e := el.Value.(*entry)
		t.order.MoveToFront(el)
		if now.Sub(e.last) > keep && now.After(e.until) {
			*e = entry{key: key}
		}
		return e
	}
	if len(t.at) >= maxEntries {
		t.drop(t.order.Back().Value.(*entry).key)
	}
	e := &entry{key: key}
	t.at[key] = t.order.PushFront(e)
	return e
}

func (t *table) drop(key any) {
	if el := t.at[key]; el != nil {
		t.order.Remove(el)
		delete(t.at, key)
	}
}
