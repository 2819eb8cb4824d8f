package simcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/sim"
)

const threeHosts = `version: 1
name: r
networks: [{name: mgmt, heartbeat: true}, {name: hb2, heartbeat: true}]
datastores: [{name: ds1, backing: a}]
hosts:
- {name: host1, address: {mgmt: 10.0.0.1, hb2: 10.1.0.1}, cpu: {cores: 4, mhz: 2000}, memory: 8GiB, datastores: [ds1]}
- {name: host2, address: {mgmt: 10.0.0.2, hb2: 10.1.0.2}, cpu: {cores: 4, mhz: 2000}, memory: 8GiB, datastores: [ds1]}
- {name: host3, address: {mgmt: 10.0.0.3, hb2: 10.1.0.3}, cpu: {cores: 4, mhz: 2000}, memory: 8GiB, datastores: [ds1]}
vms:
- {name: web, host: host1, datastore: ds1, memory: 6GiB}
- {name: db, host: host2, datastore: ds1, memory: 6GiB}
`

// running is a state in which both VMs have moved and host2 is down.
const running = `{"hosts":[{"name":"host1","state":"primary","memory":8192},{"name":"host2","state":"failed"},{"name":"host3","state":"connected","memory":8192}],
"vms":[{"name":"web","state":"started","host":"host3"},{"name":"db","state":"started","host":"host1"}]}`

func rehearse(t *testing.T, live Live, args ...string) (string, error) {
	t.Helper()
	cmd := newRehearse(live, nil)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func clusterFiles(t *testing.T) (cluster, status string) {
	dir := t.TempDir()
	cluster, status = filepath.Join(dir, "c.yaml"), filepath.Join(dir, "s.json")
	for f, text := range map[string]string{cluster: threeHosts, status: running} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cluster, status
}

func TestRehearseEachHostAndEveryTwo(t *testing.T) {
	cluster, _ := clusterFiles(t)
	out, err := rehearse(t, nil, cluster)
	if err != nil || !strings.Contains(out, "every VM restarts") || !strings.Contains(out, "host3   -") {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err = rehearse(t, nil, cluster, "--two", "-o", "json")
	if !errors.Is(err, errNotAll) {
		t.Errorf("two of three hosts cannot be lost: %v", err)
	}
	var all []sim.Rehearsal
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 6 || len(all[3].Failed) != 2 || all[3].Down != 1 {
		t.Errorf("three single losses and three of two: %s", out)
	}
}

// isAnswer tells an answer "no" from a question that cannot be answered.
func isAnswer(err error) bool {
	var coded interface{ ExitCode() int }
	return !errors.As(err, &coded)
}

func TestRehearseWhatRuns(t *testing.T) {
	cluster, status := clusterFiles(t)
	out, err := rehearse(t, nil, cluster, "--status", status)
	if err == nil || !isAnswer(err) || !strings.Contains(out, "down already: host2") {
		t.Errorf("host1 and host3 hold one VM each and have no room for another: %v\n%s", err, out)
	}
	if strings.Contains(out, "\nhost2") {
		t.Errorf("a host that is down cannot fail:\n%s", out)
	}
	live := func(context.Context) (*config.Cluster, *local.Status, error) {
		c, err := config.Parse([]byte(threeHosts))
		if err != nil {
			return nil, nil, err
		}
		var s local.Status
		return c, &s, json.Unmarshal([]byte(running), &s)
	}
	if same, _ := rehearse(t, live); same != out {
		t.Errorf("the live cluster is the same:\n%s\n%s", same, out)
	}
}

func TestRehearseRefuses(t *testing.T) {
	cluster, status := clusterFiles(t)
	other := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(other, []byte(`{"hosts":[{"name":"host1"}],"vms":[{"name":"mail","host":"host1"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"no such file":      {"nothing.yaml"},
		"no host \"host9\"": {cluster, "--host", "host9"},
		"host2 is down":     {cluster, "--status", status, "--host", "host2"},
		"mail is not in":    {cluster, "--status", other},
		"names no hosts":    {cluster, "--status", write(t, "{}")},
		"not the output":    {cluster, "--status", cluster},
		"needs the cluster": {"--status", status},
		"only json":         {cluster, "-o", "xml"},
	} {
		_, err := rehearse(t, nil, args...)
		if err == nil || isAnswer(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A question that asks nothing clear is refused, and never answered with yes.
func TestRehearseRefusesUnclearHosts(t *testing.T) {
	cluster, _ := clusterFiles(t)
	for _, tt := range []struct {
		says string
		args []string
	}{
		{"host1 is named twice", []string{"--host", "host1,host1"}},
		{"names no host", []string{"--host", ""}},
		{"empty name", []string{"--host", "host1,"}},
		{"--host and --two", []string{"--host", "host1", "--two"}},
	} {
		out, err := rehearse(t, nil, append(tt.args, cluster)...)
		if err == nil || isAnswer(err) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v, want a refusal that says %q\n%s", tt.args, err, tt.says, out)
		}
	}
	idle := filepath.Join(t.TempDir(), "idle.yaml")
	text, _, _ := strings.Cut(threeHosts, "vms:")
	if err := os.WriteFile(idle, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := rehearse(t, nil, idle)
	if err != nil || strings.Contains(out, "every VM restarts") || !strings.Contains(out, "nothing has to restart") {
		t.Errorf("a cluster without VMs: %v\n%s", err, out)
	}
}
