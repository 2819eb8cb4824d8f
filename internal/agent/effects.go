package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"hanok.dev/hanok/internal/admission"
	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
)

// KindHung is the kind of an operation on a datastore that did not return in
// time.
const KindHung = "hung"

// carryOut begins an effect. It returns the events that answer it at once.
func (a *Agent) carryOut(ctx context.Context, now time.Duration, e fdm.Effect) []fdm.Event {
	switch e := e.(type) {
	case *fdm.SendHeartbeat: // read now and not kept
		a.share.follow(e.Beat)
		a.sendBeat(*e)
	case fdm.SendMessage:
		a.sendMessage(e.To, e.Message)
	case fdm.ReadSlots:
		return a.readSlots(ctx, now, e)
	case fdm.ReadList:
		busy := fdm.ListRead{Op: e.Op, Datastore: e.Datastore, Kind: string(datastore.KindBusy), Err: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.readList(ctx, e) })
	case fdm.WriteList:
		busy := fdm.ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version,
			Kind: string(datastore.KindBusy), Err: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.writeList(ctx, e) })
	case fdm.ReadLock:
		busy := fdm.LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Kind: string(datastore.KindBusy), Err: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.readLock(ctx, e) })
	case fdm.AskGuard:
		busy := fdm.GuardReplied{Op: e.Op, Reply: lease.Reply{Code: lease.CodeBusy, Text: errBusy}}
		return a.operate(ctx, busy, func() fdm.Event {
			return fdm.GuardReplied{Op: e.Op, Reply: a.links.do(ctx, e.Request)}
		})
	case fdm.Hypervise:
		busy := fdm.HypervisorDone{Op: e.Op, Fault: fdm.FaultUnavailable, Text: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.callHypervisor(ctx, e) })
	case fdm.PingGuest:
		return a.operate(ctx, fdm.GuestPinged{Op: e.Op}, func() fdm.Event { return a.pingGuest(ctx, e) })
	case fdm.PingHost:
		return a.operate(ctx, fdm.HostPinged{Op: e.Op, Host: e.Host}, func() fdm.Event { return a.pingHost(ctx, e) })
	case fdm.PingAddresses:
		return a.operate(ctx, fdm.AddressesPinged{Op: e.Op}, func() fdm.Event { return a.pingAddresses(ctx, e) })
	case fdm.WriteNote:
		busy := fdm.NoteWritten{Op: e.Op, Kind: string(datastore.KindBusy), Err: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.writeNote(ctx, e) })
	case fdm.ReadNote:
		busy := fdm.NoteRead{Op: e.Op, Kind: string(datastore.KindBusy), Err: errBusy}
		return a.operate(ctx, busy, func() fdm.Event { return a.readNote(ctx, e) })
	case fdm.Emit:
		a.emit(now, e.Event)
	case fdm.SaveConfig:
		a.goes(func() { a.saveConfig(ctx, e) })
	case fdm.Consider:
		busy := fdm.Considered{Op: e.Op, Decision: admission.Decision{Report: admission.Report{Policy: e.Ask.Policy.Kind, Answer: placement.Unknown.String(),
			Reason: "it was not decided, which counts as no: " + errBusy, Help: []string{"ask again"}}}}
		return a.operate(ctx, busy, func() fdm.Event { return fdm.Considered{Op: e.Op, Decision: e.Ask.Answer()} })
	case fdm.ReadConfig:
		return a.operate(ctx, fdm.ConfigRead{Op: e.Op, Err: errBusy}, func() fdm.Event { return a.readConfig(e) })
	case fdm.Answer:
		if ch, ok := a.admins.LoadAndDelete(e.ID); ok {
			ch.(chan fdm.AdminReply) <- e.Reply // has room for one
		}
	}
	return nil
}

const errBusy = "the agent has too many operations under way"

// storeCall runs f on the workers of a datastore. kind and text are empty on
// success.
func storeCall[T any](ctx context.Context, a *Agent, name model.DatastoreName, lane datastore.Lane, limit time.Duration, f func(Store) (T, error)) (T, string, string) {
	var zero T
	st := a.setup.Load().stores[name]
	if st == nil {
		return zero, string(datastore.KindInvalid), fmt.Sprintf("this host has no datastore %s", name)
	}
	type result struct {
		v   T
		err error
	}
	r, out := call(ctx, poolLane{st.pool, lane}, limit, func() result {
		v, err := f(st.driver)
		return result{v, err}
	})
	switch {
	case out == late:
		a.count.add("datastore-hung." + string(name))
		return zero, KindHung, fmt.Sprintf("datastore %s did not answer within %v", name, limit)
	case out == full && st.pool.Oldest(lane) > limit:
		a.count.add("datastore-hung." + string(name))
		return zero, KindHung, fmt.Sprintf("all workers of datastore %s hang", name)
	case out == full:
		a.count.add("datastore-busy." + string(name))
		return zero, string(datastore.KindBusy), fmt.Sprintf("too many operations wait for datastore %s", name)
	case r.err != nil:
		return zero, string(datastore.KindOf(r.err)), r.err.Error()
	}
	return r.v, "", ""
}

