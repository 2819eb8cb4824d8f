package placement

import (
	"cmp"
	"slices"

	"hanok.dev/hanok/internal/model"
)

// MaxMoves is the most moves that MakeRoom proposes: more at once are hardly
// done before things have changed.
const MaxMoves = 3

// roomWork bounds the search for moves, in candidates looked at: some
// milliseconds.
const roomWork = 1_000_000

// Move is a move of a running VM; of several where a hard rule keeps them
// together: those move at the same time.
type Move struct {
	VMs      []string
	From, To model.HostID
}

// Relief is an answer of [State.MakeRoom].
type Relief struct {
	// Host has room for the VM after the Moves, one after the other in this
	// order. "" if no moves that help were found, which proves nothing.
	Host  model.HostID
	Moves []Move
}

// MakeRoom says which moves of running VMs make room for a VM that finds no
// place: as few as possible, at most [MaxMoves], each of which is allowed when its
// turn comes. VMs that move already are left alone.
func (s *State) MakeRoom(w Want) Relief {
	v := s.vms[w.VM]
	if v == nil {
		return Relief{}
	}
	m := &mover{s: s, work: roomWork}
	goal := s.units([]Want{w})[0]
	for most := 0; most <= MaxMoves && m.work > 0; most++ {
		for h, x := range s.hosts {
			if !m.might(goal, h) || !m.clear(h, goal, most) {
				continue
			}
			out := Relief{Host: x.Name, Moves: m.moves()}
			m.back(0)
			return out
		}
	}
	return Relief{}
}

// mover looks for moves; done are those made on the State so far.
type mover struct {
	s    *State
	work int
	done []step
}

type step struct {
	u        *unit
	from, to int
}

// might tells whether h could ever take the unit.
func (m *mover) might(u *unit, h int) bool {
	x := m.s.hosts[h]
	for i, v := range u.vms {
		w := u.wants[i]
		if x.class[w.Purpose] == unusable || !v.mask.fits.Has(h) || w.Only != "" && w.Only != x.Name || v.counts(h) > 0 {
			return false
		}
	}
	return u.mem <= int64(x.Memory-x.Reserved.Memory) && (u.cpu == 0 || u.cpu <= int64(x.CPU-x.Reserved.CPU))
}

// clear opens host h to the unit by at most so many moves. Without success the
// State is as before.
func (m *mover) clear(h int, u *unit, most int) bool {
	m.work--
	if m.s.openTo(u, h) {
		return true
	}
	if most == 0 || m.work <= 0 {
		return false
	}
	for _, w := range m.movable(h, u) {
		for t := range m.s.hosts {
			if t == h || !m.might(w, t) {
				continue
			}
			before := len(m.done)
			// The VM leaves for t, for which others may have to leave t first.
			for first := range most {
				if !m.clear(t, w, first) {
					continue
				}
				m.move(w, h, t)
				if m.clear(h, u, most-(len(m.done)-before)) {
					return true
				}
				m.back(before)
				break
			}
			if m.work <= 0 {
				return false
			}
		}
	}
	return false
}

// movable are the VMs on h that may move, the smallest first; those that belong
// together as one.
func (m *mover) movable(h int, except *unit) []*unit {
	var wants []Want
	for _, v := range m.s.hosts[h].on {
		if v.at[0].host == h && v.at[1].host == none && !slices.Contains(except.vms, v) {
			wants = append(wants, Want{VM: v.Name, Purpose: PowerOn})
		}
	}
	slices.SortFunc(wants, func(a, b Want) int { return cmp.Compare(a.VM, b.VM) })
	out := m.s.units(wants)
	slices.SortStableFunc(out, func(a, b *unit) int { return cmp.Or(cmp.Compare(a.mem, b.mem), cmp.Compare(a.cpu, b.cpu)) })
	return out
}

func (m *mover) move(u *unit, from, to int) {
	for _, v := range u.vms {
		m.s.leave(v)
		m.s.occupy(v, 0, to)
	}
	m.done = append(m.done, step{u, from, to})
}

// back undoes the moves after the first n.
func (m *mover) back(n int) {
	for _, d := range slices.Backward(m.done[n:]) {
		for _, v := range d.u.vms {
			m.s.leave(v)
			m.s.occupy(v, 0, d.from)
		}
	}
	m.done = m.done[:n]
}

func (m *mover) moves() []Move {
	out := make([]Move, 0, len(m.done))
	for _, d := range m.done {
		x := Move{From: m.s.hosts[d.from].Name, To: m.s.hosts[d.to].Name}
		for _, v := range d.u.vms {
			x.VMs = append(x.VMs, v.Name)
		}
		out = append(out, x)
	}
	return out
}
