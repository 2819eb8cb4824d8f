// Package bitset is a set of small whole numbers, such as indices of hosts.
package bitset

import (
	"iter"
	"math/bits"
)

// Set holds numbers from 0 up to the size that it was made for. Sets that are
// used together must have been made for the same size.
type Set []uint64

// New makes an empty set for numbers below n.
func New(n int) Set { return make(Set, (n+63)/64) }

// Full makes the set of all numbers below n.
func Full(n int) Set {
	s := New(n)
	for i := range s {
		s[i] = ^uint64(0)
	}
	if r := n % 64; r != 0 {
		s[len(s)-1] = 1<<r - 1
	}
	return s
}

// Has tells whether i is in the set.
func (s Set) Has(i int) bool { return s[i>>6]&(1<<(i&63)) != 0 }

// Add puts i in.
func (s Set) Add(i int) { s[i>>6] |= 1 << (i & 63) }

// Remove takes i out.
func (s Set) Remove(i int) { s[i>>6] &^= 1 << (i & 63) }

// Put puts i in or takes it out.
func (s Set) Put(i int, in bool) {
	if in {
		s.Add(i)
	} else {
		s.Remove(i)
	}
}

// Count is the number of members.
func (s Set) Count() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Empty tells whether there are no members.
func (s Set) Empty() bool {
	for _, w := range s {
		if w != 0 {
			return false
		}
	}
	return true
}

// First is the least member, or -1.
func (s Set) First() int {
	for i, w := range s {
		if w != 0 {
			return i<<6 + bits.TrailingZeros64(w)
		}
	}
	return -1
}

// All yields the members, in order.
func (s Set) All() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range s {
			for w != 0 {
				if !yield(i<<6 + bits.TrailingZeros64(w)) {
					return
				}
				w &= w - 1
			}
		}
	}
}

// Clone is a copy.
func (s Set) Clone() Set { return append(Set(nil), s...) }

// Intersect keeps what o has too.
func (s Set) Intersect(o Set) {
	for i, w := range o {
		s[i] &= w
	}
}

// Subtract takes out what o has.
func (s Set) Subtract(o Set) {
	for i, w := range o {
		s[i] &^= w
	}
}

// Union puts in what o has.
func (s Set) Union(o Set) {
	for i, w := range o {
		s[i] |= w
	}
}

// Within tells whether o has all members.
func (s Set) Within(o Set) bool {
	for i, w := range s {
		if w&^o[i] != 0 {
			return false
		}
	}
	return true
}
