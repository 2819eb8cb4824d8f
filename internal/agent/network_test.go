package agent

import (
	"encoding/json"
	"math"
	"testing"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/wire"
)

// TestClusterFileFitsIntoAMessage: what CheckDeployable accepts can be offered,
// and relayed by another host.
func TestClusterFileFitsIntoAMessage(t *testing.T) {
	offer := &fdm.ConfigOffer{Version: math.MaxUint64, File: make([]byte, config.MaxDeployed)}
	for name, m := range map[string]fdm.Message{
		"offer": {Config: offer},
		"relay": {Admin: &fdm.AdminRelay{ID: math.MaxUint64, Request: fdm.AdminRequest{Apply: offer}}},
	} {
		b, err := json.Marshal(m)
		if err != nil || len(b)+4096 > wire.MaxMessage {
			t.Errorf("%s: %d bytes and %v; a message has at most %d", name, len(b), err, wire.MaxMessage)
		}
	}
}
