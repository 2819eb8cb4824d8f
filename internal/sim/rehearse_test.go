package sim

import (
	"strings"
	"testing"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
)

const rehearsed = `version: 1
name: r
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1, backing: a}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1, hb2: 10.1.0.1}, cpu: {cores: 4, mhz: 2000}, memory: 8GiB, datastores: [ds1]}
- {name: host2, address: {mgmt: 10.0.0.2, hb2: 10.1.0.2}, cpu: {cores: 4, mhz: 2000}, memory: 8GiB, datastores: [ds1]}
vms:
- {name: a, host: host1, datastore: ds1, memory: 2GiB}
- {name: b, host: host1, datastore: ds1, memory: 5GiB}
- {name: c, host: host2, datastore: ds1, memory: 4GiB}
`

func TestRehearse(t *testing.T) {
	c, err := config.Parse([]byte(rehearsed))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Rehearse(c, nil, []model.HostID{"host1"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.VMs) != 2 || r.Down != 1 {
		t.Fatalf("two VMs are lost and one fits: %+v", r)
	}
	if a := r.VMs[0]; a.Name != "a" || a.To != "host2" || a.Seconds < 5 || a.Seconds > 12 {
		t.Errorf("a restarts on host2 after a lease: %+v", a)
	}
	if b := r.VMs[1]; b.To != "" || !strings.Contains(b.Reason, "5120 MiB needed") {
		t.Errorf("b does not fit, with the reason: %+v", b)
	}
	if _, err := Rehearse(c, nil, []model.HostID{"host9"}, 1); err == nil {
		t.Error("a host that is not there is refused")
	}
}