func (a *Agent) readSlots(ctx context.Context, now time.Duration, e fdm.ReadSlots) []fdm.Event {
	busy := fdm.SlotsRead{Op: e.Op, Datastore: e.Datastore, Started: now, Completed: now, Kind: string(datastore.KindBusy), Err: errBusy}
	return a.operate(ctx, busy, func() fdm.Event {
		type read struct {
			slots []model.SlotReading
			done  time.Duration
		}
		started := a.cfg.Ports.Now()
		r, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneRead, a.readLimit(), func(s Store) (read, error) {
			slots, err := s.ReadSlots()
			return read{slots, a.cfg.Ports.Now()}, err
		})
		if kind != "" {
			r.done = a.cfg.Ports.Now()
		}
		return fdm.SlotsRead{Op: e.Op, Datastore: e.Datastore, Started: started, Completed: r.done,
			Slots: r.slots, Kind: kind, Err: text}
	})
}

func (a *Agent) readList(ctx context.Context, e fdm.ReadList) fdm.Event {
	type found struct {
		lock model.LockRecord
		list model.ProtectedList
	}
	r, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneRead, a.writeLimit(), func(s Store) (found, error) {
		lock, err := s.Highest(model.ListLock)
		if err != nil {
			return found{}, err
		}
		list, err := s.ReadList()
		return found{lock, list}, err
	})
	return fdm.ListRead{Op: e.Op, Datastore: e.Datastore, Lock: r.lock, List: r.list, Kind: kind, Err: text}
}

func (a *Agent) writeList(ctx context.Context, e fdm.WriteList) fdm.Event {
	_, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneLock, a.writeLimit(), func(s Store) (struct{}, error) {
		return struct{}{}, s.WriteList(e.List)
	})
	return fdm.ListWritten{Op: e.Op, Datastore: e.Datastore, Term: e.List.Term, Version: e.List.Version, Kind: kind, Err: text}
}

func (a *Agent) readLock(ctx context.Context, e fdm.ReadLock) fdm.Event {
	r, kind, text := storeCall(ctx, a, e.Datastore, datastore.LaneLock, a.readLimit(), func(s Store) (model.LockRecord, error) {
		return s.Highest(model.VMLock(e.VM))
	})
	return fdm.LockRead{Op: e.Op, Datastore: e.Datastore, VM: e.VM, Record: r, Kind: kind, Err: text}
}

// readLimit is how long a read may take before it counts as hung: half a
// lease, so that two attempts fit into one. The slowest of healthy storage
// took 0.35 s where it was measured.
func (a *Agent) readLimit() time.Duration {
	return max(time.Second, a.setup.Load().cluster.Timing().Lease/2)
}

// writeLimit is for several steps with syncs: a lease.
func (a *Agent) writeLimit() time.Duration { return a.setup.Load().cluster.Timing().Lease }

// Workers of the lanes for pings.
const (
	guestWorkers, guestBacklog = 8, 256
	pingWorkers, pingBacklog   = 16, 128
)

func (a *Agent) pingGuest(ctx context.Context, e fdm.PingGuest) fdm.Event {
	err, out := call(ctx, a.guests, e.Timeout+time.Second, func() error {
		ctx, cancel := context.WithTimeout(ctx, e.Timeout+time.Second)
		defer cancel()
		return a.cfg.Hypervisor.AgentPing(ctx, e.VM, e.Timeout)
	})
	return fdm.GuestPinged{Op: e.Op, Alive: out == finished && err == nil}
}

func (a *Agent) pingHost(ctx context.Context, e fdm.PingHost) fdm.Event {
	c := a.setup.Load().cluster
	var addrs []netip.Addr
	if h := c.HostByName(e.Host); h != nil {
		for _, n := range c.HeartbeatNetworks() {
			if addr := h.AddressOf(n); addr.IsValid() {
				addrs = append(addrs, addr)
			}
		}
	}
	limit := a.pingLimit()
	answered, out := call(ctx, a.pings, limit+time.Second, func() bool {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		_, ok := a.cfg.Ports.Ping(ctx, addrs)
		return ok
	})
	return fdm.HostPinged{Op: e.Op, Host: e.Host, Answered: out == finished && answered}
}

// pingLimit is how long an echo may take.
func (a *Agent) pingLimit() time.Duration { return a.setup.Load().cluster.PingTimeout() }
