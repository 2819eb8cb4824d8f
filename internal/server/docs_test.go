package server

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/server/account"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
)

// example is what one block of docs/api.md must print, and what happens before it.
type example struct {
	prints []string
	never  string
	before func(r *rig)
}

var examples = []example{
	{prints: []string{`"name":"s1"`, `"fingerprint":"sha256:`}},
	{prints: []string{`"kind":"applyConfig"`}},
	// Logging in.
	{before: func(r *rig) {
		r.until("the VMs", func() bool { return r.cache.VM("seoul", "web") != nil })
	}},
	{prints: []string{`"code":"permission_denied"`, `X-Hanok-CSRF is missing`, `"name":"alice"`, `"via":"session"`}},
	{prints: []string{`"name":"host3"`, `"code":"permission_denied"`, `needs the role operator`}},
	// Changes.
	{prints: []string{`"version":"2"`}},
	{prints: []string{`"code":"aborted"`, `version 2 is the newest`, `"currentVersion":"2"`, `"field":"ha.isolationResponse"`, `"new":"powerOff"`}},
	{prints: []string{`"version":"3"`}},
	{prints: []string{`memroy`}},
	// Lists and streams.
	{prints: []string{`"name":"db"`, `"nextPageToken"`, `"name":"web"`}},
	{},
	{prints: []string{`{"name":"db","state":"stopped"}`}, never: "again"},
	// Tasks.
	{prints: []string{`"state":"TASK_STATE_SUCCEEDED","progress":100,"message":"done"`, "the same task", `"tasks":[`}},
	{prints: []string{`"cancelRequested":true`, `TASK_STATE_CANCELLED`}, before: func(r *rig) { r.hosts.SetDown(true) }},
	// What is going on.
	{prints: []string{`"hosts"`, `"CRM (master node)"`, `{`}},
}

// The examples of docs/api.md are run as they stand there, in one shell, in order.
func TestExamplesOfTheDocs(t *testing.T) {
	for _, tool := range []string{"curl", "jq", "perl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: scripts/install-deps.sh installs it", err)
		}
	}
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(doc), "```sh\n")[1:]
	if len(blocks) != len(examples) {
		t.Errorf("%d examples are in the text, %d are expected", len(blocks), len(examples))
	}
	r := withTLS(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"cluster.yaml": clusterFile, "password": "correct horse battery\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.book.Add(t.Context(), "alice", "correct horse battery", hanokv1.Role_ROLE_ADMINISTRATOR, nil); err != nil {
		t.Fatal(err)
	}
	sh := newShell(t, dir, "S="+r.cfg.Socket, "URL=https://"+r.Address())
	for i, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		want := examples[min(i, len(examples)-1)]
		if want.before != nil {
			want.before(r)
		}
		out := strings.ReplaceAll(sh.run(code), " ", "")
		for _, p := range want.prints {
			if !strings.Contains(out, strings.ReplaceAll(p, " ", "")) {
				t.Errorf("example %d:\n%sdoes not print %s but\n%s", i+1, code, p, out)
			}
		}
		if want.never != "" && strings.Contains(out, want.never) {
			t.Errorf("example %d:\n%sprints %s:\n%s", i+1, code, want.never, out)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "token")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", fi, err)
	}
}

// withTLS is a server as an administrator runs it: with TLS and accounts of its own,
// beside fake agents.
func withTLS(t *testing.T) *rig {
	t.Helper()
	hosts, err := fakeagent.New(parsed(t, clusterFile))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := New(Config{Name: "s1", Store: store.Config{Dir: filepath.Join(dir, "data")}, Socket: filepath.Join(dir, "s"), Listen: "127.0.0.1:0",
		PasswordCost: account.Cost{Memory: 64, Passes: 1}, Log: slog.New(slog.DiscardHandler), Interval: 20 * time.Millisecond,
		Dial: fakeagent.Dial(func(string) *fakeagent.Cluster { return hosts })})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, hosts: hosts}
	r.serve(s)
	return r
}

// shell is a person's: what one command sets, the next one has.
type shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	n   int
}

func newShell(t *testing.T, dir string, env ...string) *shell {
	t.Helper()
	cmd := exec.Command("sh")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close() // the shell has its own
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the shell: %v", err)
		}
		_ = r.Close()
	})
	return &shell{t: t, in: in, out: bufio.NewReader(r)}
}

// run runs commands and returns what they print, errors included.
func (s *shell) run(code string) string {
	s.t.Helper()
	s.n++
	mark := fmt.Sprintf("=== end of %d", s.n)
	if _, err := fmt.Fprintf(s.in, "%s\nprintf '\\n%%s\\n' '%s'\n", code, mark); err != nil {
		s.t.Fatal(err)
	}
	var out strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if strings.TrimSpace(line) == mark {
			return out.String()
		}
		out.WriteString(line)
		if err != nil {
			s.t.Fatalf("the shell ended: %v\n%s", err, out.String())
		}
	}
}
