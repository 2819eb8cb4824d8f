package lease

import (
	"testing"

	"hanok.dev/hanok/internal/formats"
)

// What a guard of version 1 leaves for the next, and says to its agent: while a
// host is upgraded the one is newer than the other.
func TestFormats(t *testing.T) {
	formats.JSON[Saved](t, "1/saved.json")
	formats.JSON[Request](t, "1/request.json")
	formats.JSON[Reply](t, "1/reply.json")
	formats.JSON[Notice](t, "1/notice.json")
}
