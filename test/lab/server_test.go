package lab_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// A server beside the hosts says what they say, also after it died: the events
// of the time without it are there afterwards, once each.
func TestServerSaysWhatTheHostsSay(t *testing.T) {
	c := settled(t)
	c.must(c.d.StartServer(c.ctx))
	t.Cleanup(func() { c.must(c.d.StopServer(c.ctx)) })
	c.must(c.d.AdoptHosts(c.ctx, c.primary()))
	c.eventually(20*time.Second, "the server says what the hosts say", func() error { return c.d.ServerAgrees(c.ctx) })

	c.must(c.d.StopServer(c.ctx))
	vm := c.vmNames()[0]
	host, before := c.vmHost(vm), c.instance(vm)
	c.killProcess(vm)
	c.eventually(20*time.Second, vm+" was restarted without a server", func() error { return c.restarted(vm, before) })
	c.settle()
	want := eventIDs(t, []byte(c.mustExec(host, "hanok", "events", "-o", "json", "-n", "20000")))
	c.must(c.d.StartServer(c.ctx))
	c.eventually(20*time.Second, "the server says what the hosts say again", func() error { return c.d.ServerAgrees(c.ctx) })
	c.eventually(20*time.Second, "all events are there", func() error {
		out, err := c.d.AskServer(c.ctx, "events", "-o", "json", "-n", "20000")
		if err != nil {
			return err
		}
		got := eventIDs(t, out)
		for id, n := range got {
			if n != 1 {
				t.Fatalf("event %s is there %d times", id, n)
			}
		}
		for id := range want {
			if got[id] == 0 {
				return fmt.Errorf("the server lacks event %s", id)
			}
		}
		return nil
	})
}

// eventIDs counts the events of JSON lines by their id.
func eventIDs(t *testing.T, lines []byte) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, l := range bytes.Split(bytes.TrimSpace(lines), []byte("\n")) {
		var e struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(l, &e); err != nil || e.ID == "" {
			t.Fatalf("an event: %v: %s", err, l)
		}
		out[e.ID]++
	}
	return out
}
