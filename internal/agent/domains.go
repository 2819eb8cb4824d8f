package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/hypervisor"
	"hanok.dev/hanok/internal/hypervisor/domainxml"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Times of the watch.
const (
	// relistEvery is a safety net under the driver's events.
	relistEvery = 30 * time.Second
	// relistRetry follows a list that failed.
	relistRetry = time.Second
	listLimit   = 10 * time.Second
	xmlLimit    = 2 * time.Second
)

// hypervisorWatch turns the driver's events into the machine's, and keeps what
// a domain's definition says of its size.
type hypervisorWatch struct {
	a *Agent
	// connected wakes the canary after each connect.
	connected chan struct{}

	// serial keeps what is posted in the order in which it was seen: no change
	// overtakes a list that does not have it yet.
	serial sync.Mutex

	mu    sync.Mutex
	known map[model.VMID]fdm.Domain
	sizes map[model.VMID]size // by definition; absent is unknown
}

type size struct {
	memory model.MiB
	cpus   int
}

func newHypervisorWatch(a *Agent) *hypervisorWatch {
	return &hypervisorWatch{a: a, connected: make(chan struct{}, 1),
		known: map[model.VMID]fdm.Domain{}, sizes: map[model.VMID]size{}}
}

func (w *hypervisorWatch) run(ctx context.Context) {
	relist := time.NewTimer(relistEvery)
	defer relist.Stop()
	up := false
	again := func() {
		pause := relistEvery
		if up && w.list(ctx) != nil {
			pause = relistRetry
		}
		relist.Reset(pause)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-relist.C:
			again()
		case e, ok := <-w.a.cfg.Hypervisor.Events():
			if !ok {
				return
			}
			switch e.Kind {
			case hypervisor.EventResync:
				if !up {
					up = true
					w.a.setHypervisor(true, "")
					w.a.post(ctx, fdm.HypervisorChanged{Up: true})
				}
				select {
				case w.connected <- struct{}{}:
				default:
				}
				again()
			case hypervisor.EventDisconnected:
				up = false
				w.a.setHypervisor(false, e.Detail)
				w.a.post(ctx, fdm.HypervisorChanged{Reason: e.Detail})
			case hypervisor.EventDefined, hypervisor.EventUndefined:
				w.forget(e.VM)
				again()
			default:
				w.changed(ctx, e)
			}
		}
	}
}

func (w *hypervisorWatch) forget(vm model.VMID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sizes, vm)
}

// changed posts a domain's change of state.
func (w *hypervisorWatch) changed(ctx context.Context, e hypervisor.Event) {
	if strings.HasPrefix(e.Name, lease.CanaryPrefix) {
		return
	}
	w.serial.Lock()
	defer w.serial.Unlock()
	w.mu.Lock()
	d, ok := w.known[e.VM]
	if !ok {
		s := w.sizes[e.VM]
		d = fdm.Domain{VM: e.VM, Memory: s.memory, CPUs: s.cpus}
	}
	d.Name = e.Name
	switch e.Kind {
	case hypervisor.EventStarted, hypervisor.EventResumed:
		d.Active, d.Paused, d.Cause = true, false, fdm.StopUnknown
	case hypervisor.EventSuspended:
		d.Active, d.Paused = true, true
	case hypervisor.EventStopped:
		d.Active, d.Paused, d.Cause = false, false, causes[e.Cause]
	default:
		w.mu.Unlock()
		return
	}
	w.known[e.VM] = d
	w.mu.Unlock()
	w.a.post(ctx, fdm.DomainChanged{Domain: d})
}

// causes maps the driver's words. A process that a signal ended, or that was
// gone when libvirtd came back, did not stop by its user's will.
var causes = map[hypervisor.StopCause]fdm.StopCause{
	hypervisor.StopGuestShutdown: fdm.StopGuestShutdown,
	hypervisor.StopHostSignal:    fdm.StopFailed,
	hypervisor.StopDestroyed:     fdm.StopDestroyed,
	hypervisor.StopCrashed:       fdm.StopCrashed,
	hypervisor.StopFailed:        fdm.StopFailed,
	hypervisor.StopMigrated:      fdm.StopMigrated,
	hypervisor.StopSaved:         fdm.StopSaved,
	hypervisor.StopSnapshot:      fdm.StopDestroyed,
	hypervisor.StopDaemonLost:    fdm.StopFailed,
}

// list posts the full list of domains.
func (w *hypervisorWatch) list(ctx context.Context) error {
	w.serial.Lock()
	defer w.serial.Unlock()
	lctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	doms, err := w.a.cfg.Hypervisor.List(lctx)
	if err != nil {
		w.a.count.add("libvirt-list-failed")
		return err
	}
	ev := fdm.DomainsListed{Domains: make([]fdm.Domain, 0, len(doms))}
	known := map[model.VMID]fdm.Domain{}
	for _, d := range doms {
		if strings.HasPrefix(d.Name, lease.CanaryPrefix) {
			continue
		}
		s := w.sizeOf(ctx, d)
		out := fdm.Domain{VM: d.VM, Name: d.Name, Active: d.Active, Paused: d.State == hypervisor.StatePaused,
			Cause: causes[d.Cause], Memory: s.memory, CPUs: s.cpus}
		known[d.VM] = out
		ev.Domains = append(ev.Domains, out)
	}
	w.mu.Lock()
	w.known = known
	for vm := range w.sizes {
		if _, ok := known[vm]; !ok {
			delete(w.sizes, vm)
		}
	}
	w.mu.Unlock()
	w.a.post(ctx, ev)
	return nil
}

// sizeOf reads a definition once; that of the next start, because a frozen VM
// does not answer for its live one.
func (w *hypervisorWatch) sizeOf(ctx context.Context, d hypervisor.Domain) size {
	w.mu.Lock()
	s, ok := w.sizes[d.VM]
	w.mu.Unlock()
	if ok || !d.Persistent {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, xmlLimit)
	defer cancel()
	text, err := w.a.cfg.Hypervisor.XML(ctx, d.VM, true)
	if err != nil {
		return size{}
	}
	def, err := domainxml.Parse([]byte(text))
	if err != nil {
		return size{}
	}
	s = size{def.Memory, def.VCPUs}
	w.mu.Lock()
	w.sizes[d.VM] = s
	w.mu.Unlock()
	return s
}
