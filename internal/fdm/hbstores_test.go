package fdm

import (
	"strings"
	"testing"

	"hanok.dev/hanok/internal/model"
)

func TestChoiceOfHeartbeatDatastores(t *testing.T) {
	type ds = ClusterDatastore
	for _, c := range []struct {
		name string
		want string
		n    int
		ds   []ds
		host []model.DatastoreName // of host2; host1 has all
		home string                // failure domain of host1
	}{
		{"the most hosts reach it", "c a", 2, []ds{{Name: "a"}, {Name: "b"}, {Name: "c"}}, []model.DatastoreName{"c"}, ""},
		{"not one backing twice", "a c", 2, []ds{{Name: "a", Backing: "x"}, {Name: "b", Backing: "x"}, {Name: "c", Backing: "y"}}, nil, ""},
		{"a shared backing rather than none", "a b", 2, []ds{{Name: "a", Backing: "x"}, {Name: "b", Backing: "x"}}, nil, ""},
		{"not one server twice", "a c", 2, []ds{{Name: "a", Server: "x"}, {Name: "b", Server: "x"}, {Name: "c", Server: "y"}}, nil, ""},
		{"not one room twice", "a c", 2, []ds{{Name: "a", FailureDomain: "x"}, {Name: "b", FailureDomain: "x"}, {Name: "c", FailureDomain: "y"}}, nil, ""},
		{"not on the hosts' network", "b c", 2, []ds{{Name: "a", OnHostNetwork: true}, {Name: "b"}, {Name: "c"}}, nil, ""},
		{"as preferred", "c a", 2, []ds{{Name: "a"}, {Name: "b", Preference: PreferenceAvoid}, {Name: "c", Preference: PreferencePrefer}}, nil, ""},
		{"at most five", "a b c d e", 9, []ds{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}, {Name: "e"}, {Name: "f"}}, nil, ""},
		{"two by default", "a b", 0, []ds{{Name: "a"}, {Name: "b"}, {Name: "c"}}, nil, ""},
		{"not in the host's own room first", "b a", 2, []ds{{Name: "a", FailureDomain: "x"}, {Name: "b", FailureDomain: "y"}}, nil, "x"},
		{"in its own room rather than one room twice", "b a", 2, []ds{{Name: "a", FailureDomain: "x"}, {Name: "b", FailureDomain: "y"}, {Name: "c", FailureDomain: "y"}}, nil, "x"},
		{"a room is less than a backing", "b c", 2, []ds{{Name: "a", Backing: "s", FailureDomain: "x"}, {Name: "b", Backing: "s", FailureDomain: "y"}, {Name: "c", Backing: "t", FailureDomain: "x"}}, nil, "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := Cluster{Datastores: c.ds, HeartbeatStores: c.n, Hosts: []ClusterHost{{Name: "host1"}, {Name: "host2", Datastores: c.host}}}
			for _, d := range c.ds {
				cl.Hosts[0].Datastores = append(cl.Hosts[0].Datastores, d.Name)
			}
			cl.Hosts[0].Spec.FailureDomain = c.home
			all := func(model.HostID, model.DatastoreName) bool { return true }
			if got := strings.ReplaceAll(storeNames(HeartbeatStores(cl, all)["host1"]), ", ", " "); got != c.want {
				t.Errorf("chosen %s, want %s", got, c.want)
			}
		})
	}
}

// One that a host loses is replaced, and too few are warned about, unless that
// is switched off.
func TestHeartbeatDatastoresAreChosenAnew(t *testing.T) {
	w := newWorld(3, "ds1", "ds2", "ds3")
	for i := range w.conf.Datastores {
		w.conf.Datastores[i].Backing = "array"
	}
	for _, name := range w.names {
		w.nodes[name].conf = w.conf
		w.nodes[name].powerOn()
	}
	w.run(20 * 1e9)
	view := func() HostView { return hostIn(w.nodes["host3"].m.View(w.now), "host1") }
	if h := view(); storeNames(h.Heartbeats) != "ds1, ds2" || !strings.Contains(strings.Join(h.Warnings, ";"), "share backing array") {
		t.Errorf("%+v", h)
	}
	w.nodes["host1"].loseStorage("ds1", "hung")
	w.run(10 * 1e9)
	if h := view(); storeNames(h.Heartbeats) != "ds2, ds3" {
		t.Errorf("after ds1 was lost: %+v", h.Heartbeats)
	}
	w.nodes["host1"].loseStorage("ds2", "hung")
	w.run(10 * 1e9)
	if h := view(); storeNames(h.Heartbeats) != "ds3" || !strings.Contains(strings.Join(h.Warnings, ";"), "1 heartbeat datastores (ds3) where 2 are wanted") {
		t.Errorf("after ds2 was lost: %+v, %v", h.Heartbeats, h.Warnings)
	}
	view = func() HostView {
		w.nodes["host3"].m.confRev++ // what follows comes with a new cluster file
		return hostIn(w.nodes["host3"].m.View(w.now), "host1")
	}
	w.nodes["host3"].m.members["host1"].conf.Spec.FailureDomain = "room1"
	w.nodes["host3"].m.stores["ds3"].conf.FailureDomain = "room1"
	if h := view(); !strings.Contains(strings.Join(h.Warnings, ";"), "in its own failure domain room1") {
		t.Errorf("all in the host's own room: %v", h.Warnings)
	}
	w.nodes["host3"].m.stores["ds3"].conf.OnHostNetwork = true
	if h := view(); !strings.Contains(strings.Join(h.Warnings, ";"), "ds3 of host1 is on the hosts' own network") {
		t.Errorf("on the hosts' own network: %v", h.Warnings)
	}
	w.nodes["host3"].m.conf.IgnoreFewHeartbeats = true
	if h := view(); len(h.Warnings) > 0 {
		t.Errorf("switched off: %v", h.Warnings)
	}
}
