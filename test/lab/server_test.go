package lab_test

import (
	"testing"
	"time"
)

// A server beside the hosts says what they say.
func TestServerSaysWhatTheHostsSay(t *testing.T) {
	c := settled(t)
	c.must(c.d.StartServer(c.ctx))
	t.Cleanup(func() { c.must(c.d.StopServer(c.ctx)) })
	c.must(c.d.AdoptHosts(c.ctx, c.primary()))
	c.eventually(20*time.Second, "the server says what the hosts say", func() error { return c.d.ServerAgrees(c.ctx) })
}
