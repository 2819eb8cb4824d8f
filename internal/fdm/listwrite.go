package fdm

import (
	"fmt"
	"slices"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// Writing of protected lists: changes are gathered, what must be durable first
// says so, and one write is outstanding for each datastore.

// save marks a VM's entry as changed. It is written when convenient.
func (m *Machine) save(v *vm) {
	v.st.list.dirty = true
	v.dirtyAt = v.st.list.version + 1
}

// saveThen writes a VM's entry at once and runs f when it is durable, unless
// the list was lost in between.
func (m *Machine) saveThen(v *vm, f func()) { m.saveFor(v, false, f) }

// saveFor is saveThen; with people set, f confirms a change to somebody, or leads to
// it, so that it waits for the guard's word that the list was this host's.
func (m *Machine) saveFor(v *vm, people bool, f func()) {
	m.save(v)
	l := &v.st.list
	l.critical = true
	l.waiters = append(l.waiters, waiter{l.version + 1, people, f})
}

// flushLists writes what is due, one write outstanding for each datastore.
func (m *Machine) flushLists() {
	for _, st := range m.storeBy {
		l := &st.list
		if l.phase != listOwned || !l.dirty || l.writing || m.now < l.retryAt {
			continue
		}
		if wait := l.lastWrite + listPause - m.now; !l.critical && wait > 0 {
			if l.wake <= m.now {
				l.wake = m.now + wait
				m.after(wait, func() {})
			}
			continue
		}
		m.writeList(st)
	}
}

func (m *Machine) writeList(st *store) {
	l := &st.list
	l.version++
	l.writing, l.dirty, l.critical, l.lastWrite = true, false, false, m.now
	out := model.ProtectedList{Term: l.term, Version: l.version, VMs: make([]model.ProtectedVM, 0, len(l.vms))}
	for _, v := range st.list.byID() {
		out.VMs = append(out.VMs, m.record(v))
	}
	st.lastKnown = out.VMs
	gen := l.gen
	m.do(WriteList{Datastore: st.name, List: out, Op: m.op(func(r ListWritten) {
		if st.list.gen != gen {
			return
		}
		l := &st.list
		l.writing = false
		if r.Err != "" || r.Kind != "" {
			l.dirty, l.critical = true, l.critical || len(l.waiters) > 0
			l.fail(m, fmt.Sprintf("its protected list cannot be written (%s): %s", r.Kind, r.Err))
			l.retryAt = m.now + listRetry
			m.after(listRetry, func() {})
			return
		}
		l.written = out.Version
		l.fail(m, "")
		m.listWritten(st)
	})})
}

// askKept asks the guard, after a write of the list has returned, whether it holds
// the list still, if people wait for that write. A host that stood still may have
// written when a successor had copied the list already: such a change is nowhere.
// While the guard says yes nobody has claimed the list, so whoever does reads the write.
func (m *Machine) askKept(st *store) {
	l := &st.list
	if l.asking || !slices.ContainsFunc(l.waiters, func(w waiter) bool { return w.people && w.version <= l.written }) {
		return
	}
	l.asking = true
	gen, version := l.gen, l.written
	m.ask(lease.Request{Status: &lease.StatusRequest{}}, func(r lease.Reply) {
		l := &st.list
		switch {
		case l.gen != gen:
		case r.Code != lease.CodeOK || r.Status == nil:
			m.after(listRetry, func() {
				if st.list.gen == gen {
					st.list.asking = false
					m.askKept(st)
				}
			})
		case !holdsList(r.Status, st.name, l.term):
			m.lostList(st, fmt.Sprintf("the guard no longer holds the lock of its protected list under term %d", l.term))
		default:
			l.asking, l.kept = false, version
			m.listWritten(st)
		}
	})
}

// holdsList tells whether a guard holds a list under a term, by its status.
func holdsList(s *lease.Status, name model.DatastoreName, t model.Term) bool {
	for _, d := range s.Datastores {
		if d.Name == name {
			return d.OK && d.ListTerm == t
		}
	}
	return false
}

func (m *Machine) listWritten(st *store) {
	l := &st.list
	gen := l.gen
	var run []waiter
	keep := l.waiters[:0:0]
	for _, w := range l.waiters {
		if w.version <= l.written && (!w.people || w.version <= l.kept) {
			run = append(run, w)
		} else {
			keep = append(keep, w)
		}
	}
	l.waiters = keep
	for _, v := range l.byID() {
		m.showProtection(v)
	}
	for _, w := range run {
		if st.list.gen == gen {
			w.f()
		}
	}
	if st.list.gen == gen {
		m.askKept(st)
	}
}

// byID lists the VMs in order of their ids.
func (l *list) byID() []*vm {
	if l.sorted == nil && len(l.vms) > 0 {
		for _, id := range sortedKeys(l.vms) {
			l.sorted = append(l.sorted, l.vms[id])
		}
	}
	return l.sorted
}

// record is the entry of a VM as it goes to the datastore.
func (m *Machine) record(v *vm) model.ProtectedVM {
	p := v.p
	if p.Down != nil {
		d := *p.Down
		d.RetryIn = max(0, v.nextTry-m.now)
		d.Hosts = append([]model.HostID(nil), d.Hosts...)
		p.Down = &d
	}
	return p
}
