package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/pki"
	"hanok.dev/hanok/internal/support"
)

// A bundle of a machine whose logs, certificates and daemons have secrets in
// them has none.
func TestSupportBundleHasNoSecrets(t *testing.T) {
	dir := t.TempDir()
	ca, own := filepath.Join(dir, "ca"), filepath.Join(dir, "pki")
	if err := errors.Join(pki.Init(ca, "seoul", pki.Options{}), pki.Issue(ca, own, "host1", nil, pki.Options{})); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(own, pki.HostKey))
	if err != nil {
		t.Fatal(err)
	}
	log := string(key) + "hanok_0a1b2c3d4e5f6071_8a9bacbdcedf0011_5ec2e7aa5ec2e7aa\nhanok-host:seoul:host1:5ec2e7bb5ec2e7bb\nPOST {\"password\":\"hunter2\"}\nthe agent starts\n"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "log"), 0o700), os.WriteFile(filepath.Join(dir, "log", "agent.log"), []byte(log), 0o600),
		os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte("name: seoul\n# bmc password: hunter2\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hanok_agent_ready 1\nAuthorization: Bearer hunter2hunter2\n")
	}))
	defer daemon.Close()
	root, file := New(), filepath.Join(dir, "b.tar.gz")
	var out, told bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&told)
	address := strings.TrimPrefix(daemon.URL, "http://")
	root.SetArgs([]string{"support", "bundle", "-o", "json", "--file", file, "--log-dir", filepath.Join(dir, "log"), "--pki-dir", own, "--agent-metrics", address, "--server-metrics", address,
		"--since", "-1s", "--cluster-file", filepath.Join(dir, "cluster.yaml"), "--socket", filepath.Join(dir, "none"), "--server-socket", filepath.Join(dir, "none")})
	t.Setenv("XDG_CONFIG_HOME", dir)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var b bundled
	if err := json.Unmarshal(out.Bytes(), &b); err != nil || b.File != file || b.Bytes == 0 || !strings.Contains(told.String(), "host/status.json") {
		t.Errorf("%v: %s, %s", err, out.String(), told.String())
	}
	if s, err := os.Stat(file); err != nil || s.Mode().Perm() != 0o600 || s.Size() > support.MaxBundle {
		t.Errorf("%v, %v", s, err)
	}
	got := unpacked(t, file)
	secrets := []string{"5ec2e7aa", "5ec2e7bb", "hunter2"}
	secrets = append(secrets, strings.Split(string(key), "\n")[1])
	for name, text := range got {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s has %q", name, s)
			}
		}
	}
	for name, want := range map[string]string{"logs/agent.log": "the agent starts", "host/metrics.txt": "hanok_agent_ready 1", "host/cluster.yaml": "name: seoul",
		"host/certificate.json": "BEGIN CERTIFICATE", "versions.json": "hanok", "manifest.json": "host/status.json", "system/mounts.txt": " / "} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s lacks %q: %.300s", name, want, got[name])
		}
	}
}

// unpacked are the files of a bundle, by their names in its directory.
func unpacked(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		out[name] = string(b)
	}
}
