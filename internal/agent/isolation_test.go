package agent

import (
	"context"
	"net/netip"
	"testing"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
)

// Names are looked up when they are configured, and count although DNS is gone
// with the network; so does the gateway although its route is gone.
func TestIsolationAddressesOutliveTheNetwork(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.names = map[string]netip.Addr{"gw.example": netip.MustParseAddr("10.0.0.7")}
	})
	r.started()
	a := r.agent
	c := a.setup.Load().cluster.Clone()
	c.HA.Options = config.Options{"das.isolationaddress0": "gw.example", "das.isolationaddress3": "10.0.0.9"}
	a.addresses.learn(context.Background(), a, c)
	r.names = nil
	a.addresses.all([]netip.Addr{netip.MustParseAddr("10.0.0.1")})
	want := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.0.0.9")}
	got := a.addresses.all(nil)
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("addresses %v, want %v", got, want)
	}
	c.HA.Options = config.Options{"das.usedefaultisolationaddress": "false", "das.isolationaddress3": "10.0.0.9"}
	a.addresses.learn(context.Background(), a, c)
	if got := a.addresses.all(nil); len(got) != 1 || got[0] != want[2] {
		t.Errorf("without the gateway: %v", got)
	}
}

func TestPingAddresses(t *testing.T) {
	r := newRig(t, func(r *rig) { r.gateways = []netip.Addr{netip.MustParseAddr("10.0.0.1")} })
	r.started()
	r.core.do(fdm.PingAddresses{Op: 1})
	if e := await[fdm.AddressesPinged](t, r.core, nil); e.Asked != 1 || e.Answered != "" {
		t.Errorf("a silent gateway: %+v", e)
	}
	r.gateways = []netip.Addr{netip.MustParseAddr("10.0.0.2")} // the one that answers
	r.core.do(fdm.PingAddresses{Op: 2})
	if e := await[fdm.AddressesPinged](t, r.core, nil); e.Asked != 1 || e.Answered != "10.0.0.2" {
		t.Errorf("a gateway that answers: %+v", e)
	}
}

func TestWriteNote(t *testing.T) {
	r := newRig(t, nil)
	r.started()
	r.core.do(fdm.WriteNote{Op: 1, Datastore: "ds1", Note: model.PoweredOffNote{VM: vmA, LockEpoch: 4, Host: "host1"}})
	if e := await[fdm.NoteWritten](t, r.core, nil); e.Op != 1 || e.Kind != "" {
		t.Errorf("%+v", e)
	}
	r.core.do(fdm.ReadNote{Op: 3, Datastore: "ds1", VM: vmA})
	if e := await[fdm.NoteRead](t, r.core, nil); e.Op != 3 || e.Kind != "" || e.Note.LockEpoch != 4 {
		t.Errorf("%+v", e)
	}
	r.core.do(fdm.WriteNote{Op: 2, Datastore: "nowhere"})
	if e := await[fdm.NoteWritten](t, r.core, nil); e.Kind == "" {
		t.Errorf("a note on an unknown datastore: %+v", e)
	}
}

func TestIsolationPolicyOfTheCore(t *testing.T) {
	c, err := config.Parse([]byte("version: 1\nname: x\nha: {isolationResponse: powerOff, options: {config.fdm.isolationPolicyDelaySec: 30}}\n" +
		"datastores: [{name: ds1}]\nvms: [{name: web, datastore: ds1, isolationResponse: shutdown}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := ClusterOf(c, "host1")
	if got.Isolation.Response != fdm.IsolationPowerOff || got.Isolation.Delay.Seconds() != 30 || got.Isolation.ShutdownLimit.Seconds() != 300 ||
		got.VMs["web"].Isolation != fdm.IsolationShutdown {
		t.Errorf("%+v, %+v", got.Isolation, got.VMs["web"])
	}
}
