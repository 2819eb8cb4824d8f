package placement

import (
	"fmt"
	"sort"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// none is no host.
const none = -1

// State is what is known of hosts, VMs and rules. See the package's contract.
type State struct {
	hosts  []*host // by name
	hostAt map[model.HostID]int
	vms    map[string]*vm
	list   []rules.Rule
	book   *book
	masks  map[string]*mask
}

// host is a Host with what follows from the VMs on it.
type host struct {
	Host
	index, domain    int
	freeCPU, freeMem int64
	perCPU, perMem   int64 // 2⁴⁰ by the capacity: dividing for each candidate takes too long
	on               []*vm // that run here or move here, in no order
	class            [2]int8
}

// vm is a VM with what follows from rules and its place.
type vm struct {
	VM
	cpu, mem int64
	at       [2]spot // where it runs, and where it moves to
	mask     *mask
	aparts   []*spread
	softs    []*spread // together-rules that are not hard
	group    *group    // of hard together-rules, merged
}

// spot is a place in the list of a host's VMs.
type spot struct{ host, pos int }

var nowhere = [2]spot{{none, 0}, {none, 0}}

// New makes a State. The rules are those in force, oldest first: see
// rules.Check. Of two hosts or VMs with one name the later counts.
func New(hosts []Host, vms []VM, list []rules.Rule) *State {
	s := &State{vms: make(map[string]*vm, len(vms)), list: list}
	byName := make(map[model.HostID]Host, len(hosts))
	for _, h := range hosts {
		byName[h.Name] = h
	}
	s.layHosts(byName)
	for _, v := range vms {
		s.SetVM(v)
	}
	return s
}

// layHosts numbers the hosts anew and forgets what hangs on the numbers.
func (s *State) layHosts(byName map[model.HostID]Host) {
	s.hosts, s.hostAt = make([]*host, 0, len(byName)), make(map[model.HostID]int, len(byName))
	s.masks = map[string]*mask{}
	for _, h := range byName {
		s.hosts = append(s.hosts, &host{Host: h})
	}
	sort.Slice(s.hosts, func(i, j int) bool { return s.hosts[i].Name < s.hosts[j].Name })
	domains := map[string]int{}
	for i, h := range s.hosts {
		s.hostAt[h.Name], h.index = i, i
		key := "domain " + h.FailureDomain
		if h.FailureDomain == "" {
			key = "host " + string(h.Name)
		}
		d, ok := domains[key]
		if !ok {
			d = len(domains)
			domains[key] = d
		}
		h.domain = d
		h.settle()
	}
	s.book = newBook(s.list, s.hosts, s.hostAt, len(domains))
}

// settle computes what follows from the host itself, its VMs known.
func (h *host) settle() {
	h.freeCPU, h.freeMem = int64(h.CPU-h.Reserved.CPU), int64(h.Memory-h.Reserved.Memory)
	for _, v := range h.on {
		h.freeCPU -= v.cpu
		h.freeMem -= v.mem
	}
	h.perCPU, h.perMem = share(int64(h.CPU)), share(int64(h.Memory))
	h.class = [2]int8{Restart: 1, PowerOn: 1}
	switch {
	case h.Unfit != "" || h.Maintenance:
		h.class = [2]int8{unusable, unusable}
	case h.Quarantine:
		h.class = [2]int8{2, 2}
	}
	if h.DedicatedFailover {
		h.class[PowerOn] = unusable
		if h.class[Restart] == 1 {
			h.class[Restart] = 0
		}
	}
}

func share(capacity int64) int64 {
	if capacity <= 0 {
		return 0
	}
	return (1 << 40) / capacity
}

// unusable is the class of a host that takes no VM.
const unusable = 127

// relay numbers the hosts anew, keeping VMs and their places.
func (s *State) relay(byName map[model.HostID]Host) {
	type place struct{ on, to model.HostID }
	places := make(map[*vm]place, len(s.vms))
	for _, v := range s.vms {
		places[v] = place{s.nameOf(v.at[0].host), s.nameOf(v.at[1].host)}
	}
	s.layHosts(byName)
	for v, p := range places {
		v.at, v.mask = nowhere, nil
		s.bind(v)
		for _, name := range []model.HostID{p.on, p.to} {
			if h, ok := s.hostAt[name]; ok {
				s.occupy(v, v.free(), h)
			}
		}
	}
}

func (s *State) nameOf(i int) model.HostID {
	if i == none {
		return ""
	}
	return s.hosts[i].Name
}

// SetHost adds a host or replaces what is known of it; VMs stay where they are.
func (s *State) SetHost(h Host) {
	i, known := s.hostAt[h.Name]
	if !known || s.hosts[i].FailureDomain != h.FailureDomain {
		all := s.hostMap()
		all[h.Name] = h
		s.relay(all)
		return
	}
	x := s.hosts[i]
	x.Host = h
	x.settle()
	for _, m := range s.masks {
		m.fits.Put(i, m.allows(x))
	}
}

// RemoveHost forgets a host. VMs that ran there are nowhere, or where they were
// moving to.
func (s *State) RemoveHost(name model.HostID) {
	if _, known := s.hostAt[name]; !known {
		return
	}
	all := s.hostMap()
	delete(all, name)
	s.relay(all)
}

func (s *State) hostMap() map[model.HostID]Host {
	all := make(map[model.HostID]Host, len(s.hosts)+1)
	for _, x := range s.hosts {
		all[x.Name] = x.Host
	}
	return all
}

// Rules are the rules in force, oldest first.
func (s *State) Rules() []rules.Rule { return s.list }

// SetRules replaces the rules in force.
func (s *State) SetRules(list []rules.Rule) {
	s.list = list
	s.relay(s.hostMap())
}

// SetVM adds a VM or replaces what is known of it; it stays where it is.
func (s *State) SetVM(x VM) {
	v := s.vms[x.Name]
	if v == nil {
		v = &vm{at: nowhere}
		s.vms[x.Name] = v
	}
	was := v.at
	s.leave(v)
	v.VM = x
	need := x.Need()
	v.cpu, v.mem = int64(need.CPU), int64(need.Memory)
	s.bind(v)
	for i, sp := range was {
		if sp.host != none {
			s.occupy(v, i, sp.host)
		}
	}
}

// RemoveVM forgets a VM.
func (s *State) RemoveVM(name string) {
	if v := s.vms[name]; v != nil {
		s.leave(v)
		s.unbind(v)
		delete(s.vms, name)
	}
}

// Run notes that a VM runs on a host, or that its start there is decided; a move
// is over by it.
func (s *State) Run(name string, on model.HostID) error {
	v, h, err := s.both(name, on)
	if err != nil {
		return err
	}
	s.leave(v)
	s.occupy(v, 0, h)
	return nil
}

// Move notes that a VM that runs begins to move to a host. Until Run says where
// it ended up it counts on both.
func (s *State) Move(name string, to model.HostID) error {
	v, h, err := s.both(name, to)
	switch {
	case err != nil:
		return err
	case v.at[0].host == none:
		return fmt.Errorf("placement: VM %q does not run: it cannot move", name)
	}
	s.vacate(v, 1)
	if v.at[0].host != h {
		s.occupy(v, 1, h)
	}
	return nil
}

// Stop notes that a VM runs nowhere.
func (s *State) Stop(name string) {
	if v := s.vms[name]; v != nil {
		s.leave(v)
	}
}

func (s *State) both(name string, on model.HostID) (*vm, int, error) {
	v := s.vms[name]
	if v == nil {
		return nil, none, fmt.Errorf("placement: no VM %q is known", name)
	}
	h, ok := s.hostAt[on]
	if !ok {
		return nil, none, fmt.Errorf("placement: no host %q is known", on)
	}
	return v, h, nil
}

// On returns the host that a VM runs on and the one that it moves to; "" is
// none.
func (s *State) On(name string) (on, to model.HostID) {
	v := s.vms[name]
	if v == nil {
		return "", ""
	}
	return s.nameOf(v.at[0].host), s.nameOf(v.at[1].host)
}

// Host returns a host as it was set, and what is free on it.
func (s *State) Host(name model.HostID) (h Host, free Resources, ok bool) {
	i, ok := s.hostAt[name]
	if !ok {
		return Host{}, Resources{}, false
	}
	x := s.hosts[i]
	return x.Host, Resources{model.MHz(x.freeCPU), model.MiB(x.freeMem)}, true
}

// Hosts returns all hosts, by name.
func (s *State) Hosts() []Host {
	out := make([]Host, len(s.hosts))
	for i, h := range s.hosts {
		out[i] = h.Host
	}
	return out
}

// VM returns a VM as it was set.
func (s *State) VM(name string) (VM, bool) {
	v := s.vms[name]
	if v == nil {
		return VM{}, false
	}
	return v.VM, true
}

// VMs returns the names of all VMs, sorted.
func (s *State) VMs() []string {
	out := make([]string, 0, len(s.vms))
	for name := range s.vms {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// occupy puts v on host h as its place i.
func (s *State) occupy(v *vm, i, h int) {
	x := s.hosts[h]
	v.at[i] = spot{h, len(x.on)}
	x.on = append(x.on, v)
	x.freeCPU -= v.cpu
	x.freeMem -= v.mem
	for _, a := range v.aparts {
		a.add(x, 1)
	}
	for _, a := range v.softs {
		a.add(x, 1)
	}
	if v.group != nil {
		v.group.add(x, 1)
	}
}

func (s *State) vacate(v *vm, i int) {
	h, pos := v.at[i].host, v.at[i].pos
	if h == none {
		return
	}
	x := s.hosts[h]
	last := len(x.on) - 1
	moved := x.on[last]
	x.on[pos] = moved
	if moved.at[0].host == h && moved.at[0].pos == last {
		moved.at[0].pos = pos
	} else {
		moved.at[1].pos = pos
	}
	x.on = x.on[:last]
	v.at[i] = spot{none, 0}
	x.freeCPU += v.cpu
	x.freeMem += v.mem
	for _, a := range v.aparts {
		a.add(x, -1)
	}
	for _, a := range v.softs {
		a.add(x, -1)
	}
	if v.group != nil {
		v.group.add(x, -1)
	}
}

func (s *State) leave(v *vm) {
	s.vacate(v, 1)
	s.vacate(v, 0)
}

// counts tells how often v itself counts on the host: 0 or 1.
func (v *vm) counts(h int) int32 {
	if v.at[0].host == h || v.at[1].host == h {
		return 1
	}
	return 0
}

// placed tells how many places v takes.
func (v *vm) placed() int32 {
	var n int32
	for _, sp := range v.at {
		if sp.host != none {
			n++
		}
	}
	return n
}
