package datastore_test

import (
	"errors"
	"testing"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/datastore/datastoretest"
	"hanok.dev/hanok/internal/model"
)

// linkHook runs after a link was done, and may change its answer.
type linkHook struct {
	datastore.Driver
	after func(rec model.LockRecord, err error) error
}

func (d linkHook) Link(rec model.LockRecord) error { return d.after(rec, d.Driver.Link(rec)) }

func lockRecord(epoch model.Epoch, owner model.HostID, state model.LockState) model.LockRecord {
	r := model.LockRecord{Lock: raceLock, Epoch: epoch, Owner: owner, Boot: "b", Nonce: string(owner) + string(state), State: state}
	if state == model.LockReleased {
		r.Reason = model.ReasonUserOff
	}
	return r
}

func TestClaimWhenLinkAnswersOddly(t *testing.T) {
	tests := []struct {
		name    string
		rec     model.LockRecord
		after   func(d datastore.Driver, rec model.LockRecord, err error) error
		won     bool
		highest model.HostID
		kind    datastore.Kind
	}{
		{"done, but answered with an error", lockRecord(2, "a", model.LockHeld),
			func(_ datastore.Driver, _ model.LockRecord, _ error) error { return errors.New("lost answer") }, true, "a", ""},
		{"done, then answered that it exists, as a retried call does", lockRecord(2, "a", model.LockHeld),
			func(d datastore.Driver, rec model.LockRecord, _ error) error { return d.Link(rec) }, true, "a", ""},
		{"somebody took it over before the second listing", lockRecord(2, "a", model.LockHeld),
			func(d datastore.Driver, _ model.LockRecord, _ error) error {
				return d.Link(lockRecord(3, "b", model.LockHeld))
			}, false, "b", ""},
		{"somebody claimed a released lock before the second listing", lockRecord(2, "a", model.LockReleased),
			func(d datastore.Driver, _ model.LockRecord, _ error) error {
				return d.Link(lockRecord(3, "b", model.LockHeld))
			}, true, "b", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := datastoretest.NewMemory(cluster, datastoretest.Slots).Open()
			if err := d.CreateLock(raceLock, lockRecord(0, "a", model.LockHeld)); err != nil {
				t.Fatal(err)
			}
			hooked := linkHook{d, func(rec model.LockRecord, err error) error { return test.after(d, rec, err) }}
			won, highest, err := datastore.Claim(hooked, test.rec)
			if won != test.won || highest.Owner != test.highest || datastore.KindOf(err) != test.kind {
				t.Errorf("won %v, highest %v, error %v", won, highest, err)
			}
		})
	}
	t.Run("not done, answered with an error", func(t *testing.T) {
		d := datastoretest.NewMemory(cluster, datastoretest.Slots).Open()
		if err := d.CreateLock(raceLock, lockRecord(0, "a", model.LockHeld)); err != nil {
			t.Fatal(err)
		}
		won, highest, err := datastore.Claim(failingLink{d}, lockRecord(2, "a", model.LockHeld))
		if won || highest.Epoch != 1 || datastore.KindOf(err) != datastore.KindLost {
			t.Errorf("won %v, highest %v, error %v", won, highest, err)
		}
	})
}

type failingLink struct{ datastore.Driver }

func (failingLink) Link(model.LockRecord) error {
	return &datastore.Error{Op: "link", Object: "test", Kind: datastore.KindLost}
}
