package placement

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/rules"
)

// a is moved to c so that b can leave h1, where only then the large VM fits.
func TestMakeRoomMovesOneForTheOther(t *testing.T) {
	ds := func(n ...model.DatastoreName) []model.DatastoreName { return n }
	hosts := []Host{
		{Name: "h1", Memory: 10, Datastores: ds("x", "y")},
		{Name: "h2", Memory: 6, Datastores: ds("y", "z")},
		{Name: "h3", Memory: 4, Datastores: ds("z")},
	}
	s := New(hosts, []VM{vm1("a", 4, "z"), vm1("b", 5, "y"), vm1("large", 9, "x")}, nil)
	must(t, s.Run("a", "h2"))
	must(t, s.Run("b", "h1"))
	got := s.MakeRoom(Want{VM: "large"})
	want := Relief{Host: "h1", Moves: []Move{{[]string{"a"}, "h2", "h3"}, {[]string{"b"}, "h1", "h2"}}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMakeRoomMovesGroupsAsAWhole(t *testing.T) {
	list := []rules.Rule{{Name: "pair", Kind: rules.Together, VMs: []string{"a", "b"}, Hard: true}}
	s := New([]Host{host1("h1", 10, 0), host1("h2", 6, 0)}, []VM{vm1("a", 2), vm1("b", 3), vm1("large", 9)}, list)
	must(t, s.Run("a", "h1"))
	must(t, s.Run("b", "h1"))
	got := s.MakeRoom(Want{VM: "large"})
	if got.Host != "h1" || len(got.Moves) != 1 || !slices.Equal(got.Moves[0].VMs, []string{"a", "b"}) {
		t.Errorf("got %+v, want both to move at once", got)
	}
}

// What MakeRoom proposes can be done, step by step, and then there is room; and
// where one move is enough, it finds one.
func TestMakeRoomProposesWhatCanBeDone(t *testing.T) {
	often(t, func(t *rapid.T) {
		w := drawWorld(t, 6)
		s := w.state()
		var down []string
		for _, v := range w.vms {
			if w.on[v.Name] == "" {
				down = append(down, v.Name)
			}
		}
		if len(down) == 0 {
			return
		}
		x := Want{VM: rapid.SampledFrom(down).Draw(t, "wanted")}
		before := fmt.Sprint(s.dump())
		r := s.MakeRoom(x)
		if after := fmt.Sprint(s.dump()); after != before {
			t.Fatalf("the question changed the State:\n%s\n%s", before, after)
		}
		if r.Host == "" {
			if m, ok := w.oneMove(x); ok && !w.domains() {
				t.Fatalf("nothing was found for %s, but %+v is enough", x.VM, m)
			}
			return
		}
		for _, m := range r.Moves {
			placed := map[string]model.HostID{}
			for _, v := range m.VMs {
				placed[v] = m.To
			}
			if !w.legal(placed, PowerOn) {
				t.Fatalf("%+v: %+v is not legal", r, m)
			}
			for _, v := range m.VMs {
				w.on[v] = m.To
			}
		}
		if !w.legal(map[string]model.HostID{x.VM: r.Host}, x.Purpose) {
			t.Fatalf("%+v leaves no room for %s", r, x.VM)
		}
	})
}

// domains tells whether a rule looks at failure domains, where moving a VM off
// another host may help, which MakeRoom does not try.
func (w world) domains() bool {
	return slices.ContainsFunc(w.rules, func(r rules.Rule) bool { return r.Kind == rules.Apart && r.Domains || r.Kind == rules.Together })
}

func (w world) oneMove(x Want) (Move, bool) {
	for _, v := range w.vms {
		from := w.on[v.Name]
		if from == "" || w.to[v.Name] != "" {
			continue
		}
		for _, h := range w.hosts {
			if h.Name == from || !w.legal(map[string]model.HostID{v.Name: h.Name}, PowerOn) {
				continue
			}
			w.on[v.Name] = h.Name
			for _, o := range w.hosts {
				if w.legal(map[string]model.HostID{x.VM: o.Name}, x.Purpose) {
					w.on[v.Name] = from
					return Move{[]string{v.Name}, from, h.Name}, true
				}
			}
			w.on[v.Name] = from
		}
	}
	return Move{}, false
}
