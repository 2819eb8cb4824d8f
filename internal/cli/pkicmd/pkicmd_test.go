package pkicmd

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func run(args ...string) (string, error) {
	cmd := New()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestInitIssueShow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte("version: 1\nname: seoul-1\nnetworks: [{name: mgmt, heartbeat: true}]\nhosts: [{name: host1, address: {mgmt: 10.0.0.1}}, {name: host2}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args []string
		want string // in the output, or after ! in the error
	}{
		{[]string{"issue", "host1", "--dir", dir}, "!make the CA first"},
		{[]string{"init", "seoul/1", "--dir", dir}, "!cluster id"},
		{[]string{"init", "seoul-1", "--dir", dir}, "made the CA of cluster seoul-1"},
		{[]string{"init", "seoul-1", "--dir", dir}, "!--force"},
		{[]string{"issue", "host1", "host2", "-f", file, "--dir", dir}, "issued host2"},
		{[]string{"issue", "host1", "-f", file, "--dir", dir}, "!--force"},
		{[]string{"issue", "host3", "-f", file, "--dir", dir}, `!no host "host3"`},
		{[]string{"issue", "host3", "--address", "gw", "--dir", dir}, "!IPv4 or IPv6"},
		{[]string{"issue", "host1", "--force", "--address", "10.0.0.7", "--dir", dir}, "issued host1"},
		{[]string{"show", "--dir", filepath.Join(dir, "hosts/host1")}, "host     host1\ncluster  seoul-1"},
		{[]string{"show", "-o", "json", "--dir", filepath.Join(dir, "hosts/host2")}, `"uri":"hanok://seoul-1/host/host2"`},
		{[]string{"show", "--dir", dir}, "!host.crt"},
	} {
		out, err := run(step.args...)
		if wantErr, ok := strings.CutPrefix(step.want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), wantErr) {
				t.Errorf("%v: error %v, want %q", step.args, err, wantErr)
			}
		} else if err != nil || !strings.Contains(out, step.want) {
			t.Errorf("%v: %q, %v, want %q", step.args, out, err, step.want)
		}
	}
}
