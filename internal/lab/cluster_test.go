package lab

import (
	"encoding/xml"
	"net/netip"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/lab/layout"
)

func TestGeneratedClusterIsDeployable(t *testing.T) {
	l, err := layout.New("x")
	if err != nil {
		t.Fatal(err)
	}
	c, err := GenerateCluster(l, 3, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckDeployable("host1"); err != nil {
		t.Error(err)
	}
	if len(c.Datastores) < 2 || len(c.Networks) != 3 || len(c.Hosts) != 3 || len(c.VMs) != 7 {
		t.Errorf("%d datastores, %d networks, %d hosts, %d VMs", len(c.Datastores), len(c.Networks), len(c.Hosts), len(c.VMs))
	}
	if got := c.Hosts[2].Address["hb2"]; got != netip.MustParseAddr("10.99.1.13") {
		t.Errorf("host3 on hb2: %s", got)
	}
	homes, ids := map[string]int{}, map[string]bool{}
	for _, v := range c.VMs {
		homes[string(v.Datastore)]++
		ids[string(v.ID)] = true
	}
	if len(homes) != 2 || len(ids) != 7 {
		t.Errorf("homes %v, %d distinct ids", homes, len(ids))
	}
	again, _ := GenerateCluster(l, 3, 7)
	if c.Digest() != again.Digest() {
		t.Error("the same lab gets another cluster the second time")
	}
	text, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.Parse(text); err != nil {
		t.Errorf("the file that hosts get is refused: %v", err)
	}
}

func TestClusterFilesThatALabCannotRunAreRefused(t *testing.T) {
	const head = "version: 1\nname: c\nnetworks: [{name: mgmt, heartbeat: true}]\ndatastores: [{name: ds1}, {name: ds2}]\n"
	for want, body := range map[string]string{
		"virtual machines only": "hosts: [{name: a, datastores: [ds1]}]\nvms: [{name: v, type: ct, datastore: ds1}]\n",
		"does not reach":        "hosts: [{name: a, datastores: [ds1]}]\nvms: [{name: v, datastore: ds2}]\n",
		"IPv4":                  "hosts: [{name: a, address: {mgmt: 'fd00::1'}, datastores: [ds1]}]\n",
	} {
		c, err := config.Parse([]byte(head + body))
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if err := Complete(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

func TestAmountsAreChecked(t *testing.T) {
	l, _ := layout.New("x")
	for _, n := range [][2]int{{0, 1}, {MaxHosts + 1, 1}, {1, -1}, {1, MaxVMs + 1}} {
		if _, err := GenerateCluster(l, n[0], n[1]); err == nil {
			t.Errorf("%d hosts and %d VMs were accepted", n[0], n[1])
		}
	}
}

func TestDomainXMLIsWellFormedAndProtectable(t *testing.T) {
	v := config.VM{Name: "a&b", ID: "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", CPUs: 1, Memory: 96}
	text := domainXML(&v, []disk{{path: "/srv/ds1/a&b/disk0.raw"}})
	var d struct {
		Name  string `xml:"name"`
		Disks []struct {
			Driver struct {
				Cache string `xml:"cache,attr"`
				Error string `xml:"error_policy,attr"`
			} `xml:"driver"`
			Source struct {
				File string `xml:"file,attr"`
			} `xml:"source"`
		} `xml:"devices>disk"`
	}
	if err := xml.Unmarshal(text, &d); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if d.Name != "a&b" || len(d.Disks) != 1 || d.Disks[0].Source.File != "/srv/ds1/a&b/disk0.raw" ||
		d.Disks[0].Driver.Cache != "none" || d.Disks[0].Driver.Error != "stop" {
		t.Errorf("%+v in\n%s", d, text)
	}
}
