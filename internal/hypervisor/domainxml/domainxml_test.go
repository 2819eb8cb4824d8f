package domainxml

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hanok.dev/hanok/internal/model"
)

var place = Place{Datastores: map[string]model.DatastoreName{"/ds/one": "ds1", "/ds/two/": "ds2", "/ds": "outer"}}

func parse(t *testing.T, text string) *Definition {
	t.Helper()
	d, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestParse(t *testing.T) {
	want := &Definition{
		VM: "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55", Name: "web", Type: "kvm", Memory: 4097, VCPUs: 2,
		Disks: []Disk{
			{Target: "vda", Type: "file", Device: "disk", Source: "/ds/one/web/disk0.raw", Cache: "none"},
			{Target: "vdb", Type: "file", Device: "disk", Source: "/ds/two/web/disk1.qcow2", Cache: "directsync"},
			{Target: "sda", Type: "file", Device: "cdrom", ReadOnly: true},
		},
	}
	for name, text := range map[string]string{"shut off": good, "live": live} {
		if diff := cmp.Diff(want, parse(t, text)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestMemory(t *testing.T) {
	for unit, want := range map[string]model.MiB{
		"<memory>1024</memory>": 1, "<memory>1025</memory>": 2, "<memory unit='b'>1</memory>": 1,
		"<memory unit='MiB'>7</memory>": 7, "<memory unit='M'>7</memory>": 7, "<memory unit='GiB'>2</memory>": 2048,
		"<memory unit='GB'>1</memory>": 954, "<memory unit='bytes'>2097152</memory>": 2, "": 0,
	} {
		if got := parse(t, with("<memory unit='KiB'>4194305</memory>", unit)).Memory; got != want {
			t.Errorf("%s: %d MiB, want %d", unit, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"empty":         {"", "no root"},
		"other root":    {"<network/>", "<network>"},
		"no uuid":       {"<domain><name>x</name></domain>", "uuid"},
		"bad uuid":      {with("6B1F1D3A-0f0a", "../../etc"), "uuid"},
		"no name":       {with("<name>web</name>", ""), "name"},
		"unclosed":      {strings.TrimSuffix(good, "</domain>\n"), "not closed"},
		"crossed":       {"<domain><a><b></a></b></domain>", "unexpected </a>"},
		"two roots":     {good + good, "second root"},
		"entity bomb":   {`<!DOCTYPE d [<!ENTITY a "b">]>` + good, "document types"},
		"text outside":  {good + "x", "outside"},
		"attribute":     {"<domain a='1' a='2'/>", "two attributes"},
		"memory":        {with("4194305", "-1"), "not a number"},
		"memory unit":   {with("<memory unit='KiB'", "<memory unit='parsec'"), "parsec"},
		"memory range":  {with("<memory unit='KiB'>4194305", "<memory unit='EiB'>99"), "too much"},
		"vcpus":         {with("current='2'", "current='0'"), "vcpu"},
		"too large":     {good + strings.Repeat(" ", MaxSize), "at most"},
		"too deep":      {strings.Repeat("<domain>", maxDepth+1), "nested"},
		"attributes":    {"<domain " + manyAttrs(maxAttrs+1) + "/>", "attributes"},
		"other charset": {`<?xml version="1.0" encoding="utf-16"?>` + good, "utf-16"},
	} {
		if _, err := Parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func manyAttrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d='' ", i)
	}
	return b.String()
}

// processorTime is what this process has used; the machine may be busy.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// Text of the largest size must not cost more than its size.
func TestHostileText(t *testing.T) {
	fill := func(unit string) string {
		frame := "<domain><name>x</name><uuid>6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55</uuid><devices>%s</devices></domain>"
		return fmt.Sprintf(frame, strings.Repeat(unit, (MaxSize-len(frame))/len(unit)))
	}
	for _, text := range []string{fill("<disk><target dev='a'/></disk>"), fill("x<!---->"), fill("<a/>"), fill("a&#10;")} {
		began := processorTime(t)
		if _, err := Parse([]byte(text)); err != nil {
			t.Error(err)
		}
		if _, err := Drift([]byte(text), []byte(good)); err != nil {
			t.Error(err)
		}
		if took := processorTime(t) - began; took > 20*time.Second {
			t.Errorf("%.60s…: %v", text, took)
		}
	}
}

func TestCheck(t *testing.T) {
	const driver = "<driver name='qemu' type='raw' cache='none' io='threads'/>"
	const source = "<source file='/ds/one/web/disk0.raw'/>"
	const drive = "<target dev='sda' bus='sata'/>"
	device := func(text string) string { return with("<devices>", "<devices>"+text) }
	os := func(text string) string { return with("<boot dev='hd'/>", text) }
	bare := "<domain><name>x</name><uuid>6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55</uuid></domain>"
	resolve := func(file string) string {
		return map[string]string{"/ds/one/web/disk0.raw": "/var/tmp/disk0.raw"}[file]
	}
	for name, test := range map[string]struct {
		text  string
		place Place
		want  []Code
	}{
		"good":                   {text: good},
		"live":                   {text: live},
		"transient":              {good, Place{Datastores: place.Datastores, Transient: true}, []Code{ProblemTransient}},
		"no disk":                {text: bare, want: []Code{ProblemNoDisk}},
		"name":                   {text: with("<name>web</name>", "<name>../web</name>"), want: []Code{ProblemName}},
		"local disk":             {text: with("/ds/one/web/disk0.raw", "/var/lib/x.raw"), want: []Code{ProblemNotManaged}},
		"path climbs out":        {text: with("/ds/one/web/disk0.raw", "/ds/one/../../etc/x"), want: []Code{ProblemNotManaged}},
		"similar path":           {good, Place{Datastores: map[string]model.DatastoreName{"/ds/on": "x", "/ds/two": "y"}}, []Code{ProblemNotManaged}},
		"relative path":          {text: with("/ds/one/web/disk0.raw", "ds/one/x"), want: []Code{ProblemNotManaged}},
		"symbolic link":          {text: good, place: Place{Datastores: place.Datastores, Resolve: resolve}, want: []Code{ProblemNotManaged, ProblemNotManaged}},
		"no source":              {text: with(source, ""), want: []Code{ProblemNotManaged}},
		"protocol directory":     {text: with("/ds/one/web/disk0.raw", "/ds/one/.hanok/c/heartbeats"), want: []Code{ProblemProtocolArea}},
		"backing file":           {text: with(source, source+"<backingStore type='file'><source file='/tmp/base'/><backingStore/></backingStore>"), want: []Code{ProblemNotManaged}},
		"block device":           {text: with(source, "<source dev='/dev/sdb'/>"), want: []Code{ProblemNotManaged}},
		"cache unset":            {text: with(driver, "<driver type='raw'/>"), want: []Code{ProblemCache}},
		"no driver":              {text: with(driver, ""), want: []Code{ProblemCache}},
		"cache writeback":        {text: with("cache='none'", "cache='writeback'"), want: []Code{ProblemCache}},
		"shareable":              {text: with(source, source+"<shareable/>"), want: []Code{ProblemShared}},
		"network disk":           {text: with("<disk type='file' device='disk'>\n      "+driver+"\n      "+source, "<disk type='network' device='disk'>"+driver+"<source protocol='rbd' name='p/i'/>"), want: []Code{ProblemNetworkDisk}},
		"local ISO":              {text: with(drive, "<source file='/iso/x.iso'/>"+drive), want: []Code{ProblemLocalMedia}},
		"ISO on datastore":       {text: with(drive, "<source file='/ds/two/x.iso'/>"+drive)},
		"TPM":                    {text: device("<tpm model='tpm-crb'><backend type='emulator'/></tpm>"), want: []Code{ProblemTPM}},
		"PCI device":             {text: device("<hostdev mode='subsystem' type='pci'/>"), want: []Code{ProblemPassthrough}},
		"SR-IOV":                 {text: device("<interface type='hostdev'/>"), want: []Code{ProblemPassthrough}},
		"share":                  {text: device("<filesystem><source dir='/srv'/></filesystem>"), want: []Code{ProblemShare}},
		"share on datastore":     {text: device("<filesystem><source dir='/ds/one/share'/></filesystem>")},
		"nvdimm":                 {text: device("<memory model='nvdimm'><source><path>/ds/one/web/nv</path></source></memory>"), want: []Code{ProblemCache}},
		"UEFI, automatic":        {text: with("<os>", "<os firmware='efi'>"), want: []Code{ProblemNVRAM}},
		"UEFI, local":            {text: os("<loader type='pflash'>/f</loader><nvram>/var/lib/libvirt/x.fd</nvram>"), want: []Code{ProblemNVRAM}},
		"UEFI, beside the disks": {text: os("<loader type='pflash'>/f</loader><nvram>/ds/one/web/x.fd</nvram>")},
		"UEFI, nvram source":     {text: os("<nvram type='file'><source file='/ds/one/web/x.fd'/></nvram>")},
		"UEFI, stateless":        {text: os("<loader type='pflash' stateless='yes'>/f</loader>")},
		"hidden disk":            {text: with("value='-name'", "value='-drive'"), want: []Code{ProblemHiddenDisk}},
		"local kernel":           {text: os("<kernel>/boot/vmlinuz</kernel>"), want: []Code{ProblemLocalBoot}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.place.Datastores == nil {
				test.place = Place{Datastores: map[string]model.DatastoreName{"/ds/one": "ds1", "/ds/two/": "ds2"}}
			}
			problems := test.place.Check(parse(t, test.text))
			var got []Code
			for _, p := range problems {
				got = append(got, p.Code)
				if !strings.HasSuffix(p.What, ".") || !strings.HasSuffix(p.Remedy, ".") {
					t.Errorf("not sentences: %+v", p)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("%s\n%+v", diff, problems)
			}
			if want := len(test.want) == 0 || name == "local kernel"; Protectable(problems) != want {
				t.Errorf("protectable: %v", !want)
			}
		})
	}
}

func TestHome(t *testing.T) {
	d := parse(t, with("<devices>", "<devices><disk device='cdrom'><source file='/ds/x.iso'/></disk>"))
	if home, ok := place.Home(d); home != "ds1" || !ok {
		t.Errorf("home %q, %v", home, ok)
	}
	for range 20 { // maps are read in another order each time
		if diff := cmp.Diff([]model.DatastoreName{"ds1", "ds2", "outer"}, place.DatastoresOf(d)); diff != "" {
			t.Fatal(diff)
		}
	}
	if home, ok := (Place{}).Home(d); ok {
		t.Errorf("home %q without datastores", home)
	}
}

func TestNormalise(t *testing.T) {
	kept, err := Normalise([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	ran, err := Normalise([]byte(live))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(kept), string(ran)); diff != "" {
		t.Errorf("running and shut off differ: %s", diff)
	}
	for _, text := range []string{"6B1F1D3A-0f0a-4c58-9a4e-2b9f0c7d1e55", "keep &amp; return", "xmlns:app='http://app.example/1'",
		"<qemu:arg value='-name'/>", "passwd='secret'", "52:54:00:11:22:33", "/ds/one/web/disk0.raw"} {
		if !bytes.Contains(kept, []byte(text)) {
			t.Errorf("lost: %s\n%s", text, kept)
		}
	}
}

func TestDrift(t *testing.T) {
	reordered := with("<uuid>", "<vcpu placement='static' current='2'>4</vcpu><uuid>")
	reordered = strings.Replace(reordered, "  <vcpu placement='static' current='2'>4</vcpu>\n", "", 1)
	for name, test := range map[string]struct {
		current string
		want    []string
	}{
		"same":        {current: good},
		"live":        {current: live},
		"other order": {current: reordered},
		"units":       {current: with("<currentMemory unit='KiB'>2097152", "<currentMemory unit='GiB'>2")},
		"address":     {current: with("<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>", "")},
		"attribute": {with("cache='none'", "cache='writeback'"),
			[]string{`devices/disk[vda]/driver@cache: stored "none", libvirt has "writeback"`}},
		"attribute gone": {with(" cache='none'", ""),
			[]string{`devices/disk[vda]/driver@cache: stored "none", libvirt has (none)`}},
		"text": {with("<name>web", "<name>www"), []string{`name: stored "web", libvirt has "www"`}},
		"boot order": {with("<boot dev='hd'/>\n", ""), []string{`os/boot@dev: stored "hd", libvirt has "network"`,
			`os/boot[2]: stored <boot dev='network'/>, libvirt has (none)`}},
		"new device": {with("<devices>", "<devices><disk><source file='/x'/><target dev='vdc'/></disk>"),
			[]string{`devices/disk[vdc]: stored (none), libvirt has <disk><source file='/x'/><target dev='vdc'/></disk>`}},
		"password": {with("passwd='secret'", "passwd='hidden'"),
			[]string{`devices/graphics@passwd: stored (hidden), libvirt has (hidden)`}},
		"password gone": {with("<graphics type='vnc' port='-1' autoport='yes' passwd='secret'/>", ""),
			[]string{`devices/graphics: stored <graphics type='vnc' autoport='yes' passwd='(hidden)'/>, libvirt has (none)`}},
	} {
		diff, err := Drift([]byte(good), []byte(test.current))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range diff {
			got = append(got, d.String())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if _, err := Drift([]byte("x"), []byte(good)); err == nil || !strings.Contains(err.Error(), "stored") {
		t.Errorf("broken copy: %v", err)
	}
}

// What is accepted must survive being written and read again.
func FuzzParse(f *testing.F) {
	for _, text := range []string{good, live, "<domain/>", "<domain><a:b c='&#10;'>&lt;</a:b></domain>"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		place.Check(d)
		place.DatastoresOf(d)
		once, err := Normalise(text)
		if err != nil {
			return // grew beyond the limit
		}
		if err := xml.Unmarshal(once, new(struct{})); err != nil {
			t.Fatalf("not XML: %v\n%s", err, once)
		}
		twice, err := Normalise(once)
		if err != nil {
			t.Fatalf("not read again: %v\n%s", err, once)
		}
		if !bytes.Equal(once, twice) {
			t.Fatalf("not idempotent:\n%s\n%s", once, twice)
		}
		if diff, err := Drift(text, once); err != nil || len(diff) > 0 {
			t.Fatalf("drift: %v, %v", diff, err)
		}
	})
}
