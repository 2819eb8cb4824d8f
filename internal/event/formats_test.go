package event

import (
	"testing"

	"hanok.dev/hanok/internal/formats"
)

// The events that a host of version 1 keeps and hands on.
func TestFormats(t *testing.T) { formats.JSON[Event](t, "1/event.json") }
