package placement

import (
	"strings"
	"testing"

	"hanok.dev/hanok/internal/rules"
)

// Of hosts that are alike the search tries one; these are not alike, and it finds
// the only way.
func TestTheSearchTellsHostsApart(t *testing.T) {
	for _, c := range []struct {
		name    string
		hosts   []Host
		vms     []VM
		rules   []rules.Rule
		running string
		order   string
	}{
		{"by room", []Host{host1("a", 4, 0), host1("b", 3, 0)}, []VM{vm1("large", 3), vm1("s1", 2), vm1("s2", 2)}, nil, "", "large s1 s2"},
		{"by the VMs of a rule", []Host{host1("a", 4, 0), host1("b", 5, 0)}, []VM{vm1("x", 1), vm1("w", 4), vm1("v", 4)},
			[]rules.Rule{on("apart", rules.Apart, true, "v x")}, "x@b", "w v"},
		{"by the VMs of a group", []Host{host1("a", 5, 0), host1("b", 4, 0)}, []VM{vm1("x", 1), vm1("w", 4), vm1("v", 4)},
			[]rules.Rule{on("pair", rules.Together, true, "v x")}, "x@a", "w v"},
	} {
		s := New(c.hosts, c.vms, c.rules)
		for _, r := range strings.Fields(c.running) {
			name, at, _ := strings.Cut(r, "@")
			for _, h := range c.hosts {
				if string(h.Name) == at {
					must(t, s.Run(name, h.Name))
				}
			}
		}
		var wants []Want
		for _, name := range strings.Fields(c.order) {
			wants = append(wants, Want{VM: name})
		}
		if !newSearch(s, s.units(wants), 1000).run() {
			t.Errorf("%s: nothing was found", c.name)
		}
	}
}
