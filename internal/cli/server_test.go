package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/server"
	"hanok.dev/hanok/internal/server/fakeagent"
	"hanok.dev/hanok/internal/store"
)

// Scripts with a server in s.sock, beside hosts that work with cluster.yaml of
// the script.
func TestThroughAServer(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/server",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"onhosts": onHosts, "waitfor": waitFor},
		Setup: func(env *testscript.Env) error {
			c, err := config.ReadFile(filepath.Join(env.WorkDir, "cluster.yaml"))
			if err != nil {
				return err
			}
			hosts, err := fakeagent.New(c)
			if err != nil {
				return err
			}
			hosts.SetRefuse(func(*config.Cluster, bool) string {
				b, _ := os.ReadFile(filepath.Join(env.WorkDir, "refuse")) // most scripts have none
				return strings.TrimSpace(string(b))
			})
			env.Values[hostsKey{}] = hosts
			short, err := os.MkdirTemp("", "hanok") // a socket's path is short
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(short) })
			socket := filepath.Join(short, "s")
			env.Setenv("S", socket)
			env.Setenv("XDG_CONFIG_HOME", env.WorkDir)
			s, err := server.New(server.Config{Name: "s1", Store: store.Config{Dir: filepath.Join(short, "data")}, Socket: socket, Listen: "127.0.0.1:0",
				Log: slog.New(slog.DiscardHandler), Interval: 50 * time.Millisecond,
				Dial: fakeagent.Dial(func(string) *fakeagent.Cluster { return hosts })})
			if err != nil {
				return err
			}
			if err := s.Start(t.Context()); err != nil {
				return err
			}
			env.Setenv("URL", "https://"+s.Address())
			env.Setenv("FINGERPRINT", s.Fingerprint())
			link, err := s.SetUpLink(t.Context())
			if err != nil {
				return err
			}
			env.Setenv("LINK", link)
			env.Defer(func() {
				if err := s.Stop(t.Context()); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
	})
}

type hostsKey struct{}

// onHosts is `onhosts FILE`: a change of the cluster file on a host.
func onHosts(ts *testscript.TestScript, _ bool, args []string) {
	c, err := config.Parse([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(ts.Value(hostsKey{}).(*fakeagent.Cluster).Apply(c))
}

// waitFor is `waitfor SOCKET TEXT`: until `hanok cluster list -o json` says it.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 200 {
		ts.Check(ts.Exec("hanok", "--server", args[0], "cluster", "list", "-o", "json"))
		if strings.Contains(ts.ReadFile("stdout"), `"`+args[1]+`": true`) {
			return
		}
	}
	ts.Fatalf("%s did not come", args[1])
}
