package server

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The examples of docs/api.md are run as they stand there, in order.
func TestExamplesOfTheDocs(t *testing.T) {
	for _, tool := range []string{"curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: scripts/install-deps.sh installs it", err)
		}
	}
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	r := newRigWithoutCluster(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(clusterFile), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{`"name":"s1"`, `"kind":"applyConfig"`, `"version":"2"`, `hanok.v1.Stale`, `"version":"3"`, `memroy`, `"nextPageToken"`, `"kind":"shutdownVM"`, `"tasks"`, `"hosts"`, `"CRM (master node)"`, `{`}
	n := 0
	for i, block := range strings.Split(string(doc), "```sh\n")[1:] {
		code, _, _ := strings.Cut(block, "```")
		for _, line := range strings.Split(strings.TrimSpace(code), "\n") {
			if n == 6 {
				r.until("the VMs", func() bool { return r.cache.VM("seoul", "web") != nil })
			}
			cmd := exec.Command("sh", "-c", line)
			cmd.Dir, cmd.Env = dir, append(os.Environ(), "S="+r.cfg.Socket)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("example %d, %s: %v: %s", i+1, line, err, out)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, out); err != nil {
				t.Fatalf("%s: %s", line, out)
			}
			if n >= len(want) || !strings.Contains(b.String(), want[n]) {
				t.Errorf("%s: %s, want %s", line, b.String(), want[min(n, len(want)-1)])
			}
			n++
		}
	}
	if n != len(want) {
		t.Errorf("%d examples were run, %d are expected", n, len(want))
	}
}
