package agent

import (
	"context"
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
)

// Pauses after a canary that the hook did not refuse: a missing hook is put back
// by a person, and each canary starts a QEMU for a moment.
const (
	canaryRetryMin = 5 * time.Second
	canaryRetryMax = time.Minute
)

// canary proves after each connect to libvirt, and whenever the guard has not
// seen the hook, that libvirt asks the hook before it starts a domain.
func (a *Agent) canary(ctx context.Context) {
	retry := time.NewTimer(canaryRetryMin)
	defer retry.Stop()
	last, pause := "", canaryRetryMin
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-a.hv.connected:
		case <-a.links.unseen:
		case <-retry.C:
		}
		retry.Stop()
		conn, _ := a.links.get()
		if conn == nil || !a.cfg.Hypervisor.Connection().Up {
			retry.Reset(canaryRetryMin)
			continue
		}
		name := fmt.Sprintf("%s%x-%d", lease.CanaryPrefix, a.start, n)
		cctx, cancel := context.WithTimeout(ctx, startLimit)
		err := a.cfg.Hypervisor.Canary(cctx, name, name)
		cancel()
		if err == nil {
			last, pause = "", canaryRetryMin
			continue
		}
		a.count.add("hook-not-proven")
		if text := err.Error(); text != last && ctx.Err() == nil {
			last = text
			a.tell(ctx, event.Event{Severity: event.Warning, Kind: event.Hypervisor, Host: a.host,
				Text:  fmt.Sprintf("libvirt on %s does not ask Hanok's hook; its VMs are not protected", a.host),
				Cause: text})
		}
		retry.Reset(pause)
		pause = min(2*pause, canaryRetryMax)
	}
}
