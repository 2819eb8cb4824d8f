package fdm

import (
	"fmt"
	"hash/fnv"
	"time"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

// applyLimit is how long a cluster file may take to come into force.
const applyLimit = 5 * time.Second

// fileSum tells cluster files of one version apart (FNV-1a); never 0, which means
// that a sender knows no sums.
func fileSum(file []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(file) // never fails
	return max(h.Sum64(), 1)
}

// applyConfig stores a newer cluster file; being in force it is offered to the
// members. It is confirmed when this very file is kept here, and this host is told by
// its guard, asked after that, that nobody has taken its lists: a primary that stood
// still may store a version that its successor has given to another file already.
// Whoever is not confirmed looks before applying it again, and the primary's file
// replaces it (onOffer).
func (m *Machine) applyConfig(o ConfigOffer, reply func(AdminReply)) {
	if m.loaded && o.Version <= m.conf.Version {
		reply(AdminReply{Text: fmt.Sprintf("version %d is not newer than version %d, which is in force: raise `version`", o.Version, m.conf.Version)})
		return
	}
	reply = m.once(reply)
	m.do(SaveConfig{Version: o.Version, File: o.File, Op: m.op(func(r ConfigSaved) {
		if r.Err != "" {
			reply(AdminReply{Text: fmt.Sprintf("version %d did not come into force on %s: %s", o.Version, m.cfg.Self, r.Err)})
			return
		}
		if m.conf.Version == o.Version {
			m.sum = fileSum(o.File)
		}
		m.confirmConfig(o.Version, reply)
	})})
	m.after(applyLimit, func() {
		reply(AdminReply{Text: fmt.Sprintf("version %d did not come into force on %s: see its events", o.Version, m.cfg.Self)})
	})
}

// confirmConfig answers for a cluster file that is kept here. A host without lists, as
// while HA is off, cannot know of a successor before it hears of it.
func (m *Machine) confirmConfig(version uint64, reply func(AdminReply)) {
	confirm := func() {
		reply(AdminReply{OK: true, Text: fmt.Sprintf("version %d is in force on %s and handed on", version, m.cfg.Self)})
		for _, h := range m.order {
			m.offerConfig(h)
		}
	}
	terms := map[model.DatastoreName]model.Term{}
	for _, st := range m.storeBy {
		if st.list.phase == listOwned {
			terms[st.name] = st.list.term
		}
	}
	if m.role != rolePrimary || len(terms) == 0 {
		confirm()
		return
	}
	m.ask(lease.Request{Status: &lease.StatusRequest{}}, func(r lease.Reply) {
		if r.Code != lease.CodeOK || r.Status == nil {
			m.after(listRetry, func() { m.confirmConfig(version, reply) })
			return
		}
		for name, term := range terms {
			if holdsList(r.Status, name, term) {
				confirm() // a successor would have taken this one too
				return
			}
		}
		reply(AdminReply{Text: fmt.Sprintf("version %d is kept on %s, which lost its protected lists meanwhile and may not be primary any more: see `hanok status` for the version in force before it is applied again", version, m.cfg.Self)})
	})
}

// otherFile tells of the primary whether a member keeps another file of its version.
func (m *Machine) otherFile(h *member) bool {
	return m.role == rolePrimary && h.beat.ConfigVersion == m.conf.Version && h.beat.ConfigSum != 0 && h.beat.ConfigSum != m.sum
}

// onOffer takes a newer cluster file from anybody, and another one of this version from
// the primary only.
func (m *Machine) onOffer(h *member, o ConfigOffer) {
	switch {
	case !m.loaded || o.Version > m.conf.Version:
		m.saveFile(o, false, func() {})
	case o.Version == m.conf.Version && m.role == roleSecondary && m.primary == h.name && fileSum(o.File) != m.sum:
		m.saveFile(o, true, func() {
			m.emit(event.Event{Kind: event.Config, Severity: event.Warning, Host: m.cfg.Self,
				Text:  fmt.Sprintf("version %d of the cluster file was another one on %s than on the primary, whose file replaces it", o.Version, m.cfg.Self),
				Cause: "it was applied twice, on two hosts that were primary: a change of one of them may have to be applied again"})
		})
	}
}

// saveFile stores a file that was offered and runs f if it is in force here. Its sum is
// that of the bytes offered: another release may write the same file in other words.
func (m *Machine) saveFile(o ConfigOffer, over bool, f func()) {
	m.do(SaveConfig{Version: o.Version, File: o.File, Over: over, Op: m.op(func(r ConfigSaved) {
		if r.Err == "" && m.conf.Version == o.Version {
			m.sum = fileSum(o.File)
			f()
		}
	})})
}
