package agent

import (
	"time"

	"golang.org/x/sys/unix"
)

// BootClock is the time since boot, suspend included (CLOCK_BOOTTIME).
func BootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("agent: this kernel has no CLOCK_BOOTTIME: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
