package fdm

import (
	"strings"
	"testing"
	"time"

	"hanok.dev/hanok/internal/lease"
	"hanok.dev/hanok/internal/model"
)

func fileOf(version uint64, text string) Cluster {
	c := chaosConfig(version)
	c.File = []byte(text)
	return c
}

// applyOn applies a file on a primary; what the shell is to store is returned.
func applyOn(b *bench, id, version uint64, text string) SaveConfig {
	b.t.Helper()
	b.step(AdminAsked{ID: id, Request: AdminRequest{Apply: &ConfigOffer{Version: version, File: []byte(text)}}})
	for _, e := range take[ReadConfig](b) { // admission control looks at it first
		b.step(ConfigRead{Op: e.Op, Config: fileOf(version, text)})
	}
	saves := take[SaveConfig](b)
	if len(saves) != 1 || saves[0].Op == 0 || saves[0].Over {
		b.t.Fatalf("saves %+v", saves)
	}
	return saves[0]
}

func answersTo(b *bench, id uint64) (ok bool, text string) {
	b.t.Helper()
	for _, a := range take[Answer](b) {
		if a.ID == id {
			return a.Reply.OK, a.Reply.Text
		}
	}
	return false, ""
}

func listsHeld(term model.Term) lease.Reply {
	return lease.Reply{Code: lease.CodeOK, Status: &lease.Status{Datastores: []lease.DatastoreStatus{
		{Name: "ds1", OK: true, ListTerm: term}, {Name: "ds2", OK: true, ListTerm: term}}}}
}

// TestOnlyTheFileInForceIsConfirmed: of two files that were applied under one
// version at the same moment, one is kept; the other must not be called in force.
func TestOnlyTheFileInForceIsConfirmed(t *testing.T) {
	b := newBench(t, chaosConfig(1))
	b.lead()
	first, second := applyOn(b, 8, 2, "first"), applyOn(b, 9, 2, "second")
	b.step(ConfigLoaded{fileOf(2, "first")})
	b.step(ConfigSaved{Op: first.Op})
	b.kept(listsHeld(5))
	if ok, text := answersTo(b, 8); !ok {
		t.Errorf("the first is not confirmed: %q", text)
	}
	b.step(ConfigSaved{Op: second.Op, Err: "another cluster file has this version"})
	b.kept(listsHeld(5))
	if ok, text := answersTo(b, 9); ok || !strings.Contains(text, "another cluster file has this version") {
		t.Errorf("the second: %v %q", ok, text)
	}
	b.pass(2 * applyLimit)
	if ok, _ := answersTo(b, 9); ok {
		t.Error("the second was confirmed later")
	}
}

// TestStalledPrimaryConfirmsNoClusterFile: it stood still between decision and
// confirmation; its lists are another host's by then, which may have given the
// version to another file.
func TestStalledPrimaryConfirmsNoClusterFile(t *testing.T) {
	for name, c := range map[string]struct {
		term model.Term
		ok   bool
	}{"still primary": {5, true}, "of another term": {7, false}, "lists lost": {0, false}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, chaosConfig(1))
			b.lead()
			save := applyOn(b, 9, 2, "mine")
			b.step(ConfigLoaded{fileOf(2, "mine")})
			b.step(ConfigSaved{Op: save.Op})
			if ok, text := answersTo(b, 9); ok || text != "" {
				t.Fatalf("answered before the guard was asked: %v %q", ok, text)
			}
			b.kept(listsHeld(c.term))
			if ok, text := answersTo(b, 9); ok != c.ok || text == "" {
				t.Errorf("confirmed %v, want %v: %q", ok, c.ok, text)
			}
		})
	}
}

// TestThePrimarysFileReplacesAnotherOfItsVersion: two primaries may have given one
// version to two files. It is not silent, and the current primary's stays.
func TestThePrimarysFileReplacesAnotherOfItsVersion(t *testing.T) {
	follow := func(t *testing.T) *bench {
		b := newBench(t, fileOf(2, "mine"))
		b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatPrimary, Datastores: 9, Settled: true, ConfigVersion: 2, ConfigSum: fileSum([]byte("theirs"))}})
		b.pass(500 * time.Millisecond)
		if b.m.role != roleSecondary || b.m.primary != "a" {
			t.Fatalf("role %v, primary %q", b.m.role, b.m.primary)
		}
		b.out = nil
		return b
	}
	offer := func(b *bench, from model.HostID, text string) []SaveConfig {
		b.step(MessageReceived{From: from, Message: Message{Config: &ConfigOffer{Version: 2, File: []byte(text)}}})
		return take[SaveConfig](b)
	}
	t.Run("taken over", func(t *testing.T) {
		b := follow(t)
		saves := offer(b, "a", "theirs")
		if len(saves) != 1 || !saves[0].Over {
			t.Fatalf("saves %+v", saves)
		}
		b.step(ConfigLoaded{fileOf(2, "theirs")})
		b.step(ConfigSaved{Op: saves[0].Op})
		told := false
		for _, e := range take[Emit](b) {
			told = told || strings.Contains(e.Event.Text, "another one on b")
		}
		if !told {
			t.Error("nobody is told")
		}
		if again := offer(b, "a", "theirs"); len(again) != 0 {
			t.Errorf("stored again: %+v", again)
		}
	})
	t.Run("not from others", func(t *testing.T) {
		if saves := offer(follow(t), "c", "theirs"); len(saves) != 0 {
			t.Errorf("saves %+v", saves)
		}
	})
	t.Run("the primary offers it", func(t *testing.T) {
		b := newBench(t, fileOf(2, "mine"))
		b.lead()
		offers := func(sum uint64) (n int) {
			b.pass(3 * time.Second)
			b.out = nil
			b.step(HeartbeatReceived{From: "a", Network: "n1", Beat: Heartbeat{Kind: BeatSecondary, Primary: "b", Settled: true, ConfigVersion: 2, ConfigSum: sum}})
			for _, e := range take[SendMessage](b) {
				if e.To == "a" && e.Message.Config != nil {
					n++
				}
			}
			return n
		}
		if n := offers(fileSum([]byte("mine"))); n != 0 {
			t.Errorf("the same file was offered %d times", n)
		}
		if n := offers(0); n != 0 {
			t.Errorf("a host that knows no sums was offered it %d times", n)
		}
		if n := offers(fileSum([]byte("theirs"))); n != 1 {
			t.Errorf("a host with another file was offered it %d times", n)
		}
	})
}
