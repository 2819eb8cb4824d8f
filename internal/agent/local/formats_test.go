package local

import (
	"testing"

	"hanok.dev/hanok/internal/formats"
)

// What an agent of version 1 tells servers and commands.
func TestFormats(t *testing.T) { formats.JSON[Status](t, "1/status.json") }
