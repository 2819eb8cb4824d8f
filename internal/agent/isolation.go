package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

// Names of isolation addresses are looked up when they are configured, not when
// the network is gone; one that was not found is looked up again.
const (
	resolveLimit = 5 * time.Second
	resolveAgain = time.Minute
)

// isolationAddresses are the addresses that prove this host is not isolated.
type isolationAddresses struct {
	mu         sync.Mutex
	generation uint64 // of the cluster file; older look-ups end
	fixed      []netip.Addr
	named      map[string][]netip.Addr
	// gateways are the last that were found: a link that goes down takes its
	// routes along.
	gateways   []netip.Addr
	useGateway bool
}

// learn takes the addresses of a cluster file, and looks names up until all are
// found, ctx ends or another file came.
func (x *isolationAddresses) learn(ctx context.Context, a *Agent, c *config.Cluster) {
	var names []string
	x.mu.Lock()
	x.generation++
	gen := x.generation
	x.fixed = nil
	for _, text := range c.HA.Options.List("das.isolationaddress") {
		if addr, err := netip.ParseAddr(text); err == nil {
			x.fixed = append(x.fixed, addr)
		} else {
			names = append(names, text)
		}
	}
	x.useGateway = c.HA.Options.Bool("das.usedefaultisolationaddress")
	known := map[string][]netip.Addr{}
	for _, n := range names {
		if old, ok := x.named[n]; ok {
			known[n] = old
		}
	}
	x.named = known
	x.mu.Unlock()
	said := map[string]bool{}
	for len(names) > 0 {
		var open []string
		for _, n := range names {
			rctx, cancel := context.WithTimeout(ctx, resolveLimit)
			found, err := a.cfg.Ports.Resolve(rctx, n)
			cancel()
			if !x.keep(gen, n, found) {
				return
			}
			if err != nil || len(found) == 0 {
				open = append(open, n)
				if !said[n] && err != nil {
					said[n] = true
					a.tell(ctx, event.Event{Severity: event.Warning, Kind: event.Config, Host: a.host,
						Text: "isolation address " + n + " cannot be looked up; it is tried again every minute", Cause: err.Error()})
				}
			}
		}
		if names = open; len(names) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(resolveAgain):
		}
	}
}

// keep notes what a name stands for; false when a newer file came.
func (x *isolationAddresses) keep(gen uint64, name string, found []netip.Addr) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.generation != gen {
		return false
	}
	if len(found) > 0 {
		x.named[name] = found
	}
	return true
}

// all lists every address, given the gateways found now.
func (x *isolationAddresses) all(gateways []netip.Addr) []netip.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(gateways) > 0 {
		x.gateways = gateways
	}
	out := slices.Clone(x.fixed)
	for _, addrs := range x.named {
		out = append(out, addrs...)
	}
	if x.useGateway {
		out = append(out, x.gateways...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func (a *Agent) pingAddresses(ctx context.Context, e fdm.PingAddresses) fdm.Event {
	limit := a.pingLimit()
	done, _ := call(ctx, a.pings, limit+time.Second, func() fdm.AddressesPinged {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		addrs := a.addresses.all(a.cfg.Ports.Gateways())
		r := fdm.AddressesPinged{Asked: len(addrs)}
		if answered, ok := a.cfg.Ports.Ping(ctx, addrs); ok {
			r.Answered = answered.String()
		}
		return r
	})
	done.Op = e.Op
	return done
}

func (a *Agent) writeNote(ctx context.Context, e fdm.WriteNote) fdm.Event {
	_, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneLock, a.writeLimit(), func(s Store) (struct{}, error) {
		return struct{}{}, s.WritePoweredOff(e.Note)
	})
	return fdm.NoteWritten{Op: e.Op, Kind: kind, Err: text}
}

func (a *Agent) readNote(ctx context.Context, e fdm.ReadNote) fdm.Event {
	note, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneLock, a.readLimit(), func(s Store) (model.PoweredOffNote, error) {
		return s.ReadPoweredOff(e.VM)
	})
	if kind == string(datastore.KindMissing) {
		return fdm.NoteRead{Op: e.Op}
	}
	return fdm.NoteRead{Op: e.Op, Note: note, Kind: kind, Err: text}
}

// gateways asks the kernel for the gateways of the default routes.
func gateways() []netip.Addr {
	var out []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			continue // what was found before counts
		}
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
				continue
			}
			addr, ok := netip.AddrFromSlice(r.Gw)
			if !ok {
				continue
			}
			addr = addr.Unmap()
			if addr.IsLinkLocalUnicast() && addr.Is6() {
				if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
					addr = addr.WithZone(link.Attrs().Name)
				}
			}
			out = append(out, addr)
		}
	}
	return out
}
