package sim

import "time"

// random is a small generator (splitmix64): the same seed gives the same
// numbers on every machine.
type random uint64

func (r *random) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below returns a number from 0 to n-1; 0 if n is not positive.
func (r *random) below(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return int64(r.next()>>1) % n
}

// between returns a duration from a to b.
func (r *random) between(a, b time.Duration) time.Duration {
	return a + time.Duration(r.below(int64(b-a)+1))
}

// chance is true in permille of 1000 cases.
func (r *random) chance(permille int) bool {
	return permille > 0 && int((r.next()>>1)%1000) < permille
}

// mix adds a number to a running hash.
func mix(h, v uint64) uint64 {
	h ^= v
	h *= 0x9e3779b97f4a7c15
	return h ^ h>>29
}
