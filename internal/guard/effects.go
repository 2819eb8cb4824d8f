package guard

import (
	"context"
	"fmt"
	"log/slog"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/logging"
	"hanok.dev/hanok/internal/model"
)

// carryOut does what the machine ordered. It never blocks.
func (g *Guard) carryOut(e *lease.Effect) {
	switch e.Kind {
	case lease.EffSaveState:
		g.saveState()
	case lease.EffSaveManaged:
		g.saver.save(g.machine.ManagedVMs())
	case lease.EffWriteSlot, lease.EffReadSlot, lease.EffListLock, lease.EffLinkLock, lease.EffCreateLock, lease.EffPrune:
		g.storage(*e)
	case lease.EffScan:
		if g.daemon.ended() {
			select {
			case g.events <- lease.Event{Kind: lease.EvHookLost}:
				g.daemon = daemonWatch{}
			default: // said with the next scan; the loop must not wait for itself
			}
		}
		g.procs.Scan(e.Op, g.machine.Tracked())
	case lease.EffFreeze:
		g.procs.Freeze(e.Op, e.VM)
	case lease.EffThaw:
		g.procs.Thaw(e.VM, e.Before)
	case lease.EffKill:
		if e.Before == 0 || datastore.BootTime() <= e.Before {
			g.procs.Kill(e.VM)
		}
	case lease.EffPet:
		// An order that waits for a device that hangs must not be carried out
		// by what the machine knew long ago.
		g.dog.pet(pet{min(e.Before, datastore.BootTime()+4*model.PetPeriod), e.Timeout})
	case lease.EffReply:
		g.server.Reply(e.Conn, e.Reply)
	case lease.EffSubscribe:
		g.subs = append(g.subs, e.Conn)
	case lease.EffNotify:
		g.notify(e)
	case lease.EffReload:
		select {
		case g.reload <- struct{}{}:
		default: // one is waiting already
		}
	}
}

func (g *Guard) notify(e *lease.Effect) {
	if e.Conn != 0 {
		g.server.Notify([]uint64{e.Conn}, e.Notice)
		return
	}
	g.tell(levels[e.Notice.What], e.Notice)
}

// levels are those of notices that are more than information. What explains a
// reset must be on disk when it comes.
var levels = map[lease.NoticeKind]slog.Level{lease.NoticeNotPetting: logging.Crit, lease.NoticeStalled: logging.Crit}

// tell logs a notice and hands it to the subscribers.
func (g *Guard) tell(level slog.Level, n *lease.Notice) {
	if n.What != lease.NoticeStatus {
		g.opts.Log.Log(context.Background(), level, string(n.What), "vm", n.VM, "datastore", n.Datastore,
			"epoch", n.Epoch, "text", n.Text)
	}
	g.server.Notify(g.subs, n)
}

// saveState keeps what a successor needs. A failure is not fatal: a successor
// that knows less freezes more.
func (g *Guard) saveState() {
	text := ""
	if err := writeState(g.opts.StateFile, g.machine.Saved()); err != nil {
		text = err.Error()
	}
	if text != "" && text != g.saveErr {
		g.opts.Log.Error("state cannot be saved; a restarted guard will freeze VMs until it has re-claimed them", "error", text)
	}
	g.saveErr = text
}

// store is a datastore's driver and the pool that its hangs are confined to.
type store struct {
	path, cluster string
	uuid          model.DatastoreID
	driver        datastore.Driver
	pool          *datastore.Pool
	// index of this host's slot, -1 until claimed; used by the heartbeat
	// lane's only worker.
	index *int
}

// kindBusy is the kind of an operation for which no worker was free.
const kindBusy = string(datastore.KindBusy)

// storage runs a storage call in the datastore's pool and delivers its result.
func (g *Guard) storage(e lease.Effect) {
	s := g.stores[e.Datastore]
	lane := datastore.LaneLock
	switch e.Kind {
	case lease.EffWriteSlot:
		lane = datastore.LaneHeartbeat
	case lease.EffReadSlot:
		lane = datastore.LaneRead
	}
	err := fmt.Errorf("datastore %s is not configured", e.Datastore)
	if s != nil {
		err = s.pool.Submit(lane, func() {
			ev := g.call(s, &e)
			if e.Kind != lease.EffPrune {
				g.deliver(ev)
			}
		})
	}
	if err != nil && e.Kind != lease.EffPrune {
		// The loop itself delivers: it must not wait for its own queue.
		ev := lease.Event{Kind: answers[e.Kind], Op: e.Op, Fault: &lease.Fault{Kind: kindBusy, Text: err.Error()}}
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			g.deliver(ev)
		}()
	}
}

// answers maps an effect to the event that answers it.
var answers = map[lease.EffectKind]lease.EventKind{
	lease.EffWriteSlot: lease.EvSlotWritten, lease.EffReadSlot: lease.EvSlotRead, lease.EffListLock: lease.EvLockListed,
	lease.EffLinkLock: lease.EvLockLinked, lease.EffCreateLock: lease.EvLockCreated,
}

// call makes one blocking call of the driver.
func (g *Guard) call(s *store, e *lease.Effect) lease.Event {
	ev := lease.Event{Kind: answers[e.Kind], Op: e.Op}
	var err error
	switch e.Kind {
	case lease.EffWriteSlot:
		err = g.writeSlot(s, e)
	case lease.EffReadSlot:
		ev.Reading, err = s.driver.ReadSlot(e.Host)
	case lease.EffListLock:
		ev.Record, err = s.driver.Highest(e.Lock)
	case lease.EffLinkLock:
		err = s.driver.Link(e.Record)
	case lease.EffCreateLock:
		err = s.driver.CreateLock(e.Lock, e.Record)
	case lease.EffPrune:
		err = s.driver.Prune(e.Lock)
	}
	if err != nil {
		ev.Fault = &lease.Fault{Kind: string(datastore.KindOf(err)), Text: err.Error()}
	}
	return ev
}

func (g *Guard) writeSlot(s *store, e *lease.Effect) error {
	if *s.index < 0 {
		i, err := s.driver.ClaimSlot(e.Slot.Host, g.id.machine)
		if err != nil {
			return err
		}
		*s.index = i
	}
	_, err := s.driver.WriteSlot(*s.index, e.Known, e.Slot)
	switch datastore.KindOf(err) {
	case datastore.KindMissing, datastore.KindForeign, datastore.KindInvalid, datastore.KindConflict:
		*s.index = -1 // the claim must be looked at again
	}
	return err
}
