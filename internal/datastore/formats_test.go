package datastore

import (
	"bytes"
	"testing"

	"hanok.dev/hanok/internal/formats"
	"hanok.dev/hanok/internal/model"
)

// sealed checks the record of what an envelope holds.
func sealed[T any](t *testing.T, what string) {
	t.Helper()
	formats.Text(t, "1/"+what, func(v *T) ([]byte, error) { return seal(what, v, maxList) }, func(b []byte, v *T) error { return unseal(what, b, v) },
		func(b []byte) []byte { return bytes.SplitN(b, []byte("\n"), 3)[1] })
}

// What a host of version 1 wrote on a datastore is read, and a host of version 1
// reads what is written now.
func TestFormats(t *testing.T) {
	sealed[Header](t, whatHeader)
	sealed[slotClaim](t, whatClaim)
	sealed[model.LockRecord](t, whatLock)
	sealed[model.ProtectedList](t, whatList)
	sealed[model.PoweredOffNote](t, whatNote)
	slot := fullSlot()
	b, err := encodeSlot(slot)
	if err != nil {
		t.Fatal(err)
	}
	old := formats.Bytes(t, "1/slot.bin", b)
	if r := decodeSlot(slot.Host, old); !r.Valid || r.Slot != slot {
		t.Errorf("the slot of an earlier version is read as %+v", r)
	}
}
