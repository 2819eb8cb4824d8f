package datastorecmd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/datastore"
)

func run(input string, args ...string) (string, error) {
	cmd := New()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(strings.NewReader(input))
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

const (
	id1 = "11111111-2222-4333-8444-555555555555"
	vm1 = "6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55"
)

func TestDatastoreCommands(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("datastores belong to root: run the tests of internal/cli/datastorecmd as root")
	}
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "version: 1\nname: c1\nnetworks: [{name: mgmt, heartbeat: true}]\nhosts: [{name: host1, address: {mgmt: 10.0.0.1}, datastores: [ds1]}]\n"+
		"datastores: [{name: ds1, path: "+dir+", uuid: "+id1+"}]\n")
	write(filepath.Join(dir, "web", "web.xml"), "<domain type='kvm'><name>web</name><uuid>"+vm1+"</uuid></domain>")
	write(filepath.Join(dir, "web", "notes.xml"), "<notes/>")
	home := filepath.Join(dir, datastore.DirName, "c1")

	for _, step := range []struct {
		name  string
		do    func() error // before the command
		input string
		args  []string
		want  string // in the output, or after ! in the error
	}{
		{name: "no cluster", args: []string{"init", dir}, want: "!--cluster"},
		{name: "not mounted", args: []string{"init", dir, "--cluster", "c1"}, want: "!--plain-directory"},
		{name: "bad uuid", args: []string{"init", dir, "--cluster", "c1", "--uuid", "x", "--plain-directory"}, want: "!lower-case UUID"},
		{name: "too many slots", args: []string{"init", dir, "--cluster", "c1", "--slots", "5000", "--plain-directory"}, want: "!must be 1 to 4096"},
		{name: "show before", args: []string{"show", "ds1", "-f", file}, want: "FAULT"},
		{name: "init", args: []string{"init", dir, "--cluster", "c1", "--uuid", id1, "--slots", "16", "--plain-directory"}, want: "uuid: " + id1},
		{name: "init again", args: []string{"init", dir, "--cluster", "c1", "--plain-directory"}, want: "!exists"},
		{name: "show by name", args: []string{"show", "ds1", "-f", file}, want: "datastore " + id1 + " of cluster c1"},
		{name: "show by path", args: []string{"show", dir, "--cluster", "c1"}, want: "no faults found"},
		{name: "show without cluster", args: []string{"show", dir, "-f", "/nonexistent"}, want: "!give --cluster"},
		{name: "unknown name", args: []string{"show", "ds9", "-f", file}, want: "!the cluster file has ds1"},
		{name: "output", args: []string{"show", "ds1", "-f", file, "-o", "yaml"}, want: "!only json"},
		{name: "check", args: []string{"check", "-f", file}, want: "ds1: no faults found"},
		{name: "wrong store", args: []string{"check", dir, "--cluster", "c1", "--uuid", vm1}, want: "!1 of 1 datastores have faults"},
		{name: "repair of the wrong store", args: []string{"repair", dir, "--cluster", "c1", "--uuid", vm1, "--yes", "--settle", "1ms"}, want: "!mount the right file system"},
		{name: "repair of nothing", args: []string{"repair", "ds1", "-f", file, "--yes", "--settle", "1ms"}, want: "!nothing is wrong"},
		{name: "deleted", do: func() error { return os.RemoveAll(home) },
			args: []string{"check", "ds1", "-f", file}, want: "!1 of 1 datastores have faults"},
		{name: "declined", input: "yes\n", args: []string{"repair", "ds1", "-f", file, "--plain-directory"}, want: "!nothing was changed"},
		{name: "repaired", input: "c1\n", args: []string{"repair", "ds1", "-f", file, "--slots", "16", "--settle", "1ms", "--plain-directory"}, want: "made lock " + vm1 + " again"},
		{name: "repaired, shown", args: []string{"show", "ds1", "-f", file}, want: "released"},
		{name: "damaged", do: func() error { return os.Truncate(filepath.Join(home, "heartbeats"), 100) },
			args: []string{"show", "ds1", "-f", file}, want: "FAULT: check"},
		{name: "damage repaired", args: []string{"repair", "ds1", "-f", file, "--yes", "--settle", "1ms"}, want: "reset all heartbeat slots"},
		{name: "rolled back", args: []string{"repair", "ds1", "-f", file, "--yes", "--settle", "1ms", "--rolled-back"}, want: "lock " + vm1 + " is free"},
		{name: "forget nobody", args: []string{"repair", "ds1", "-f", file, "--yes", "--settle", "1ms", "--forget-host", "host1"}, want: "!host host1 has claimed no slot"},
		{name: "check at the end", args: []string{"check", "ds1", "-f", file}, want: "no faults found"},
	} {
		if step.do != nil {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		out, err := run(step.input, step.args...)
		if want, isError := strings.CutPrefix(step.want, "!"); isError {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("%s: error %v, want one with %q\n%s", step.name, err, want, out)
			}
		} else if err != nil || !strings.Contains(out, want) {
			t.Fatalf("%s: error %v, output without %q:\n%s", step.name, err, want, out)
		}
	}

	out, err := run("", "show", "ds1", "-f", file, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var report datastore.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Header.ID != id1 || report.Header.Slots != 16 || len(report.Locks) != 2 {
		t.Errorf("%v: %s", err, out)
	}
}
