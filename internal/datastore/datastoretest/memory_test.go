package datastoretest_test

import (
	"testing"

	"hanok.dev/hanok/internal/datastore/datastoretest"
)

func TestMemory(t *testing.T) {
	datastoretest.Run(t, func(*testing.T) *datastoretest.World {
		return &datastoretest.World{Open: datastoretest.NewMemory("c1", datastoretest.Slots).Open}
	})
}
