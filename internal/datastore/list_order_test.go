package datastore_test

import (
	"sync/atomic"
	"testing"
	"time"

	"hanok.dev/hanok/internal/datastore"
	"hanok.dev/hanok/internal/model"
)

// A write of the list that hung so long that its caller gave it up must not
// replace, when the path heals, the newer one of the same term that was written
// since.
func TestLateListDoesNotReplaceANewerOne(t *testing.T) {
	backing := t.TempDir()
	initialise(t, backing)
	dir, fs := mount(t, backing)
	d := open(t, dir, datastore.Options{AllowBuffered: true})
	list := func(version uint64) model.ProtectedList {
		return model.ProtectedList{Term: 3, Version: version}
	}
	if err := d.WriteList(list(1)); err != nil {
		t.Fatal(err)
	}
	hung, heal := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	fs.SetDelay(func(op string) time.Duration {
		if op == "fsync" && first.CompareAndSwap(false, true) {
			close(hung)
			<-heal
		}
		return 0
	})
	late := make(chan error, 1)
	go func() { late <- d.WriteList(list(2)) }()
	<-hung
	// The next one may bear the same number, of a caller that read it again.
	for _, version := range []uint64{2, 3} {
		if err := d.WriteList(list(version)); err != nil {
			t.Fatal(err)
		}
	}
	close(heal)
	if err := <-late; datastore.KindOf(err) != datastore.KindBusy {
		t.Errorf("the late write ends with %v", err)
	}
	fs.SetDelay(nil)
	got, err := d.ReadList()
	if err != nil || got.Version != 3 {
		t.Errorf("the list reads version %d: %v", got.Version, err)
	}
	// Other terms are none of its business.
	if err := d.WriteList(model.ProtectedList{Term: 2, Version: 1}); err != nil {
		t.Error(err)
	}
	if err := d.WriteList(list(4)); err != nil {
		t.Error(err)
	}
}
