package watchdog

import (
	"testing"
	"testing/synctest"
	"time"
)

// When this process stood still, what was written meanwhile is read before the
// host is reset; when nothing was, it is reset all the same.
func TestLateTimerLetsWaitingWritesIn(t *testing.T) {
	for _, written := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var expired time.Time
			d := &Device{timeout: time.Minute, expire: func() { expired = time.Now() }}
			feed := func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.feedLocked()
			}
			feed()
			start := time.Now()
			d.ranOut(d.round, start.Add(-5*time.Second)) // its timer, 5 s late
			want := start.Add(moment)
			if written {
				time.Sleep(moment / 2)
				feed()
				want = time.Now().Add(time.Minute)
			}
			time.Sleep(time.Hour)
			if !expired.Equal(want) {
				t.Errorf("written %v: expired after %v, want %v", written, expired.Sub(start), want.Sub(start))
			}
		})
	}
}
