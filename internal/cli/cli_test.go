package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hanok.dev/hanok/internal/agent/local"
	"hanok.dev/hanok/internal/fdm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hanok": func() { os.Exit(Main(os.Args[1:])) }})
}

// Each script has an agent that answers from files of the script: status.json,
// events.jsonl, cluster.yaml, and reply.json to orders. It writes the last order
// to request.json, and takes over a cluster file that is applied; questions to
// admission control are question.json, answered by verdict.json. Without
// status.json there is no agent.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			if _, err := os.Stat(filepath.Join(env.WorkDir, "status.json")); err != nil {
				return nil
			}
			ln, err := net.Listen("unix", filepath.Join(env.WorkDir, "agent.sock"))
			if err != nil {
				return err
			}
			stub := &stubAgent{dir: env.WorkDir}
			srv := &http.Server{Handler: stub.handler()}
			done := make(chan struct{})
			go func() { defer close(done); _ = srv.Serve(ln) }()
			env.Defer(func() { srv.Close(); <-done })
			return nil
		},
	})
}

type stubAgent struct {
	dir string
	mu  sync.Mutex
	new uint64 // version that was applied
}

func (s *stubAgent) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stubAgent) handler() http.Handler {
	mux := http.NewServeMux()
	file := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			b, err := os.ReadFile(s.path(name))
			if err != nil {
				w.WriteHeader(http.StatusNotFound)
				_ = json.NewEncoder(w).Encode(local.Failure{Error: "no failover is known on this host"})
				return
			}
			_, _ = w.Write(b)
		}
	}
	mux.HandleFunc("GET "+local.PathStatus, s.status)
	mux.HandleFunc("GET "+local.PathConfig, file("cluster.yaml"))
	mux.HandleFunc("GET "+local.PathEvents, file("events.jsonl"))
	mux.HandleFunc("POST "+local.PathAdmin, s.admin)
	return mux
}

func (s *stubAgent) status(w http.ResponseWriter, _ *http.Request) {
	b, err := os.ReadFile(s.path("status.json"))
	var st local.Status
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.mu.Lock()
	if s.new > 0 {
		st.ConfigVersion = s.new
		for i := range st.Hosts {
			st.Hosts[i].ConfigVersion = s.new
		}
	}
	s.mu.Unlock()
	st.FindProblems()
	_ = json.NewEncoder(w).Encode(st)
}

func (s *stubAgent) admin(w http.ResponseWriter, r *http.Request) {
	var req fdm.AdminRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b, _ := json.Marshal(req)
	to, from := "request.json", "reply.json"
	if req.Consider != nil {
		to, from = "question.json", "verdict.json"
	}
	if err := os.WriteFile(s.path(to), b, 0o600); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	rep := fdm.AdminReply{OK: true}
	if b, err := os.ReadFile(s.path(from)); err == nil {
		if err := json.Unmarshal(b, &rep); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	if req.Apply != nil && rep.OK {
		s.mu.Lock()
		s.new = req.Apply.Version
		s.mu.Unlock()
		if err := os.WriteFile(s.path("cluster.yaml"), req.Apply.File, 0o600); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	_ = json.NewEncoder(w).Encode(rep)
}

// Every command has help, refuses what it does not know, and is documented.
func TestEveryCommandIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	root := New()
	var walk func(path string)
	walk = func(path string) {
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Short == "" {
			t.Errorf("hanok %s has no description", path)
		}
		leaf := true
		for _, sub := range cmd.Commands() {
			if sub.Hidden || sub.Name() == "help" || sub.Name() == "completion" || sub.Name() == "lab" { // docs/lab.md
				continue
			}
			leaf = false
			walk(strings.TrimSpace(path + " " + sub.Name()))
		}
		if leaf && !strings.Contains(string(doc), "hanok "+path) {
			t.Errorf("docs/cli.md does not mention `hanok %s`", path)
		}
	}
	walk("")
}

func TestExplain(t *testing.T) {
	wrapped := fmt.Errorf("vm101: %w", Fail(ExitRefused, "do this", "it is locked"))
	if e := explain(wrapped); e.Code != ExitRefused || e.Remedy != "do this" || e.Error() != "vm101: it is locked" {
		t.Errorf("a wrapped error: %+v", e)
	}
	if e := explain(&local.RequestError{Status: 504, Failure: local.Failure{Error: "late", Remedy: "wait"}}); e.Code != ExitTimeout || e.Remedy != "wait" {
		t.Errorf("a late answer: %+v", e)
	}
}
