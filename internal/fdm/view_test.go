package fdm

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/model"
)

// While no host has the list of a datastore that hangs everywhere, its VMs are
// shown as what their hosts report: frozen, with the reason.
func TestFrozenIsShownWithoutAList(t *testing.T) {
	w := newWorld(3, "ds1", "ds2")
	for _, name := range w.names {
		w.nodes[name].powerOn()
	}
	w.addVM("hit", "ds1", "host1", 512)
	w.addVM("other", "ds2", "host2", 512)
	w.run(20 * time.Second)
	for _, name := range w.names {
		w.nodes[name].loseStorage("ds1", "hung")
	}
	w.run(12 * time.Second)
	for _, name := range w.names {
		v := w.nodes[name].m.View(w.now)
		hit, other := vmIn(v, "hit"), vmIn(v, "other")
		if hit.State != model.VMFrozen || hit.Host != "host1" || hit.Protected || !strings.Contains(hit.Reason, "list of ds1 is not at hand") {
			t.Errorf("%s shows %+v, want it frozen on host1, not protected, and why", name, hit)
		}
		if other.State != model.VMStarted || !other.Protected {
			t.Errorf("%s shows %+v, want it started and protected", name, other)
		}
	}
	for _, name := range w.names {
		w.nodes[name].regainStorage("ds1")
	}
	w.run(20 * time.Second)
	if v := vmIn(w.nodes["host3"].m.View(w.now), "hit"); v.State != model.VMStarted || !v.Protected || v.Reason != "" {
		t.Errorf("after the storage answers: %+v, want it started and protected", v)
	}
	for _, b := range w.broken {
		t.Error(b)
	}
}

func vmIn(v ClusterView, name string) VMView {
	for _, x := range v.VMs {
		if x.Name == name {
			return x
		}
	}
	return VMView{}
}
