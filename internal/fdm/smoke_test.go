package fdm

import (
	"strings"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	w := newWorld(3, "ds1", "ds2")
	for _, name := range w.names {
		w.nodes[name].powerOn()
	}
	w.addVM("web", "ds1", "host1", 512)
	w.addVM("db", "ds2", "host1", 512)
	w.addVM("x", "ds2", "host3", 512)
	w.run(20 * time.Second)
	w.logf("POWER OFF host1")
	w.nodes["host1"].powerOff()
	w.run(20 * time.Second)
	w.logf("POWER OFF %v", w.primaries())
	w.nodes["host3"].powerOff()
	w.run(20 * time.Second)
	t.Log("\n" + strings.Join(w.log, "\n"))
	t.Log(w.broken, w.primaries(), w.runningOn("vm-web"), w.runningOn("vm-db"))
}
