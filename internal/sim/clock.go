package sim

import "time"

// clock is CLOCK_BOOTTIME of one boot of a host: it starts anywhere, and runs
// fast or slow by ppm parts in a million.
type clock struct {
	since time.Duration // true time at which it showed offset
	shown time.Duration
	ppm   int64
}

// million is the denominator of ppm.
const million = 1_000_000

// at is what the clock shows at the true time now.
func (c *clock) at(now time.Duration) time.Duration {
	d := int64(now - c.since)
	return c.shown + time.Duration(d+d/million*c.ppm+d%million*c.ppm/million)
}

// when is the first true time at which the clock shows t or more.
func (c *clock) when(t time.Duration) time.Duration {
	d := int64(t - c.shown)
	rate := million + c.ppm
	at := c.since + time.Duration(d/rate*million+d%rate*million/rate)
	for c.at(at) < t {
		at += time.Duration(1 + (t-c.at(at))*million/time.Duration(rate+1))
	}
	for at > c.since && c.at(at-1) >= t {
		at--
	}
	return at
}

// set changes the rate from now on.
func (c *clock) set(now time.Duration, ppm int64) {
	c.shown, c.since, c.ppm = c.at(now), now, ppm
}
