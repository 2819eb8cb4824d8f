package datastore

import (
	"errors"
	"fmt"

	"hanok.dev/hanok/internal/model"
)

// Claim carries out one claim of a lock: list, link, list again. rec.Epoch is
// one above the record that the caller has judged to be claimable; if that is
// not the highest any more nothing is written.
//
// won tells whether rec took effect: it is the highest record; or it gives the
// lock away (released, handed, movedTo) and was linked, for then somebody else
// may have followed before the second listing. highest is the highest record
// as read last, zero if it could not be read. err says why a claim is not won
// for another reason than a faster claimer; unless its kind is KindInvalid or
// KindMissing the record may still appear later, so a caller who gives up must
// release it when it does.
func Claim(d Driver, rec model.LockRecord) (won bool, highest model.LockRecord, err error) {
	object := fmt.Sprintf("%d of %s", rec.Epoch, rec.Lock)
	before, err := d.Highest(rec.Lock)
	if err != nil {
		return false, model.LockRecord{}, err
	}
	if before.Epoch+1 != rec.Epoch {
		return before.Nonce == rec.Nonce && before.Epoch == rec.Epoch, before, nil
	}
	if !rec.State.MayFollow(before.State) {
		return false, before, &Error{Op: "claim lock record", Object: object, Kind: KindInvalid,
			Cause: fmt.Sprintf("%s may not follow %s", rec.State, before.State)}
	}
	linkErr := d.Link(rec)
	// Whatever Link answered, only a fresh listing tells who won.
	after, err := d.Highest(rec.Lock)
	if err != nil {
		return false, model.LockRecord{}, errors.Join(linkErr, err)
	}
	if after.Epoch == rec.Epoch && after.Nonce == rec.Nonce {
		return true, after, nil
	}
	if linkErr == nil && after.Epoch > rec.Epoch && givesAway(rec.State) {
		return true, after, nil
	}
	if KindOf(linkErr) == KindExists || linkErr == nil {
		return false, after, nil
	}
	return false, after, linkErr
}

// givesAway tells whether others may follow a record at once.
func givesAway(s model.LockState) bool {
	switch s {
	case model.LockReleased, model.LockHanded, model.LockMovedTo:
		return true
	default:
		return false
	}
}
