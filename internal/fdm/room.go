package fdm

import (
	"fmt"
	"strings"

	"hanok.dev/hanok/internal/event"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/placement"
	"hanok.dev/hanok/internal/rules"
)

// Where VMs of a restart go: what placement is told of hosts, VMs and rules.

// spec is a VM as placement knows it: by the cluster file, and by what was
// recorded when it was protected.
func (m *Machine) spec(v *vm) placement.VM { return specIn(m.conf.Specs, v) }

func specIn(specs map[string]placement.VM, v *vm) placement.VM {
	x, ok := specs[v.p.Name]
	if !ok {
		x = placement.VM{Reservation: placement.Resources{Memory: v.p.Memory}}
	}
	if x.Reservation.Memory == 0 {
		x.Reservation.Memory = v.p.Memory
	}
	x.Name, x.Datastores = v.p.Name, v.p.Datastores
	if len(x.Datastores) == 0 {
		x.Datastores = []model.DatastoreName{v.p.Home}
	}
	return x
}

// placeOf is where a VM takes room now: where it runs, or is about to start.
func (v *vm) placeOf() *member {
	switch {
	case v.order != nil && v.order.kind == CommandStart:
		return v.order.host
	case v.running:
		return v.host
	}
	return nil
}

// believedOn is where a VM that nobody reports may run, by its lock or, until that
// is read, by the list: on a host that cannot be spoken to. Rules count it there.
func (m *Machine) believedOn(v *vm) *member {
	h := v.host
	if h == nil {
		h = m.members[v.p.Host]
	}
	if h == nil || h.failed || h.report != nil && !h.suspect || v.p.Down != nil || m.requested(v) != model.RequestedStarted {
		return nil
	}
	return h
}

// room is what placement knows of the members now: with these VMs, those that
// wait for their turn, and all that rules are about. What else runs or starts on
// a member is in its Reserved.
func (m *Machine) room(list []*vm) *placement.State {
	in := map[model.VMID]*vm{}
	for _, v := range list {
		in[v.p.ID] = v
	}
	for id, v := range m.held {
		in[id] = v
	}
	for _, r := range m.conf.Rules {
		for _, name := range r.VMs {
			if v := m.byName[name]; v != nil {
				in[v.p.ID] = v
			}
		}
	}
	vms := make([]placement.VM, 0, len(in))
	own := map[*member]model.MiB{}
	for _, id := range sortedKeys(in) {
		v := in[id]
		vms = append(vms, m.spec(v))
		h := v.placeOf()
		if h == nil {
			continue
		}
		if lv, ok := h.active[id]; ok {
			own[h] += lv.Memory
		}
		if v.order != nil && v.order.kind == CommandStart {
			own[h] += v.p.Memory
		}
	}
	hosts := make([]placement.Host, 0, len(m.order))
	for _, h := range m.order {
		hosts = append(hosts, m.hostSpec(h, own[h]))
	}
	s := placement.New(hosts, vms, m.conf.Rules)
	for _, id := range sortedKeys(in) {
		h := in[id].placeOf()
		if h == nil {
			h = m.believedOn(in[id])
		}
		if h != nil {
			_ = s.Run(in[id].p.Name, h.name) // a host that left the file counts for nothing
		}
	}
	return s
}

// hostSpec is a member as placement knows it; own is the memory of VMs that
// placement is told of by themselves.
func (m *Machine) hostSpec(h *member, own model.MiB) placement.Host {
	p := h.conf.Spec
	p.Name, p.Memory, p.Datastores = h.name, h.conf.Memory, nil
	p.Reserved.Memory += max(h.used+h.orderMem-own, 0)
	p.Starting, p.StartLimit, p.Unfit, p.Maintenance = len(h.orders), m.perHost(), m.unfit(h), h.conf.Maintenance
	if r := h.report; r != nil {
		if r.Memory > 0 {
			p.Memory = r.Memory
		}
		for _, d := range r.Datastores {
			if r.usable(d.Name) {
				p.Datastores = append(p.Datastores, d.Name)
			}
		}
	}
	return p
}

// plan looks for places of all at once, of those that must still wait too, so
// that what comes first does not take the only place of what comes later.
func (m *Machine) plan(room *placement.State, list []*vm) {
	all := map[model.VMID]*vm{}
	for _, v := range list {
		v.planned = ""
		all[v.p.ID] = v
	}
	for id, v := range m.held {
		all[id] = v
	}
	if len(all) < 2 {
		return
	}
	sorted := m.sortVMs(all)
	wants := make([]placement.Want, 0, len(sorted))
	for _, v := range sorted {
		w := m.wantOf(v)
		w.Only, w.Prefer, w.Class = v.want.only, v.want.prefer, infrastructure-m.class(v)
		if w.Prefer == "" {
			w.Prefer = v.admitted
		}
		wants = append(wants, w)
	}
	for i, c := range room.PlaceAll(wants).Choices {
		sorted[i].planned = c.Host
	}
}

// tellRules tells people which rules are not in force, and why, and which are
// again, as far as they do not know it: before is what they were told of.
func (m *Machine) tellRules(before []rules.Conflict) {
	told := map[string]string{}
	for _, c := range before {
		told[c.Disabled] = c.Reason
	}
	for _, c := range m.conf.Conflicts {
		if told[c.Disabled] != c.Reason {
			m.emit(event.Event{Kind: event.Config, Severity: event.Warning,
				Text:  fmt.Sprintf("rule %s is not in force: it contradicts %s", c.Disabled, strings.Join(others(c.Rules, c.Disabled), ", ")),
				Cause: c.Reason})
		}
		delete(told, c.Disabled)
	}
	for _, name := range sortedKeys(told) {
		m.emit(event.Event{Kind: event.Config, Text: fmt.Sprintf("rule %s contradicts none any more", name)})
	}
}

func others(list []string, but string) []string {
	var out []string
	for _, x := range list {
		if x != but {
			out = append(out, x)
		}
	}
	return out
}
