package agent

import (
	"context"
	"fmt"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
)

// canaryRetry is the pause after a canary that was not refused by the hook.
const canaryRetry = 5 * time.Second

// canary proves after each connect to libvirt, and whenever the guard has not
// seen the hook, that libvirt asks the hook before it starts a domain.
func (a *Agent) canary(ctx context.Context) {
	retry := time.NewTimer(canaryRetry)
	defer retry.Stop()
	last := ""
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
			retry.Reset(canaryRetry)
			continue
		}
		name := fmt.Sprintf("%s%x-%d", lease.CanaryPrefix, a.start, n)
		cctx, cancel := context.WithTimeout(ctx, startLimit)
		err := a.cfg.Hypervisor.Canary(cctx, name, name)
		cancel()
		if err == nil {
			last = ""
			continue
		}
		a.count.add("hook-not-proven")
		if text := err.Error(); text != last && ctx.Err() == nil {
			last = text
			a.tell(ctx, event.Event{Severity: event.Warning, Kind: event.Hypervisor, Host: a.host,
				Text:  fmt.Sprintf("libvirt on %s does not ask Hanok's hook; its VMs are not protected", a.host),
				Cause: text})
		}
		retry.Reset(canaryRetry)
	}
}
