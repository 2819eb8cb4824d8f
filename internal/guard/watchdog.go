package guard

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lease"
)

// watchdogRetry is how often a missing or failed device is tried again.
const watchdogRetry = 5 * time.Second

// watchdog is the goroutine that owns the watchdog device: a write to it may
// hang, and must then not stall the machine. To open the device or to set its
// time-out feeds it, so both wait for a pet that the machine ordered.
type watchdog struct {
	path    string
	deliver func(lease.Event)
	slow    func(took time.Duration) // is told of a device that took long; may be nil
	pets    chan pet
	quit    chan bool // true: disarm
	done    chan struct{}
	on      atomic.Bool
	fd      int           // -1 while not open
	timeout time.Duration // that it has, or is being set to
	tried   time.Duration // when it was last opened or set; 0: to be done at once
}

// pet is an order to feed the watchdog, not later than before, and to set its
// time-out if it has another.
type pet struct{ before, timeout time.Duration }

func startWatchdog(path string, deliver func(lease.Event), slow func(took time.Duration)) *watchdog {
	w := &watchdog{path: path, deliver: deliver, slow: slow, pets: make(chan pet, 1),
		quit: make(chan bool, 1), done: make(chan struct{}), fd: -1}
	go w.run()
	return w
}

// pet opens or feeds the watchdog unless it is too late by the time it is done,
// or the device is still busy with the last one.
func (w *watchdog) pet(p pet) {
	select {
	case w.pets <- p:
	default:
	}
}

func (w *watchdog) armed() bool { return w.on.Load() }

// stop ends the goroutine; with disarm the device is told that the end is
// orderly. A device that hangs is left to itself.
func (w *watchdog) stop(disarm bool) {
	w.quit <- disarm
	select {
	case <-w.done:
	case <-time.After(time.Second):
	}
}

func (w *watchdog) run() {
	defer close(w.done)
	for {
		select {
		case p := <-w.pets:
			now := datastore.BootTime()
			if now > p.before {
				continue
			}
			if p.timeout != w.timeout {
				w.timeout, w.tried = p.timeout, 0
			}
			w.petNow(now)
			if took := datastore.BootTime() - now; took > stallLimit && w.slow != nil {
				w.slow(took)
			}
		case disarm := <-w.quit:
			if w.fd >= 0 {
				if disarm {
					_, _ = unix.Write(w.fd, []byte{'V'}) // if it fails the host is reset, as without it
				}
				_ = unix.Close(w.fd)
			}
			return
		}
	}
}

// petNow feeds the device. One that is not open or not set is tried first, now
// and then.
func (w *watchdog) petNow(now time.Duration) {
	due := w.tried == 0 || now-w.tried >= watchdogRetry
	switch {
	case w.fd < 0 && due:
		w.tried = now
		w.open()
	case w.fd >= 0 && due && (w.tried == 0 || !w.on.Load()):
		w.tried = now
		w.set()
	case w.fd >= 0:
		w.feed()
	}
}

// open starts the watchdog: it ticks from now on.
func (w *watchdog) open() {
	if w.path == "" {
		w.report(fmt.Errorf("no watchdog device is configured"))
		return
	}
	fd, err := unix.Open(w.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	switch {
	case os.IsNotExist(err):
		w.report(fmt.Errorf("there is no %s; load softdog or the board's watchdog driver", w.path))
	case err != nil:
		w.report(fmt.Errorf("open %s: %w", w.path, err))
	default:
		w.fd = fd
		w.set()
	}
}

// set tells the device its time-out and checks what it made of it: a device
// that rounds up would reset the host later than others count on.
func (w *watchdog) set() {
	want := int(w.timeout / time.Second)
	if err := unix.IoctlSetPointerInt(w.fd, unix.WDIOC_SETTIMEOUT, want); err != nil {
		w.report(fmt.Errorf("set the time-out of %s to %d s: %w", w.path, want, err))
		return
	}
	got, err := unix.IoctlGetInt(w.fd, unix.WDIOC_GETTIMEOUT)
	switch {
	case err != nil:
		w.report(fmt.Errorf("read the time-out of %s: %w", w.path, err))
	case got != want:
		w.report(fmt.Errorf("%s keeps a time-out of %d s instead of %d s; choose timings that it can keep", w.path, got, want))
	default:
		w.feed()
		w.report(nil)
	}
}

// feed pets the device. A device that refuses is not armed as far as it is
// known, but it is neither disarmed nor closed: other hosts may count on it.
func (w *watchdog) feed() {
	if _, err := unix.Write(w.fd, []byte{'.'}); err != nil {
		w.report(fmt.Errorf("feed %s: %w", w.path, err))
	}
}

// report tells the machine whether the device does what the slot promises.
func (w *watchdog) report(err error) {
	w.on.Store(err == nil)
	ev := lease.Event{Kind: lease.EvWatchdog, On: err == nil, Open: w.fd >= 0, Timeout: w.timeout}
	if err != nil {
		ev.Text = err.Error()
	}
	w.deliver(ev)
}
