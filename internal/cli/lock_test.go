package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

const lockedVM = model.VMID("6b1f1d3a-0f0a-4c58-9a4e-2b9f0c7d1e55")

// lockRig is a datastore with a VM that host1 holds, and a guard's slot of it.
type lockRig struct {
	app    *app
	driver *datastore.Posix
	slot   int
}

func newLockRig(t *testing.T) *lockRig {
	t.Helper()
	dir := t.TempDir()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := datastore.Initialise(dir, "test", datastore.InitOptions{})
	ok(err)
	d, err := datastore.Open(dir, "test", datastore.Options{AllowBuffered: true})
	ok(err)
	rec := model.LockRecord{Owner: "host1", Boot: "b1", Nonce: "n1"}
	ok(d.CreateLock(model.VMLock(lockedVM), rec))
	rec.Lock, rec.Epoch, rec.State, rec.Nonce = model.VMLock(lockedVM), 2, model.LockHeld, "n2"
	ok(d.Link(rec))
	ok(d.WriteList(model.ProtectedList{Term: 1, Version: 1, VMs: []model.ProtectedVM{{ID: lockedVM, Name: "web", Home: "ds1"}}}))
	r := &lockRig{driver: d}
	r.slot, err = d.ClaimSlot("host1", "machine")
	ok(err)
	ok(r.beat(1))
	file := filepath.Join(dir, "cluster.yaml")
	ok(os.WriteFile(file, fmt.Appendf(nil, "version: 1\nname: test\ndatastores: [{name: ds1, path: %s}]\n", dir), 0o600))
	r.app = &app{clusterFile: file, socket: filepath.Join(dir, "none.sock"), guardSocket: filepath.Join(dir, "guard.sock"), in: strings.NewReader("")}
	return r
}

func (r *lockRig) beat(n uint64) error {
	_, err := r.driver.WriteSlot(r.slot, nil, model.Slot{Host: "host1", Boot: "b1", Sequence: n, Flags: model.SlotArmed, Lease: 5 * time.Second})
	return err
}

func (r *lockRig) run(args ...string) (string, error) {
	cmd := newLock(r.app)
	strict(cmd)
	var out bytes.Buffer
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

func TestLockShow(t *testing.T) {
	r := newLockRig(t)
	out, err := r.run("show", "web", "--watch", "300ms")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"VM web (" + string(lockedVM) + "), lock on datastore ds1", "Held by host1", "unchanged for at least", "armed", "created"} {
		if !strings.Contains(out, want) {
			t.Errorf("evidence lacks %q:\n%s", want, out)
		}
	}
	if _, err := r.run("show", "nobody", "--watch", "0s"); err == nil || explain(err).Code != ExitNotFound {
		t.Errorf("an unknown VM: %v", err)
	}
	if out, err := r.run("show", string(lockedVM), "--datastore", "ds1", "--watch", "0s", "-o", "json"); err != nil || !strings.Contains(out, `"holder": "host1"`) {
		t.Errorf("by id: %v\n%s", err, out)
	}
}

// A holder whose slot moves is alive: its lock is not broken, whatever is typed.
func TestLockIsNotBrokenWhileItsHolderLives(t *testing.T) {
	r := newLockRig(t)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := uint64(2); ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				if err := r.beat(n); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	_, err := r.run("release", "--force", "--confirm", "web", "web")
	close(stop)
	<-stopped
	if err == nil || explain(err).Code != ExitRefused || !strings.Contains(err.Error(), "is alive") {
		t.Errorf("a living holder: %v", err)
	}
	if _, err = r.run("release", "--force", "--confirm", "wbe", "web"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("a wrong name: %v", err)
	}
	if _, err = r.run("release", "--force", "--confirm", "web", "web"); err == nil || explain(err).Code != ExitUnreachable {
		t.Errorf("a dead holder, but no guard to do it: %v", err)
	}
}
