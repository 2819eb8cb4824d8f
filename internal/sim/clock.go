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

// alarm is when a machine is woken.
type alarm struct {
	at  time.Duration // true time of the item in the queue; 0 is none
	due time.Duration // that time by the host's clock
	clk clock         // as it ran then
}

// set has the machine woken when its host's clock shows next; false if it is
// woken by then anyway. To work out a true time takes longer than to compare.
func (a *alarm) set(h *host, next time.Duration) bool {
	next = max(next, h.clock())
	if a.at > 0 && a.due <= next && a.clk == h.clk {
		return false
	}
	at := h.clk.when(next)
	if a.at > 0 && a.at <= at {
		return false
	}
	*a = alarm{at, next, h.clk}
	return true
}
