package fdm

import (
	"testing"

	"hanok.dev/hanok/internal/formats"
)

// What agents of version 1 say to each other, and servers to them.
func TestFormats(t *testing.T) {
	formats.JSON[Heartbeat](t, "1/heartbeat.json")
	formats.JSON[Message](t, "1/message.json")
	formats.JSON[AdminRequest](t, "1/admin-request.json")
	formats.JSON[AdminReply](t, "1/admin-reply.json")
}
